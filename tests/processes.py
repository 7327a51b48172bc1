"""Forks that join one another as torchrun's processes do; torch is imported already, which spares seconds."""

import os
import sys

import killing
import torch
from torch.distributed import TCPStore

from trainers.capt.run.distributed import joined, rank

stores = []


def started(number, work, folder):
    """Start ``work`` in so many processes of one run; what process i prints goes to ``<folder>/printed<i>``."""
    folder.mkdir(parents=True, exist_ok=True)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    stores.append(store)  # torchrun holds it, too, so that it outlives any of the processes

    def in_process(i):
        os.environ.update(RANK=str(i), LOCAL_RANK=str(i), WORLD_SIZE=str(number), MASTER_ADDR="127.0.0.1")
        os.environ.update(MASTER_PORT=str(store.port), TORCHELASTIC_USE_AGENT_STORE="True")
        os.environ.update(TORCHELASTIC_RESTART_COUNT="0")
        return work()

    return [killing.started(lambda i=i: in_process(i), folder / f"printed{i}") for i in range(number)]


def launched(work, printed):
    """A fork that runs ``work``; what it and the processes that it starts print goes to the file ``printed``."""

    def redirected():
        for descriptor in (1, 2):
            os.dup2(sys.stdout.fileno(), descriptor)
        return work()

    return killing.started(redirected, printed)


def ended(children):
    return [killing.ended(child) for child in children]


def together(number, work, folder):
    """What ``work`` returns in each of so many processes that have joined."""

    def joint():
        with joined():
            torch.save(work(), folder / f"value{rank()}")

    codes = ended(started(number, joint, folder))
    assert codes == [0] * number, "\n".join((folder / f"printed{i}").read_text() for i in range(number))
    return [torch.load(folder / f"value{i}", weights_only=False) for i in range(number)]
