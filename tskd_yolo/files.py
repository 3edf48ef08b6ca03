"""Files that are written whole or not at all: a kill, a full disk or a power cut leaves the one that was there."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch


def replace(path: str | Path, data: bytes) -> None:
    """Puts ``data`` in the place of a file: new file, flush, fsync, rename, fsync of the folder.

    Raises:
        OSError: If it cannot be written; what was there is untouched, and nothing half-written is left.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()
        raise
    if os.name != "nt":  # a folder cannot be opened on Windows, where a rename is durable by itself
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def save(path: str | Path, content: Mapping[str, Any]) -> None:
    """``torch.save`` whole or not at all; raises OSError as :func:`replace` does."""
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    replace(path, buffer.getvalue())


def write_json(path: str | Path, content: Any) -> None:
    """JSON in UTF-8 with a last newline, whole or not at all; raises OSError as :func:`replace` does.

    Raises:
        ValueError: If it holds NaN or infinity, which JSON has not.
    """
    replace(path, (json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8"))


def relative(path: str | Path, folder: str | Path) -> str:
    """A path as seen from a folder; as it is where there is no way, as between two drives of Windows."""
    try:
        return os.path.relpath(path, folder)
    except ValueError:
        return str(path)


def digest(path: str | Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    hashed = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            hashed.update(block)
    return hashed.hexdigest()


class WholePath(type(Path())):  # type: ignore[misc]
    """A path whose ``write_bytes`` replaces the file in one step; what it is joined to is such a path too."""

    def write_bytes(self, data: Any) -> int:
        """Writes all of ``data``, or raises OSError and leaves what was there."""
        replace(Path(self), bytes(data))
        return len(data)


def keep(last: Path, previous: Path) -> None:
    """Keeps a checkpoint that is about to be replaced, without writing it again where the disk can link."""
    if not last.exists():
        return
    part = previous.with_name(f".{previous.name}.part")
    part.unlink(missing_ok=True)
    try:
        try:
            os.link(last, part)
        except OSError:  # a file system without links
            shutil.copyfile(last, part)
        os.replace(part, previous)
    finally:
        part.unlink(missing_ok=True)


def cut(csv: Path, *, epochs: int) -> None:
    """Leaves the first ``epochs`` epochs in results.csv, each once and whole: it is ahead of the checkpoint."""
    header, *lines = csv.read_text(encoding="utf-8").splitlines() or [""]
    rows = {}
    for line in lines:
        number = line.split(",", 1)[0].strip()
        if line.count(",") == header.count(",") and number.isdigit() and 1 <= int(number) <= epochs:
            rows[int(number)] = line
    text = "\n".join([header, *(rows[n] for n in sorted(rows))]) + "\n"
    replace(csv, text.encode("utf-8"))


def set_columns(csv: Path, columns: Sequence[str]) -> list[str]:
    """Gives results.csv these columns, so that further rows fit: a run may be older than a column.

    A column that is new is ``nan`` in the rows that are there.

    Returns:
        The columns that were there and are not any more.
    """
    header, *lines = csv.read_text(encoding="utf-8").splitlines() or [""]
    before = [name.strip() for name in header.split(",")]
    if before == list(columns):
        return []
    rows = [dict(zip(before, line.split(","), strict=True)) for line in lines]
    text = "\n".join([",".join(columns), *(",".join(row.get(name, "nan") for name in columns) for row in rows)]) + "\n"
    replace(csv, text.encode("utf-8"))
    return [name for name in before if name not in columns]
