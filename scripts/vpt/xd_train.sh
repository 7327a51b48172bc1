#!/usr/bin/env bash
# VPT, cross-data-set transfer: train on all classes of ImageNet (or of DATASET).
#   bash scripts/vpt/xd_train.sh [DATASET] SEED
# Variables that change it are listed in scripts/_run.sh.
source "$(dirname "${BASH_SOURCE[0]}")/../_run.sh"
plan xd_train VPT "$@"
