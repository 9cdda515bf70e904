#!/usr/bin/env bash
# Export the template, and run its test in a stand-in for the console's workspace: bash ci/try_template.sh
#
# What a workspace has, and no more: an image with Ray, the template and its test in one folder, and a
# running cluster whose head takes no work, with a worker that does. The models lie in a folder that
# both see. Wants uv on the PATH, and port 8000 free.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

folder=$(mktemp -d)
workspace=$folder/workspace image=$folder/image address=127.0.0.1:6399
nodes=()
stop() {
  if ((${#nodes[@]})); then
    kill "${nodes[@]}" && wait "${nodes[@]}" || true
  fi
  rm -rf "$folder"
}
trap stop EXIT

python ci/export_template.py "$folder/exported"
mkdir "$workspace"
cp -r "$folder"/exported/{templates,tests}/*/. "$workspace"

ray=$(grep -o '^ray[^ ]*' requirements.txt)
uv venv --quiet --python "$(command -v python)" "$image"
uv pip install --quiet --python "$image/bin/python" "$ray" ipykernel
ln -s "$(command -v uv)" "$image/bin/uv"
export PATH=$image/bin:/usr/local/bin:/usr/bin:/bin TMPDIR=$folder
export RAY_AUTH_MODE=disabled # else the cluster and its clients may disagree on the token
unset PYTHONPATH VIRTUAL_ENV

start_node() { # NAME OPTION...
  ray start "${@:2}" --block >"$folder/$1.log" 2>&1 &
  nodes+=($!)
}
wait_for_nodes() { # HOW-MANY
  for _ in {1..60}; do
    (($(ray list nodes --address "$address" --filter state=ALIVE 2>/dev/null | grep -c ALIVE) >= $1)) && return
    sleep 1
  done
  cat "$folder"/*.log
  return 1
}
start_node head --head --num-cpus=0 --port="${address#*:}" --temp-dir="$folder/ray"
wait_for_nodes 1
# A second agent on this machine needs a port of its own, or the dashboard reads no logs of its node.
start_node worker --address="$address" --num-cpus="$(nproc)" --dashboard-agent-listen-port=0
wait_for_nodes 2

RAY_ADDRESS=$address MODEL_STORE=$folder/models bash "$workspace/tests.sh"
uv pip check --python "$image/bin/python" # the lock agrees with the image
