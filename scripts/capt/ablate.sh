#!/usr/bin/env bash
# CAPT, base-to-new, with one thing changed at a time; prints one table of all variants beside the base learner.
#   bash scripts/capt/ablate.sh DATASET [SEED...]        seeds: 1 2 3
# The variables of scripts/_run.sh apply (BASE, CFG, BACKBONE, OPTS ...). VARIANTS picks some of the names in ALL, or takes
# other values: k_7 mines 7 pairs, K_64 retrieves 64 samples, alpha_2, experts_1 (of 3), lambda_3, gain_0.5, sharpness_5,
# keep_1, shots_8. crossfit needs a trained base and FOLD_CONFIG, the yaml that its folds are trained with.
source "$(dirname "${BASH_SOURCE[0]}")/../_run.sh"
usage 1 "DATASET [SEED...]" "$@"
dataset=$1
shift
[[ $# -gt 0 ]] || set -- $SEEDS
PARTS="full no_sem no_sam no_mgde no_confuse no_keep no_corrections no_gate no_balance fixed_gain"
BANKS="no_bank_at_test errors_only by_pair soft_counts views_4 full_set zeroshot"
VALUES="k_1 k_5 k_10 K_2 K_32 alpha_1 alpha_20 experts_1 experts_3 lambda_0.1 lambda_10 gain_0.1 gain_1 sharpness_3"
VALUES+=" sharpness_15 keep_1 shots_1 shots_2 shots_4 shots_8"
ALL="$PARTS $BANKS $VALUES literal"
VARIANTS=${VARIANTS:-$ALL}
OUTPUT=$OUTPUT/ablation
shots=$SHOTS
# trainers.capt.PUBLISHED, the preset that is as literal as the paper allows
LITERAL="TRAINER.CAPT.BANK.SHOTS -1 TRAINER.CAPT.BANK.AT_TEST False TRAINER.CAPT.BANK.VIEWS 1"
LITERAL+=" TRAINER.CAPT.BANK.NEAR_MISSES 2.0 TRAINER.CAPT.SAM.BY_LABEL False TRAINER.CAPT.MGDE.CORRECTIONS False"
LITERAL+=" TRAINER.CAPT.MGDE.EVIDENCE_GATE False TRAINER.CAPT.MGDE.BETA 1.0 TRAINER.CAPT.LOSS.BALANCE 0.0"
LITERAL+=" TRAINER.CAPT.LOSS.KEEP 0.0"
user_opts=${OPTS:-}
export BASE DATA OUTPUT PYTHON

options_of() {
    case $1 in
        full | shots_*) ;;
        no_sem) echo "SEM.ON False" ;;
        no_sam) echo "SAM.ON False" ;;
        no_mgde) echo "MGDE.ON False" ;;
        no_confuse) echo "LOSS.CONFUSE 0.0" ;;
        no_keep) echo "LOSS.KEEP 0.0" ;;
        no_corrections) echo "MGDE.CORRECTIONS False" ;;
        no_gate) echo "MGDE.EVIDENCE_GATE False" ;;
        no_balance) echo "LOSS.BALANCE 0.0" ;;
        fixed_gain) echo "MGDE.FIT_GAIN False" ;;
        no_bank_at_test) echo "BANK.AT_TEST False" ;;
        errors_only) echo "BANK.NEAR_MISSES 2.0" ;;
        by_pair) echo "SAM.BY_LABEL False" ;;
        soft_counts) echo "BANK.COUNTS soft" ;;
        views_*) echo "BANK.VIEWS ${1#*_}" ;;
        full_set) echo "BANK.SHOTS -1" ;;
        zeroshot) echo "BANK.SOURCE zeroshot" ;;
        crossfit) echo "BANK.SOURCE crossfit TRAINER.CAPT.BANK.FOLD_CONFIG ${FOLD_CONFIG:?crossfit needs FOLD_CONFIG}" ;;
        k_*) echo "SEM.NUM_PAIRS ${1#*_}" ;;
        K_*) echo "SAM.NUM_REPRESENTATIVES ${1#*_}" ;;
        alpha_*) echo "SAM.ALPHA $(decimal "${1#*_}")" ;;
        experts_*) echo "MGDE.TOP_K ${1#*_}" ;;
        lambda_*) echo "LOSS.CONFUSE $(decimal "${1#*_}")" ;;
        gain_*) echo "MGDE.FIT_GAIN False TRAINER.CAPT.MGDE.GAIN $(decimal "${1#*_}")" ;;
        sharpness_*) echo "MGDE.SHARPNESS $(decimal "${1#*_}")" ;;
        keep_*) echo "LOSS.KEEP $(decimal "${1#*_}")" ;;
        literal) echo "${LITERAL#TRAINER.CAPT.}" ;;
        *) die "no variant $1; there are: $ALL" ;;
    esac
}

# decimal NUMBER: with a point, as the configuration tells 1.0 from 1
decimal() { [[ $1 == *.* ]] && echo "$1" || echo "$1.0"; }

# both SCRIPT_FOLDER SEED: train on the base classes, test on the new ones
both() {
    bash "scripts/$1/base2new_train.sh" "$dataset" "$2"
    bash "scripts/$1/base2new_test.sh" "$dataset" "$2"
}

for variant in $VARIANTS; do options_of "$variant" >/dev/null; done
for seed in "$@"; do
    for variant in $VARIANTS; do
        changed=$(options_of "$variant")
        export SHOTS=$shots VARIANT=$variant OPTS="$user_opts ${changed:+TRAINER.CAPT.$changed}"
        [[ $variant != shots_* ]] || SHOTS=${variant#*_}
        both capt "$seed"
    done
    unset VARIANT OPTS
    SHOTS=$shots both "$(script_of "$BASE")" "$seed"
done
echo "$PYTHON scripts/compare.py $OUTPUT"
dry || "$PYTHON" scripts/compare.py "$OUTPUT"
