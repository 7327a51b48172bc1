#!/usr/bin/env bash
# Run methods x data sets x seeds of one protocol; done runs are skipped, a failed one does not stop the others.
#   bash scripts/run_all.sh [PROTOCOL]          base2new (default), xd or few_shot
#
#   METHODS   "zsclip coop cocoop maple capt:ZeroshotCLIP capt:CoOp"; capt:NAME is CAPT on the base learner NAME
#   DATASETS  names of configs/datasets/*.yaml  (the eleven of the papers, less ImageNet)
#   SEEDS     (1 2 3)
#   GPUS      e.g. "0 1": so many runs at a time, one on each of these devices (default: one at a time)
# The other variables are listed in scripts/_run.sh. Ends with 1 when a run failed, and says which.
source "$(dirname "${BASH_SOURCE[0]}")/_run.sh"
tool capt_tools.sweep.run_all "$@"
