"""A trained run, ready for images, without Dassl and without the trainer.

    import capt
    run = capt.load("output/folder/CAPT/quick/seed1")
    print(run.predict(["kitchen.jpg"]))

Everything comes from the run folder: ``results.json`` (the configuration), the checkpoint, the bank, and what
:mod:`capt.run.serving` keeps. CLIP's own weights and the base learner's run are found by the paths in the
configuration.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from torchvision import transforms
from yacs.config import CfgNode

from ..backbone.precision import autocast_for, usable_precision
from ..backbone.prompted_clip import load_backbone
from ..bank.confusion_bank import ConfusionBank
from ..bank.files import FILE as BANK_FILE
from ..bank.pair_features import PairFeatures
from ..bank.prompt_library import PairEncoder, PromptLibrary
from ..bases.learners import BaseSpec, build_base
from ..bases.registry import import_learners, learner_names
from ..bases.spec import spec_from
from ..bases.templates import template_of
from ..config import settings_from
from ..method.checkpoint import load_refiner
from ..method.model import CAPTModel, CAPTOutput, CAPTSettings
from ..run.files import checkpoint_file
from ..run.pictures import ImageError, as_rgb, read_image
from ..run.serving import (
    FOLDER,
    Serving,
    prompts_folder,
    read_pair_features,
    read_serving,
)

__all__ = ["ImageError", "Prediction", "Predictor", "image_transform", "load", "open_image"]

logger = logging.getLogger(__name__)

OTHER_BASE = "give the CLIP and the base learner that it was trained on by backbone and base_dir"
Images = str | os.PathLike[str] | Image.Image | Tensor | Sequence[str | os.PathLike[str] | Image.Image]


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one image, best first.

    Attributes:
        path: the image's file; None where an image object was given.
        class_names: names of the top classes.
        confidences: theirs, in [0, 1].
        base_class_names: the base model's top classes.
        base_confidences: theirs.
    """

    path: str | None
    class_names: tuple[str, ...]
    confidences: tuple[float, ...]
    base_class_names: tuple[str, ...]
    base_confidences: tuple[float, ...]

    @property
    def class_name(self) -> str:
        """The answer."""
        return self.class_names[0]


class Predictor:
    """A trained CAPT that answers for images; made by :func:`load`.

    Attributes:
        model: the model, in eval mode.
        classnames: the classes that it was trained on.
        served: the classes that it speaks of at the moment.
        transform: PIL image to tensor ``(3, H, W)``, the run's test transform.
        bank: the confusion bank of the run, also where the run does not consult it; None if it has none.
        library: the sentences about pairs of classes.
        record: what the run says of itself, ``results.json``.
    """

    def __init__(
        self,
        run: Path,
        record: dict[str, Any],
        model: CAPTModel,
        bank: ConfusionBank | None,
        library: PromptLibrary,
        precision: str,
    ):
        config = record["config"]
        self.run, self.record, self.model, self.bank, self.library = run, record, model.eval(), bank, library
        self.precision = precision
        self.classnames: list[str] = list(record["classnames"])
        self.transform = image_transform(config["INPUT"])
        self.consults_bank = bank is not None and config["TRAINER"]["CAPT"]["BANK"]["AT_TEST"]
        self.served: list[str] = []
        self.serve()

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return self.model.base.text_features.device

    @torch.no_grad()
    def serve(self, class_names: Sequence[str] | None = None) -> None:
        """Speak of these classes from now on; None for those of the run.

        Raises:
            ValueError: no class, or a name that is no text.
        """
        names = self.classnames if class_names is None else list(class_names)
        if not names or not all(isinstance(name, str) and name.strip() for name in names):
            raise ValueError(f"class_names must be a list of at least one name, got {class_names!r}")
        if names != self.served:
            self.model.set_classes(names, self._pairs_of(names), self.bank if self.consults_bank else None)
            self.served = names

    def _pairs_of(self, names: list[str]) -> PairFeatures:
        """What is said of the pairs of these classes, with what has been encoded of them already."""
        base = self.model.base
        node = self.record["config"]["TRAINER"]["CAPT"].get("SEM", {})
        room = {"max_gigabytes": node["MAX_GB"]} if "MAX_GB" in node else {}  # not in older runs
        encode = PairEncoder(self.library, base.encode_sentences)
        pairs = PairFeatures(names, encode, base.embed_dim, **room).to(self.device)
        if self.served:
            last = self.model.semantic_miner.features
            pairs.take_up(last.classnames, last.known())
        else:
            made_of = {"base": base.digest(), "sentences": self.library.digest()}
            stored = read_pair_features(self.run, made_of, self.device)
            if stored is not None:
                pairs.take_up(*stored)
        return pairs

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> CAPTOutput:
        """All that the model makes of transformed images ``(B, 3, H, W)``, for the classes being served."""
        with autocast_for(self.precision, self.device):
            features = self.model.encode(pixels.to(self.device))
        return self.model(normalize(features.feature.float(), dim=-1), features.cls, features.tokens)

    def batches(
        self, images: Images, batch_size: int = 100, shown: bool = True
    ) -> Iterator[tuple[list[str | None], CAPTOutput]]:
        """Paths (None for image objects) and outputs, batch by batch.

        Images are read as a viewer shows them; without ``shown`` as they are stored, as loaders read published sets.

        Raises:
            ImageError: names the first file that cannot be read.
        """
        if isinstance(images, Tensor):
            pixels = images if images.dim() == 4 else images.unsqueeze(0)
            for part in pixels.split(batch_size):
                yield [None] * len(part), self.forward(part)
            return
        items = [images] if isinstance(images, str | os.PathLike | Image.Image) else list(images)
        for start in range(0, len(items), batch_size):
            part = items[start : start + batch_size]
            pixels = torch.stack([self.transform(open_image(item, shown)) for item in part])
            yield [None if isinstance(item, Image.Image) else os.fspath(item) for item in part], self.forward(pixels)

    def logits(self, images: Images, class_names: Sequence[str] | None = None, batch_size: int = 100) -> Tensor:
        """Logits ``(M, C)`` fp32 on the CPU; see :meth:`predict` for the arguments."""
        self.serve(class_names)
        found = [output.logits.cpu() for _, output in self.batches(images, batch_size)]
        return torch.cat(found) if found else torch.zeros(0, len(self.served))

    def predict(
        self, images: Images, class_names: Sequence[str] | None = None, top_k: int = 5, batch_size: int = 100
    ) -> list[Prediction]:
        """The likeliest classes of each image.

        Args:
            images: a path, a PIL image, a list of them, or transformed images ``(B, 3, H, W)``.
            class_names: classes to choose from; None for those that the run was trained on. Any names will do: the
                bank is consulted for those it knows.
            top_k: classes to report.
            batch_size: images in one pass.

        Raises:
            ImageError: a file cannot be read.
            ValueError: see :meth:`serve`; or top_k is below 1.
        """
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        self.serve(class_names)
        found = []
        for paths, output in self.batches(images, batch_size):
            found += self.predictions(paths, output, top_k)
        return found

    def predictions(self, paths: Sequence[str | None], output: CAPTOutput, top_k: int = 5) -> list[Prediction]:
        """The top classes in a batch's output; ``paths`` name its images."""
        tops = zip(self._top(output.logits, top_k), self._top(output.base_logits, top_k), strict=True)
        return [Prediction(path, *own, *base) for path, (own, base) in zip(paths, tops, strict=True)]

    def _top(self, logits: Tensor, k: int) -> list[tuple[tuple[str, ...], tuple[float, ...]]]:
        values, indices = logits.softmax(dim=-1).topk(min(k, logits.shape[1]), dim=-1)
        return [
            (tuple(self.served[i] for i in row), tuple(confidences))
            for row, confidences in zip(indices.tolist(), values.tolist(), strict=True)
        ]


def load(
    run: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    epoch: int | None = None,
    backbone: str | None = None,
    base_dir: str | os.PathLike[str] | None = None,
    base_module: str | os.PathLike[str] | None = None,
) -> Predictor:
    """Load what a CAPT run trained.

    Args:
        run: output folder of the training run.
        device: where to put it; None for CUDA if there is one, else the CPU.
        epoch: epoch of the checkpoint; None for the one that the run deployed.
        backbone: CLIP's name or file, where the one in the run's configuration has moved.
        base_dir: run folder of the base learner, where it has moved.
        base_module: module or ``.py`` file that registers the base learner, for learners of your own. It is never taken
            from the run folder, since importing it runs its code; an import of yours does as well.

    Raises:
        FileNotFoundError: the run has not finished, or something that it stands on has gone; says which and where.
        ValueError: the folder belongs to another trainer, its parts do not fit together, or nobody registered its base
            learner.
    """
    import_learners(base_module)
    run = Path(run).expanduser()
    record = _read_record(run)
    cfg = CfgNode(record["config"])
    node = cfg.TRAINER.CAPT
    _check_learner(node.BASE, run)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    path = checkpoint_file(str(run), FOLDER, epoch)
    serving = _serving(run, record)
    precision = usable_precision(node.PREC, device)
    name = backbone or _found(cfg.MODEL.BACKBONE.NAME, run)
    prompted = load_backbone(cfg, precision, name).to(device)
    base = build_base(prompted, _base_spec(cfg, serving.template, run, base_dir)).to(device)
    base.trained_on = list(record["classnames"])
    model = CAPTModel(base, _settings(node, run)).to(device)
    load_refiner(model, path, other_base=OTHER_BASE)

    bank = None
    if (run / BANK_FILE).is_file() or node.BANK.AT_TEST:
        has_features = model.refiner.adapter is not None and node.BANK.AT_TEST
        bank = ConfusionBank.of_run(run, base.digest(), path if has_features else None, device)
    library = PromptLibrary(_prompts(run, node.SEM.PROMPTS), cfg.DATASET.NAME, serving.all_classnames)
    return Predictor(run, record, model, bank, library, precision)


def _read_record(run: Path) -> dict[str, Any]:
    path = run / "results.json"
    if not path.is_file():
        there = "no such folder" if not run.is_dir() else "the run has not finished, or it is no run folder"
        raise FileNotFoundError(f'No "{path}": {there}; give the output folder of a CAPT run')
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        trainer = record["trainer"]
        record["config"], record["classnames"]  # noqa: B018 - are they there?
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f'"{path}" is no record of a run ({type(error).__name__}: {error})') from error
    if trainer != "CAPT":
        raise ValueError(f'"{path}" was written by {trainer}; capt.load needs the run of a CAPT')
    if not (run / FOLDER).is_dir() and "test_" in str(run):
        trained = str(run).replace("test_new", "train_base").replace("test_base", "train_base")
        raise FileNotFoundError(f'"{run}" only tested a model; give the folder of the run that trained it, "{trained}"')
    return record


def _settings(node: CfgNode, run: Path) -> CAPTSettings:
    try:
        return settings_from(node)
    except AttributeError as error:
        raise ValueError(
            f'"{run}" was trained by another version of CAPT (its configuration has no {error}); train it again, or '
            "load it with that version"
        ) from error


def _serving(run: Path, record: dict[str, Any]) -> Serving:
    serving = read_serving(run)
    if serving is not None:
        return serving
    config = record["config"]
    template = config["TRAINER"]["CAPT"]["BASE"]["TEMPLATE"] or template_of(config["DATASET"]["NAME"])
    return Serving(template, record["classnames"], record["classnames"])


def _prompts(run: Path, configured: str) -> Path:
    kept = prompts_folder(run)
    if kept.is_dir():
        return kept
    logger.warning('"%s" keeps no prompt files; reading those of "%s"', run, configured)
    return Path(_found(configured, run))


def _found(path: str, run: Path) -> str:
    """A path of the configuration, which is relative to where the run was started: here, or above the run folder."""
    if not path or os.path.exists(path) or os.path.isabs(path):
        return path
    above = (str(folder / path) for folder in run.resolve().parents)
    return next((candidate for candidate in above if os.path.exists(candidate)), path)


def _check_learner(node: CfgNode, run: Path) -> None:
    """Refuse a base learner that nobody registered; the module that the run names is only told, never imported."""
    if node.NAME in learner_names():
        return
    module = node.get("MODULE", "")
    named = f' of "{module}"' if module else ""
    raise ValueError(
        f'"{run}" stands on the base learner "{node.NAME}"{named}, which is not registered here, and a run folder does '
        f'not choose what code runs; give base_module="{module or "the file that registers it"}" '
        "(--base-module on the command line), or import it first"
    )


def _base_spec(cfg: CfgNode, template: str, run: Path, base_dir: str | os.PathLike[str] | None) -> BaseSpec:
    node = cfg.TRAINER.CAPT.BASE
    directory = _found(node.DIR, run) if base_dir is None else os.fspath(base_dir)
    if node.NAME != "ZeroshotCLIP" and directory and not os.path.exists(directory):
        raise FileNotFoundError(
            f'The base model of "{run}", {node.NAME} in "{directory}", is not there; '
            "put the folder back, or say where it lies by base_dir"
        )
    spec = spec_from(node, cfg.DATASET.NAME, cfg)
    return replace(
        spec,
        directory=directory,
        template=template,
        teacher_directory=_found(spec.teacher_directory, run),
        teacher_backbone=_found(spec.teacher_backbone, run),
    )


def image_transform(node: dict[str, Any]) -> transforms.Compose:
    """Dassl's test transform of an INPUT node.

    Raises:
        ValueError: a step that Dassl knows and this function does not.
    """
    unknown = {"instance_norm"} & set(node["TRANSFORMS"])
    if unknown or node.get("NO_TRANSFORM"):
        raise ValueError(f"INPUT.TRANSFORMS {sorted(unknown)} of this run cannot be rebuilt without Dassl")
    mode = transforms.InterpolationMode(node["INTERPOLATION"])
    size = tuple(node["SIZE"])
    steps = [transforms.Resize(max(size), interpolation=mode), transforms.CenterCrop(size), transforms.ToTensor()]
    if "normalize" in node["TRANSFORMS"]:
        steps.append(transforms.Normalize(mean=node["PIXEL_MEAN"], std=node["PIXEL_STD"]))
    return transforms.Compose(steps)


def open_image(item: str | os.PathLike[str] | Image.Image, shown: bool = True) -> Image.Image:
    """An RGB image from a file or an image object, as a viewer shows it or else as stored (:mod:`.run.pictures`).

    Raises:
        ImageError: there is no such file, or it cannot be decoded.
    """
    if not isinstance(item, Image.Image):
        return read_image(item, shown)
    try:
        return as_rgb(item, shown)
    except ValueError as error:
        raise ImageError(f"an image object cannot be read ({error})") from error
