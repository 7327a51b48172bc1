#!/usr/bin/env bash
# CoOp, cross-data-set transfer: train on all classes of ImageNet (or of DATASET).
#   bash scripts/coop/xd_train.sh [DATASET] SEED
# Variables that change it are listed in scripts/_run.sh.
source "$(dirname "${BASH_SOURCE[0]}")/../_run.sh"
plan xd_train CoOp "$@"
