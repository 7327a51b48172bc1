#!/usr/bin/env bash
# Zero-shot CLIP on the new classes.
#   bash scripts/zsclip/base2new_test.sh DATASET SEED
# Variables that change it are listed in scripts/_run.sh.
source "$(dirname "${BASH_SOURCE[0]}")/../_run.sh"
plan base2new_test ZeroshotCLIP "$@"
