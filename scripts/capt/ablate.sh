#!/usr/bin/env bash
# CAPT, base-to-new, with one part switched off at a time; prints the table of all variants beside the base learner.
#   bash scripts/capt/ablate.sh DATASET [SEED...]        seeds: 1 2 3
# The variables of scripts/_run.sh apply (BASE, CFG, BACKBONE, OPTS ...); VARIANTS picks some of the names below.
source "$(dirname "${BASH_SOURCE[0]}")/../_run.sh"
usage 1 "DATASET [SEED...]" "$@"
dataset=$1
shift
[[ $# -gt 0 ]] || set -- $SEEDS
ALL="full no_sem no_sam no_mgde no_confuse no_keep no_corrections no_gate no_bank_at_test errors_only soft_counts literal"
VARIANTS=${VARIANTS:-$ALL}
OUTPUT=$OUTPUT/ablation
# trainers.capt.PUBLISHED, the preset that is as literal as the paper allows
LITERAL="TRAINER.CAPT.BANK.SHOTS -1 TRAINER.CAPT.BANK.AT_TEST False TRAINER.CAPT.BANK.VIEWS 1"
LITERAL+=" TRAINER.CAPT.BANK.NEAR_MISSES 2.0 TRAINER.CAPT.SAM.AMONG_PARTNERS False TRAINER.CAPT.MGDE.CORRECTIONS False"
LITERAL+=" TRAINER.CAPT.MGDE.EVIDENCE_GATE False TRAINER.CAPT.MGDE.BETA 1.0 TRAINER.CAPT.LOSS.BALANCE 0.0"
LITERAL+=" TRAINER.CAPT.LOSS.KEEP 0.0"
user_opts=${OPTS:-}
export BASE DATA OUTPUT SHOTS PYTHON

options_of() {
    case $1 in
        full) ;;
        no_sem) echo "TRAINER.CAPT.SEM.ON False" ;;
        no_sam) echo "TRAINER.CAPT.SAM.ON False" ;;
        no_mgde) echo "TRAINER.CAPT.MGDE.ON False" ;;
        no_confuse) echo "TRAINER.CAPT.LOSS.CONFUSE 0.0" ;;
        no_keep) echo "TRAINER.CAPT.LOSS.KEEP 0.0" ;;
        no_corrections) echo "TRAINER.CAPT.MGDE.CORRECTIONS False" ;;
        no_gate) echo "TRAINER.CAPT.MGDE.EVIDENCE_GATE False" ;;
        no_bank_at_test) echo "TRAINER.CAPT.BANK.AT_TEST False" ;;
        errors_only) echo "TRAINER.CAPT.BANK.NEAR_MISSES 2.0" ;;
        soft_counts) echo "TRAINER.CAPT.BANK.COUNTS soft" ;;
        literal) echo "$LITERAL" ;;
        *) die "no variant $1; there are: $ALL" ;;
    esac
}

for variant in $VARIANTS; do options_of "$variant" >/dev/null; done
for seed in "$@"; do
    for variant in $VARIANTS; do
        export VARIANT=$variant OPTS="$user_opts $(options_of "$variant")"
        bash scripts/capt/base2new_train.sh "$dataset" "$seed"
        bash scripts/capt/base2new_test.sh "$dataset" "$seed"
    done
    unset VARIANT OPTS
    base=$(script_of "$BASE")
    bash "scripts/$base/base2new_train.sh" "$dataset" "$seed"
    bash "scripts/$base/base2new_test.sh" "$dataset" "$seed"
done
echo "$PYTHON scripts/compare.py $OUTPUT"
dry || "$PYTHON" scripts/compare.py "$OUTPUT"
