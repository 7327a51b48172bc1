"""Runs that can be stopped anywhere and go on as if they had not been: signals, states, locks, and what a NaN leaves.

A trainer gets all of it by :class:`ResumableMixin`. The same command goes on from the latest state: what was trained,
optimiser, schedule, random states, best result, and how far the epoch had come. An epoch that was left in its middle is
gone through from its start: batches that are done are loaded again and not trained on, so that every loader and its
workers are where a straight run has them; their figures come from the state.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoints import usable_checkpoint
from .distributed import has_failed, highest, is_first, wait_for_all
from .lock import hold_folder
from .several import SharedRunMixin
from .shares import end_workers, mean_figures
from .signals import Interrupted, Interruption, QuietStart
from .states import (
    Position,
    StateWriter,
    StoredState,
    drop_states,
    newest_state,
    rng_state,
    set_rng_state,
    states_in,
)

__all__ = ["ResumableMixin"]

Summary = Mapping[str, Tensor | float] | None

LOADERS = ("train_loader_x", "train_loader_u", "val_loader", "test_loader")
LARGEST_SHARE = 0.02  # of a run's time that its states take


@dataclass
class Progress:
    """How far the running epoch has come.

    Attributes:
        epoch: epochs that are finished.
        start: random states before the epoch.
        best_result: of the epochs before.
        is_stored: whether the latest state on disk, or none, stands for it.
        summaries: what each batch that is done gave to the meters.
        now: random states behind the last batch that is done; None where none is.
    """

    epoch: int
    start: dict[str, Any]
    best_result: float
    is_stored: bool
    summaries: list[Summary] = field(default_factory=list)
    now: dict[str, Any] | None = None


class ResumableMixin(SharedRunMixin):
    """Mix in before Dassl's ``TrainerX``, the bundled or an installed one.

    Attributes:
        frozen_is_rebuilt: whether ``build_model`` makes the same frozen weights again; they are left out of states.
        loss_terms: named scalars, what the loss of the running batch is the sum of; for the message where it is NaN.
        is_resumed: whether the run goes on from a state.
    """

    frozen_is_rebuilt = True
    loss_terms: Mapping[str, Tensor] = {}
    is_resumed = False

    _interruption: Interruption | None = None
    _progress: Progress | None = None
    _state_writer: StateWriter | None = None  # None where epochs are run without train, as crossfit does
    _resumed: dict[str, Any] | None = None  # the state to go on from, until its epoch has begun
    _taken_up: dict[str, Any] | None = None  # what run_state gave, to be restored in the first epoch
    _is_trained = False
    _stored_at = 0.0
    _store_seconds = 0.0  # that the last state took

    def run_state(self) -> dict[str, Any]:
        """What the next step depends on beside models, optimisers and schedules; plain containers and tensors."""
        return {}

    def restore_run_state(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`run_state` gave; called when the epoch has begun, with the random states kept."""

    # ---------------------------------------------------------------------------------------------------- life cycle

    def train(self) -> None:  # type: ignore[override]  # as in Dassl's SimpleTrainer
        """Train and test as Dassl does; a signal ends it with a state and one line.

        Raises:
            Interrupted: by a signal, see :mod:`.signals`.
            FolderInUseError: another run is at work in the output folder.
        """
        self._progress, self._resumed, self._taken_up, self._is_trained = None, None, None, False
        self._stored_at = time.monotonic()
        self._keep_signals_out_of_workers()
        keep = self.cfg.TRAIN.get("KEEP", 2)
        with (
            hold_folder(self.output_dir),
            StateWriter(self.output_dir, keep) as self._state_writer,
            Interruption() as self._interruption,
        ):
            try:
                super().train()
            except Interrupted as stop:
                self._stop(stop, self._store_progress)
                raise
            except Exception as error:
                if self._interruption.signum is None:
                    raise
                ended = Interrupted(self._interruption.signum)  # a loader's worker, say, got the signal as well
                self._stop(ended, lambda: None)
                raise ended from error
            finally:
                for loader in self._loaders():
                    end_workers(loader)

    def before_epoch(self) -> None:
        """Dassl's hook; random states are from here on what they are in a straight run."""
        if self._resumed is not None:
            set_rng_state(self._resumed["start"])
        if self._progress is None:
            self._progress = Progress(self.epoch, rng_state(), self.best_result, is_stored=True)
        super().before_epoch()

    def run_epoch(self) -> None:
        """Dassl's epoch, which a signal ends behind a step."""
        progress, resumed = self._progress, self._resumed
        if progress is None or self._interruption is None:  # called by itself
            super().run_epoch()
            return
        taken_up, self._resumed, self._taken_up = self._taken_up, None, None
        if taken_up is not None:
            with _rng_kept():
                self.restore_run_state(taken_up)
        with self._interruption.waiting(), self._stepping(progress, resumed):
            super().run_epoch()
            progress.now = rng_state()
            self._check_signals()

    def after_epoch(self) -> None:
        """Dassl's hook; then the state of the run, or, behind the last epoch, no state any more."""
        super().after_epoch()
        if self._progress is None:
            return
        if self.epoch + 1 == self.max_epoch:
            self._progress, self._is_trained = None, True
            self._settle_states()
            drop_states(self.output_dir)
            return
        self._progress = Progress(self.epoch + 1, rng_state(), self.best_result, is_stored=False)
        minutes = self.cfg.TRAIN.get("KEEP_MINUTES", 0.0)
        seconds = 60 * minutes if minutes >= 0 else self._store_seconds / LARGEST_SHARE
        if time.monotonic() - self._stored_at >= seconds:
            self._store_progress()

    @contextlib.contextmanager
    def _stepping(self, progress: Progress, resumed: dict[str, Any] | None) -> Iterator[None]:
        """Stand before ``forward_backward``: pass over what is done already, keep account of what is done now."""
        mine = vars(self).get("forward_backward")
        step = self.forward_backward
        done: list[Summary] = resumed["summaries"] if resumed else []

        def stepped(batch: dict[str, Any]) -> Summary:
            number = len(progress.summaries)
            if number < len(done):
                progress.summaries.append(done[number])
                if number + 1 == len(done) and resumed is not None:
                    set_rng_state(resumed["now"])
                return done[number]
            summary = step(batch)
            progress.summaries.append(summary)
            progress.is_stored = False
            self._check_signals()
            return summary

        self.forward_backward = stepped  # type: ignore[method-assign]
        try:
            yield
        finally:
            del self.forward_backward
            if mine is not None:
                self.forward_backward = mine  # type: ignore[method-assign]

    def _check_signals(self) -> None:
        """End here if a signal has come to any of the processes of the run, which all do so."""
        assert self._interruption is not None, "steps are taken in train"
        signum = highest(self._interruption.signum or 0)
        if signum and self._progress is not None:
            self._progress.now = rng_state()
            self._interruption.signum = signum
            self._interruption.is_agreed = True
        self._interruption.check()

    def _stop(self, stop: Interrupted, store: Callable[[], Path | None]) -> None:
        """Save what is not saved yet, and say in one line where the run stopped and how it goes on."""
        if stop.is_told or has_failed():  # by a run within this one, or another process says why
            return
        progress, stop.is_told = self._progress, True
        store()
        self._settle_states()
        stored = next(iter(states_in(self.output_dir)), None)
        if self._is_trained:
            where, then = "behind the last epoch", "the same command tests what was trained"
        elif stored is None:
            where, then = "before there was anything to save", "give the same command again"
        else:
            where, then = f"behind {stored[0]}", f'saved in "{stored[1]}"; the same command goes on from there'
            if progress is not None and not progress.is_stored:
                where = f"in epoch {progress.epoch + 1}"
        print(f"{stop.name}: stopped {where}; {then}", flush=True)
        if self._interruption is not None and self._interruption.is_agreed:
            wait_for_all()  # the first process that goes has torchrun end the others

    def _loaders(self) -> list[Any]:
        return [getattr(self, name, None) for name in LOADERS]

    def _keep_signals_out_of_workers(self) -> None:
        for loader in self._loaders():
            if hasattr(loader, "worker_init_fn") and not isinstance(loader.worker_init_fn, QuietStart):
                loader.worker_init_fn = QuietStart(loader.worker_init_fn)

    # -------------------------------------------------------------------------------------------------------- states

    def _store_progress(self) -> Path | None:
        """Write the state of the run unless it is on disk; returns its file."""
        progress = self._progress
        if progress is None or progress.is_stored or not is_first() or (progress.summaries and progress.now is None):
            return None
        start = time.monotonic()
        self._refuse_not_finite()
        content = {
            "models": {name: self._model_state(name) for name in self.get_model_names()},
            "start": progress.start,
            "now": progress.now,
            "summaries": [
                None if s is None else {key: float(value) for key, value in s.items()} for s in progress.summaries
            ],
            "best_result": float(progress.best_result),
            "run_state": self.run_state(),
        }
        scaler = getattr(self, "scaler", None)
        if scaler is not None:
            content["scaler"] = scaler.state_dict()
        position = Position(progress.epoch, len(progress.summaries))
        writer = self._state_writer or StateWriter(self.output_dir, self.cfg.TRAIN.get("KEEP", 2))
        path = writer.write(position, content)
        if writer is not self._state_writer:
            writer.settle()
        progress.is_stored, self._stored_at = True, time.monotonic()
        self._store_seconds = self._stored_at - start
        return path

    def _settle_states(self) -> None:
        if self._state_writer is not None:
            self._state_writer.settle()

    def _model_state(self, name: str) -> dict[str, Any]:
        model, optim, sched = self._models[name], self._optims[name], self._scheds[name]
        frozen = _frozen(model) if self.frozen_is_rebuilt else set()
        return {
            "weights": {key: value for key, value in model.state_dict().items() if key not in frozen},
            "optimizer": None if optim is None else optim.state_dict(),
            "schedule_steps": None if sched is None else _steps_taken(sched),
        }

    def resume_model_if_exist(self, directory: str) -> int:
        """Go on from the latest state or checkpoint that is whole, whichever is further; returns the epochs finished.

        Args:
            directory: of the run to go on from; states in the output folder count as well.
        """
        epoch = usable_checkpoint(directory, self.get_model_names())
        stored = newest_state(dict.fromkeys((self.output_dir, directory)))
        wait_for_all()  # before the first process changes what is there
        if stored is not None and (epoch is None or stored.position >= Position(epoch, 0)):
            print(f"Found checkpoint at {directory} (will resume training)")
            self._restore(stored)
            return stored.position.epoch
        if epoch is None:
            print("No checkpoint found, train from scratch")
            return 0
        done = super().resume_model_if_exist(directory)
        if done >= self.max_epoch:
            self._is_trained = True
            drop_states(self.output_dir)
        return done

    def _restore(self, stored: StoredState) -> None:
        content = stored.content
        for name, state in content["models"].items():
            model, optim, sched = self._models[name], self._optims[name], self._scheds[name]
            frozen = _frozen(model) if self.frozen_is_rebuilt else set()
            found = model.load_state_dict(state["weights"], strict=False)
            foreign = [*found.unexpected_keys, *(key for key in found.missing_keys if key not in frozen)]
            if foreign:
                raise ValueError(f'"{stored.path}" is of another run: {foreign[0]} differs; give another output folder')
            if sched is not None:
                _take_steps(sched, state["schedule_steps"])
            if optim is not None:
                optim.load_state_dict(state["optimizer"])
        scaler = getattr(self, "scaler", None)
        if scaler is not None and content.get("scaler"):
            scaler.load_state_dict(content["scaler"])
        self.best_result = content["best_result"]
        self._resumed, self._taken_up, self.is_resumed = content, content["run_state"], True
        print(f'Resuming behind {stored.position} from "{stored.path}"')

    def _run_state_to_save(self) -> dict[str, Any]:
        """The bundled Dassl's checkpoints hold :meth:`run_state` too: one may be further than the latest state.

        Not where nothing is trained, as before the first epoch.
        """
        extra: dict[str, Any] = super()._run_state_to_save()  # of the bundled Dassl alone
        state = self.run_state() if self._progress is not None else {}
        return {**extra, "run_state": state} if state else extra

    def _restore_run_state(self, checkpoint: dict[str, Any]) -> None:
        """Called by the bundled Dassl, by which a checkpoint is resumed from."""
        super()._restore_run_state(checkpoint)
        self._taken_up = checkpoint.get("run_state")

    # ------------------------------------------------------------------------------------------------ what is no number

    def detect_anomaly(self, loss: Tensor) -> None:
        """Stop where the loss, a scalar, is no number; every process does where one's is none.

        Raises:
            FloatingPointError: says where, which of the loss's terms it is, and which checkpoint is good.
        """
        loss = mean_figures({"loss": loss})["loss"]
        if torch.isfinite(loss).all():
            return
        terms = {name: value for name, value in self.loss_terms.items() if not torch.isfinite(value).all()}
        terms = terms or {"the loss": loss}
        said = ", ".join(f"{name} is {float(value.detach().float().mean())}" for name, value in terms.items())
        raise FloatingPointError(
            f"Loss is infinite or NaN! In epoch {self.epoch + 1}, batch {self.batch_idx + 1}, {said}; "
            f"{self._last_good()}"
        )

    def _refuse_not_finite(self) -> None:
        """A loss may be looked at less often than every step; what it has spoilt must not become a state."""
        for name in self.get_model_names():
            for key, value in self._models[name].named_parameters():
                if value.requires_grad and not _is_finite(value):
                    raise FloatingPointError(
                        f"Loss is infinite or NaN! By epoch {self.epoch + 1}, batch {self.batch_idx + 1}, {key} is no "
                        f"number any more; {self._last_good()}"
                    )

    def _last_good(self) -> str:
        fix = "lower OPTIM.LR"
        stored = next(iter(states_in(self.output_dir)), None)
        if stored is None:
            return f"nothing was saved before it; {fix}"
        return f'the last good checkpoint, behind {stored[0]}, is kept in "{stored[1]}"; {fix}'


def _frozen(model: nn.Module) -> set[str]:
    return {name for name, value in model.named_parameters(remove_duplicate=False) if not value.requires_grad}


def _is_finite(value: Tensor) -> bool:
    """Whether all of a tensor is finite; its sum, which is a tenth of the work, tells it of all but very large ones."""
    return bool(value.sum().isfinite()) or bool(value.isfinite().all())


def _steps_taken(sched: Any) -> int:
    """How often a schedule has been stepped; Dassl's warm-up steps itself, then its successor."""
    successor = getattr(sched, "successor", None)
    return sched.last_epoch if successor is None else sched.last_epoch + successor._step_count - 1


def _take_steps(sched: Any, number: int) -> None:
    """Step a new schedule as often as an old one: the very rates, and what is configured now stays in force."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "lr_scheduler.step() before optimizer.step()": true, and meant
        for _ in range(number):
            sched.step()


@contextlib.contextmanager
def _rng_kept() -> Iterator[None]:
    state = rng_state()
    try:
        yield
    finally:
        set_rng_state(state)
