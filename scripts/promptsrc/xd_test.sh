#!/usr/bin/env bash
# PromptSRC, cross-data-set transfer: test the model of xd_train.sh on DATASET.
#   bash scripts/promptsrc/xd_test.sh DATASET SEED
# Variables that change it are listed in scripts/_run.sh.
source "$(dirname "${BASH_SOURCE[0]}")/../_run.sh"
plan xd_test PromptSRC "$@"
