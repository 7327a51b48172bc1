"""The training loop: contrastive loss with class-aware positives, augmentation on the device, exact resume."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .model import encode_images, encode_texts, standardise, tokenize
from .sources import Pictures

if TYPE_CHECKING:
    from clip.model import CLIP

__all__ = ["Captions", "Engine", "Trainer", "augment", "contrastive_loss"]

MAX_LOGIT_SCALE = math.log(100)  # as in CLIP


def contrastive_loss(images: Tensor, texts: Tensor, caption: Tensor, scale: Tensor) -> Tensor:
    """Symmetric contrastive loss in which all images of a caption are its positives.

    Args:
        images: ``(B, D)`` normalised.
        texts: ``(U, D)`` normalised, one row for each distinct caption of the batch.
        caption: ``(B,)`` row of ``texts`` that belongs to each image; every row occurs.
        scale: scalar factor of the cosines.
    """
    logits = scale * images @ texts.t()  # (B, U)
    image_to_text = F.cross_entropy(logits, caption)
    is_positive = F.one_hot(caption, len(texts)).to(logits.dtype)  # (B, U)
    text_to_image = -(is_positive * logits.log_softmax(dim=0)).sum(dim=0) / is_positive.sum(dim=0)
    return (image_to_text + text_to_image.mean()) / 2


def augment(images: Tensor, generator: torch.Generator, min_area: float) -> Tensor:
    """Random resized crop, flip, brightness and contrast, for a whole batch at once.

    Args:
        images: ``(B, 3, S, S)`` in 0 ... 1.
        generator: on the CPU, so that a run on any device draws the same crops.
        min_area: smallest share of the picture that a crop keeps.
    """
    draws = torch.rand(7, len(images), generator=generator).to(images.device)
    area = min_area + (1 - min_area) * draws[0]
    ratio = torch.exp((draws[1] - 0.5) * 2 * math.log(4 / 3)).sqrt()
    width = (area.sqrt() * ratio).clamp(max=1)
    height = (area.sqrt() / ratio).clamp(max=1)
    theta = images.new_zeros(len(images), 2, 3)
    theta[:, 0, 0] = width * torch.where(draws[2] < 0.5, -1.0, 1.0)
    theta[:, 1, 1] = height
    theta[:, 0, 2] = (2 * draws[3] - 1) * (1 - width)
    theta[:, 1, 2] = (2 * draws[4] - 1) * (1 - height)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    brightness, contrast = (0.8 + 0.4 * draws[i].view(-1, 1, 1, 1) for i in (5, 6))
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return ((images - mean) * contrast + mean) * brightness


class Captions:
    """All sentences a class may get, tokenised once.

    Args:
        names: names of each class, the main one first.
        templates: with one ``{}`` each.
        device: where the ids live.
    """

    def __init__(self, names: Sequence[Sequence[str]], templates: Sequence[str], device: torch.device) -> None:
        texts = [[template.format(name) for name in own for template in templates] for own in names]
        self.counts = torch.tensor([len(own) for own in texts])
        self.offsets = self.counts.cumsum(0) - self.counts
        self.ids = tokenize([text for own in texts for text in own]).to(device)

    def draw(self, classes: Tensor, generator: torch.Generator) -> Tensor:
        """Token ids ``(U, 77)``: one random sentence for each of ``classes`` ``(U,)`` (on the CPU)."""
        choice = (torch.rand(len(classes), generator=generator) * self.counts[classes]).long()
        return self.ids[(self.offsets[classes] + choice).to(self.ids.device)]


@dataclass(frozen=True)
class Engine:
    """How a step is computed: ``precision`` fp32 or bf16 (autocast), ``attention`` math or flash (SDPA backend)."""

    precision: str
    attention: str

    @contextlib.contextmanager
    def running(self, device: torch.device) -> Iterator[None]:
        """Context in which forward and backward use this precision and this backend."""
        backends = torch.backends.cuda  # these switches rule the CPU's kernels as well
        before = backends.flash_sdp_enabled(), backends.mem_efficient_sdp_enabled()
        backends.enable_flash_sdp(self.attention == "flash")
        backends.enable_mem_efficient_sdp(self.attention == "flash")
        try:
            with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                yield
        finally:
            backends.enable_flash_sdp(before[0])
            backends.enable_mem_efficient_sdp(before[1])


class Trainer:
    """Trains a CLIP on pictures; everything that a resumed run needs is in `state`.

    Args:
        model: stock CLIP on its device.
        pictures: the training set; moved to the device as bytes.
        templates: caption templates.
        batch: images a step.
        lr: highest learning rate (AdamW, one warm-up epoch, cosine to zero).
        weight_decay: on matrices only, embeddings left out.
        min_area: see `augment`.
        seed: of order, crops and captions; each epoch has its own generator, so a resumed run repeats the
            uninterrupted one.
    """

    def __init__(
        self,
        model: CLIP,
        pictures: Pictures,
        templates: Sequence[str],
        *,
        batch: int,
        lr: float,
        weight_decay: float,
        min_area: float,
        seed: int,
    ) -> None:
        self.model = model
        self.device = model.logit_scale.device
        self.images = pictures.images.to(self.device)
        self.labels = pictures.labels
        self.captions = Captions(pictures.names, templates, self.device)
        self.batch, self.lr, self.min_area, self.seed = min(batch, len(self.labels)), lr, min_area, seed
        self.steps_per_epoch = len(self.labels) // self.batch
        self.epoch = 0
        decayed = [p for n, p in model.named_parameters() if p.ndim >= 2 and "embedding" not in n]
        others = [p for n, p in model.named_parameters() if not (p.ndim >= 2 and "embedding" not in n)]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=lr,
            betas=(0.9, 0.98),
        )

    def step(self, index: Tensor, generator: torch.Generator, engine: Engine) -> Tensor:
        """One optimiser step on the pictures ``index``; returns the loss, still on the device."""
        classes, caption = self.labels[index].unique(return_inverse=True)
        images = self.images[index.to(self.device)].float() / 255
        images = standardise(augment(images, generator, self.min_area))
        ids = self.captions.draw(classes, generator)
        with engine.running(self.device):
            image_features, text_features = encode_images(self.model, images), encode_texts(self.model, ids)
        scale = self.model.logit_scale.exp()
        loss = contrastive_loss(image_features, text_features, caption.to(self.device), scale)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        return loss.detach()

    def train_epoch(self, epochs: int, engine: Engine) -> tuple[float, float]:
        """The next of ``epochs`` epochs; returns mean loss and images a second."""
        generator = self._generator(self.epoch)
        order = torch.randperm(len(self.labels), generator=generator)
        started, total = time.perf_counter(), torch.zeros((), device=self.device)
        for number in range(self.steps_per_epoch):
            self._set_lr(self.epoch * self.steps_per_epoch + number, epochs * self.steps_per_epoch)
            total += self.step(order[number * self.batch : (number + 1) * self.batch], generator, engine)
        self.epoch += 1
        loss = total.item() / self.steps_per_epoch
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss must stay finite, got {loss} in epoch {self.epoch}; lower --lr")
        return loss, self.steps_per_epoch * self.batch / (time.perf_counter() - started)

    def state(self) -> dict[str, Any]:
        """What to save for `restore`."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "epoch": self.epoch}

    def restore(self, state: dict[str, Any]) -> None:
        """Continues behind the last finished epoch of ``state``."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch = state["epoch"]

    def trial(self, engine: Engine, steps: int = 3, clock: Callable[[], float] = time.perf_counter) -> float:
        """Images a second of ``engine``, measured on real steps behind a warm-up step; changes the weights."""
        generator = self._generator(-1)
        order = torch.randperm(len(self.labels), generator=generator)[: self.batch]
        self.step(order, generator, engine)
        self._wait()
        started = clock()
        for _ in range(steps):
            self.step(order, generator, engine)
        self._wait()
        return steps * self.batch / (clock() - started)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _generator(self, epoch: int) -> torch.Generator:
        return torch.Generator().manual_seed((self.seed + 1) * 1_000_003 + epoch)

    def _set_lr(self, step: int, steps: int) -> None:
        warm_up = min(self.steps_per_epoch, steps // 2)
        if step < warm_up:
            factor = (step + 1) / warm_up
        else:
            factor = 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * factor
