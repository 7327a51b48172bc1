"""Every answer as it came, one JSON line each, on disk before the next question is asked."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

__all__ = ["Journal"]


class Journal:
    """Answers by key, kept in a file that is only ever appended to.

    A kill may cut the last line; it is dropped at the next start, and only its question is asked again.
    """

    def __init__(self, path: Path):
        self.path = path
        self.entries: dict[str, dict[str, Any]] = {}
        if not path.exists():
            return
        sound = 0
        for line in path.read_bytes().splitlines(keepends=True):
            try:
                entry = json.loads(line)
                self.entries[entry["key"]] = entry
            except (KeyError, TypeError, ValueError):
                break
            if not line.endswith(b"\n"):
                break
            sound += len(line)
        if sound < path.stat().st_size:
            os.truncate(path, sound)

    def add(self, key: str, **entry: Any) -> None:
        """Keep an answer."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.entries[key] = {"key": key, **entry}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(self.entries[key], ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
