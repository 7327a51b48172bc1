"""What the adapters on CLIP's image features share: the shots are encoded once, and training reads the cache.

CLIP is frozen and its prompts are those of :class:`.zsclip.ZeroshotCLIP`. A method says what it makes of features and
class names (:class:`FeatureAdapter`) and how it is built (:meth:`FeatureAdapterTrainer.build_adapter`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from dassl.engine import TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from torch import Tensor, nn
from torch.nn import functional as F
from yacs.config import CfgNode

from .capt.backbone.precision import PRECISIONS, usable_precision
from .capt.backbone.prompted_clip import ImageFeatures, PromptedCLIP, load_backbone
from .capt.bases.context import plain_name
from .capt.bases.templates import CUSTOM_TEMPLATES
from .capt.run.encoding import sensible_workers
from .capt.run.feature_cache import CachedLoader, FeatureCache, ViewBatch, ViewDataset, encode_views, hash_seed
from .capt.run.files import read_checkpoint
from .capt.run.interruption import ResumableMixin
from .capt.run.record import RunRecordMixin
from .capt.run.shares import begin_batch, mean_figures
from .checkpoints import checkpoint_path, need_directory
from .prompted_classifier import clip_logits

__all__ = ["FeatureAdapter", "FeatureAdapterTrainer", "adapter_node", "encode_prompts", "features_only"]

SAMPLERS = ("RandomSampler", "SequentialSampler")  # what a loader over cached features can do


def adapter_node(**keys: object) -> CfgNode:
    """A method's node: what all of them have, and its own keys."""
    shared = {
        "PREC": "fp16",  # fp16, fp32, bf16 or amp, of the frozen towers; what is trained is fp32
        "AUGMENT_EPOCHS": 10,  # augmented views of every shot that are encoded besides the shot itself
    }
    return CfgNode(shared | keys)


@torch.no_grad()
def encode_prompts(clip: PromptedCLIP, classnames: Sequence[str], dataset: str) -> Tensor:
    """Text features ``(C, D)`` of zero-shot CLIP's prompt for this data set."""
    template = CUSTOM_TEMPLATES.get(dataset, "a photo of a {}.")
    return clip.text_features([template.format(plain_name(name)) for name in classnames]).to(clip.dtype)


def features_only(batches: Iterator[ViewBatch]) -> Iterator[ViewBatch]:
    """The same without tokens, which no adapter reads and which would fill the memory."""
    return (replace(batch, cls=None, tokens=None) for batch in batches)


class FeatureAdapter(nn.Module):
    """A classifier of CLIP's image features. This one is zero-shot CLIP; methods build on it.

    What is learned belongs to the classes it was trained on, whose names go into the checkpoint; the classes that are
    served may be others.

    Args:
        classnames: the C classes to train on, which are served until :meth:`serve` says otherwise.
        text_features: ``(C, D)``, of any length.
        logit_scale: CLIP's, a logarithm.
    """

    trained_classes: Tensor  # (N,) uint8, the names as JSON
    logit_scale: Tensor
    text_features: Tensor  # (C, D)
    rows: Tensor  # (C,) place among the trained classes, or -1

    def __init__(self, classnames: Sequence[str], text_features: Tensor, logit_scale: Tensor):
        super().__init__()
        names = json.dumps(list(classnames)).encode()
        self.register_buffer("trained_classes", torch.tensor(list(names), dtype=torch.uint8))
        self.register_buffer("logit_scale", logit_scale.detach().clone(), persistent=False)
        self.serve(classnames, text_features)

    def trained_classnames(self) -> list[str]:
        """Names of the classes that it was trained on."""
        return json.loads(bytes(self.trained_classes.tolist()))

    def serve(self, classnames: Sequence[str], text_features: Tensor) -> None:
        """Classify into these classes from now on; ``text_features`` is ``(C, D)``."""
        place = {name: i for i, name in enumerate(self.trained_classnames())}
        rows = torch.tensor([place.get(name, -1) for name in classnames], device=text_features.device)
        self.register_buffer("text_features", text_features.detach().float(), persistent=False)
        self.register_buffer("rows", rows, persistent=False)

    def restore(self, state: dict[str, Tensor], path: str) -> None:
        """Take over the weights of a checkpoint, with as many classes and shots as it has.

        Args:
            state: tensors ``(N, ...)``, with a number N of rows of their own.
            path: where they are from, for the message.

        Raises:
            ValueError: ``path``'s weights are another method's, or made for another backbone.
        """
        own = self.state_dict()
        if state.keys() != own.keys():
            raise ValueError(f'"{path}" holds {sorted(state)}, this run needs {sorted(own)}; which method wrote it?')
        for key, value in state.items():
            if value.shape[1:] != own[key].shape[1:]:
                widths = f"{tuple(value.shape)}, this run has {tuple(own[key].shape)}"
                raise ValueError(f'"{path}": {key} has shape {widths}; was it trained with another backbone?')
            owner, _, name = key.rpartition(".")
            getattr(self.get_submodule(owner), name).data = value.to(own[key])

    def forward(self, features: Tensor) -> Tensor:
        """Logits ``(B, C)`` in fp32 of image features ``(B, D)`` of any length."""
        return clip_logits(self.logit_scale, features, self.text_features)


class FeatureAdapterTrainer(RunRecordMixin, ResumableMixin, TrainerX):
    """Life cycle of an adapter.

    Attributes:
        node: name of the method's configuration node, TRAINER.<node>.
        checkpoint_name: folder of the checkpoints in OUTPUT_DIR.
        backbones: which backbones it serves, and why not others; docs/BACKBONES.md has the table.
        new_classes: what becomes of classes it was not trained on, for the log.
    """

    node: str
    adapter: FeatureAdapter
    train_loader_x: CachedLoader  # from before_train on
    checkpoint_name = "feature_adapter"
    frozen_is_rebuilt = False  # a cache of shots is frozen as well, and made of the shots
    backbones = "any CLIP or SigLIP: it reads the joint features alone"
    new_classes = "keep the text features, as in zero-shot CLIP"

    def check_cfg(self, cfg: CfgNode) -> None:
        """Refuse what cannot be run."""
        node, sampler = cfg.TRAINER[self.node], cfg.DATALOADER.TRAIN_X.SAMPLER
        if node.PREC not in PRECISIONS:
            raise ValueError(f"TRAINER.{self.node}.PREC must be one of {', '.join(PRECISIONS)}, got {node.PREC!r}")
        if node.AUGMENT_EPOCHS < 0:
            raise ValueError(f"TRAINER.{self.node}.AUGMENT_EPOCHS must be 0 or more, got {node.AUGMENT_EPOCHS}")
        if sampler not in SAMPLERS:
            raise ValueError(f"DATALOADER.TRAIN_X.SAMPLER must be one of {', '.join(SAMPLERS)}, got {sampler!r}")

    def build_adapter(self, classnames: list[str], text_features: Tensor, logit_scale: Tensor) -> FeatureAdapter:
        """The method's adapter, before training, of text features ``(C, D)`` and CLIP's scalar logit scale."""
        raise NotImplementedError

    def build_model(self) -> None:
        """Load the frozen CLIP, encode the prompts, and register what is trained."""
        cfg = self.cfg
        self.run_seed = cfg.SEED if cfg.SEED >= 0 else torch.initial_seed() % 2**31
        self.precision = usable_precision(cfg.TRAINER[self.node].PREC, self.device)
        self.clip = load_backbone(cfg, self.precision).to(self.device)
        names = list(self.dm.dataset.classnames)
        texts = encode_prompts(self.clip, names, cfg.DATASET.NAME)
        torch.manual_seed(hash_seed(self.run_seed))  # the start of the weights must not depend on what ran before
        self.adapter = self.build_adapter(names, texts, self.clip.clip.logit_scale).to(self.device)
        sizes = {name: p.numel() for name, p in self.adapter.named_parameters() if p.requires_grad}
        print(f"Parameters to be updated: {sorted(sizes)}, {sum(sizes.values()):,} in all")
        self.optim = self.sched = None
        if sizes:
            self.optim = self.build_optimizer()
            self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model(self.checkpoint_name, self.adapter, self.optim, self.sched)

    def build_optimizer(self) -> torch.optim.Optimizer:
        """The optimiser that OPTIM describes."""
        return build_optimizer(self.adapter, self.cfg.OPTIM)

    def before_train(self) -> None:
        """Resume if there is something to resume, and encode the shots unless everything is done."""
        super().before_train()
        if self.start_epoch >= self.max_epoch:
            return
        cfg = self.cfg
        cache = self.encode_shots()
        if self.start_epoch == 0 and not self.is_resumed:
            self.start_from(cache)
        is_shuffled = cfg.DATALOADER.TRAIN_X.SAMPLER == "RandomSampler"
        self.train_loader_x = CachedLoader(cache, cfg.DATALOADER.TRAIN_X.BATCH_SIZE, self.run_seed, is_shuffled)

    def encode_shots(self) -> FeatureCache:
        """Features of the shots as they are (view 0) and of their augmented views (1, 2, ...)."""
        cfg = self.cfg
        num_views = 1 + cfg.TRAINER[self.node].AUGMENT_EPOCHS
        transforms = self.dm.test_loader.dataset.transform, self.dm.train_loader_x.dataset.transform
        views = ViewDataset(self.dm.dataset.train_x, num_views, *transforms, self.read_image, self.run_seed)
        workers = sensible_workers(cfg.DATALOADER.NUM_WORKERS)
        batch_size = cfg.DATALOADER.TEST.BATCH_SIZE
        files, title = self.feature_files, "Encoding the shots"
        batches = encode_views(self.clip, views, self.device, batch_size, workers, title, files, with_tokens=False)
        cache = FeatureCache(batches, num_views, len(self.dm.dataset.train_x))
        print(f"Encoded {len(cache):,} images x {num_views} views")
        return cache

    def start_from(self, cache: FeatureCache) -> None:
        """Hook: what a method takes from the shots' features before the first step."""

    def before_epoch(self) -> None:
        """Every epoch's order and views follow from (seed, epoch)."""
        super().before_epoch()
        self.train_loader_x.epoch = self.epoch

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """One step on the cross-entropy; the rate changes on an epoch's last batch. Returns scalars to print."""
        views = batch["features"].to(self.device)
        begin_batch(len(views.label))
        logits = self.adapter(views.z)
        loss = F.cross_entropy(logits, views.label)
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return mean_figures({"loss": loss.detach(), "acc": compute_accuracy(logits.detach(), views.label)[0]})

    def frozen_encoder(self) -> PromptedCLIP:
        """CLIP as it is."""
        return self.clip

    @torch.no_grad()
    def inference_from(self, features: ImageFeatures) -> tuple[Tensor, None]:
        """Logits ``(B, C)`` of encoded images."""
        return self.adapter(features.feature), None

    @torch.no_grad()
    def model_inference(self, images: Tensor) -> Tensor:
        """Logits ``(B, C)`` of images ``(B, 3, H, W)``."""
        return self.inference_from(self.clip.encode_image(images))[0]

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load a checkpoint of ``directory``, the best one if no epoch is given, and serve this run's classes.

        Raises:
            FileNotFoundError: no such checkpoint.
            ValueError: the checkpoint does not fit this run.
        """
        need_directory(directory, self.checkpoint_name, type(self).__name__)
        path = checkpoint_path(directory, self.checkpoint_name, epoch)
        checkpoint = read_checkpoint(path)
        self.adapter.restore(checkpoint["state_dict"], path)
        self.loaded_epoch = checkpoint.get("epoch", 0)
        print(f'Loading weights to {self.checkpoint_name} from "{path}" (epoch = {self.loaded_epoch})')
        names = list(self.dm.dataset.classnames)
        self.adapter.serve(names, self.adapter.text_features)
        num_new = int((self.adapter.rows < 0).sum())
        if num_new:
            print(f"{num_new} of {len(names)} classes were not trained on: they {self.new_classes}")
