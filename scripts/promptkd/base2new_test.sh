#!/usr/bin/env bash
# PromptKD, base-to-new: test the model of base2new_train.sh on the new classes (SUB=base: on the base ones).
#   TEACHER_DIR=RUN bash scripts/promptkd/base2new_test.sh DATASET SEED
# Variables that change it are listed in scripts/_run.sh; SHOTS is 0, which is all images.
source "$(dirname "${BASH_SOURCE[0]}")/../_run.sh"
plan base2new_test PromptKD "$@"
