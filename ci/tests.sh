#!/usr/bin/env bash
# The tests, in three tiers, in an environment of their own:
#
#   bash ci/tests.sh            what every change has to pass: at most 15 minutes on two cores
#   bash ci/tests.sh chapters   every chapter, each alone in a fresh copy: at most 25 minutes
#   bash ci/tests.sh long       the rest: depth, faults, nodes, other servers; before a release
#
# Wants Python 3.11 or 3.12 (PYTHON=... chooses one), and ports 8000 and 9000 free. Starts and stops
# its own servers, on loopback. See ci/README.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tier=${1:-}
if [[ ! $tier =~ ^(|chapters|long)$ ]]; then
  echo "there is no tier $tier: give none, chapters, or long" >&2
  exit 2
fi

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

install_debian() { # COMMAND PACKAGE ...
  command -v "$1" >/dev/null || {
    apt-get update -q && apt-get install -q -y --no-install-recommends "${@:2}"
  }
}

install_chapters_extras() { # the S3 server apart: it has a hash, so it must be alone
  pip install -q -r content/chapters/requirements_pytorch_s3.txt
  pip install -q -r content/chapters/requirements_mlflow.txt
  pip install -q -r content/chapters/requirements_s3_server.txt
}

run_notebook() { # PATH-IN-CONTENT: alone, in a copy without models and what the notebook writes
  local copy name
  name=$(basename "$1" .ipynb)
  copy=$scratch/$name
  mkdir "$copy"
  git ls-files -z --cached --others --exclude-standard content | xargs -0 cp --parents -t "$copy"
  { grep -oE '"%%writefile [^ \\"]+' "content/$1" || true; } | cut -d " " -f 2 | # none: a chapter
    (cd "$copy/content" && xargs -r rm)
  pytest -q -x -p no:cacheprovider --nbval-lax --nbval-cell-timeout=300 \
    --junitxml="$copy/report.xml" "$copy/content/$1"
  python ci/compare_run.py "$copy/content" "$1" "$copy/report.xml"
  rm -rf "$copy"
}

step "Make the environment"
python=$(find_python)
if ! "$python" -c 'import ensurepip' 2>/dev/null; then # Debian packs it apart
  apt-get update -q && apt-get install -q -y python3-venv
fi
venv=.venv-tests
if [[ $("$venv/bin/python" -V 2>/dev/null) != "$("$python" -V)" ]]; then
  rm -rf "$venv"
  "$python" -m venv "$venv"
fi
export PATH=$PWD/$venv/bin:$PATH
pip install -q --no-compile -r ci/requirements.txt # compiles what is imported, when it is
unset RAY_ADDRESS MODEL_STORE SERVICE_URL
scratch=$(mktemp -d /tmp/mx-XXXXXX) # short, for Ray's sockets: their paths have an end
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

if [[ -z $tier ]]; then
  step "Check the style of code and notebooks"
  ruff check .
  ruff format --check .

  step "Check that the Markdown is what the notebooks render to"
  bash convert_to_md.sh --check

  step "Check that the data are what the source gives"
  python ci/derive_footfall.py --check

  step "Test the modules, the files, and the house, without Ray"
  pytest -q -p no:cacheprovider -n 2 --durations=10 ci/tests/unit

  step "Run the tutorial in a fresh copy"
  run_notebook notebook.ipynb

  step "Test both services, live"
  pytest -q -p no:cacheprovider --durations=15 ci/tests/live

  step "Test both services, live, through the fast ingress"
  INGRESS=fast pytest -q -p no:cacheprovider --durations=15 ci/tests/live \
    --ignore-glob='*/test_serve_config.py' --ignore-glob='*/test_settings.py' \
    --ignore-glob='*/test_hot_reload.py' --ignore-glob='*/test_*_models.py' \
    --ignore-glob='*/test_synthetic_customers.py' # alike on both
fi

if [[ $tier == chapters ]]; then
  step "Install what the chapters on PyTorch and S3, and on a registry, need"
  install_chapters_extras
  for chapter in content/chapters/*.ipynb; do
    step "Run $chapter"
    run_notebook "chapters/$(basename "$chapter")"
  done
fi

if [[ $tier == long ]]; then
  if [[ -f /etc/ssl/certs/ca-certificates.crt ]]; then
    export UV_SYSTEM_CERTS=true # as pip: a network may have a certificate of its own
  fi
  step "Install the other servers' environments, Prometheus, and a load generator"
  install_debian prometheus prometheus
  install_debian wrk wrk
  install_chapters_extras

  step "Test what wants S3, PyTorch, MLflow, Prometheus, a cluster to join, or the package index"
  pytest -q -p no:cacheprovider --durations=15 ci/tests/long --ignore=ci/tests/long/nodes

  step "Lose a node of a cluster under load" # apart: it sets Ray's variables before Ray starts
  pytest -q -p no:cacheprovider ci/tests/long/nodes

  step "Fuzz at depth"
  FUZZ_EXAMPLES=1000 pytest -q -p no:cacheprovider ci/tests/unit/test_fuzz_*.py
  for ingress in default fast; do
    INGRESS=$ingress FUZZ_EXAMPLES=200 pytest -q -p no:cacheprovider ci/tests/live/test_fuzz_service.py
  done

  step "Drill every fault under load, and soak"
  python ci/benchmarks/drills.py --short
  python ci/benchmarks/soak.py --short

  step "Compare with other servers"
  python ci/benchmarks/compare_servers.py --short
  python ci/benchmarks/compare_pools.py --short

  step "Run the exported template in a stand-in for a workspace"
  bash ci/try_template.sh
fi

step "All passed"
