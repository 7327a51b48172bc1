#!/usr/bin/env bash
# PromptKD, cross-data-set: distil a teacher that was trained on SOURCE on the images of DATASET, and test there.
#   TEACHER_DIR=RUN bash scripts/promptkd/xd_train.sh DATASET SEED
# Variables that change it are listed in scripts/_run.sh; SHOTS is 0, which is all images.
source "$(dirname "${BASH_SOURCE[0]}")/../_run.sh"
plan xd_train PromptKD "$@"
