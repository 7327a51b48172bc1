#!/usr/bin/env bash
# VPT, base-to-new: train on the base classes with SHOTS images each, and test on the base classes.
#   bash scripts/vpt/base2new_train.sh DATASET SEED
# Variables that change it are listed in scripts/_run.sh.
source "$(dirname "${BASH_SOURCE[0]}")/../_run.sh"
plan base2new_train VPT "$@"
