"""Which of a run's checkpoints to go on from: the one that is pointed at, or the latest whole one before it."""

from __future__ import annotations

from pathlib import Path

from .files import damage_of, write_atomically

__all__ = ["usable_checkpoint"]


def usable_checkpoint(directory: str, names: list[str]) -> int | None:
    """Epochs finished by the checkpoint that Dassl would resume from, of all models; None if there is none.

    Where the file that is pointed at is damaged, it is named, and the pointers are set to the latest epoch whose files
    are whole. The best epoch's file counts as none finished, since it does not say by its name.
    """
    folders = [Path(directory) / name for name in names]
    pointed = [_pointed_at(folder) for folder in folders]
    if not folders or None in pointed:
        return None
    epochs = [_epoch_of(path) for path in pointed if path is not None]
    damaged = [(path, damage) for path in pointed if path is not None and (damage := _damage(path)) is not None]
    if not damaged:
        for path in pointed:
            if path is not None and not (path.parent / "checkpoint").is_file():
                _point_at(path)  # the run was killed between the two
        return min(epochs)
    for path, damage in damaged:
        print(f'"{path}" is damaged ({damage}); taking the one before it')
    shared = set.intersection(*({_epoch_of(path) for path in folder.glob("model.pth.tar-*")} for folder in folders))
    for epoch in sorted(shared - {0}, reverse=True):
        files = [folder / f"model.pth.tar-{epoch}" for folder in folders]
        if all(_damage(path) is None for path in files):
            for path in files:
                _point_at(path)
            return epoch
    return None


def _pointed_at(folder: Path) -> Path | None:
    """What the folder's pointer names; without one, the latest epoch's file."""
    pointer = folder / "checkpoint"
    if pointer.is_file():
        return folder / pointer.read_text(encoding="utf-8").strip()
    latest = max(folder.glob("model.pth.tar-*"), key=_epoch_of, default=None)
    return latest if latest is not None and _epoch_of(latest) else None


def _point_at(path: Path) -> None:
    write_atomically(path.parent / "checkpoint", lambda part: Path(part).write_text(f"{path.name}\n", encoding="utf-8"))


def _epoch_of(path: Path) -> int:
    number = path.name.rpartition("-")[2]
    return int(number) if path.name.startswith("model.pth.tar-") and number.isdecimal() else 0


def _damage(path: Path) -> str | None:
    return damage_of(path) if path.is_file() else "there is no such file"
