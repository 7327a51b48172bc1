"""The Dassl trainer ``CAPT``: life cycle only. The method is in :mod:`.method.model`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import torch
from dassl.data.datasets import build_dataset
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import read_image
from torch import Tensor
from torch.nn.functional import normalize
from yacs.config import CfgNode

from .backbone.precision import autocast_for, usable_precision
from .backbone.prompted_clip import load_prompted_clip
from .bank.builder import BankBuilder
from .bank.confusion_bank import ConfusionBank
from .bank.files import FILE as BANK_FILE
from .bank.prompt_library import PromptLibrary, encode_pairs
from .bases.base_model import BaseModel
from .bases.learners import BaseSpec, build_base
from .bases.templates import CUSTOM_TEMPLATES
from .config import check_capt, settings_from
from .method.gain import fit_gain
from .method.model import FORMAT, CAPTModel, CAPTOutput
from .run.feature_cache import CachedLoader, FeatureCache, ViewBatch, ViewDataset, encode_views, hash_seed
from .run.files import checkpoint_file, read_checkpoint
from .run.record import RunRecordMixin, relative_path
from .run.serving import Serving, keep_pair_features, keep_serving

__all__ = ["CAPT"]

MODEL_NAME = "capt"  # folder of the checkpoints in OUTPUT_DIR


class CAPT(RunRecordMixin, TrainerX):
    """Confusion-Aware Prompt Tuning on a frozen base learner."""

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
        template = node.BASE.TEMPLATE or CUSTOM_TEMPLATES.get(cfg.DATASET.NAME, "a photo of a {}.")
        self.base_spec = BaseSpec(
            node.BASE.NAME,
            node.BASE.DIR,
            node.BASE.EPOCH,
            template,
            node.BASE.CLASS_TOKEN_POSITION,
            node.BASE.CTX_INIT,
            node.BASE.TEACHER_DIR or os.path.join("teacher_model", cfg.DATASET.NAME),
            node.BASE.TEACHER_NAME,
        )
        self.transductive = node.BASE.NAME == "PromptKD"  # its student has seen the new classes' images
        base = build_base(prompted, self.base_spec).to(self.device)
        print(f"Base model: {node.BASE.NAME} {node.BASE.DIR}".rstrip())

        torch.manual_seed(hash_seed(self.run_seed))  # the start of the weights must not depend on what ran before
        self.model = CAPTModel(base, settings_from(node)).to(self.device)
        self.prompt_library = PromptLibrary(node.SEM.PROMPTS, cfg.DATASET.NAME, self._all_classnames())
        self._serve_classes(bank=None)
        self._start_experts()
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
            return
        data = self.dm.dataset
        val, test = ({item.impath for item in part or []} for part in (data.val, data.test))
        if not val or val & test:
            raise ValueError(
                "TEST.FINAL_MODEL best_val needs validation images apart from the test images, "
                f"{self.cfg.DATASET.NAME} has none; set TEST.FINAL_MODEL last_step"
            )

    @cached_property
    def run_seed(self) -> int:
        """The run's seed; an unseeded run takes torch's, once, since every epoch seeds torch anew."""
        return self.cfg.SEED if self.cfg.SEED >= 0 else torch.initial_seed() % 2**31

    def _all_classnames(self) -> list[str]:
        """Names of all classes of the data set, which FuDD's prompt files count by; this half's where it has none."""
        cfg = self.cfg
        has_fudd = any(
            path.name.lower() == f"{cfg.DATASET.NAME.lower()}_prompt_pairs.json"
            for path in Path(cfg.TRAINER.CAPT.SEM.PROMPTS).glob("*.json")
        )
        if not has_fudd or cfg.DATASET.SUBSAMPLE_CLASSES == "all":
            return list(self.dm.dataset.classnames)
        return list(_rebuilt_dataset(cfg, SUBSAMPLE_CLASSES="all").classnames)

    def _serve_classes(self, bank: ConfusionBank | None) -> None:
        """Bind the model to this run's classes, and to the bank where one may be consulted."""
        classnames = list(self.dm.dataset.classnames)
        if not hasattr(self, "_pair_features"):
            difference, commonality, sources = encode_pairs(
                self.prompt_library, classnames, self.model.base.encode_sentences
            )
            self._pair_features = difference, commonality
            for path in self.prompt_library.files:
                print(f"Pair prompts from {path}")
            print("Pair prompts by source: " + ", ".join(f"{k} {v:,}" for k, v in sorted(sources.items())))
        self.model.set_classes(classnames, *self._pair_features, bank)

    def _start_experts(self) -> None:
        """Semantic experts start from the prompts, the sample expert from CLIP's own feed-forward network (P)."""
        mixture = self.model.refiner.expert.mixture
        num_centroids = self.cfg.TRAINER.CAPT.MGDE.CENTROIDS
        if mixture is None:
            return
        generator = torch.Generator().manual_seed(hash_seed(self.run_seed, 1))
        for name, features in zip(("difference", "commonality"), self._pair_features, strict=True):
            off_diagonal = ~torch.eye(len(features), dtype=torch.bool, device=features.device)
            if num_centroids and off_diagonal.any():
                mixture.experts[name].start_from_prompts(features[off_diagonal], num_centroids, generator)
        clip = self.model.base.prompted.clip
        towers = [clip.transformer] + ([clip.visual.transformer] if self.model.base.prompted.is_vit else [])
        if not any(mixture.experts["sample"].start_from_mlp(tower.resblocks[-1].mlp) for tower in towers):
            print("Sample expert starts at random: no feed-forward network of this CLIP has the joint space's width")

    # ------------------------------------------------------------------------------------------------------- training

    def before_train(self) -> None:
        """Resume if there is something to resume, then the bank and the cache, both from training images only."""
        super().before_train()
        self._check_base(self.model.refiner.base_digest, self.output_dir)
        self._keep_serving()
        self._use_cache()
        bank = self._make_bank()
        self._describe(bank)
        self._serve_classes(bank)
        self._query_index = bank.image_index([self._relative(item.impath) for item in self.dm.dataset.train_x])
        self._fit_gain()

    def _keep_serving(self) -> None:
        """Write beside the checkpoints what :func:`capt.load` needs and the configuration does not say."""
        classnames = list(self.dm.dataset.classnames)
        serving = Serving(self.base_spec.template, classnames, self._all_classnames())
        keep_serving(self.output_dir, serving, self.prompt_library.files)
        keep_pair_features(self.output_dir, classnames, self.model.base.digest(), *self._pair_features)

    def _use_cache(self) -> None:
        """Replace Dassl's training loader by one over cached features, where they fit."""
        cfg, cache_cfg = self.cfg, self.cfg.TRAINER.CAPT.CACHE
        self.cache: FeatureCache | None = None
        if cache_cfg.VIEWS == 0:
            return
        sampler = cfg.DATALOADER.TRAIN_X.SAMPLER
        if sampler not in ("RandomSampler", "SequentialSampler"):
            print(f"CACHE.VIEWS is not used: it does not know the sampler {sampler}")
            return
        num_views = max(cache_cfg.VIEWS, cfg.TRAINER.CAPT.BANK.VIEWS)
        prompted = self.model.base.prompted
        gigabytes = 0.0
        if prompted.is_vit:
            size = torch.finfo(prompted.dtype).bits // 8
            num_images = len(self.dm.dataset.train_x)
            gigabytes = FeatureCache.gigabytes(num_images, num_views, prompted.grid**2, prompted.width, size)
        if gigabytes > cache_cfg.MAX_GB:
            print(
                f"Feature cache off: {gigabytes:.1f} GB for {num_views} views, CACHE.MAX_GB is {cache_cfg.MAX_GB:.1f}; "
                "the image tower runs every step"
            )
            return
        views = self._encode(self.model.base, self.dm.dataset.train_x, num_views, "Caching features")
        self.cache = FeatureCache(views, num_views)
        batch_size = cfg.DATALOADER.TRAIN_X.BATCH_SIZE
        self.train_loader_x = CachedLoader(self.cache, batch_size, self.run_seed, sampler == "RandomSampler")
        print(f"Feature cache: {len(self.cache):,} images x {num_views} views, {gigabytes:.2f} GB")

    def _encode(
        self, base: BaseModel, source: list, num_views: int, title: str, images: list[int] | None = None
    ) -> Iterator[ViewBatch]:
        transforms = self.dm.test_loader.dataset.transform, self.dm.train_loader_x.dataset.transform
        views = ViewDataset(source, num_views, *transforms, read_image, self.run_seed, images)
        batch_size = self.cfg.DATALOADER.TEST.BATCH_SIZE
        workers = min(self.cfg.DATALOADER.NUM_WORKERS, os.cpu_count() or 1)
        return encode_views(base, views, torch.device(self.device), batch_size, workers, title)

    def _make_bank(self) -> ConfusionBank:
        """Build the bank and store it; a bank that lies in the output folder already must be this run's."""
        builder = BankBuilder(self.cfg, self.model.base, self.base_spec, self._encode, self._relative, self.run_seed)
        path = Path(self.output_dir) / BANK_FILE
        if path.is_file():  # a resumed run: built anew, since the stored one holds no tokens
            ConfusionBank.load(path).check(builder.fingerprint())
        if self.cfg.TRAINER.CAPT.BANK.SHOTS == -1:
            source = _rebuilt_dataset(self.cfg, NUM_SHOTS=-1).train_x
            print(f"Bank protocol: published, from the full training set ({len(source):,} images)")
            bank = builder.build(source)
        else:
            source = self.dm.dataset.train_x
            print(f"Bank protocol: honest, from the {len(source):,} training images of this run")
            bank = builder.build(source, self.cache)
        bank.save(self.output_dir)
        return bank

    def _fit_gain(self) -> None:
        """Choose how far the corrections move z, before anything is trained."""
        settings, node = self.model.settings, self.cfg.TRAINER.CAPT.MGDE
        if not (node.FIT_GAIN and settings.use_corrections and settings.use_sam):
            return
        if self.cache is None:
            views = self._encode(self.model.base, self.dm.dataset.train_x, 1, "Fitting the gain")
        else:
            views = self.cache.views(1)
        expert = self.model.refiner.expert
        gain, temperature = fit_gain(self.model.eval(), views, self._query_index, node.GAIN)
        expert.gain.fill_(gain)
        print(f"Gain of the corrections: {gain:.3g} of at most {node.GAIN:g} (temperature {temperature:.2f})")

    def _describe(self, bank: ConfusionBank) -> None:
        num_confused = bank.num_confused
        print(f"Confusion bank: {num_confused:,} confused views, {len(bank) - num_confused:,} near misses")
        if num_confused == 0:
            print("The base model makes no error on these images; BANK.SOURCE zeroshot or crossfit would find some")
        for a, b, count in bank.top_pairs(5):
            print(f"  {a} / {b}: {count:.4g}")

    def before_epoch(self) -> None:
        """Every epoch's randomness follows from (seed, epoch), so that a resumed run equals an uninterrupted one."""
        super().before_epoch()
        torch.manual_seed(hash_seed(self.run_seed, 2, self.epoch))
        if isinstance(self.train_loader_x, CachedLoader):
            self.train_loader_x.epoch = self.epoch
        self._loss_sums: dict[str, Tensor] = {}
        self._num_summed = 0

    def forward_backward(self, batch: dict) -> dict[str, Tensor] | None:
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

    def _views(self, batch: dict) -> ViewBatch:
        device = torch.device(self.device)
        if "features" in batch:
            return batch["features"].to(device)
        images, label, index = (batch[key].to(device) for key in ("img", "label", "index"))
        z, cls, tokens = self._encode_images(images)
        return ViewBatch(z, cls, tokens, label, index, torch.zeros_like(index))

    def _encode_images(self, images: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        with torch.no_grad(), autocast_for(self.precision, torch.device(self.device)):
            features = self.model.encode(images)
        return normalize(features.feature.float(), dim=-1), features.cls, features.tokens

    @torch.no_grad()
    def _summary(self, output: CAPTOutput, label: Tensor) -> dict[str, Tensor] | None:
        """Means since the last report, or None between reports."""
        figures = {**output.losses, "acc": 100 * (output.logits.argmax(dim=-1) == label).float().mean()}
        for name, value in figures.items():
            self._loss_sums[name] = self._loss_sums.get(name, 0) + value.detach()
        self._num_summed += 1
        done, every = self.batch_idx + 1, self.cfg.TRAIN.PRINT_FREQ
        if done % every and done != self.num_batches and self.num_batches >= every:
            return None
        means = {name: value / self._num_summed for name, value in self._loss_sums.items()}
        self._loss_sums, self._num_summed = {}, 0
        self.detect_anomaly(means["loss"])
        return means

    # -------------------------------------------------------------------------------------------------------- testing

    @torch.no_grad()
    def inference(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """CAPT's logits ``(B, C)`` and the base model's, of images ``(B, 3, H, W)``."""
        output = self.model(*self._encode_images(input))
        return output.logits, output.base_logits

    def model_inference(self, input: Tensor) -> Tensor:
        """Logits ``(B, C)`` of images."""
        return self.inference(input)[0]

    def test(self, split: str | None = None) -> float:
        """Dassl's test, with the bank as ``BANK.AT_TEST`` says."""
        bank = self.model.bank
        is_consulted = bank is not None and self.cfg.TRAINER.CAPT.BANK.AT_TEST
        can_settle = is_consulted and self.model.sample_miner is not None and bank.has_tokens
        if bank is not None and not is_consulted:
            self._serve_classes(None)
        if can_settle:
            self.model.sample_miner.settle(bank, self.model.base.project)
        try:
            return super().test(split)
        finally:
            if bank is not None and not is_consulted:
                self._serve_classes(bank)
            if can_settle:
                bank.confusion_features = None  # training goes on with an adapter that changes

    def save_model(self, epoch: int, directory: str, is_best=False, val_result=None, model_name: str = "") -> None:
        """Dassl's checkpoint, and beside it the confusion features that its adapter gives the bank's entries."""
        super().save_model(epoch, directory, is_best, val_result, model_name)
        bank = self.model.bank
        if bank is None or self.model.sample_miner is None or not bank.has_tokens:
            return
        self.model.sample_miner.settle(bank, self.model.base.project)
        name = model_name or f"model.pth.tar-{epoch + 1}"
        bank.save_confusion_features(Path(directory) / MODEL_NAME / name)
        bank.confusion_features = None

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load a trained CAPT and the bank beside it; the classes may be others than it was trained on.

        Raises:
            FileNotFoundError: no checkpoint, or no bank where it is to be consulted.
            ValueError: the checkpoint belongs to another base model or other switches.
        """
        if not directory:
            raise FileNotFoundError(f'No model at "{MODEL_NAME}/": give --model-dir, the output folder of a CAPT run')
        path = checkpoint_file(directory, MODEL_NAME, epoch)
        checkpoint = read_checkpoint(path)
        state = {key.removeprefix("module."): value for key, value in checkpoint["state_dict"].items()}
        if not {"base_digest", "format"} <= state.keys():
            raise ValueError(f'"{path}" is no checkpoint of CAPT; give --model-dir, the output folder of a CAPT run')
        if int(state["format"]) > FORMAT:
            raise ValueError(f'"{path}" has format {int(state["format"])}, this code reads up to {FORMAT}; update it')
        self._check_base(state["base_digest"], path)
        try:
            self.model.refiner.load_state_dict(state)
        except RuntimeError as error:
            details = "; ".join(line.strip() for line in str(error).splitlines()[1:])
            raise ValueError(
                f'"{path}" was trained with other TRAINER.CAPT switches or sizes than this run ({details})'
            ) from error
        self.loaded_epoch = checkpoint.get("epoch")
        print(f'Loading weights to {MODEL_NAME} from "{path}" (epoch = {self.loaded_epoch})')
        if self.cfg.TRAINER.CAPT.BANK.AT_TEST:  # with SAM off too: Eq. 7 counts in it
            bank = ConfusionBank.load(directory, self.device)
            bank.check({"base_weights": self.model.base.digest()})
            if self.model.sample_miner is not None:
                bank.load_confusion_features(path)
            known = int((bank.class_index(self.dm.dataset.classnames) >= 0).sum())
            print(f"Confusion bank at test: knows {known} of {self.num_classes} classes")
            self._serve_classes(bank)

    def _check_base(self, digest: Tensor, path: str) -> None:
        own = self.model.base.digest()
        stored = bytes(digest.tolist()).hex()
        if stored != own:
            raise ValueError(
                f'"{path}" was trained on another base model ({stored[:12]}, this one is {own[:12]}); '
                "give the same MODEL.BACKBONE.NAME and TRAINER.CAPT.BASE.NAME, DIR and EPOCH"
            )

    def _relative(self, path: str) -> str:
        return relative_path(path, os.path.abspath(os.path.expanduser(self.cfg.DATASET.ROOT)))

    def _protocol(self) -> str:
        node = self.cfg.TRAINER.CAPT.BANK
        bank = "full-set bank" if node.SHOTS == -1 else "bank from the run's own shots"
        chosen = ", epoch chosen on test images" if self._is_chosen_on_test() else ""
        return f"{super()._protocol()}, {bank} judged by {node.SOURCE}{chosen}"

    def _is_chosen_on_test(self) -> bool:
        return self.cfg.TEST.FINAL_MODEL == "best_val" and self.cfg.TRAINER.CAPT.SELECTION == "test"


def _rebuilt_dataset(cfg: CfgNode, **dataset_keys):
    """The run's data set under other DATASET keys."""
    cfg = cfg.clone()
    cfg.defrost()
    for key, value in dataset_keys.items():
        cfg.DATASET[key] = value
    return build_dataset(cfg)


if "CAPT" not in TRAINER_REGISTRY.registered_names():  # the plugin may be here twice, installed and as a folder
    TRAINER_REGISTRY.register(CAPT)
