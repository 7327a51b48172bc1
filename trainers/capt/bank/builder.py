"""From training images to a Confusion Bank: who judges them, on which images, in how many views."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from dassl.data.data_manager import build_data_loader
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor, nn
from yacs.config import CfgNode

from ..backbone.layout import patch_layout
from ..backbone.prompted_clip import PromptedCLIP
from ..bases.learners import BaseModel, BaseSpec, build_base, zero_shot
from ..run.dataset import rebuilt_dataset
from ..run.feature_cache import FeatureCache, ViewBatch, ViewEncoder
from ..run.host_dassl import run_through
from ..run.memory import Place
from ..run.reading import lend_reader, reader_of
from ..run.yaml_file import merge_yaml
from .confusion_bank import ConfusionBank, JudgedViews
from .entry_tokens import EncodedTokens, HostTokens, TokenSource
from .files import FILE
from .names import suspicious_names

__all__ = ["BankBuilder", "bank_fingerprint", "fit_fold", "fold_of"]


def bank_fingerprint(cfg: CfgNode, classnames: Sequence[str], base_digest: str) -> dict[str, Any]:
    """What a bank depends on; equal fingerprints, equal banks."""
    node = cfg.TRAINER.CAPT
    return {
        "dataset": cfg.DATASET.NAME,
        "seed": cfg.SEED,
        "shots": cfg.DATASET.NUM_SHOTS,
        "bank_shots": node.BANK.SHOTS,
        "classes": hashlib.sha256(json.dumps(list(classnames)).encode()).hexdigest(),
        "base": node.BASE.NAME,
        "base_weights": base_digest,
        "template": node.BASE.TEMPLATE,
        "source": node.BANK.SOURCE,
        "views": node.BANK.VIEWS,
        "counts": node.BANK.COUNTS,
        "near_misses": node.BANK.NEAR_MISSES,
        "layout": node.SAM.LAYOUT or None,  # banks from before there were layouts lack the key
        "folds": _fold_protocol(node.BANK) if node.BANK.SOURCE == "crossfit" else "",
    }


def _fold_protocol(bank: CfgNode) -> str:
    """How the bases of the folds are trained: their number, and their configuration's content."""
    config = Path(bank.FOLD_CONFIG).read_bytes() if bank.FOLD_CONFIG else b""
    return f"{bank.FOLDS}-{hashlib.sha256(config).hexdigest()[:16]}"


@dataclass(frozen=True)
class BankBuilder:
    """Builds the bank of one run.

    Args:
        cfg: the run's configuration.
        base: the frozen base model, serving the run's classes.
        spec: which base learner it is.
        encode: ``encode(base, source, num_views, title, images)`` gives the features of the views of the items at the
            positions ``images``, of all by default.
        relative: image path to the path that the bank stores.
        seed: the run's seed, for folds.
        systematic: the shift that the model puts before everything; the base model judges behind it.
        tokens_in: where the entries' patch tokens are to be; see :class:`..run.memory.MemoryPlan`.
    """

    cfg: CfgNode
    base: BaseModel
    spec: BaseSpec
    encode: ViewEncoder
    relative: Callable[[str], str]
    seed: int
    systematic: nn.Module
    tokens_in: Place = "bank"

    @property
    def node(self) -> CfgNode:
        """``TRAINER.CAPT.BANK``."""
        return self.cfg.TRAINER.CAPT.BANK

    def build_for_run(self, run: str | Path, own: Sequence[Any], cache: FeatureCache | None = None) -> ConfusionBank:
        """Build the bank of a run and store it; a bank that lies in its folder already must be this run's.

        Args:
            run: its folder.
            own: its training items.
            cache: their features, where they are kept.

        Raises:
            BankMismatchError: the folder holds the bank of another run.
        """
        path = Path(run) / FILE
        if path.is_file():  # a resumed run: built anew, since the stored one holds no tokens
            ConfusionBank.load(path).check(self.fingerprint())
        if self.node.SHOTS == -1:
            source = rebuilt_dataset(self.cfg, NUM_SHOTS=-1).train_x
            print(f"Bank protocol: published, from the full training set ({len(source):,} images)")
            bank = self.build(source)
        else:
            print(f"Bank protocol: honest, from the {len(own):,} training images of this run")
            bank = self.build(own, cache)
        bank.save(run)
        _describe(bank)
        return bank

    @torch.no_grad()
    def build(self, source: Sequence[Any], cache: FeatureCache | None = None) -> ConfusionBank:
        """The bank of the training items ``source``, whose features ``cache`` may hold already."""
        num_views = self.node.VIEWS
        if cache is None or cache.num_views < num_views:
            views = self.encode(self.base, source, num_views, "Building the confusion bank")
        else:
            device = self.base.text_features.device
            views = (batch.to(device) for batch in cache.views(num_views))
        judge = self._judge(source)
        held: HostTokens | None = None

        def by_judge() -> Iterator[JudgedViews]:
            nonlocal held
            for batch in views:
                if batch.tokens is not None and self.tokens_in == "bank":
                    held = held or HostTokens.room_for(len(source), num_views, batch.tokens)
                    held.put(batch.index, batch.view, batch.tokens)
                yield self._judged(batch, judge(batch))

        bank = ConfusionBank.build(
            self.base.classnames,
            [self.relative(item.impath) for item in source],
            by_judge(),
            soft_counts=self.node.COUNTS == "soft",
            near_misses=self.node.NEAR_MISSES if self.node.NEAR_MISSES <= 1 else None,
            fingerprint=self.fingerprint(),
            shrinkage=self.cfg.TRAINER.CAPT.SAM.SHRINKAGE,
        )
        bank.token_source = held or self._token_source(source, cache)
        if self.node.COUNTS == "hard":  # soft counts are confidences, not images
            labels = torch.tensor([item.label for item in source], device=bank.device)
            judged = num_views * torch.bincount(labels, minlength=bank.num_classes)
            bank.notes = suspicious_names(bank.classnames, bank.counts, judged)
        return bank

    def _judged(self, batch: ViewBatch, probs: Tensor) -> JudgedViews:
        tokens = {} if batch.cls is None else {"cls": batch.cls}
        if batch.tokens is not None and self.cfg.TRAINER.CAPT.SAM.LAYOUT:
            tokens["layout"] = patch_layout(batch.tokens)
        return JudgedViews.of(probs, batch.label, batch.z, index=batch.index, view=batch.view, **tokens)

    def _token_source(self, source: Sequence[Any], cache: FeatureCache | None) -> TokenSource | None:
        if self.tokens_in in ("bank", "nowhere") or not self.base.prompted.is_vit:
            return None
        if self.tokens_in == "images":
            return EncodedTokens(lambda asked: self.encode.tokens_of(self.base, source, asked))
        tokens = None if cache is None else cache.rows.tokens
        assert cache is not None, "the plan has tokens in a cache that is not there"
        assert tokens is not None, "a ViT has patch tokens"
        return HostTokens(tokens, cache.token_views)

    def fingerprint(self) -> dict[str, Any]:
        """See :func:`bank_fingerprint`; and the shift that the judge stood behind."""
        shift = torch.cat([value.flatten() for value in self.systematic.state_dict().values()]).cpu()
        behind = {"systematic": hashlib.sha256(shift.numpy().tobytes()).hexdigest()} if shift.any() else {}
        return bank_fingerprint(self.cfg, self.base.classnames, self.base.digest()) | behind

    def _judge(self, source: Sequence[Any]) -> Callable[[ViewBatch], Tensor]:
        """Who says which views are confused: views to confidences ``(B, C)``."""
        is_fitted = self.spec.name != "ZeroshotCLIP"
        if self.node.SOURCE == "base" or not is_fitted:
            return lambda views: self.base.logits(views.z, self.systematic(views.z)).softmax(dim=-1)
        if self.node.SOURCE == "zeroshot":
            judges = [zero_shot(self.base.prompted, self.spec.template, self.base.classnames)]
            return self._judge_by(judges, source, torch.zeros(len(source), dtype=torch.long))
        folds = fold_of([item.label for item in source], self.node.FOLDS, self.seed)
        judges = [self._fold_judge(source, folds, fold) for fold in range(self.node.FOLDS)]
        return self._judge_by(judges, source, folds)

    def _fold_judge(self, source: Sequence[Any], folds: Tensor, fold: int) -> BaseModel:
        kept = [item for item, other in zip(source, folds.tolist(), strict=True) if other != fold]
        directory = Path(self.cfg.OUTPUT_DIR) / "crossfit" / f"fold{fold}"
        print(f"Cross-fitting the bank: fold {fold + 1}/{self.node.FOLDS} of {self.spec.name}")
        with torch.enable_grad():
            return fit_fold(self.cfg, kept, directory, self.base.prompted, self.spec)

    def _judge_by(
        self, judges: Sequence[BaseModel], source: Sequence[Any], folds: Tensor
    ) -> Callable[[ViewBatch], Tensor]:
        """Each image is judged by the judge of its fold, on the features that this judge makes of it."""
        num_views, device = self.node.VIEWS, self.base.text_features.device
        probs = torch.zeros(len(source) * num_views, len(self.base.classnames), device=device)
        for fold, judge in enumerate(judges):
            judge.to(device).set_classes(self.base.classnames)
            mine = (folds == fold).nonzero().squeeze(1).tolist()
            title = f"Judging views ({fold + 1}/{len(judges)})"
            for batch in self.encode(judge, source, num_views, title, mine, token_views=0):
                probs[batch.index * num_views + batch.view] = judge.logits(batch.z).softmax(dim=-1)
        return lambda views: probs[views.index * num_views + views.view]


def _describe(bank: ConfusionBank) -> None:
    num_confused = bank.num_confused
    print(f"Confusion bank: {num_confused:,} confused views, {len(bank) - num_confused:,} near misses")
    if num_confused == 0:
        print("The base model makes no error on these images; BANK.SOURCE zeroshot or crossfit would find some")
    for a, b, count in bank.top_pairs(5):
        print(f"  {a} / {b}: {count:.4g}")
    for note in bank.notes:
        print(f"  {note}")


def fold_of(labels: Sequence[int], num_folds: int, seed: int) -> Tensor:
    """``(num_images,)`` the fold of each image, balanced within every class, from the seed alone."""
    label = torch.as_tensor(labels)
    order = torch.randperm(len(label), generator=torch.Generator().manual_seed(abs(seed)))
    by_class = order[label[order].argsort(stable=True)]  # shuffled, then grouped by class
    fold = torch.empty(len(label), dtype=torch.long)
    fold[by_class] = torch.arange(len(label)) % num_folds
    return fold


def fit_fold(cfg: CfgNode, kept: Sequence[Any], directory: Path, prompted: PromptedCLIP, spec: BaseSpec) -> BaseModel:
    """Train the base learner anew on the images ``kept`` by the host's own trainer, and load it as a base model.

    Args:
        cfg: the run's configuration; ``BANK.FOLD_CONFIG`` holds the base learner's own.
        kept: training items that this base may see.
        directory: its output folder; a finished run on these images with this configuration is taken as it is.
        prompted: the frozen CLIP.
        spec: the base learner; its folder is replaced by ``directory``.
    """
    # Named by its images, so that a fold of another draw, which may have seen them all, is never taken for this one.
    seen = json.dumps([sorted(item.impath for item in kept), _fold_protocol(cfg.TRAINER.CAPT.BANK), cfg.SEED])
    directory = directory.with_name(f"{directory.name}-{hashlib.sha256(seen.encode()).hexdigest()[:12]}")
    fold_cfg = cfg.clone()
    fold_cfg.defrost()
    merge_yaml(fold_cfg, cfg.TRAINER.CAPT.BANK.FOLD_CONFIG)
    if fold_cfg.TRAINER.NAME == cfg.TRAINER.NAME:  # else the yaml names the host's trainer: MultiModalAdapter ...
        fold_cfg.TRAINER.NAME = spec.name
    fold_cfg.OUTPUT_DIR = str(directory)
    fold_cfg.RESUME = ""
    fold_cfg.TEST.NO_TEST = True
    fold_cfg.TEST.FINAL_MODEL = "last_step"
    fold_cfg.freeze()
    trainer: Any = TRAINER_REGISTRY.get(fold_cfg.TRAINER.NAME)(fold_cfg)
    loader_cfg = fold_cfg.DATALOADER.TRAIN_X
    trainer.train_loader_x = build_data_loader(
        fold_cfg,
        sampler_type=loader_cfg.SAMPLER,
        data_source=list(kept),
        batch_size=loader_cfg.BATCH_SIZE,
        tfm=trainer.train_loader_x.dataset.transform,
        is_train=True,
    )
    lend_reader(trainer.train_loader_x, reader_of(fold_cfg, trainer.dm.dataset))
    run_through(trainer)
    spec = replace(spec, directory=str(directory), epoch=0)
    return build_base(prompted, spec)
