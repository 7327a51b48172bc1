#!/usr/bin/env bash
# From a fresh clone to a table on a CPU: installs into .venv, then runs zero-shot CLIP, CoOp, CoCoOp, MaPLe and CAPT
# (on zero-shot CLIP, CoOp and MaPLe) base-to-new on the bundled demo data set, and prints what compare.py makes of them.
#   bash scripts/quickstart.sh
# A second call skips what is done. METHODS, SEEDS and OUTPUT may be set as for scripts/run_all.sh.
source "$(dirname "${BASH_SOURCE[0]}")/_venv.sh"
[[ ${DRY_RUN:-0} != 0 ]] || ensure_venv tables

export BACKBONE=assets/glyphs_clip.pt SIZE="(48, 48)" CFG=demo DATA=${DATA:-data} DATASETS=glyphs
export SEEDS=${SEEDS:-1} OUTPUT=${OUTPUT:-output/quickstart}
# The demo CLIP is too small to gain from threads: a second one triples the CPU time and saves none.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export METHODS=${METHODS:-zsclip coop cocoop maple capt:ZeroshotCLIP capt:CoOp capt:MaPLe}
if [[ ${DRY_RUN:-0} != 0 ]]; then
    bash scripts/run_all.sh base2new
    echo "${PYTHON:-python} scripts/compare.py $OUTPUT"
    exit
fi

start=$SECONDS
mkdir -p "$OUTPUT"
echo "Running $METHODS on drawn pictures (data in $DATA/glyphs, log in $OUTPUT/quickstart.log)"
bash scripts/run_all.sh base2new 2>&1 | tee "$OUTPUT/quickstart.log" |
    grep --line-buffered -E '^(Run this job|Results are|CAPT needs|\* accuracy|error:|.* failed:|All runs)' || {
    tail -n 30 "$OUTPUT/quickstart.log" >&2
    exit 1
}
"$PYTHON" scripts/compare.py "$OUTPUT"
echo
echo "Took $((SECONDS - start)) s. Runs: $OUTPUT/base2new; each folder holds log.txt, results.json, predictions.npz and the checkpoint."
