#!/usr/bin/env bash
# CoOp, few-shot classification on all classes, once per seed.
#   bash scripts/coop/few_shot.sh DATASET SHOTS
# Variables that change it are listed in scripts/_run.sh.
source "$(dirname "${BASH_SOURCE[0]}")/../_run.sh"
plan few_shot CoOp "$@"
