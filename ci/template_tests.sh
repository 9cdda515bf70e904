#!/usr/bin/env bash
# Run README.ipynb from top to bottom, as a reader would: bash tests.sh
#
# Runs in the folder where it lies, which is the template's: the console puts both into one. Ends
# within 29 minutes, and stops all that the notebook started, however either of them ends.
set -euxo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

time_limit_s=${TIME_LIMIT_S:-1740}
stop_limit_s=20
# All that the notebook starts has this in its environment, also what outlives its parents.
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

# Not `pip install`: a workspace repeats that one on its workers. Any ipykernel will do.
uv pip install --quiet --python "$(command -v python)" papermill==2.7.0 ipykernel
executed=$(mktemp -d)/README.ipynb
timeout "$time_limit_s" python -m papermill README.ipynb "$executed" \
  --log-output --kernel python3 --cwd . &
wait $! # not in the foreground: a signal would have to wait for its end
