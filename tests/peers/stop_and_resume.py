"""CAPT on whatever Dassl is found, stopped by a signal in the middle of an epoch, and gone on with.

``stop_and_resume.py FOLDER [KEY VALUE ...]`` prints ``SAME`` where both ways end with the same files.
"""

import os
import signal
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS / "capt")]

import compat  # noqa: E402

import killing  # noqa: E402
import pytest  # noqa: E402
import test_capt_end_to_end as runs  # noqa: E402
import tiny_capt  # noqa: E402
import torch  # noqa: E402
from dassl.data.datasets import DATASET_REGISTRY  # noqa: E402

from trainers.capt.run.signals import Interrupted  # noqa: E402


def main(folder, *more):
    options = ("TRAIN.CHECKPOINT_FREQ", 0, "OPTIM.WARMUP_EPOCH", 1, "TRAINER.CAPT.MGDE.BETA", 0.1)
    folder, more = Path(folder), (*options, *more)
    DATASET_REGISTRY.register(runs.TinyPictures)
    tiny_capt.draw_pictures(folder / "data", runs.CLASSES, 9)
    torch.save(tiny_capt.clip_state(), folder / "clip.pt")
    runs.build(folder, folder / "straight", *more).train()
    for epoch, batch in ((0, 2), (1, 1)):
        trainer = runs.build(folder, folder / "stopped", *more)
        step = trainer.forward_backward

        def stopped(data, trainer=trainer, step=step, at=(epoch, batch)):
            if (trainer.epoch, trainer.batch_idx) == at:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(data)

        trainer.forward_backward = stopped
        with pytest.raises(Interrupted) as caught:
            trainer.train()
        assert caught.value.code == 128 + signal.SIGTERM
    runs.build(folder, folder / "stopped", *more).train()
    killing.assert_same(folder / "straight", folder / "stopped")
    print("SAME", compat.DASSL)


if __name__ == "__main__":
    main(*sys.argv[1:])
