#!/usr/bin/env bash
# Run README.ipynb from top to bottom, as a reader would, then the chapters: bash tests.sh
#
# Leaves out a chapter that has requirements of its own beside it, chapters/requirements_NAME.txt.
# Runs in the folder where it lies, which is the template's: the console puts both into one. Ends
# within 29 minutes, and stops all that a notebook started, however either of them ends.
set -euxo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

time_limit_s=${TIME_LIMIT_S:-1740} # of all notebooks together
stop_limit_s=20
# All that a notebook starts has this in its environment, also what outlives its parents.
export TEMPLATE_TEST=$$.$(date +%s)

started() {
  grep -lszxF "TEMPLATE_TEST=$TEMPLATE_TEST" /proc/[0-9]*/environ | cut -d / -f 3 || true
}

stop() {
  { set +x; } 2>/dev/null
  local signal=TERM deadline=$((SECONDS + stop_limit_s))
  while kill -s "$signal" $(started) 2>/dev/null; do # as long as one of them is there
    sleep 0.5
    ((SECONDS < deadline)) || signal=KILL
  done
}
trap stop EXIT

run() { # NOTEBOOK FOLDER-TO-RUN-IN
  timeout "$((time_limit_s > SECONDS ? time_limit_s - SECONDS : 1))" \
    python -m papermill "$1" "$executed/$(basename "$1")" \
    --log-output --kernel python3 --cwd "$2" &
  wait $! # not in the foreground: a signal would have to wait for its end
  stop # the next one wants its ports
  set -x
}

# Not `pip install`: a workspace repeats that one on its workers. Any ipykernel will do.
uv pip install --quiet --python "$(command -v python)" papermill==2.7.0 ipykernel
executed=$(mktemp -d)
run README.ipynb .
shopt -s nullglob
for chapter in chapters/*.ipynb; do
  requirements=chapters/requirements_$(basename "$chapter" .ipynb).txt
  if [[ -e $requirements ]]; then
    echo "LEFT OUT: $chapter, which needs $requirements"
  else
    run "$chapter" chapters
  fi
done
