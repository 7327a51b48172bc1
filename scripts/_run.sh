# shellcheck shell=bash
# Sourced by the scripts beside and below it: finds python and hands over to capt_tools/plan, which knows the protocols.
#
# A script works from any folder; the paths it takes and makes are relative to the repository root. It prints the
# python command that it starts, and skips a run whose results.json is there. Variables that change a run:
#
#   DATA      folder that holds the data set folders          (data)
#   BACKBONE  CLIP model name, or path of a checkpoint        (as the yaml says)
#   SIZE      input size of that model, e.g. "(48, 48)"       (as the yaml says)
#   SHOTS     training images per class                       (16)
#   SEEDS     seeds of the scripts that loop over them        (1 2 3)
#   CFG       yaml in configs/trainers/<Trainer>/, no suffix  (the paper's for the method and protocol)
#   EPOCHS    overrides OPTIM.MAX_EPOCH                       (as the yaml says)
#   LOADEP    epoch of the checkpoint to test, or "best"      (the last one that was saved)
#   SOURCE    data set of the cross-data-set training         (imagenet)
#   BASE      base learner under CAPT: ZeroshotCLIP, CoOp ... (ZeroshotCLIP)
#   BASE_CFG  yaml of the base learner                        (CFG where the base has a yaml of that name, else the paper's)
#   BASE_DIR  run folder of the base learner under CAPT, where these scripts did not make it  (theirs)
#   TEACHER   CLIP of PromptKD's teacher                      (as the yaml says)
#   TEACHER_DIR  the teacher's PromptSRC run, or checkpoint   (teacher_model/<name of the data set>)
#   OUTPUT    where run folders go                            (output)
#   OPTS      more KEY VALUE pairs for train.py               (none)
#   VARIANT   word behind the configuration's folder name, to tell runs with other OPTS apart  (none)
#   NPROC     processes that do one run together, one on each GPU  (1)
#   PYTHON    python to use                                   (the active environment's, else .venv's, else python)
#   DRY_RUN   1: print the commands, run nothing

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ -z ${PYTHON:-} ]]; then
    PYTHON=$(command -v python >/dev/null && echo python || echo python3)
    # What quickstart.sh or test.sh made, unless another environment is active.
    [[ -n ${VIRTUAL_ENV:-}${CONDA_PREFIX:-} || ! -x .venv/bin/python ]] || PYTHON=.venv/bin/python
fi
export PYTHON

# tool MODULE ARGUMENT...: a Python module takes over, in a python that is new enough; PYTHON itself if it can
tool() {
    local python
    for python in "$PYTHON" python python3 .venv/bin/python; do
        if [[ $("$python" -c 'import sys; print(sys.version_info >= (3, 10))' 2>/dev/null) == True ]]; then
            exec "$python" -m "$@"
        fi
    done
    echo "error: no python 3.10 or newer found; set PYTHON" >&2
    exit 2
}

# plan PROTOCOL ARGUMENT...: carry out what the plans say; drop_in.py puts them into other repositories as capt_plan
plan() {
    local plans=capt_tools.plan
    [[ ! -d capt_plan ]] || plans=capt_plan
    tool "$plans.script" "$0" "$@"
}
