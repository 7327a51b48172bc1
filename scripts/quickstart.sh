#!/usr/bin/env bash
# From a fresh clone to a table on a CPU: installs into .venv, then runs zero-shot CLIP, the adapters, CoOp, CoCoOp, MaPLe
# and CAPT (on zero-shot CLIP, CoOp and MaPLe) base-to-new on the bundled demo data set, and prints their table.
#   bash scripts/quickstart.sh
# A second call skips what is done. METHODS, SEEDS and OUTPUT may be set as for scripts/run_all.sh.
source "$(dirname "${BASH_SOURCE[0]}")/_venv.sh"
[[ ${DRY_RUN:-0} != 0 ]] || ensure_venv tables
source "$(dirname "${BASH_SOURCE[0]}")/_run.sh"
tool capt_tools.demo
