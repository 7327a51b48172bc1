#!/usr/bin/env bash
# IVLP, base-to-new: test the model of base2new_train.sh on the new classes.
#   bash scripts/ivlp/base2new_test.sh DATASET SEED
# Variables that change it are listed in scripts/_run.sh.
source "$(dirname "${BASH_SOURCE[0]}")/../_run.sh"
plan base2new_test IVLP "$@"
