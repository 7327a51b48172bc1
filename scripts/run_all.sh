#!/usr/bin/env bash
# Run methods x data sets x seeds of one protocol; done runs are skipped, a failed one does not stop the others.
#   bash scripts/run_all.sh [PROTOCOL]          base2new (default), xd or few_shot
#
#   METHODS   "zsclip coop cocoop maple capt:ZeroshotCLIP capt:CoOp"; capt:NAME is CAPT on the base learner NAME
#   DATASETS  names of configs/datasets/*.yaml  (the eleven of the papers, less ImageNet)
#   SEEDS     (1 2 3)
#   GPUS      e.g. "0 1": so many runs at a time, one on each of these devices (default: one at a time)
# The other variables are listed in scripts/_run.sh. Ends with 1 when a run failed, and says which.
source "$(dirname "${BASH_SOURCE[0]}")/_run.sh"

PROTOCOL=${1:-base2new}
METHODS=${METHODS:-zsclip coop cocoop maple capt:ZeroshotCLIP capt:CoOp}
DATASETS=${DATASETS:-caltech101 oxford_pets stanford_cars oxford_flowers food101 fgvc_aircraft sun397 dtd eurosat ucf101}
export DATA OUTPUT SHOTS SEEDS SOURCE PYTHON

FAILED=$(mktemp)
trap 'rm -f "$FAILED"' EXIT

# step NAME SCRIPT ARGUMENT...: run one script; note NAME and fail where it fails
step() {
    local name=$1
    shift
    bash "scripts/$1" "${@:2}" || {
        echo "$name: scripts/$*" >>"$FAILED"
        return 1
    }
}

# job METHOD DATASET SEED: everything that one method does on one data set with one seed
job() {
    local method=${1%%:*} base=ZeroshotCLIP name="$1 $2 seed $3"
    [[ $1 != *:* ]] || base=${1#*:}
    export BASE=$base
    if [[ $method == zsclip && $PROTOCOL != base2new ]]; then
        step "$name" zsclip/zeroshot.sh "$2" "${CFG:-vit_b16}"
        return
    fi
    case $PROTOCOL in
        base2new) step "$name" "$method/base2new_train.sh" "$2" "$3" && step "$name" "$method/base2new_test.sh" "$2" "$3" ;;
        xd) step "$name" "$method/xd_train.sh" "$SOURCE" "$3" && step "$name" "$method/xd_test.sh" "$2" "$3" ;;
        few_shot) SEEDS=$3 step "$name" "$method/few_shot.sh" "$2" "$SHOTS" ;;
    esac
}

# Seeds and data sets of one device stay in order, so CAPT finds the base learner that ran before it.
lane() {
    local index=0 dataset seed method
    for dataset in $DATASETS; do
        for seed in $SEEDS; do
            if ((index++ % $2 == $1)); then
                for method in $METHODS; do job "$method" "$dataset" "$seed" || true; done
            fi
        done
    done
}

case $PROTOCOL in
    base2new | xd | few_shot) ;;
    *) die "unknown protocol $PROTOCOL; there are base2new, xd and few_shot" ;;
esac
for method in $METHODS; do
    [[ -d scripts/${method%%:*} ]] || die "unknown method ${method%%:*}; there are: $(cd scripts && echo */)"
done
read -ra devices <<<"${GPUS:-}"
if ((${#devices[@]} < 2)); then
    [[ -z ${GPUS:-} ]] || export CUDA_VISIBLE_DEVICES=$GPUS
    lane 0 1
else
    [[ $PROTOCOL != xd ]] || die "xd trains once for all data sets, so it cannot be spread over GPUS; leave GPUS out"
    for number in "${!devices[@]}"; do
        CUDA_VISIBLE_DEVICES=${devices[$number]} lane "$number" "${#devices[@]}" &
    done
    wait
fi

if [[ -s $FAILED ]]; then
    echo "$(wc -l <"$FAILED") failed:" >&2
    cat "$FAILED" >&2
    exit 1
fi
echo "All runs are done in $OUTPUT"
