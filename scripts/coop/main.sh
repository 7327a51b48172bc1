#!/usr/bin/env bash
# CoOp, few-shot as in its paper: class token position, number of tokens, shots, class-specific context.
#   bash scripts/coop/main.sh DATASET CFG CTP NCTX SHOTS CSC
# Variables that change it are listed in scripts/_run.sh.
source "$(dirname "${BASH_SOURCE[0]}")/../_run.sh"
plan coop_main CoOp "$@"
