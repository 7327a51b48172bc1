#!/usr/bin/env bash
# Zero-shot CLIP on the base classes; it trains nothing, but its results lie where the tables look for them.
#   bash scripts/zsclip/base2new_train.sh DATASET SEED
# Variables that change it are listed in scripts/_run.sh.
source "$(dirname "${BASH_SOURCE[0]}")/../_run.sh"
plan base2new_train ZeroshotCLIP "$@"
