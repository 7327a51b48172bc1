# shellcheck shell=bash
# Sourced by quickstart.sh and test.sh: a virtual environment in .venv with what the repository needs.
#
#   PYTHON  python to make it with, 3.10 or newer  (python3)
#   VENV    folder of the environment              (.venv)

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV=${VENV:-.venv}

# ensure_venv EXTRAS: make or update $VENV and set PYTHON to its python; quick where nothing changed
ensure_venv() {
    local python=${PYTHON:-python3} stamp=$VENV/installed-$1 wanted
    command -v "$python" >/dev/null || {
        echo "error: $python not found; set PYTHON to a python 3.10 or newer" >&2
        exit 2
    }
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
        echo "error: python 3.10 or newer is needed, $python is $("$python" -V); set PYTHON to a newer one" >&2
        exit 2
    }
    wanted=$(cat requirements.txt setup.py pyproject.toml | "$python" -c 'import hashlib, sys
print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
    if [[ ! -f $stamp || $(cat "$stamp") != "$wanted" ]]; then
        [[ -x $VENV/bin/python ]] || {
            echo "Making the virtual environment $VENV with $("$python" -V)"
            "$python" -m venv "$VENV"
        }
        echo "Installing the requirements into $VENV (torch is large; later runs skip this)"
        "$VENV/bin/python" -m pip install --disable-pip-version-check -e ".[$1]"
        echo "$wanted" >"$stamp"
    fi
    PYTHON=$(cd "$VENV" && pwd)/bin/python
    export PYTHON
}
