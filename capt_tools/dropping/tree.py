"""The plugin's files in a host repository: what there is to put, what lies there already, what was put there by us.

A manifest inside the plugin's folder holds the SHA-256 of every file that was put, so that nothing of the host's and
nothing that its user has changed since is ever overwritten or removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["MANIFEST", "Manifest", "Plan", "plan", "plugin_files", "put", "remove", "write_bytes"]

MANIFEST = "trainers/capt/drop_in.json"
# The scripts that stand on nothing but train.py and its plans; the others need tools of this repository.
SHELL_SCRIPTS = ("base2new_train", "base2new_test", "few_shot", "xd_train", "xd_test")


@dataclass
class Manifest:
    """What was put into a host.

    Attributes:
        train_file: SHA-256 of its train.py before.
        files: path below the host -> SHA-256.
        folders: those that were not there before, parents first.
    """

    train_file: str
    files: dict[str, str] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, host: Path) -> Manifest | None:
        """The host's manifest; None where nothing was put.

        Raises:
            ValueError: the file is damaged.
        """
        path = host / MANIFEST
        if not path.is_file():
            return None
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error}); remove the plugin's files by hand") from error

    def write(self, host: Path) -> None:
        """Write it into the host."""
        write_bytes(host / MANIFEST, (json.dumps(vars(self), indent=1) + "\n").encode())


@dataclass
class Plan:
    """What putting the plugin would do to a host's files.

    Attributes:
        write: path below the host -> source, new or newer than what was put before.
        delete: put before, and no longer part of the plugin.
        blocked: path -> why it cannot be written.
    """

    write: dict[str, Path] = field(default_factory=dict)
    delete: list[str] = field(default_factory=list)
    blocked: dict[str, str] = field(default_factory=dict)


def plugin_files(root: Path) -> dict[str, Path]:
    """Path below a host -> file of this repository, for all that is put there."""
    files = {f"trainers/capt/{path}": root / "trainers/capt" / path for path in _python(root / "trainers/capt")}
    files |= {f"capt_compat/{path}": root / "compat" / path for path in _python(root / "compat")}
    # What the scripts stand on; an installed package carries the rest of the repository inside of capt_tools.
    plans = (root / "capt_tools" if (root / "capt_tools").is_dir() else root.parent) / "plan"
    files |= {f"capt_plan/{path}": plans / path for path in _python(plans)}
    texts = [*sorted((root / "configs/trainers/CAPT").glob("*.yaml")), *sorted((root / "descriptions").glob("*.json"))]
    scripts = [root / f"scripts/capt/{name}.sh" for name in SHELL_SCRIPTS] + [root / "scripts/_run.sh"]
    return files | {str(path.relative_to(root)): path for path in [*texts, *scripts]}


def _python(folder: Path) -> list[str]:
    found = [path for path in folder.rglob("*") if path.suffix == ".py" or path.name == "py.typed"]
    return sorted(path.relative_to(folder).as_posix() for path in found)


def plan(host: Path, root: Path, manifest: Manifest | None) -> Plan:
    """Compare the host's files with the plugin's."""
    wanted, ours, result = plugin_files(root), manifest.files if manifest else {}, Plan()
    for path, source in wanted.items():
        target = host / path
        if not target.exists():
            result.write[path] = source
        elif (found := _digest(target)) == _digest(source):
            pass
        elif found == ours.get(path):
            result.write[path] = source
        else:
            why = "has been changed since it was put there" if path in ours else "is there already and is not CAPT's"
            result.blocked[path] = why
    result.delete = [path for path in ours if path not in wanted and (host / path).is_file()]
    return result


def put(host: Path, steps: Plan, manifest: Manifest) -> None:
    """Carry a plan out; the manifest goes first, so that what was interrupted can be undone."""
    for path, source in steps.write.items():
        for folder in reversed([parent for parent in Path(path).parents if parent != Path(".")]):
            if not (host / folder).exists() and folder.as_posix() not in manifest.folders:
                manifest.folders.append(folder.as_posix())
        manifest.files[path] = _digest(source)
    manifest.write(host)
    for path, source in steps.write.items():
        write_bytes(host / path, source.read_bytes(), mode=source.stat().st_mode)
    for path in steps.delete:
        if _digest(host / path) == manifest.files[path]:
            (host / path).unlink()
            del manifest.files[path]
    manifest.write(host)


def remove(host: Path, manifest: Manifest) -> list[str]:
    """Take the plugin's files and folders away; returns files that were changed since, which stay."""
    kept = []
    for path, digest in manifest.files.items():
        target = host / path
        if target.is_file() and _digest(target) != digest:
            kept.append(path)
        else:
            target.unlink(missing_ok=True)
    (host / MANIFEST).unlink()
    for folder in sorted(manifest.folders, key=len, reverse=True):
        shutil.rmtree(host / folder / "__pycache__", ignore_errors=True)
        if (host / folder).is_dir() and not any((host / folder).iterdir()):
            (host / folder).rmdir()
    return kept


def write_bytes(path: Path, content: bytes, mode: int | None = None) -> None:
    """Write a file whole or not at all; ``mode`` defaults to that of the file it replaces."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if mode is None:
        mode = path.stat().st_mode if path.exists() else 0o644
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
