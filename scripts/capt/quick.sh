#!/usr/bin/env bash
# From a folder of your own images to a trained CAPT, a table beside zero-shot CLIP, and the confusion report.
#   bash scripts/capt/quick.sh FOLDER [SHOTS]
# FOLDER holds one folder of images per class (or train/, val/, test/ of such folders), see docs/USE.md; SHOTS images
# of each class are trained on (16; a class with fewer is taken whole). Runs go to output/quick/<name of FOLDER>.
# Variables that change it are listed in scripts/_run.sh; SEEDS is 1 here. Needs pip install '.[report,tables]'.
[[ ! -d ${1:-} ]] || set -- "$(cd "$1" && pwd)" "${@:2}" # before the folder changes
source "$(dirname "${BASH_SOURCE[0]}")/../_run.sh"
tool capt_tools.quick "$@"
