#!/usr/bin/env bash
# From a folder of your own images to a trained CAPT, a table beside zero-shot CLIP, and the confusion report.
#   bash scripts/capt/quick.sh FOLDER [SHOTS]
# FOLDER holds one folder of images per class (or train/, val/, test/ of such folders), see docs/USE.md; SHOTS images
# of each class are trained on (16; a class with fewer is taken whole). Runs go to output/quick/<name of FOLDER>.
# Variables that change it are listed in scripts/_run.sh; SEEDS is 1 here. Needs pip install '.[report,tables]'.
[[ -z ${1:-} || -d $1 ]] || {
    echo "error: no folder $1" >&2
    exit 2
}
FOLDER=${1:+$(cd "$1" && pwd)}
export SEEDS=${SEEDS:-1}
OUTPUT=${OUTPUT:-output/quick/$(basename "${FOLDER:-folder}")}
source "$(dirname "${BASH_SOURCE[0]}")/../_run.sh"
[[ -n $FOLDER ]] || die "usage: bash scripts/capt/quick.sh FOLDER [SHOTS]"
DATA=$FOLDER
SHOTS=${2:-$SHOTS}
if [[ -f $OUTPUT/folder.txt && $(<"$OUTPUT/folder.txt") != "$FOLDER" ]]; then
    die "$OUTPUT holds the runs of $(<"$OUTPUT/folder.txt"); set OUTPUT to another folder"
fi
dry || { mkdir -p "$OUTPUT" && echo "$FOLDER" >"$OUTPUT/folder.txt"; }

(CFG='' zeroshot folder vit_b16)
few_shot CAPT folder "$SHOTS"
runs=()
for seed in $SEEDS; do
    runs+=("$OUTPUT/folder/CAPT/${TAG}_${SHOTS}shots/seed$seed")
done
show() {
    printf '%q ' "$@"
    echo
}
compare=("$PYTHON" scripts/compare.py "$OUTPUT")
report=("$PYTHON" scripts/confusion_report.py "${runs[@]}" --images "$DATA" --output "$OUTPUT/report")
show "${compare[@]}"
show "${report[@]}"
dry && exit
"${compare[@]}"
"${report[@]}"
echo
echo "Report: $OUTPUT/report/report.html"
echo "Predict: $(show "$PYTHON" scripts/predict.py --run "${runs[0]}")IMAGE_OR_FOLDER..."
