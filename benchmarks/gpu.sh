#!/usr/bin/env bash
# Every benchmark on a GPU, in under eight minutes; the figures go into one JSON file, which is what to send.
#   bash benchmarks/gpu.sh [OUTPUT]        (gpu.json)
#   CAPT_PEERS=../peers bash benchmarks/gpu.sh      beside the original repositories, where copies of them are there
#   DEVICE=cpu SMALL=1 bash benchmarks/gpu.sh       tries the script itself, on a CPU and the smallest sizes
#   PYTHON    python to use   (the active environment's, else .venv's, else python)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ -z ${PYTHON:-} ]]; then
    PYTHON=$(command -v python >/dev/null && echo python || echo python3)
    [[ -n ${VIRTUAL_ENV:-}${CONDA_PREFIX:-} || ! -x .venv/bin/python ]] || PYTHON=.venv/bin/python
fi
small=()
[[ ${SMALL:-0} == 0 ]] || small=(--small)
exec "$PYTHON" benchmarks/all_of_them.py --output "${1:-gpu.json}" --device "${DEVICE:-cuda}" "${small[@]}"
