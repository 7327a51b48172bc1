"""Learning-rate schedules, stepped once an epoch, with an optional warm-up in front."""

import warnings
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, StepLR
from yacs.config import CfgNode

__all__ = ["ConstantWarmupScheduler", "LinearWarmupScheduler", "build_lr_scheduler", "restore_scheduler"]

SCHEDULES = ["single_step", "multi_step", "cosine"]


class WarmupScheduler(LRScheduler):
    """Gives its own rates for ``warmup_epoch`` epochs, then lets ``successor`` drive the optimiser.

    At epoch ``warmup_epoch`` the successor's current rate is used without stepping it; from then on ``step()`` steps
    only the successor, and ``last_epoch`` of the wrapper stays.
    """

    def __init__(self, optimizer: Optimizer, successor: LRScheduler, warmup_epoch: int, last_epoch: int = -1) -> None:
        self.successor = successor
        self.warmup_epoch = warmup_epoch
        super().__init__(optimizer, last_epoch)

    @property
    def is_warm(self) -> bool:
        """Whether the successor has taken over."""
        return self.last_epoch >= self.warmup_epoch

    def warmup_lr(self, base_lr: float | Tensor) -> float | Tensor:
        """Rate of the current epoch for a parameter group whose base rate is ``base_lr``."""
        raise NotImplementedError

    def get_lr(self) -> list[float | Tensor]:
        """Rates that the next update sets."""
        if self.is_warm:
            return self.successor.get_last_lr()
        return [self.warmup_lr(base_lr) for base_lr in self.base_lrs]

    def step(self, epoch: int | None = None) -> None:
        """Go to the next epoch."""
        if not self.is_warm:
            return super().step(epoch)
        self.successor.step(epoch)
        self._last_lr = list(self.successor.get_last_lr())
        return None

    def state_dict(self) -> dict[str, Any]:
        """State as plain numbers: the successor goes in as its state dict, not as an object."""
        own = {k: v for k, v in self.__dict__.items() if k not in ("optimizer", "successor")}
        # The milestones of MultiStepLR are a Counter, which weights_only of older torch does not know.
        inner = {k: dict(v) if isinstance(v, dict) else v for k, v in self.successor.state_dict().items()}
        return {**own, "successor": inner}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Move to the epoch of a saved state; the schedule itself stays the configured one."""
        restore_scheduler(self, state_dict)


class ConstantWarmupScheduler(WarmupScheduler):
    """Warm-up at the constant rate ``cons_lr``."""

    def __init__(
        self, optimizer: Optimizer, successor: LRScheduler, warmup_epoch: int, cons_lr: float, last_epoch: int = -1
    ) -> None:
        self.cons_lr = cons_lr
        super().__init__(optimizer, successor, warmup_epoch, last_epoch)

    def warmup_lr(self, base_lr: float | Tensor) -> float | Tensor:
        """``cons_lr``, whatever the base rate."""
        return self.cons_lr


class LinearWarmupScheduler(WarmupScheduler):
    """Warm-up from ``min_lr`` in epoch 0 along ``base * epoch / warmup_epoch``."""

    def __init__(
        self, optimizer: Optimizer, successor: LRScheduler, warmup_epoch: int, min_lr: float, last_epoch: int = -1
    ) -> None:
        self.min_lr = min_lr
        super().__init__(optimizer, successor, warmup_epoch, last_epoch)

    def warmup_lr(self, base_lr: float | Tensor) -> float | Tensor:
        """``min_lr`` in epoch 0, then a share of the base rate."""
        return base_lr * self.last_epoch / self.warmup_epoch if self.last_epoch > 0 else self.min_lr


def build_lr_scheduler(optimizer: Optimizer, optim_cfg: CfgNode) -> LRScheduler:
    """Build the schedule ``optim_cfg.LR_SCHEDULER``, wrapped in a warm-up if WARMUP_EPOCH is above 0.

    Raises:
        ValueError: Unknown schedule or warm-up type.
        TypeError: The step size of single_step is not a whole number.
    """
    scheduler = _build_schedule(optimizer, optim_cfg)
    if optim_cfg.WARMUP_EPOCH <= 0:
        return scheduler
    if not optim_cfg.WARMUP_RECOUNT:
        scheduler.last_epoch = optim_cfg.WARMUP_EPOCH
    if optim_cfg.WARMUP_TYPE == "constant":
        return ConstantWarmupScheduler(optimizer, scheduler, optim_cfg.WARMUP_EPOCH, optim_cfg.WARMUP_CONS_LR)
    if optim_cfg.WARMUP_TYPE == "linear":
        return LinearWarmupScheduler(optimizer, scheduler, optim_cfg.WARMUP_EPOCH, optim_cfg.WARMUP_MIN_LR)
    raise ValueError(f"OPTIM.WARMUP_TYPE must be constant or linear, got {optim_cfg.WARMUP_TYPE}")


def _build_schedule(optimizer: Optimizer, optim_cfg: CfgNode) -> LRScheduler:
    name, stepsize, max_epoch = optim_cfg.LR_SCHEDULER, optim_cfg.STEPSIZE, optim_cfg.MAX_EPOCH
    if name not in SCHEDULES:
        raise ValueError(f"scheduler must be one of {SCHEDULES}, but got {name}")
    if name == "cosine":
        return CosineAnnealingLR(optimizer, float(max_epoch))  # type: ignore[arg-type]  # checkpoints hold a float
    if name == "multi_step":
        if not isinstance(stepsize, (list, tuple)):
            raise TypeError(f"OPTIM.STEPSIZE must be a list or tuple for multi_step, got {stepsize!r}")
        return MultiStepLR(optimizer, milestones=stepsize, gamma=optim_cfg.GAMMA)
    if isinstance(stepsize, (list, tuple)):
        stepsize = stepsize[-1]
    if not isinstance(stepsize, int):
        raise TypeError(f"OPTIM.STEPSIZE must end in a whole number for single_step, got {stepsize!r}")
    return StepLR(optimizer, step_size=stepsize if stepsize > 0 else max_epoch, gamma=optim_cfg.GAMMA)


def restore_scheduler(scheduler: LRScheduler, state: dict[str, Any]) -> None:
    """Move ``scheduler`` to where the saved ``state`` had come, by stepping it as often from its start.

    Stepping gives the very rates of an uninterrupted run, and nothing of the saved schedule (T_max, milestones) or of
    a pickled successor replaces what the configuration built.

    Args:
        scheduler: Freshly built schedule, bound to the live optimiser. Schedules that ``build_lr_scheduler`` does not
            make get ``load_state_dict``.
        state: Its saved state; ``successor`` in it is a state dict or the object that Dassl pickles.
    """
    successor = getattr(scheduler, "successor", None)
    if successor is None and not isinstance(scheduler, (CosineAnnealingLR, StepLR, MultiStepLR)):
        scheduler.load_state_dict(state)
        return
    steps = _steps_taken(state)
    _rewind(scheduler, successor)
    with warnings.catch_warnings():
        # "lr_scheduler.step() before optimizer.step()": true here, and meant.
        warnings.simplefilter("ignore", UserWarning)
        for _ in range(steps):
            scheduler.step()


def _steps_taken(state: dict[str, Any]) -> int:
    """Number of ``step()`` calls behind a saved state, the one of the constructor not counted."""
    inner = state.get("successor")
    if inner is None:
        return state["last_epoch"]
    inner = inner if isinstance(inner, dict) else vars(inner)
    return state["last_epoch"] + inner["_step_count"] - 1


def _rewind(scheduler: LRScheduler, successor: LRScheduler | None) -> None:
    """Bring a schedule (and its successor) and the optimiser's rates back to epoch 0."""
    for group, lr in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, strict=True):
        group["lr"] = group["initial_lr"] = lr
    inner = scheduler if successor is None else successor
    # Only a successor that has moved needs its start; where it starts (0 or WARMUP_EPOCH) is in last_epoch itself.
    inner.last_epoch -= inner._step_count - 1
    inner._step_count = 1
    inner._last_lr = list(inner.base_lrs)
    if successor is not None:
        scheduler.last_epoch, scheduler._step_count = -1, 0
        LRScheduler.step(scheduler)
