"""What a run of CAPT does before its first step: cache, shift, bank, pairs and gain, all from its training images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .bank.builder import BankBuilder
from .bank.confusion_bank import ConfusionBank
from .bank.pair_features import PairFeatures
from .bank.prompt_library import PromptLibrary
from .bases.learners import BaseModel, BaseSpec, zero_shot
from .method.gain import set_gain
from .method.model import CAPTModel
from .method.semantic_miner import MinedViews
from .method.shift_choice import set_shift
from .method.start import meet_pairs_of_bank, start_semantic_experts
from .run.dataset import all_classnames, rebuilt_dataset
from .run.encoding import sensible_workers
from .run.feature_cache import CachedLoader, FeatureCache, ViewBatch, ViewEncoder, cache_where_it_fits, hash_seed
from .run.memory import MemoryPlan, memory_of, plan_memory
from .run.record import RunRecordMixin, relative_path
from .run.serving import MAX_FEATURE_BYTES, Serving, keep_pair_features, keep_serving

__all__ = ["PreparationMixin"]

SAMPLERS = ("RandomSampler", "SequentialSampler")  # what a loader over cached features can do


class PreparationMixin(RunRecordMixin):
    """Comes before Dassl's ``TrainerX``; :meth:`prepare` is called behind its ``before_train``.

    Attributes:
        model: CAPT, serving the run's classes.
        base_spec: which base learner it stands on.
        prompt_library: sentences about pairs of classes.
        pairs: their features.
        cache: features of the training images; None where they are encoded every step.
        choices: what was chosen, and by what.
        query_index: ``(n,)`` the bank's index of each training image.
        mined: the pairs that cached views were mined with.
        num_met_ahead: how many pairs were known before the first step.
    """

    model: CAPTModel
    base_spec: BaseSpec
    prompt_library: PromptLibrary
    pairs: PairFeatures
    cache: FeatureCache | None
    choices: dict[str, Any]
    query_index: Tensor
    mined: MinedViews
    num_met_ahead: int

    def prepare(self) -> None:
        """In this order, since the bank files what is still confused behind the shift."""
        self._keep_serving()
        pair_bytes = self.pairs.max_bytes if self.model.settings.use_mgde else 0  # else nothing is said of any
        for line in self._memory.lines(pair_bytes, memory_of(torch.device(self.device))):
            print(line)
        self._use_cache()
        self.choices = {}
        self._fit_shift()
        bank = self._make_bank()
        self._serve_classes(bank)
        self.query_index = bank.image_index([self._relative(item.impath) for item in self.dm.dataset.train_x])
        self._meet_pairs(bank)
        self._fit_gain()
        self.num_met_ahead = len(self.pairs)

    @cached_property
    def run_seed(self) -> int:
        """The run's seed; an unseeded run takes torch's, once, since every epoch seeds torch anew."""
        return self.cfg.SEED if self.cfg.SEED >= 0 else torch.initial_seed() % 2**31

    def _all_classnames(self) -> list[str]:
        return all_classnames(self.cfg, self.dm.dataset.classnames)

    def _serve_classes(self, bank: ConfusionBank | None) -> None:
        """Bind the model to this run's classes, and to the bank where one may be consulted."""
        self.model.set_classes(self.tested_classnames(), self.pairs, bank)

    def _relative(self, path: str) -> str:
        return relative_path(path, os.path.abspath(os.path.expanduser(self.cfg.DATASET.ROOT)))

    def _keep_serving(self) -> None:
        """Write beside the checkpoints what :func:`capt.load` needs and the configuration does not say."""
        classnames = self.tested_classnames()
        serving = Serving(self.base_spec.template, classnames, self._all_classnames())
        keep_serving(self.output_dir, serving, self.prompt_library.files)

    def _meet_pairs(self, bank: ConfusionBank) -> None:
        """Encode what is said of the pairs that the bank is torn between; a new run's experts start from it."""
        sources = meet_pairs_of_bank(self.model, bank)
        if sources:
            print("Pair prompts by source: " + ", ".join(f"{k} {v:,}" for k, v in sorted(sources.items())))
        if self.start_epoch == 0:
            generator = torch.Generator().manual_seed(hash_seed(self.run_seed, 1))
            start_semantic_experts(self.model, self.cfg.TRAINER.CAPT.MGDE.CENTROIDS, generator)
        self._keep_pairs()
        num_views = 0 if self.cache is None else len(self.cache) * self.cache.num_views
        self.mined = MinedViews(num_views, self.model.settings.num_pairs, torch.device(self.device))

    def _made_of(self) -> dict[str, str]:
        return {"base": self.model.base.digest(), "sentences": self.prompt_library.digest()}

    def _keep_pairs(self) -> None:
        most = MAX_FEATURE_BYTES // (2 * 4 * self.model.base.embed_dim)
        keep_pair_features(self.output_dir, self.pairs.classnames, self._made_of(), *self.pairs.known(most))

    @cached_property
    def _encode(self) -> ViewEncoder:
        """How this run looks at images, whichever base model encodes them."""
        loaders = self.cfg.DATALOADER
        return ViewEncoder(
            self.dm.test_loader.dataset.transform,
            self.dm.train_loader_x.dataset.transform,
            self.read_image,
            self.run_seed,
            torch.device(self.device),
            loaders.TEST.BATCH_SIZE,
            sensible_workers(loaders.NUM_WORKERS),
            self.feature_files,
        )

    @cached_property
    def _memory(self) -> MemoryPlan:
        """What cache and bank will take, and where the patch tokens of the bank's entries will be."""
        node, sampler = self.cfg.TRAINER.CAPT, self.cfg.DATALOADER.TRAIN_X.SAMPLER
        is_cached = node.CACHE.VIEWS > 0 and sampler in SAMPLERS
        wanted = max(node.CACHE.VIEWS, node.BANK.VIEWS) if is_cached else 0
        full = rebuilt_dataset(self.cfg, NUM_SHOTS=-1).train_x if node.BANK.SHOTS == -1 else None
        return plan_memory(
            self.model.base.prompted,
            num_images=len(self.dm.dataset.train_x),
            num_classes=self.num_classes,
            wanted_views=wanted,
            token_views=wanted if self.model.is_learned else min(wanted, node.BANK.VIEWS),  # which bank and gain read
            bank_views=node.BANK.VIEWS,
            num_bank_images=None if full is None else len(full),
            max_gigabytes=node.CACHE.MAX_GB,
            is_adapted=self.model.refiner.adapter is not None,
        )

    def _use_cache(self) -> None:
        """Replace Dassl's training loader by one over cached features, where they fit."""
        node, loader = self.cfg.TRAINER.CAPT, self.cfg.DATALOADER.TRAIN_X
        self.cache: FeatureCache | None = None
        if node.CACHE.VIEWS == 0:
            return
        if loader.SAMPLER not in SAMPLERS:
            print(f"CACHE.VIEWS is not used: it does not know the sampler {loader.SAMPLER}")
            return
        source = self.dm.dataset.train_x

        def views(num_views: int) -> Iterator[ViewBatch]:
            read = self._memory.token_views
            return self._encode(self.model.base, source, num_views, "Caching features", token_views=read)

        self.cache = cache_where_it_fits(views, len(source), self._memory, node.CACHE.MAX_GB)
        if self.cache is not None:
            is_shuffled = loader.SAMPLER == "RandomSampler"
            how = loader.BATCH_SIZE, self.run_seed, is_shuffled, torch.device(self.device)
            self.train_loader_x = CachedLoader(self.cache, *how)

    def _shots(self, base: BaseModel, num_views: int, title: str, token_views: int = 0) -> Iterator[ViewBatch]:
        """Features of the run's shots by ``base``; out of the cache where it holds them. Tokens are sure to be there
        of the first ``token_views`` views alone.
        """
        if base is self.model.base and self.cache is not None:
            return self.cache.views(num_views)
        return self._encode(base, self.dm.dataset.train_x, num_views, title, token_views=token_views)

    def _fit_shift(self) -> None:
        """Find what is common to all confusions, before the bank files those that remain."""
        if not self.cfg.TRAINER.CAPT.SYS.ON:
            return
        base = judge = self.model.base
        if self.base_learner != "ZeroshotCLIP":
            judge = zero_shot(base.prompted, self.base_spec.template, base.classnames)
        num_views = 1 if self.cache is None else self.cache.num_views
        views = self._shots(base, num_views, "Fitting the shift")
        judged = self._shots(judge, num_views, "Choosing the shift")
        choice = set_shift(self.model.refiner.systematic, base, views, judge, judged, hash_seed(self.run_seed, 3))
        self.choices["shift"] = choice.to_dict()

    def _make_bank(self) -> ConfusionBank:
        builder = BankBuilder(
            self.cfg,
            self.model.base,
            self.base_spec,
            self._encode,
            self._relative,
            self.run_seed,
            self.model.refiner.systematic,
            self._memory.tokens_in,
        )
        bank = builder.build_for_run(self.output_dir, self.dm.dataset.train_x, self.cache)
        capacity = memory_of(torch.device(self.device))
        if capacity is not None and bank.token_source is not None and self._memory.goes_to_device(capacity):
            bank.hold_tokens()
        return bank

    def _fit_gain(self) -> None:
        """Choose how far the corrections move z, before anything is trained."""
        settings, node = self.model.settings, self.cfg.TRAINER.CAPT.MGDE
        if not (node.FIT_GAIN and settings.use_corrections and settings.use_sam):
            return
        views = self._shots(self.model.base, 1, "Fitting the gain", token_views=1)
        self.choices["gain"] = set_gain(self.model, views, self.query_index, node.GAIN)
