"""The Dassl trainer ``CAPT``: life cycle only. The method is in :mod:`.method.model`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import read_image
from torch import Tensor
from torch.nn.functional import normalize
from yacs.config import CfgNode

from .backbone.precision import autocast_for, usable_precision
from .backbone.prompted_clip import ImageFeatures, load_prompted_clip
from .bank.builder import BankBuilder
from .bank.confusion_bank import ConfusionBank
from .bank.prompt_library import PromptLibrary, announced_pairs
from .bases.learners import BaseModel, build_base, zero_shot
from .bases.spec import spec_from
from .config import check_capt, settings_from
from .method.checkpoint import check_base, load_refiner
from .method.gain import set_gain
from .method.model import CAPTModel, CAPTOutput
from .method.shift_choice import set_shift
from .method.start import start_experts
from .run.dataset import all_classnames, check_selection, rebuilt_dataset
from .run.feature_cache import CachedLoader, FeatureCache, ViewBatch, ViewEncoder, cache_where_it_fits, hash_seed
from .run.files import checkpoint_file
from .run.memory import MemoryPlan, memory_of, plan_memory
from .run.meters import RunningMeans
from .run.record import RunRecordMixin, relative_path
from .run.serving import Serving, keep_pair_features, keep_serving

__all__ = ["CAPT"]

MODEL_NAME = "capt"  # folder of the checkpoints in OUTPUT_DIR
SAMPLERS = ("RandomSampler", "SequentialSampler")  # what a loader over cached features can do
SAME_BASE = "give the same MODEL.BACKBONE.NAME and TRAINER.CAPT.BASE.NAME, DIR and EPOCH"


class CAPT(RunRecordMixin, TrainerX):
    """Confusion-Aware Prompt Tuning on a frozen base learner."""

    model: CAPTModel
    optim: torch.optim.Optimizer
    choices: dict[str, Any]

    # ------------------------------------------------------------------------------------------------------- building

    def check_cfg(self, cfg: CfgNode) -> None:
        """Refuse what cannot be run, every problem in one message."""
        check_capt(cfg.TRAINER.CAPT)

    def build_model(self) -> None:
        """Frozen base model, CAPT's modules on top of it, and their optimiser."""
        cfg, node = self.cfg, self.cfg.TRAINER.CAPT
        self._check_selection()
        self.precision = usable_precision(node.PREC, torch.device(self.device))
        prompted = load_prompted_clip(cfg.MODEL.BACKBONE.NAME, cfg.INPUT.SIZE, self.precision).to(self.device)

        self.base_learner = node.BASE.NAME
        self.base_spec = spec_from(node.BASE, cfg.DATASET.NAME)
        self.transductive = node.BASE.NAME == "PromptKD"  # its student has seen the new classes' images
        base = build_base(prompted, self.base_spec).to(self.device)
        print(f"Base model: {node.BASE.NAME} {node.BASE.DIR}".rstrip())

        torch.manual_seed(hash_seed(self.run_seed))  # the start of the weights must not depend on what ran before
        self.model = CAPTModel(base, settings_from(node)).to(self.device)
        self.prompt_library = PromptLibrary(node.SEM.PROMPTS, cfg.DATASET.NAME, self._all_classnames())
        self._pair_features = announced_pairs(self.prompt_library, self.tested_classnames(), base.encode_sentences)
        self._serve_classes(bank=None)
        generator = torch.Generator().manual_seed(hash_seed(self.run_seed, 1))
        start_experts(self.model, *self._pair_features, node.MGDE.CENTROIDS, generator)
        trained = sum(p.numel() for p in self.model.refiner.parameters())
        total = trained + sum(p.numel() for p in base.parameters())
        print(f"# trained params: {trained:,} of {total:,} ({100 * trained / total:.2f}%)")

        self.optim = build_optimizer(self.model.refiner, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model(MODEL_NAME, self.model.refiner, self.optim, self.sched)

    def _check_selection(self) -> None:
        """The best epoch is chosen on validation images; Dassl would take the test images where there are none."""
        if self.cfg.TEST.FINAL_MODEL != "best_val" or self.cfg.TEST.NO_TEST:
            return
        if self.cfg.TRAINER.CAPT.SELECTION == "test":
            self.val_loader = self.test_loader  # what model selection reads
            print("Selection protocol: published, the test images choose the epoch; the accuracy on them is optimistic")
        else:
            check_selection(self.cfg, self.dm.dataset)

    @cached_property
    def run_seed(self) -> int:
        """The run's seed; an unseeded run takes torch's, once, since every epoch seeds torch anew."""
        return self.cfg.SEED if self.cfg.SEED >= 0 else torch.initial_seed() % 2**31

    def _all_classnames(self) -> list[str]:
        return all_classnames(self.cfg, self.dm.dataset.classnames)

    def _serve_classes(self, bank: ConfusionBank | None) -> None:
        """Bind the model to this run's classes, and to the bank where one may be consulted."""
        self.model.set_classes(self.tested_classnames(), *self._pair_features, bank)

    # ------------------------------------------------------------------------------------------------------- training

    def before_train(self) -> None:
        """Resume if there is something to resume, then the bank and the cache, both from training images only."""
        super().before_train()
        check_base(self.model.refiner.base_digest, self.model.base, self.output_dir, SAME_BASE)
        self._keep_serving()
        for line in self._memory.lines(self._pair_bytes(), memory_of(torch.device(self.device))):
            print(line)
        self._use_cache()
        self.choices = {}
        self._fit_shift()
        bank = self._make_bank()
        self._serve_classes(bank)
        self._query_index = bank.image_index([self._relative(item.impath) for item in self.dm.dataset.train_x])
        self._fit_gain()

    def _keep_serving(self) -> None:
        """Write beside the checkpoints what :func:`capt.load` needs and the configuration does not say."""
        classnames = self.tested_classnames()
        serving = Serving(self.base_spec.template, classnames, self._all_classnames())
        keep_serving(self.output_dir, serving, self.prompt_library.files)
        keep_pair_features(self.output_dir, classnames, self.model.base.digest(), *self._pair_features)

    @cached_property
    def _encode(self) -> ViewEncoder:
        """How this run looks at images, whichever base model encodes them."""
        loaders = self.cfg.DATALOADER
        return ViewEncoder(
            self.dm.test_loader.dataset.transform,
            self.dm.train_loader_x.dataset.transform,
            read_image,
            self.run_seed,
            torch.device(self.device),
            loaders.TEST.BATCH_SIZE,
            min(loaders.NUM_WORKERS, os.cpu_count() or 1),
            self.feature_files,
        )

    @cached_property
    def _memory(self) -> MemoryPlan:
        """What cache and bank will take, and where the patch tokens of the bank's entries will be."""
        node, sampler = self.cfg.TRAINER.CAPT, self.cfg.DATALOADER.TRAIN_X.SAMPLER
        is_cached = node.CACHE.VIEWS > 0 and sampler in SAMPLERS
        full = rebuilt_dataset(self.cfg, NUM_SHOTS=-1).train_x if node.BANK.SHOTS == -1 else None
        return plan_memory(
            self.model.base.prompted,
            num_images=len(self.dm.dataset.train_x),
            num_classes=self.num_classes,
            wanted_views=max(node.CACHE.VIEWS, node.BANK.VIEWS) if is_cached else 0,
            bank_views=node.BANK.VIEWS,
            num_bank_images=None if full is None else len(full),
            max_gigabytes=node.CACHE.MAX_GB,
        )

    def _pair_bytes(self) -> int:
        return sum(value.nbytes for value in self.model.semantic_miner.buffers())

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
            return self._encode(self.model.base, source, num_views, "Caching features")

        self.cache = cache_where_it_fits(views, len(source), self._memory, node.CACHE.MAX_GB)
        if self.cache is not None:
            is_shuffled = loader.SAMPLER == "RandomSampler"
            self.train_loader_x = CachedLoader(self.cache, loader.BATCH_SIZE, self.run_seed, is_shuffled)

    def _shots(self, base: BaseModel, num_views: int, title: str) -> Iterator[ViewBatch]:
        """Features of the run's shots by ``base``; out of the cache where it holds them."""
        if base is self.model.base and self.cache is not None:
            return self.cache.views(num_views)
        return self._encode(base, self.dm.dataset.train_x, num_views, title)

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
        views = self._shots(self.model.base, 1, "Fitting the gain")
        self.choices["gain"] = set_gain(self.model, views, self._query_index, node.GAIN)

    def before_epoch(self) -> None:
        """Every epoch's randomness follows from (seed, epoch), so that a resumed run equals an uninterrupted one."""
        super().before_epoch()
        torch.manual_seed(hash_seed(self.run_seed, 2, self.epoch))
        if isinstance(self.train_loader_x, CachedLoader):
            self.train_loader_x.epoch = self.epoch
        self._means = RunningMeans()

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, Tensor] | None:
        """One optimiser step; figures go to Dassl's meters only when it is about to print, to spare the host a sync."""
        views = self._views(batch)
        query_index = self._query_index[views.index]
        output = self.model(views.z, views.cls, views.tokens, views.label, query_index)
        self.optim.zero_grad()
        output.losses["loss"].backward()
        self.optim.step()
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return self._summary(output, views.label)

    def _views(self, batch: dict[str, Any]) -> ViewBatch:
        device = torch.device(self.device)
        if "features" in batch:
            return batch["features"].to(device)
        images, label, index = (batch[key].to(device) for key in ("img", "label", "index"))
        z, cls, tokens = self._encode_images(images)
        return ViewBatch(z, cls, tokens, label, index, torch.zeros_like(index))

    def _encode_images(self, images: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        with torch.no_grad(), autocast_for(self.precision, torch.device(self.device)):
            return _for_model(self.model.encode(images))

    def _summary(self, output: CAPTOutput, label: Tensor) -> dict[str, Tensor] | None:
        """Means since the last report, or None between reports."""
        self._means.add({**(output.losses or {}), "acc": 100 * (output.logits.argmax(dim=-1) == label).float().mean()})
        done, every = self.batch_idx + 1, self.cfg.TRAIN.PRINT_FREQ
        if done % every and done != self.num_batches and self.num_batches >= every:
            return None
        means = self._means.take()
        self.detect_anomaly(means["loss"])
        return means

    # -------------------------------------------------------------------------------------------------------- testing

    @torch.no_grad()
    def inference(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """CAPT's logits ``(B, C)`` and the base model's, of images ``(B, 3, H, W)``."""
        output = self.model(*self._encode_images(input))
        return output.logits, output.base_logits

    def frozen_encoder(self) -> BaseModel | None:
        """The base model, but under amp, where it tests with another rounding than it encodes shots with."""
        return None if self.precision == "amp" else self.model.base

    def reads_tokens(self) -> bool:
        """The sample miner's adapter does."""
        return self.model.sample_miner is not None

    @torch.no_grad()
    def inference_from(self, features: ImageFeatures) -> tuple[Tensor, Tensor]:
        """CAPT's logits ``(B, C)`` and the base model's, of encoded images."""
        output = self.model(*_for_model(features))
        return output.logits, output.base_logits

    def model_inference(self, input: Tensor) -> Tensor:
        """Logits ``(B, C)`` of images."""
        return self.inference(input)[0]

    def test(self, split: str | None = None) -> float:
        """Dassl's test, with the bank as ``BANK.AT_TEST`` says."""
        bank = self.model.bank
        if bank is None:
            return super().test(split)
        if not self.cfg.TRAINER.CAPT.BANK.AT_TEST:
            self._serve_classes(None)
            try:
                return super().test(split)
            finally:
                self._serve_classes(bank)
        miner = self.model.sample_miner
        if miner is None or not bank.has_tokens:
            return super().test(split)
        with miner.settled(bank, self.model.base.project):
            return super().test(split)

    def save_model(
        self,
        epoch: int,
        directory: str,
        is_best: bool = False,
        val_result: float | None = None,
        model_name: str = "",
    ) -> None:
        """Dassl's checkpoint, and beside it the confusion features that its adapter gives the bank's entries."""
        super().save_model(epoch, directory, is_best, val_result, model_name)
        bank, miner = self.model.bank, self.model.sample_miner
        if bank is None or miner is None or not bank.has_tokens:
            return
        with miner.settled(bank, self.model.base.project):
            bank.save_confusion_features(Path(directory) / MODEL_NAME / (model_name or f"model.pth.tar-{epoch + 1}"))

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load a trained CAPT and the bank beside it; the classes may be others than it was trained on.

        Raises:
            FileNotFoundError: no checkpoint, or no bank where it is to be consulted.
            ValueError: the checkpoint belongs to another base model or other switches.
        """
        if not directory:
            raise FileNotFoundError(f'No model at "{MODEL_NAME}/": give --model-dir, the output folder of a CAPT run')
        path = checkpoint_file(directory, MODEL_NAME, epoch)
        is_none = "; give --model-dir, the output folder of a CAPT run"
        self.loaded_epoch = load_refiner(self.model, path, is_none=is_none, other_base=SAME_BASE)
        print(f'Loading weights to {MODEL_NAME} from "{path}" (epoch = {self.loaded_epoch})')
        if self.cfg.TRAINER.CAPT.BANK.AT_TEST:  # with SAM off too: Eq. 7 counts in it
            features_of = None if self.model.sample_miner is None else path
            bank = ConfusionBank.of_run(directory, self.model.base.digest(), features_of, self.device)
            known = int((bank.class_index(self.dm.dataset.classnames) >= 0).sum())
            print(f"Confusion bank at test: knows {known} of {self.num_classes} classes")
            self._serve_classes(bank)

    # ------------------------------------------------------------------------------------------------------ the record

    def _relative(self, path: str) -> str:
        return relative_path(path, os.path.abspath(os.path.expanduser(self.cfg.DATASET.ROOT)))

    def _protocol(self) -> str:
        node = self.cfg.TRAINER.CAPT.BANK
        bank = "full-set bank" if node.SHOTS == -1 else "bank from the run's own shots"
        chosen = ", epoch chosen on test images" if self._is_chosen_on_test() else ""
        return f"{super()._protocol()}, {bank} judged by {node.SOURCE}{chosen}"

    def _is_chosen_on_test(self) -> bool:
        return self.cfg.TEST.FINAL_MODEL == "best_val" and self.cfg.TRAINER.CAPT.SELECTION == "test"


def _for_model(features: ImageFeatures) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """z, class token and patch tokens in the layout in which they are stored, so that no sum is in another order."""
    cls, tokens = (None if value is None else value.contiguous() for value in (features.cls, features.tokens))
    return normalize(features.feature.float(), dim=-1), cls, tokens


if "CAPT" not in TRAINER_REGISTRY.registered_names():  # the plugin may be here twice, installed and as a folder
    TRAINER_REGISTRY.register(CAPT)
