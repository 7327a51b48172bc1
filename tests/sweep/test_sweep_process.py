"""Cells that share a job share a process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from capt_tools.sweep.job import run_cells

# Stands for python: a run is a file of results, and a line that tells the process.
IN_ONE_PROCESS = f"""#!{sys.executable}
import os, sys
sys.path.insert(0, {str(Path(__file__).resolve().parents[2])!r})
from capt_tools.many_runs import serve
from capt_tools.plan.lane import VARIABLE

def main(argv):
    folder = argv[argv.index("--output-dir") + 1]
    os.makedirs(folder, exist_ok=True)
    open(folder + "/results.json", "w").close()
    print("process", os.getpid(), flush=True)
    return 0

sys.argv = sys.argv[1:]
sys.exit(serve(main) if VARIABLE in os.environ else main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_several_cells_of_a_job_share_a_process(make):
    sweep = make("zsclip", seeds="1 2 3 4")
    Path(sweep.settings.python).write_text(IN_ONE_PROCESS)
    sweep.save()

    def processes(*keys):
        assert run_cells(sweep, keys) == (0, None)
        logs = [(sweep.folder / "cells" / f"{key}.log").read_text() for key in keys]
        return [line for log in logs for line in log.splitlines() if line.startswith("process")]

    several = processes("zsclip_dtd_1", "zsclip_dtd_2", "zsclip_dtd_3")
    assert len(several) == 6
    assert len(set(several)) == 1
    assert len(set(processes("zsclip_dtd_4"))) == 2
