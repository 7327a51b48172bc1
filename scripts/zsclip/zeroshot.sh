#!/usr/bin/env bash
# Zero-shot CLIP on all classes.
#   bash scripts/zsclip/zeroshot.sh DATASET CFG
# Variables that change it are listed in scripts/_run.sh.
source "$(dirname "${BASH_SOURCE[0]}")/../_run.sh"
plan zeroshot ZeroshotCLIP "$@"
