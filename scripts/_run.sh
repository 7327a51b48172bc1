# shellcheck shell=bash
# The one body behind scripts/<method>/*.sh, which source it and call one of the protocols at the end of this file.
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
#   PYTHON    python to use                                   (the active environment's, else .venv's, else python)
#   DRY_RUN   1: print the commands, run nothing

set -euo pipefail

SCRIPTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$SCRIPTS/.."

DATA=${DATA:-data}
OUTPUT=${OUTPUT:-output}
SHOTS=${SHOTS:-16}
SEEDS=${SEEDS:-1 2 3}
SOURCE=${SOURCE:-imagenet}
BASE=${BASE:-ZeroshotCLIP}
if [[ -z ${PYTHON:-} ]]; then
    PYTHON=$(command -v python >/dev/null && echo python || echo python3)
    # What quickstart.sh or test.sh made, unless another environment is active.
    [[ -n ${VIRTUAL_ENV:-}${CONDA_PREFIX:-} || ! -x .venv/bin/python ]] || PYTHON=.venv/bin/python
fi

die() {
    echo "error: $*" >&2
    exit 2
}

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || die "bash 4.4 or newer is needed, this is $BASH_VERSION"

dry() { [[ ${DRY_RUN:-0} != 0 ]]; }

# usage NEEDED "ARGUMENTS" "$@": stop with one line unless NEEDED arguments are there
usage() {
    local needed=$1 names=$2
    shift 2
    [[ $# -ge $needed ]] || die "usage: bash $0 $names"
}

# default_cfg TRAINER PROTOCOL DATASET: the yaml that the paper's numbers were made with
default_cfg() {
    case $1-$2-$3 in
        ZeroshotCLIP-* | LinearProbe-* | CLIPAdapter-* | TipAdapter-* | TipAdapterF-*) echo vit_b16 ;;
        CoOp-base2new-imagenet | CoOp-xd-*) echo vit_b16_ep50_ctxv1 ;;
        CoOp-base2new-*) echo vit_b16_ctxv1 ;;
        CoOp-few_shot-*) echo vit_b16 ;;
        CoCoOp-*) echo vit_b16_c4_ep10_batch1_ctxv1 ;;
        MaPLe-xd-*) echo vit_b16_c2_ep5_batch4_2ctx_cross_datasets ;;
        MaPLe-*) echo vit_b16_c2_ep5_batch4_2ctx ;;
        IVLP-*) echo vit_b16_c2_ep5_batch4_2+2ctx ;;
        VPT-*) echo vit_b16_c2_ep5_batch4_4 ;;
        PromptSRC-xd-*) echo vit_b16_c2_ep20_batch4_4+4ctx_cross_datasets ;;
        PromptSRC-few_shot-*) echo vit_b16_c2_ep50_batch4_4+4ctx_few_shot ;;
        PromptSRC-*) echo vit_b16_c2_ep20_batch4_4+4ctx ;;
        PromptKD-xd-*) echo vit_b16_c2_ep20_batch8_4+4ctx_cross_datasets ;;
        PromptKD-*) echo vit_b16_c2_ep20_batch8_4+4ctx ;;
        CAPT-*) echo vit_b16_ep20 ;;
        *) die "no default configuration for $1; set CFG" ;;
    esac
}

# yaml_of TRAINER CFG: zero-shot CLIP has no yaml of its own and reads CoOp's, as in CoOp's repository
yaml_of() {
    local folder=$1
    [[ $folder == ZeroshotCLIP* ]] && folder=CoOp
    echo "configs/trainers/$folder/$2.yaml"
}

# choose TRAINER PROTOCOL DATASET: sets CFG, YAML and TAG (the folder name that stands for the configuration)
choose() {
    CFG=${CFG:-$(default_cfg "$1" "$2" "$3")}
    YAML=$(yaml_of "$1" "$CFG")
    [[ -f $YAML ]] || die "no such configuration: $YAML"
    TAG=$CFG
    if [[ $1 == CAPT ]]; then TAG+=_on_$BASE; fi
    if [[ -n ${VARIANT:-} ]]; then TAG+=_$VARIANT; fi
}

# script_of TRAINER: its folder in scripts/
script_of() {
    case $1 in
        ZeroshotCLIP) echo zsclip ;;
        *) echo "${1,,}" ;;
    esac
}

# epoch_of MODEL_DIR YAML: LOADEP, else the last saved epoch, else (nothing saved yet) the yaml's last epoch
epoch_of() {
    local pointer name
    if [[ -n ${LOADEP:-} ]]; then
        echo "$LOADEP"
        return
    fi
    for pointer in "$1"/*/checkpoint; do
        [[ -f $pointer ]] || continue
        name=$(head -n 1 "$pointer")
        if [[ $name == model.pth.tar-* ]]; then
            echo "${name##*-}"
            return
        fi
    done
    echo "${EPOCHS:-$(sed -n 's/^ *MAX_EPOCH: *\([0-9][0-9]*\).*/\1/p' "$2")}"
}

# model_flags MODEL_DIR: adds the flags that load its checkpoint to FLAGS
model_flags() {
    local epoch
    epoch=$(epoch_of "$1" "$YAML")
    FLAGS+=(--model-dir "$1")
    [[ $epoch == best ]] || FLAGS+=(--load-epoch "$epoch")
}

# need_model DIR HOW: stop unless DIR holds a checkpoint
need_model() {
    dry && return
    compgen -G "$1/*/model*.pth.tar*" >/dev/null || die "no trained model in $1; train it first: $2"
}

# launch DIR ARGUMENT...: run train.py into DIR, unless it is done there
launch() {
    local dir=$1
    shift
    if [[ -f $dir/results.json ]]; then
        echo "Results are available in $dir (skip)"
        return
    fi
    local command=("$PYTHON" train.py --root "$DATA" "$@")
    [[ -z ${SIZE:-} ]] || command+=(INPUT.SIZE "$SIZE")
    # shellcheck disable=SC2206  # OPTS holds several words
    [[ -z ${OPTS:-} ]] || command+=($OPTS)
    echo "Run this job and save the output to $dir"
    printf '%q ' "${command[@]}"
    echo
    dry || "${command[@]}"
}

# flags TRAINER DATASET SEED DIR: sets FLAGS, the part of the command line that all protocols share
flags() {
    FLAGS=(--trainer "$1" --dataset-config-file "configs/datasets/$2.yaml" --config-file "$YAML" --output-dir "$4")
    [[ -z $3 ]] || FLAGS=(--seed "$3" "${FLAGS[@]}")
    [[ -z ${BACKBONE:-} ]] || FLAGS+=(--backbone "$BACKBONE")
    [[ -f configs/datasets/$2.yaml ]] || die "no such data set: configs/datasets/$2.yaml"
}

# base_opts TRAINER PROTOCOL DATASET SEED: sets BASE_OPTS, which tell CAPT where its base learner's run lies; trains
# that run first where there is none
base_opts() {
    BASE_OPTS=()
    [[ $1 == CAPT ]] || return 0
    BASE_OPTS=(TRAINER.CAPT.BASE.NAME "$BASE")
    [[ $BASE != ZeroshotCLIP ]] || return 0
    if [[ $BASE == PromptKD ]]; then
        [[ -z ${TEACHER:-} ]] || BASE_OPTS+=(TRAINER.CAPT.BASE.TEACHER_NAME "$TEACHER")
        [[ -z ${TEACHER_DIR:-} ]] || BASE_OPTS+=(TRAINER.CAPT.BASE.TEACHER_DIR "$TEACHER_DIR")
    fi
    if [[ -n ${BASE_DIR:-} ]]; then
        BASE_OPTS+=(TRAINER.CAPT.BASE.DIR "$BASE_DIR")
        return
    fi
    local SHOTS=$SHOTS
    [[ $BASE != PromptKD ]] || SHOTS=0 # it learns from all images
    local cfg=${BASE_CFG:-} dir script
    if [[ -z $cfg ]]; then
        cfg=$CFG
        [[ -f $(yaml_of "$BASE" "$cfg") ]] || cfg=$(default_cfg "$BASE" "$2" "$3")
    fi
    script="scripts/$(script_of "$BASE")/$2_train.sh"
    case $2 in
        base2new) dir=$OUTPUT/base2new/train_base/$3/shots_$SHOTS/$BASE/$cfg/seed$4 ;;
        xd) dir=$OUTPUT/$3/$BASE/${cfg}_${SHOTS}shots/seed$4 ;;
        few_shot)
            dir=$OUTPUT/$3/$BASE/${cfg}_${SHOTS}shots/seed$4
            script="scripts/$(script_of "$BASE")/few_shot.sh"
            ;;
    esac
    if [[ ! -f $dir/results.json ]]; then
        local arguments=("$3" "$4")
        [[ $2 != few_shot ]] || arguments=("$3" "$SHOTS")
        echo "CAPT needs its base learner first: $BASE in $dir"
        env -u EPOCHS -u LOADEP -u OPTS -u VARIANT CFG="$cfg" SEEDS="$4" SHOTS="$SHOTS" OUTPUT="$OUTPUT" DATA="$DATA" \
            PYTHON="$PYTHON" bash "$script" "${arguments[@]}"
    fi
    local epoch
    epoch=$(LOADEP='' EPOCHS='' epoch_of "$dir" "$(yaml_of "$BASE" "$cfg")")
    BASE_OPTS+=(TRAINER.CAPT.BASE.DIR "$dir" TRAINER.CAPT.BASE.EPOCH "$epoch")
}

# kd_opts DATASET: options of PromptKD's runs
kd_opts() {
    case $1 in # the published weights; the yaml's is that of the other sets
        fgvc_aircraft | oxford_flowers | dtd) echo -n "TRAINER.PROMPTKD.KD_WEIGHT 200.0 " ;;
    esac
    [[ -z ${TEACHER:-} ]] || echo -n "TRAINER.PROMPTKD.TEACHER_NAME $TEACHER "
    [[ -z ${TEACHER_DIR:-} ]] || echo -n "TRAINER.PROMPTKD.TEACHER_DIR $TEACHER_DIR "
    echo "${OPTS:-}"
}

train_opts() {
    if [[ -n ${EPOCHS:-} ]]; then echo "OPTIM.MAX_EPOCH $EPOCHS"; fi
}

# ---- protocols -------------------------------------------------------------------------------------------------

# base2new_train TRAINER DATASET SEED: train on the base classes, test on them
base2new_train() {
    usage 3 "DATASET SEED" "$@"
    local trainer=$1 dataset=$2 seed=$3
    choose "$trainer" base2new "$dataset"
    local dir=$OUTPUT/base2new/train_base/$dataset/shots_$SHOTS/$trainer/$TAG/seed$seed
    flags "$trainer" "$dataset" "$seed" "$dir"
    [[ $trainer != ZeroshotCLIP ]] || FLAGS+=(--eval-only)
    base_opts "$trainer" base2new "$dataset" "$seed"
    # shellcheck disable=SC2046
    launch "$dir" "${FLAGS[@]}" DATASET.NUM_SHOTS "$SHOTS" DATASET.SUBSAMPLE_CLASSES base "${BASE_OPTS[@]}" $(train_opts)
}

# base2new_test TRAINER DATASET SEED: test the model of base2new_train on the new classes (SUB=base: on the base ones)
base2new_test() {
    usage 3 "DATASET SEED" "$@"
    local trainer=$1 dataset=$2 seed=$3 sub=${SUB:-new}
    choose "$trainer" base2new "$dataset"
    local tail=$dataset/shots_$SHOTS/$trainer/$TAG/seed$seed
    local model=$OUTPUT/base2new/train_base/$tail dir=$OUTPUT/base2new/test_$sub/$tail
    flags "$trainer" "$dataset" "$seed" "$dir"
    if [[ $trainer != ZeroshotCLIP ]]; then
        need_model "$model" "bash scripts/$(script_of "$trainer")/base2new_train.sh $dataset $seed"
        model_flags "$model"
    fi
    base_opts "$trainer" base2new "$dataset" "$seed"
    launch "$dir" "${FLAGS[@]}" --eval-only DATASET.NUM_SHOTS "$SHOTS" DATASET.SUBSAMPLE_CLASSES "$sub" "${BASE_OPTS[@]}"
}

# xd_train TRAINER [DATASET] SEED: train on all classes of SOURCE (ImageNet), for other data sets
xd_train() {
    usage 2 "[DATASET] SEED" "$@"
    local trainer=$1 dataset=$SOURCE seed=$2
    if [[ $# -ge 3 ]]; then dataset=$2 seed=$3; fi
    choose "$trainer" xd "$dataset"
    local dir=$OUTPUT/$dataset/$trainer/${TAG}_${SHOTS}shots/seed$seed
    flags "$trainer" "$dataset" "$seed" "$dir"
    base_opts "$trainer" xd "$dataset" "$seed"
    # shellcheck disable=SC2046
    launch "$dir" "${FLAGS[@]}" DATASET.NUM_SHOTS "$SHOTS" "${BASE_OPTS[@]}" $(train_opts)
}

# xd_test TRAINER DATASET SEED: test the model of xd_train on DATASET
xd_test() {
    usage 3 "DATASET SEED" "$@"
    local trainer=$1 dataset=$2 seed=$3
    choose "$trainer" xd "$SOURCE"
    local model=$OUTPUT/$SOURCE/$trainer/${TAG}_${SHOTS}shots/seed$seed
    local dir=$OUTPUT/evaluation/$trainer/${TAG}_${SHOTS}shots/$dataset/seed$seed
    flags "$trainer" "$dataset" "$seed" "$dir"
    need_model "$model" "bash scripts/$(script_of "$trainer")/xd_train.sh $SOURCE $seed"
    model_flags "$model"
    base_opts "$trainer" xd "$SOURCE" "$seed"
    launch "$dir" "${FLAGS[@]}" --eval-only "${BASE_OPTS[@]}"
}

# few_shot TRAINER DATASET SHOTS: train and test on all classes, once per seed in SEEDS
few_shot() {
    usage 3 "DATASET SHOTS" "$@"
    local trainer=$1 dataset=$2 seed dir
    SHOTS=$3
    choose "$trainer" few_shot "$dataset"
    for seed in $SEEDS; do
        dir=$OUTPUT/$dataset/$trainer/${TAG}_${SHOTS}shots/seed$seed
        flags "$trainer" "$dataset" "$seed" "$dir"
        base_opts "$trainer" few_shot "$dataset" "$seed"
        # shellcheck disable=SC2046
        launch "$dir" "${FLAGS[@]}" DATASET.NUM_SHOTS "$SHOTS" "${BASE_OPTS[@]}" $(train_opts)
    done
}

# zeroshot DATASET CFG: zero-shot CLIP on all classes
zeroshot() {
    usage 2 "DATASET CFG" "$@"
    local dataset=$1
    CFG=$2
    choose ZeroshotCLIP zeroshot "$dataset"
    local dir=$OUTPUT/ZeroshotCLIP/$CFG/$dataset
    flags ZeroshotCLIP "$dataset" "" "$dir"
    launch "$dir" "${FLAGS[@]}" --eval-only
}

# coop_opts CTP NCTX CSC: sets COOP_OPTS and COOP_TAG, CoOp's settings as options and as a folder name
coop_opts() {
    COOP_OPTS=(TRAINER.COOP.N_CTX "$2" TRAINER.COOP.CSC "$3" TRAINER.COOP.CLASS_TOKEN_POSITION "$1")
    COOP_TAG=nctx$2_csc$3_ctp$1
}

# coop_main DATASET CFG CTP NCTX SHOTS CSC: the CoOp paper's few-shot runs, once per seed in SEEDS
coop_main() {
    usage 6 "DATASET CFG CTP NCTX SHOTS CSC" "$@"
    local dataset=$1 seed dir
    CFG=$2 SHOTS=$5
    choose CoOp few_shot "$dataset"
    coop_opts "$3" "$4" "$6"
    for seed in $SEEDS; do
        dir=$OUTPUT/$dataset/CoOp/${CFG}_${SHOTS}shots/$COOP_TAG/seed$seed
        flags CoOp "$dataset" "$seed" "$dir"
        # shellcheck disable=SC2046
        launch "$dir" "${FLAGS[@]}" "${COOP_OPTS[@]}" DATASET.NUM_SHOTS "$SHOTS" $(train_opts)
    done
}

# coop_eval DATASET CFG: test the model that coop_main trained on SOURCE on DATASET, once per seed in SEEDS
coop_eval() {
    usage 2 "DATASET CFG" "$@"
    local dataset=$1 seed model
    CFG=$2
    choose CoOp xd "$dataset"
    coop_opts "${CTP:-end}" "${NCTX:-16}" "${CSC:-False}"
    for seed in $SEEDS; do
        model=$OUTPUT/$SOURCE/CoOp/${CFG}_${SHOTS}shots/$COOP_TAG/seed$seed
        need_model "$model" "bash scripts/coop/main.sh $SOURCE $CFG ${CTP:-end} ${NCTX:-16} $SHOTS ${CSC:-False}"
        local dir=$OUTPUT/evaluation/CoOp/${CFG}_${SHOTS}shots/$COOP_TAG/$dataset/seed$seed
        flags CoOp "$dataset" "$seed" "$dir"
        model_flags "$model"
        launch "$dir" "${FLAGS[@]}" --eval-only "${COOP_OPTS[@]}"
    done
}
