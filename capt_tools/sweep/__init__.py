"""Methods x data sets x seeds: sent to Slurm, or run on this machine; how they stand; their table.

    capt sweep submit --methods "coop capt:CoOp" --datasets "dtd eurosat" --devices "0 1"
    capt sweep submit sweep.yaml --cluster slurm --partition gpu --time 2:00:00 --mem 24G
    capt sweep status sweep.yaml
    capt sweep cancel sweep.yaml
    capt sweep collect sweep.yaml

CAPT waits for its base learner. Done runs are skipped; a failed one does not stop the others, and the same submit again
sends what failed and what is new. A job that is preempted or out of time saves, goes back into the queue and goes on.
docs/SWEEPS.md is one page about it. Slurm needs the extra ``sweep``; local and debug need nothing.
"""

from __future__ import annotations

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Run the command line ``argv``."""
    from .command import main as command

    return command(argv)
