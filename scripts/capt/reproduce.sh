#!/usr/bin/env bash
# The paper's headline configuration, base-to-new: teacher (PromptSRC on ViT-L/14), student (PromptKD on ViT-B/16), CAPT.
#   bash scripts/capt/reproduce.sh DATASET SEED [--protocol honest|published]
#
#   honest     (default) CAPT's bank holds the run's own shots; the last epoch of each stage is taken
#   published  the bank holds the full training set, and the epoch of student and CAPT is chosen on the base classes'
#              test images, as in the published code: base accuracies are optimistic
#
# TEACHER_DIR names a teacher that is there already, e.g. PromptKD's published one; TEACHER, TEACHER_CFG and STUDENT_CFG
# are the CLIP and the yamls of teacher and student. The other variables are listed in scripts/_run.sh; finished stages
# are skipped. docs/REPRODUCE.md says what it needs and how long it takes.
source "$(dirname "${BASH_SOURCE[0]}")/../_run.sh"
plan reproduce "$@"
