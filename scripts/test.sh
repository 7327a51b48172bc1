#!/usr/bin/env bash
# Lint, types and the fast tests, in the virtual environment that it makes in .venv.
# Behind the tests, a table of the lines and branches that they did not reach.
#   bash scripts/test.sh [PYTEST ARGUMENT...]       e.g. bash scripts/test.sh -m slow
# Slow and GPU tests are left out unless asked for with -m.
source "$(dirname "${BASH_SOURCE[0]}")/_venv.sh"
ensure_venv tables,test

"$PYTHON" -m ruff check .
"$PYTHON" -m mypy
"$PYTHON" -m pytest -q -n "${WORKERS:-2}" --cov --cov-report=term "$@"
