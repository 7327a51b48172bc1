"""The Confusion Bank's files: the bank itself, and the confusion features that a checkpoint's adapter made of it."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..run.files import write_atomically, write_json

__all__ = ["FILE", "BankMismatchError", "StoredBank"]

FORMAT = 4  # 2 keeps the class tokens, 3 the shrinkage, 4 the layout of the patch tokens
READABLE = (2, 3, 4)
FILE = "confusion_bank.safetensors"
FEATURES_SUFFIX = ".bank.safetensors"

Bank = TypeVar("Bank", bound="StoredBank")


class BankMismatchError(ValueError):
    """A stored bank was built for another run."""


class _OtherFormatError(ValueError):
    """A file that earlier or later code wrote."""


class StoredBank(ABC):
    """What :class:`ConfusionBank` inherits to be written and read."""

    classnames: list[str]
    paths: list[str]
    fingerprint: dict[str, Any]
    shrinkage: float
    notes: list[str]
    confusion_features: Tensor | None

    @abstractmethod
    def __len__(self) -> int:
        """Number of entries."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the entries lie."""

    @abstractmethod
    def top_pairs(self, num_pairs: int = 10) -> list[tuple[str, str, float]]:
        """The pairs of classes with most confusions: (a, b, how many)."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """All tensors that are stored, ``(M, ...)`` of entries and ``(C, C)`` of classes."""

    @classmethod
    @abstractmethod
    def from_state_dict(
        cls: type[Bank],
        state: dict[str, Tensor],
        classnames: Sequence[str],
        paths: Sequence[str],
        fingerprint: dict[str, Any] | None = None,
        shrinkage: float = 1.0,
    ) -> Bank:
        """The bank that :meth:`state_dict` came from, with tensors ``(M, ...)`` and ``(C, C)``."""

    def save(self, directory: str | Path) -> Path:
        """Write ``confusion_bank.safetensors``, and a summary beside it as JSON for people; returns the file's path."""
        path = Path(directory) / FILE
        description = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "classnames": self.classnames,
            "paths": self.paths,
            "shrinkage": self.shrinkage,
            "notes": self.notes,
        }
        tensors = {name: value.cpu().contiguous() for name, value in self.state_dict().items()}
        metadata = {"confusion_bank": json.dumps(description)}
        write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))
        summary = {
            "fingerprint": self.fingerprint,
            "entries": len(self),
            "notes": self.notes,
            "top_pairs": [{"a": a, "b": b, "count": n} for a, b, n in self.top_pairs(50)],
        }
        write_json(path.with_suffix(".json"), summary)
        return path

    @classmethod
    def load(cls: type[Bank], path: str | Path, device: torch.device | str = "cpu") -> Bank:
        """A bank from its file, or from the folder that holds it.

        Raises:
            FileNotFoundError: there is none.
            ValueError: the file is damaged, no bank, or of a newer format.
        """
        path = Path(path)
        path = path / FILE if path.is_dir() else path
        if not path.is_file():
            raise FileNotFoundError(f'No confusion bank at "{path}"; train CAPT there first, or set BANK.AT_TEST False')
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                description = json.loads((file.metadata() or {})["confusion_bank"])
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            if description["format"] not in READABLE:
                fix = "update this code" if description["format"] > FORMAT else "train CAPT again"
                found, readable = description["format"], f"{READABLE[0]} to {READABLE[-1]}"
                other = f'"{path}" has format {found}, this code reads {readable}; {fix}'
                raise _OtherFormatError(other)
            classnames, paths, fingerprint = (description[key] for key in ("classnames", "paths", "fingerprint"))
            bank = cls.from_state_dict(state, classnames, paths, fingerprint, description.get("shrinkage", 1.0))
            bank.notes = description.get("notes", [])
            return bank
        except _OtherFormatError:
            raise
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f'"{path}" is not a confusion bank or is damaged ({reason}); delete it and train'
            ) from error

    @classmethod
    def of_run(
        cls: type[Bank],
        run: str | Path,
        base_digest: str,
        checkpoint: str | Path | None,
        device: torch.device | str = "cpu",
    ) -> Bank:
        """The bank of a trained run, with the confusion features beside ``checkpoint`` where one is given.

        Raises:
            FileNotFoundError: a file is not there.
            BankMismatchError: the bank was built on another base model.
            ValueError: a file is damaged.
        """
        bank = cls.load(run, device)
        bank.check({"base_weights": base_digest})
        if checkpoint is not None:
            bank.load_confusion_features(checkpoint)
        return bank

    def save_confusion_features(self, checkpoint: str | Path) -> None:
        """Store the entries' confusion features beside the checkpoint whose adapter made them."""
        assert self.confusion_features is not None, "the adapter has not settled the bank"
        tensors = {"confusion_features": self.confusion_features.cpu().contiguous()}
        path = f"{checkpoint}{FEATURES_SUFFIX}"
        write_atomically(path, lambda temporary: save_file(tensors, temporary))

    def load_confusion_features(self, checkpoint: str | Path) -> None:
        """Take up what :meth:`save_confusion_features` stored.

        Raises:
            FileNotFoundError: there is none beside this checkpoint.
            BankMismatchError: it was stored for another bank.
            ValueError: the file is damaged.
        """
        path = f"{checkpoint}{FEATURES_SUFFIX}"
        if not Path(path).is_file():
            raise FileNotFoundError(f'No confusion features at "{path}"; copy the whole run folder, or train again')
        try:
            features = load_file(path, device=str(self.device))["confusion_features"]
        except (SafetensorError, KeyError) as error:
            raise ValueError(f'"{path}" is damaged ({error}); copy the run folder again, or train again') from error
        if len(features) != len(self) + 1:
            raise BankMismatchError(
                f'"{path}" holds {len(features) - 1} entries, the bank {len(self)}; use one run folder'
            )
        self.confusion_features = features

    def check(self, expected: dict[str, Any]) -> None:
        """Refuse to serve a run that the bank was not built for.

        Raises:
            BankMismatchError: names every part of the fingerprint that differs, with both values.
        """
        differing = [
            f"{key}: bank has {_short(self.fingerprint.get(key))}, this run has {_short(value)}"
            for key, value in expected.items()
            if self.fingerprint.get(key) != value
        ]
        if differing:
            raise BankMismatchError(
                "the confusion bank was built for another run ("
                + "; ".join(differing)
                + "); delete it, or give the folder of the run it belongs to"
            )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}..."
