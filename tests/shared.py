"""Files that tests share and only read: each is made once per session, by whichever process asks first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock


class Shared:
    """The folder of these files, the same for all processes of a session.

    A test that changes one of them would change what others find: :meth:`changed` tells.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self._asked: set[str] = set()

    def __call__(self, name: str, make: Callable[[Path], Any]) -> Path:
        """The file or folder of this name, made by ``make(path)`` unless it is there."""
        place, note = self.folder / name, self._note(name)
        with FileLock(self.folder / f"{name}.lock"):
            if not note.exists():
                make(place)
                note.write_text(json.dumps(digests(place)), encoding="utf-8")
        self._asked.add(name)
        return place

    def _note(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def changed(self) -> list[str]:
        """Of what this process asked for, the names of what is not as it was made."""
        return [
            name
            for name in sorted(self._asked)
            if digests(self.folder / name) != json.loads(self._note(name).read_text(encoding="utf-8"))
        ]


def digests(place: Path) -> dict[str, str]:
    """Every file at or below a path, with the hash of what is in it."""
    files = [place] if place.is_file() else [file for file in sorted(place.rglob("*")) if file.is_file()]
    return {str(file.relative_to(place)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
