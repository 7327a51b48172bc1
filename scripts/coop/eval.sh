#!/usr/bin/env bash
# CoOp, domain generalisation as in its paper: test main.sh's ImageNet model on DATASET.
#   bash scripts/coop/eval.sh DATASET CFG
# Variables that change it are listed in scripts/_run.sh.
source "$(dirname "${BASH_SOURCE[0]}")/../_run.sh"
plan coop_eval CoOp "$@"
