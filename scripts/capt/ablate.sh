#!/usr/bin/env bash
# CAPT, base-to-new, with one thing changed at a time; prints one table of all variants beside the base learner.
#   bash scripts/capt/ablate.sh DATASET [SEED...]        seeds: 1 2 3
# The variables of scripts/_run.sh apply (BASE, CFG, BACKBONE, OPTS ...). VARIANTS picks some of the names in
# capt_tools/plan/ablate.py, or takes other values: k_7 mines 7 pairs, K_64 retrieves 64 samples, alpha_2, experts_1
# (of 3), lambda_3, gain_0.5, sharpness_5, keep_1, shots_8. crossfit needs a trained base and FOLD_CONFIG, the yaml that
# its folds are trained with.
source "$(dirname "${BASH_SOURCE[0]}")/../_run.sh"
plan ablate "$@"
