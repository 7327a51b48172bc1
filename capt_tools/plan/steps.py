"""What a plan is made of: runs of train.py, and lines to say between them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Job", "Plan", "StopError"]


@dataclass(frozen=True)
class Job:
    """One run of train.py.

    Attributes:
        folder: its output folder; a results.json in it says that the run is done.
        arguments: what ``train.main`` takes.
        needs: folders of the runs that it reads.
    """

    folder: str
    arguments: list[str]
    needs: tuple[str, ...] = ()


# Steps come one at a time: what a job's arguments are may depend on what the jobs before it left on the disk.
Plan = Iterator[Job | str]


class StopError(Exception):
    """Nothing more can be done.

    Attributes:
        message: for the user; empty where the run that failed has said it.
        code: exit code.
    """

    def __init__(self, message: str = "", code: int = 2) -> None:
        super().__init__(message)
        self.message = message
        self.code = code

    @property
    def line(self) -> str:
        """The message as it is printed; what a shell would say of a missing script stands as the shell says it."""
        return self.message if not self.message or self.message.startswith("bash: ") else f"error: {self.message}"
