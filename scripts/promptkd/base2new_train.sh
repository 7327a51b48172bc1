#!/usr/bin/env bash
# PromptKD, base-to-new: distil the teacher on the images of all classes, without labels, and test on the base classes.
#   TEACHER_DIR=RUN bash scripts/promptkd/base2new_train.sh DATASET SEED
# Variables that change it are listed in scripts/_run.sh; SHOTS is 0, which is all images.
source "$(dirname "${BASH_SOURCE[0]}")/../_run.sh"
plan base2new_train PromptKD "$@"
