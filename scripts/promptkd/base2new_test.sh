#!/usr/bin/env bash
# PromptKD, base-to-new: test the model of base2new_train.sh on the new classes (SUB=base: on the base ones).
#   TEACHER_DIR=RUN bash scripts/promptkd/base2new_test.sh DATASET SEED
# Variables that change it are listed in scripts/_run.sh; SHOTS is 0, which is all images.
source "$(dirname "${BASH_SOURCE[0]}")/../_run.sh"
SHOTS=0
[[ ${SUB:-new} == base ]] && split=val || split=test
OPTS="TEST.SPLIT $split $(kd_opts "${1:-}")"
base2new_test PromptKD "$@"
