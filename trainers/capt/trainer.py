"""The Dassl trainer ``CAPT``: life cycle only. The method is in :mod:`.method.model`."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.optim import build_lr_scheduler, build_optimizer
from torch import Tensor
from torch.nn.functional import normalize
from yacs.config import CfgNode

from .backbone.precision import autocast_for, usable_precision
from .backbone.prompted_clip import ImageFeatures, load_backbone
from .bank.confusion_bank import ConfusionBank
from .bank.pair_features import PairFeatures
from .bank.prompt_library import PairEncoder, PromptLibrary
from .bases.learners import BaseModel, build_base
from .bases.registry import import_learners
from .bases.spec import spec_from
from .config import check_capt, settings_from
from .method.checkpoint import check_base, load_refiner
from .method.model import CAPTModel, CAPTOutput
from .method.start import start_sample_expert
from .preparation import PreparationMixin
from .run.dataset import check_selection
from .run.feature_cache import CachedLoader, ViewBatch, hash_seed
from .run.files import checkpoint_file
from .run.host_dassl import image_index, save_what_is_trained, taken_by
from .run.interruption import ResumableMixin
from .run.meters import RunningMeans
from .run.serving import (
    read_pair_features,
    read_serving,
)
from .run.shares import backward, begin_batch, mean_figures

__all__ = ["CAPT"]

MODEL_NAME = "capt"  # folder of the checkpoints in OUTPUT_DIR
SAME_BASE = "give the same MODEL.BACKBONE.NAME and TRAINER.CAPT.BASE.NAME, DIR, EPOCH and OPTIONS"


class CAPT(PreparationMixin, ResumableMixin, TrainerX):
    """Confusion-Aware Prompt Tuning on a frozen base learner."""

    model: CAPTModel
    optim: torch.optim.Optimizer | None
    choices: dict[str, Any]
    _lacks_weights = True  # nothing was trained or loaded
    backbones = "any CLIP or SigLIP; on a ResNet without the Diff-Manner Adapter, which adapts patch tokens"

    # ------------------------------------------------------------------------------------------------------- building

    def check_cfg(self, cfg: CfgNode) -> None:
        """Refuse what cannot be run, every problem in one message."""
        import_learners(cfg.TRAINER.CAPT.BASE.MODULE)
        check_capt(cfg.TRAINER.CAPT)

    def build_model(self) -> None:
        """Frozen base model, CAPT's modules on top of it, and their optimiser."""
        cfg, node = self.cfg, self.cfg.TRAINER.CAPT
        self._check_selection()
        self.precision = usable_precision(node.PREC, torch.device(self.device))
        prompted = load_backbone(cfg, self.precision).to(self.device)

        self.base_learner = node.BASE.NAME
        self.base_spec = spec_from(node.BASE, cfg.DATASET.NAME, cfg)
        self.transductive = node.BASE.NAME == "PromptKD"  # its student has seen the new classes' images
        base = build_base(prompted, self.base_spec).to(self.device)
        print(f"Base model: {node.BASE.NAME} {node.BASE.DIR}".rstrip())
        if base.options:
            print(f"Options of the base: {', '.join(f'{key} {value}' for key, value in sorted(base.options.items()))}")

        torch.manual_seed(hash_seed(self.run_seed))  # the start of the weights must not depend on what ran before
        self.model = CAPTModel(base, settings_from(node)).to(self.device)
        if self.model.is_learned and self.model.sample_miner is not None and self.model.refiner.adapter is None:
            print("No Diff-Manner Adapter: the bank's images are compared and read by their features as they are")
        self.prompt_library = PromptLibrary(node.SEM.PROMPTS, cfg.DATASET.NAME, self._all_classnames())
        for path in self.prompt_library.files:
            print(f"Pair prompts from {path}")
        encode = PairEncoder(self.prompt_library, base.encode_sentences)
        self.pairs = PairFeatures(self.tested_classnames(), encode, base.embed_dim, node.SEM.MAX_GB).to(self.device)
        self._serve_classes(bank=None)
        start_sample_expert(self.model)
        trained = sum(p.numel() for p in self.model.refiner.parameters())
        total = trained + sum(p.numel() for p in base.parameters())
        print(f"# trained params: {trained:,} of {total:,} ({100 * trained / total:.2f}%)")

        self.optim = self.sched = None
        if self.model.is_learned:
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

    # ------------------------------------------------------------------------------------------------------- training

    def before_train(self) -> None:
        """Resume if there is something to resume, then the bank and the cache, both from training images only."""
        self._lacks_weights = False
        super().before_train()
        check_base(self.model.refiner.base_digest, self.model.base, self.output_dir, SAME_BASE)
        self.prepare()
        if not self.model.is_learned:
            print("Nothing is trained by gradients (TRAINER.CAPT.MGDE.BETA 0); all there is has been chosen")
            self.start_epoch = self.max_epoch

    def after_train(self) -> None:
        """Dassl's test of the final model; the pairs that it met as well are kept for those who serve the run."""
        if not self.model.is_learned:
            self._save_what_was_chosen()
        super().after_train()
        self._keep_pairs()

    def before_epoch(self) -> None:
        """Every epoch's randomness follows from (seed, epoch), so that a resumed run equals an uninterrupted one."""
        super().before_epoch()
        torch.manual_seed(hash_seed(self.run_seed, 2, self.epoch))
        if isinstance(self.train_loader_x, CachedLoader):
            self.train_loader_x.epoch = self.epoch
        self._means = RunningMeans()

    def run_state(self) -> dict[str, Any]:
        """Beside what Dassl knows: the figures since the last report, and the pairs that steps have met.

        Bank, cache and shift are made again. Pairs are kept with their features, whose last digits depend on what they
        were encoded together with.
        """
        return {"means": self._means.state(), "pairs": list(self.pairs.known(behind=self.num_met_ahead))}

    def restore_run_state(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`run_state` gave."""
        self._means = RunningMeans.of(state["means"], torch.device(self.device))
        if "pairs" in state:  # states of earlier versions lack them
            pairs, difference, commonality = state["pairs"]
            self.pairs.put(pairs[:, 0], pairs[:, 1], difference, commonality)

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, Tensor] | None:
        """One optimiser step; figures go to Dassl's meters only when it is about to print, to spare the host a sync."""
        views = self._views(batch)
        begin_batch(len(views.label))
        query_index = self.query_index[views.index]
        output = self._forward(batch, views, query_index)
        assert output.losses is not None, "labels were given"
        assert self.optim is not None, "there is nothing to train"
        self.optim.zero_grad()
        backward(output.losses["loss"], self.optim)
        self.optim.step()
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return self._summary(output, views.label)

    def _forward(self, batch: dict[str, Any], views: ViewBatch, query_index: Tensor) -> CAPTOutput:
        """The model's output; a cached view's pairs are mined when it is first met."""
        features = views.z, views.cls, views.tokens, views.label, query_index
        if "features" not in batch or self.cache is None or self.pairs.has_forgotten:
            return self.model(*features)
        rows = batch["features"].index * self.cache.num_views + batch["features"].view  # on the CPU
        mined = self.mined.of(rows)
        output = self.model(*features, mined)
        if mined is None:
            self.mined.keep(rows, output.pairs)
        return output

    def _save_what_was_chosen(self) -> None:
        """The checkpoint that a run without epochs leaves: that of its last one, and of its best."""
        torch.manual_seed(hash_seed(self.run_seed, 2, self.max_epoch))  # a checkpoint holds torch's state
        names = ["", "model-best.pth.tar"] if self.cfg.TEST.FINAL_MODEL == "best_val" else [""]
        for name in names:
            self.save_model(self.max_epoch - 1, self.output_dir, model_name=name)

    def _views(self, batch: dict[str, Any]) -> ViewBatch:
        device = torch.device(self.device)
        if "features" in batch:
            return batch["features"].to(device)
        images, label, index = (
            value.to(device, non_blocking=True)  # a loader's memory is pinned
            for value in (batch["img"], batch["label"], image_index(batch, self._place_of_image))
        )
        z, cls, tokens = self._encode_images(images)
        return ViewBatch(z, cls, tokens, label, index, torch.zeros_like(index))

    @cached_property
    def _place_of_image(self) -> dict[str, int]:
        return {item.impath: place for place, item in enumerate(self.dm.dataset.train_x)}

    def _encode_images(self, images: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        with torch.no_grad(), autocast_for(self.precision, torch.device(self.device)):
            return _for_model(self.model.encode(images))

    def after_epoch(self) -> None:
        """Dassl's hook, which tests and saves; should it fail in any way, what was trained is saved first."""
        try:
            super().after_epoch()
        except Exception:
            path = save_what_is_trained(self, MODEL_NAME)
            if path:
                self._keep_confusion_features(path)
                print(f"The epoch could not be ended; what was trained is in {path}")
            raise

    def _summary(self, output: CAPTOutput, label: Tensor) -> dict[str, Tensor] | None:
        """Means since the last report, or None between reports."""
        accuracy = 100 * (output.logits.argmax(dim=-1) == label).float().mean()
        self._means.add(mean_figures({**(output.losses or {}), "acc": accuracy}))
        if not self.is_to_report():
            return None
        means = self._means.take()
        self.loss_terms = {name: value for name, value in means.items() if name.startswith("loss_")}
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

    def test(self, split: str | None = None, is_final: bool = False) -> float:
        """Dassl's test, with the bank as ``BANK.AT_TEST`` says.

        ``is_final`` is what ATPrompt's train.py says with --eval-only; its Dassl then ends the process, this does not.

        Raises:
            FileNotFoundError: nothing was trained, and nothing loaded: :meth:`load_model` was given no folder, or the
                host's train.py never calls it.
        """
        if self._lacks_weights:
            raise FileNotFoundError(
                f'No model at "{MODEL_NAME}/": give --model-dir, the output folder of a CAPT run; a train.py that '
                "calls trainer.test() without trainer.load_model() tests no trained CAPT"
            )
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
        if miner is None or miner.adapter is None or not bank.has_tokens:
            return super().test(split)
        with miner.settled(bank, self.model.base.project):
            return super().test(split)

    def save_model(
        self, epoch: int, directory: str, is_best: bool = False, val_result: float | None = None, model_name: str = ""
    ) -> None:
        """Dassl's checkpoint, and beside it the confusion features that its adapter gives the bank's entries.

        They come first, so that no checkpoint is ever without them, whenever the run is killed.
        """
        self._keep_confusion_features(Path(directory) / MODEL_NAME / (model_name or f"model.pth.tar-{epoch + 1}"))
        named = {"is_best": is_best, "val_result": val_result, "model_name": model_name}
        super().save_model(epoch, directory, **taken_by(super().save_model, named))

    def _keep_confusion_features(self, checkpoint: str | Path) -> None:
        bank, miner = self.model.bank, self.model.sample_miner
        if bank is None or miner is None or miner.adapter is None or not bank.has_tokens:
            return
        with miner.settled(bank, self.model.base.project):
            bank.save_confusion_features(checkpoint)

    def load_model(self, directory: str | None, epoch: int | None = None) -> None:
        """Load a trained CAPT and the bank beside it; the classes may be others than it was trained on.

        As in Dassl, nothing is loaded where no folder is given: hosts call it so before they train. What is neither
        loaded nor trained, :meth:`test` refuses.

        Raises:
            FileNotFoundError: no checkpoint, or no bank where it is to be consulted.
            ValueError: the checkpoint belongs to another base model or other switches.
        """
        self._lacks_weights = True
        if not directory:
            print("Note that load_model() is skipped as no pretrained model is given (--model-dir)")
            return
        path = checkpoint_file(directory, MODEL_NAME, epoch)
        is_none = "; give --model-dir, the output folder of a CAPT run"
        self.loaded_epoch = load_refiner(self.model, path, is_none=is_none, other_base=SAME_BASE)
        print(f'Loading weights to {MODEL_NAME} from "{path}" (epoch = {self.loaded_epoch})')
        self._learn_halves(directory)
        stored = read_pair_features(directory, self._made_of(), self.device)
        if stored is not None:
            self.pairs.take_up(*stored)
        if self.cfg.TRAINER.CAPT.BANK.AT_TEST:  # with SAM off too: Eq. 7 counts in it
            features_of = None if self.model.refiner.adapter is None else path
            bank = ConfusionBank.of_run(directory, self.model.base.digest(), features_of, self.device)
            known = int((bank.class_index(self.dm.dataset.classnames) >= 0).sum())
            print(f"Confusion bank at test: knows {known} of {self.num_classes} classes")
            self._serve_classes(bank)
        self._lacks_weights = False

    def _learn_halves(self, directory: str) -> None:
        """Tell the base model which classes it was trained on: those that the CAPT in ``directory`` was trained on."""
        serving, base = read_serving(directory), self.model.base
        if serving is not None and serving.classnames != (base.trained_on or base.classnames):
            base.trained_on = serving.classnames
            self._serve_classes(None)

    # ------------------------------------------------------------------------------------------------------ the record

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
