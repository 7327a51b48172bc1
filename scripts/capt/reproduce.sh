#!/usr/bin/env bash
# The paper's headline configuration, base-to-new: teacher (PromptSRC on ViT-L/14), student (PromptKD on ViT-B/16), CAPT.
#   bash scripts/capt/reproduce.sh DATASET SEED [--protocol honest|published]
#
#   honest     (default) CAPT's bank holds the run's own shots; the last epoch of each stage is taken
#   published  the bank holds the full training set, and the epoch of student and CAPT is chosen on the base classes'
#              test images, as in the published code: base accuracies are optimistic
#
# TEACHER_DIR names a teacher that is there already, e.g. PromptKD's published one; TEACHER, TEACHER_CFG and STUDENT_CFG
# are the CLIP and the yamls of teacher and student. The other variables are listed in scripts/_run.sh; finished stages
# are skipped. docs/REPRODUCE.md says what it needs and how long it takes.
source "$(dirname "${BASH_SOURCE[0]}")/../_run.sh"
usage 2 "DATASET SEED [--protocol honest|published]" "$@"
dataset=$1 seed=$2 protocol=honest
case "${3:-} ${4:-}" in
    " ") ;;
    "--protocol honest" | "--protocol published") protocol=$4 ;;
    *) die "usage: bash $0 DATASET SEED [--protocol honest|published]" ;;
esac

OUTPUT=$OUTPUT/reproduce/$protocol
TEACHER=${TEACHER:-ViT-L/14}
teacher_cfg=${TEACHER_CFG:-vit_l14_c2_ep20_batch8_4+4ctx}
student_cfg=${STUDENT_CFG:-$(CFG='' default_cfg PromptKD base2new "$dataset")}
capt_cfg=${CFG:-}
user_opts=${OPTS:-}
chosen='' extra=''
if [[ $protocol == published ]]; then
    chosen="TEST.FINAL_MODEL best_val"
    extra="$chosen TRAINER.CAPT.SELECTION test TRAINER.CAPT.BANK.SHOTS -1"
    export LOADEP=best
    echo "Protocol published: CAPT's bank is built from the full training set, not from the $SHOTS shots; student and CAPT"
    echo "choose their epoch on the base classes' test images. Base accuracies are optimistic and not few-shot."
else
    echo "Protocol honest: CAPT's bank is built from the $SHOTS shots; the last epoch of each stage is taken."
fi
echo "Under either protocol the student has seen the unlabelled training images of the new classes: transductive."
export DATA OUTPUT SHOTS PYTHON TEACHER

if [[ -z ${TEACHER_DIR:-} ]]; then
    TEACHER_DIR=$OUTPUT/base2new/train_base/$dataset/shots_$SHOTS/PromptSRC/$teacher_cfg/seed$seed
    CFG=$teacher_cfg BACKBONE=$TEACHER bash scripts/promptsrc/base2new_train.sh "$dataset" "$seed"
fi
export TEACHER_DIR
for part in train test; do
    CFG=$student_cfg OPTS="$user_opts $chosen" bash "scripts/promptkd/base2new_$part.sh" "$dataset" "$seed"
done
export BASE=PromptKD BASE_DIR=$OUTPUT/base2new/train_base/$dataset/shots_0/PromptKD/$student_cfg/seed$seed
for part in train test; do
    CFG=$capt_cfg OPTS="$user_opts $extra" bash "scripts/capt/base2new_$part.sh" "$dataset" "$seed"
done
echo "$PYTHON scripts/compare.py $OUTPUT"
dry || "$PYTHON" scripts/compare.py "$OUTPUT"
