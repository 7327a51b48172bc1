"""What a run leaves behind beside its log: ``results.json``, ``predictions.npz`` and ``sample.json``.

Dassl prints one decimal; tables, paired tests and confusion reports need the figures themselves, the images behind
them and the protocol they were made under. A trainer gets all three by mixing in :class:`RunRecordMixin`.
"""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dassl.data.data_manager import DatasetWrapper
from torch import Tensor
from torch.utils.data import SequentialSampler
from tqdm import tqdm

from ..backbone.prompted_clip import ImageFeatures
from .distributed import world
from .encoding import Encoding, ImageEncoder, sensible_workers, tower_of
from .feature_files import FeatureFiles, feature_files
from .files import relative_path, write_atomically, write_json
from .metrics import accuracies, confusion_report
from .reading import ReadingMixin
from .shares import in_turns, turns_of
from .views import ViewDataset

__all__ = ["RunRecordMixin", "code_commit", "relative_path"]

FORMAT = 1


class RunRecordMixin(ReadingMixin):
    """Mix in before Dassl's ``TrainerX``; ``test`` prints what Dassl prints and writes the record besides."""

    transductive = False  # whether unlabelled images of the test classes are trained on
    base_learner: str | None = None  # what the method stands on, if on another learner
    loaded_epoch: int | None = None  # set by load_model
    choices: dict[str, Any] | None = None  # what was chosen before training, and by what

    def inference(self, input: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits ``(B, C)``, and those of the base model on the same images where there is one."""
        return self.model_inference(input), None

    def frozen_encoder(self) -> ImageEncoder | None:
        """The frozen image tower that all answers start from; None where the tower is tuned, or was not built alone."""
        return None

    def inference_from(self, features: ImageFeatures) -> tuple[Tensor, Tensor | None]:
        """As :meth:`inference`, logits ``(B, C)`` of what :meth:`frozen_encoder` makes of the images."""
        raise NotImplementedError

    def reads_tokens(self) -> bool:
        """Whether :meth:`inference_from` reads class and patch tokens besides the joint feature."""
        return False

    @cached_property
    def feature_files(self) -> FeatureFiles | None:
        """Where what frozen towers make of images is kept."""
        return feature_files(self.cfg)

    def tested_classnames(self) -> list[str]:
        """Names that the labels of the test stand for."""
        return list(self.dm.dataset.classnames)

    def before_train(self) -> None:
        """Dassl's hook; also writes down which images the run may see."""
        super().before_train()
        write_json(Path(self.output_dir) / "sample.json", self._sample())

    def write_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        """Dassl's point of a curve, where its trainer draws any: ATPrompt's has no writer."""
        write = getattr(super(), "write_scalar", None)
        if write is not None:
            write(tag, scalar_value, global_step)

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        """Evaluate on ``split`` (default ``TEST.SPLIT``) as Dassl does; only the default call leaves a record.

        Model selection calls ``test(split="val")`` after every epoch, which must not overwrite the final figures.
        """
        is_final = split is None
        split = split or self.cfg.TEST.SPLIT
        self.set_model_mode("eval")
        self.evaluator.reset()
        if split == "val" and self.val_loader is not None:
            data_loader = self.val_loader
        else:
            split, data_loader = "test", self.test_loader
        print(f"Evaluate on the *{split}* set")

        start = time.time()
        labels: list[Tensor] = []
        probs: list[Tensor] = []
        base_probs: list[Tensor] = []
        paths: list[str] = []
        for impaths, label, (logits, base_logits) in self._answers(data_loader):
            self.evaluator.process(logits, label)
            labels.append(label.cpu())
            probs.append(logits.float().softmax(dim=-1).cpu())
            if base_logits is not None:
                base_probs.append(base_logits.float().softmax(dim=-1).cpu())
            paths.extend(impaths)
        seconds = time.time() - start

        results = self.evaluator.evaluate()
        for key, value in results.items():
            self.write_scalar(f"{split}/{key}", value, self.epoch)
        if is_final and self.output_dir:
            predictions = {"labels": torch.cat(labels).numpy(), "probs": torch.cat(probs).numpy(), "impaths": paths}
            if base_probs:
                predictions["base_probs"] = torch.cat(base_probs).numpy()
            self._write_record(split, predictions, seconds, results)
        return next(iter(results.values()))

    def _answers(self, loader: Any) -> Iterator[tuple[list[str], Tensor, tuple[Tensor, Tensor | None]]]:
        """Paths, labels and logits, batch by batch; what the files hold of the images is not made again."""
        encoder = self.frozen_encoder()
        self._num_read = 0
        if encoder is None or tower_of(encoder) is None or self.feature_files is None or not _is_plain(loader):
            batches = iter(tqdm(turns_of(loader), disable=not sys.stderr.isatty()))
            answers = (self._answer(batch) for batch in batches)
            yield from answers if world() == 1 else in_turns(range(len(loader)), lambda _: next(answers))
            return
        items, transform = loader.dataset.data_source, loader.dataset.transform
        images = ViewDataset(items, 1, transform, transform, self.read_image, seed=0)
        device, workers = torch.device(self.device), sensible_workers(loader.num_workers)
        files = self.feature_files
        encoding = Encoding(encoder, images, device, loader.batch_size, workers, "", files, self.reads_tokens())
        for batch in encoding:
            part = [items[place] for place in batch.places]
            label = torch.tensor([item.label for item in part]).to(device)
            yield [item.impath for item in part], label, self.inference_from(batch.views[0])
        self._num_read = encoding.num_read

    def _answer(self, batch: dict[str, Any]) -> tuple[list[str], Tensor, tuple[Tensor, Tensor | None]]:
        """Paths, labels and logits of a batch; of several processes' ones on the CPU, where they can be handed on."""
        input, label = self.parse_batch_test(batch)
        logits, base_logits = self.inference(input)
        if world() > 1:
            label, logits, base_logits = label.cpu(), logits.cpu(), None if base_logits is None else base_logits.cpu()
        return batch["impath"], label, (logits, base_logits)

    def _write_record(
        self, split: str, predictions: dict[str, Any], seconds: float, results: Mapping[str, float]
    ) -> None:
        labels, predicted = predictions["labels"], predictions["probs"].argmax(axis=1)
        plain, per_class = accuracies(labels, predicted)
        confusion = None
        if "base_probs" in predictions:
            base = predictions["base_probs"].argmax(axis=1)
            report = confusion_report(labels, base, predicted, predictions["probs"].shape[1])
            confusion = report.to_dict()
            base_plain, base_per_class = accuracies(labels, base)
            confusion |= {"base_accuracy": base_plain, "base_mean_per_class_accuracy": base_per_class}
        cfg = self.cfg
        root = os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))
        trainer_node = cfg.TRAINER.get(self._node_name(), {})
        record = {
            "format": FORMAT,
            "commit": code_commit(),
            "trainer": cfg.TRAINER.NAME,
            "base": self.base_learner,
            "dataset": cfg.DATASET.NAME,
            "split": split,
            "subsample": cfg.DATASET.get("SUBSAMPLE_CLASSES", "all"),
            "shots": cfg.DATASET.NUM_SHOTS,
            "seed": cfg.SEED,
            "backbone": cfg.MODEL.BACKBONE.NAME,
            "input_size": list(cfg.INPUT.SIZE),
            "pictures": self.pictures,  # shown: turned as EXIF says and on white; stored: as CoOp reads
            "prec": getattr(self, "precision", None) or trainer_node.get("PREC"),  # in effect, not as asked for
            "protocol": self._protocol(),
            "transductive": self.transductive,
            "selection": cfg.TEST.FINAL_MODEL,
            "epoch": self.loaded_epoch if self.loaded_epoch is not None else self.max_epoch,
            "choices": self.choices,
            "classnames": self.tested_classnames(),
            "num_classes": len(self.tested_classnames()),
            "num_train": len(self.dm.dataset.train_x),
            "num_test": len(labels),
            "accuracy": plain,
            "mean_per_class_accuracy": per_class,
            "macro_f1": results.get("macro_f1"),
            "confusion": confusion,
            "seconds": {"train": self._train_seconds(), "test": seconds},
            "images_per_second_test": len(labels) / max(seconds, 1e-9),
            "num_encoded_before": self._num_read,  # test images whose features were read, not made in these seconds
            "device": _device_name(self.device),
            **({"processes": world()} if world() > 1 else {}),
            "peak_memory_mb": _peak_memory_mb(self.device),
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
            "config": _plain(cfg),
        }
        out = Path(self.output_dir)
        arrays = {
            "labels": labels,
            "predictions": predicted,
            "probs": predictions["probs"],
            "impaths": np.array([relative_path(p, root) for p in predictions["impaths"]]),
        }
        if "base_probs" in predictions:
            arrays["base_probs"] = predictions["base_probs"]
            arrays["base_predictions"] = predictions["base_probs"].argmax(axis=1)
        write_atomically(out / "predictions.npz", lambda temporary: _save_npz(temporary, arrays))
        write_json(out / "results.json", record)  # last, so that its presence means the run is complete

    def _node_name(self) -> str:
        return self.cfg.TRAINER.NAME.upper()

    def _protocol(self) -> str:
        shots = self.cfg.DATASET.NUM_SHOTS
        subsample = self.cfg.DATASET.get("SUBSAMPLE_CLASSES", "all")
        return f"{shots if shots > 0 else 'all'} shots, {subsample} classes"

    def _train_seconds(self) -> float | None:
        start = getattr(self, "time_start", None)
        return None if start is None else time.time() - start

    def _sample(self) -> dict[str, Any]:
        root = os.path.abspath(os.path.expanduser(self.cfg.DATASET.ROOT))
        sample: dict[str, Any] = {"seed": self.cfg.SEED, "shots": self.cfg.DATASET.NUM_SHOTS}
        for split in ("train_x", "val"):
            by_class: dict[str, list[str]] = {}
            for item in getattr(self.dm.dataset, split) or []:
                by_class.setdefault(item.classname, []).append(relative_path(item.impath, root))
            sample[split] = by_class
        return sample


def code_commit() -> str | None:
    """Commit of the repository that holds this file, with ``-dirty`` for uncommitted changes.

    None where none does: outside of git, and installed or dropped into a repository that does not track it, whose own
    commit says nothing about this code.
    """
    folder = Path(__file__).resolve().parent
    try:
        _git(folder, "ls-files", "--error-unmatch", Path(__file__).name)
        commit = _git(folder, "rev-parse", "--short=12", "HEAD")
        status = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("-dirty" if status else "")


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()


def _is_plain(loader: Any) -> bool:
    """Whether a loader, Dassl's own, gives its images once, in their order, by Dassl's wrapper and one transform."""
    return (
        type(loader).__module__.split(".")[0] in ("dassl", "torch")
        and type(loader.dataset) is DatasetWrapper
        and callable(loader.dataset.transform)
        and isinstance(loader.sampler, SequentialSampler)
        and not loader.drop_last
    )


def _save_npz(path: str, arrays: dict[str, Any]) -> None:
    with open(path, "wb") as file:  # a file object keeps numpy from appending a second suffix
        np.savez_compressed(file, **arrays)


def _plain(node: Any) -> Any:
    """A yacs node as plain dicts, lists and scalars."""
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items()}
    return [_plain(v) for v in node] if isinstance(node, tuple | list) else node


def _device_name(device: torch.device) -> str:
    device = torch.device(device)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({torch.get_num_threads()} threads)"


def _peak_memory_mb(device: torch.device) -> float:
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.exists():  # of this program alone: ru_maxrss counts the process that started it as well
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / (2**20 if sys.platform == "darwin" else 2**10)
