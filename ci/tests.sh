#!/usr/bin/env bash
# All tests, in an environment of their own: bash ci/tests.sh
#
# Wants Python 3.11 or 3.12 (PYTHON=... chooses one), and ports 8000 and 9000 free. Installs Debian's
# prometheus and wrk if they are missing. Starts and stops its own servers.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

template_by_s=$((29 * 60)) # the template's run takes up to 10 minutes, and 40 are all there are

step() { printf '\n== %s (%d s)\n' "$1" "$SECONDS"; }

find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3 python3.12 python3.11; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "ci/tests.sh wants Python 3.11 or 3.12: set PYTHON to one" >&2
  return 1
}

step "Make the environment"
python=$(find_python)
if ! "$python" -c 'import ensurepip' 2>/dev/null; then # Debian packs it apart
  apt-get update -q && apt-get install -q -y python3-venv
fi
if ! { command -v prometheus && command -v wrk; } >/dev/null; then
  apt-get update -q && apt-get install -q -y --no-install-recommends prometheus wrk
fi
venv=.venv-tests
if [[ $("$venv/bin/python" -V 2>/dev/null) != "$("$python" -V)" ]]; then
  rm -rf "$venv"
  "$python" -m venv "$venv"
fi
"$venv/bin/pip" install -q -r ci/requirements.txt -r content/requirements_pytorch.txt
"$venv/bin/pip" install -q -r content/requirements_s3.txt # apart: it has a hash, so it must be alone
export PATH=$PWD/$venv/bin:$PATH
unset RAY_ADDRESS
if [[ -f /etc/ssl/certs/ca-certificates.crt ]]; then
  export UV_SYSTEM_CERTS=true # as pip: a network may have a certificate of its own
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export RAY_TMPDIR=$scratch # else Ray would try to join a cluster that somebody else left in /tmp/ray
python - <<'PYTHON'
import socket

for port in 8000, 9000:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise SystemExit(f"port {port} is taken, stop what listens there: {error}")
PYTHON

step "Check the style of code and notebook"
ruff check .
ruff format --check .

step "Check that the Markdown is what the notebooks render to"
bash convert_to_md.sh --check

step "Check that the data are what the source gives"
python ci/derive_footfall.py --check

step "Run the notebooks in a copy from which the files that they write are gone"
copy=$scratch/copy
mkdir "$copy"
cp -r content "$copy"
rm -rf "$copy/content/models" "$copy"/content/{*.py,*.proto,*.yaml,Dockerfile}
for notebook in notebook pytorch_s3; do
  pytest -q -x -p no:cacheprovider --nbval-lax --nbval-cell-timeout=300 \
    --junitxml="$copy/$notebook.xml" "$copy/content/$notebook.ipynb"
done
python ci/compare_run.py "$copy"

step "Run the tests, on a live service"
pytest -q -p no:cacheprovider --durations=25 ci/tests

step "Restart the notebook's kernel while its service runs"
pytest -q -p no:cacheprovider ci/tests_kernel

step "Lose a node of a cluster under load"
pytest -q -p no:cacheprovider ci/tests_nodes

step "Run those of the contract and of faults again, through the fast ingress"
INGRESS=fast pytest -q -p no:cacheprovider ci/tests/test_{contract,faults,fast_ingress,pinning}.py

step "Run the benchmarks in short"
python ci/benchmarks/cold_burst.py --short
python ci/benchmarks/remapping.py --short
python ci/benchmarks/compare_servers.py --short --only "ours, fast ingress" "Ray per customer" \
  FastAPI BentoML LitServe MOSEC MLServer # cold_burst.py has just run the other two
python ci/benchmarks/drills.py --short
python ci/benchmarks/soak.py --short

step "Run the exported template in a stand-in for a workspace"
if ((SECONDS < template_by_s)); then
  bash ci/try_template.sh
else
  echo "LEFT OUT: this machine is too slow to run every notebook twice in 40 minutes."
  echo "To run it by itself: PATH=$venv/bin:\$PATH bash ci/try_template.sh"
fi

step "All passed"
