#!/usr/bin/env bash
# Tip-Adapter-F, base-to-new: test the model of base2new_train.sh on the new classes, of which it knows
# nothing: they get zero-shot CLIP's logits.
#   bash scripts/tipadapterf/base2new_test.sh DATASET SEED
# Variables that change it are listed in scripts/_run.sh.
source "$(dirname "${BASH_SOURCE[0]}")/../_run.sh"
plan base2new_test TipAdapterF "$@"
