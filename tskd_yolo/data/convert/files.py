"""Reading files that others wrote: images, JSON, and folders of them. What cannot be read is a sentence, no trace."""

from __future__ import annotations

import json
import os
import posixpath
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image
from PIL.ExifTags import Base

from tskd_yolo import files

IMAGES = frozenset(
    (".avif", ".bmp", ".dng", ".heic", ".heif", ".jp2", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp")
)
"""Suffixes of the images that Ultralytics reads; its own list comes with torch, which no conversion needs."""

EXIF_TURNED = frozenset((5, 6, 7, 8))  # orientations that swap width and height

_TOLD = 200
"""Of more problems than these the rest is a number."""


class ConvertError(ValueError):
    """Data that cannot be converted as they are.

    Args:
        problems: One sentence each: the file, what was found, what to do.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        lines = [f"{len(self.problems):,} problem(s) in the data to convert:", *self.problems[:_TOLD]]
        if len(self.problems) > _TOLD:
            lines.append(f"and {len(self.problems) - _TOLD:,} more.")
        return "\n  ".join(lines)


@dataclass
class Notes:
    """What comes up while a layout is read.

    Args:
        problems: One sentence each, as in :class:`ConvertError`. They stop the conversion, unless it skips them.
        left_out: Number of things that are left out on purpose, by what they are. They stop nothing.
    """

    problems: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def files_below(folder: Path, suffixes: frozenset[str], notes: Notes) -> dict[str, Path]:
    """The files of a folder and its subfolders with one of these suffixes, by their path below it; no hidden ones.

    Subfolders may be links; of several ways into one folder one counts, and a circle of links has an end.
    """
    if not folder.is_dir():
        notes.problems.append(
            f"{folder}: no such folder. Name the one that holds the {'/'.join(sorted(suffixes))} files."
        )
        return {}
    found: dict[str, Path] = {}
    for file in sorted(_walk(folder)):
        if file.suffix.lower() in suffixes and not file.name.startswith(".") and file.is_file():
            found[file.relative_to(folder).as_posix()] = file
    return found


def _walk(folder: Path) -> Iterator[Path]:
    """The files in a folder and in its subfolders that are not hidden; what is no link comes before what is one."""
    seen: set[tuple[int, int]] = set()
    own, links = [folder], list[Path]()
    while own or links:
        place = own.pop() if own else links.pop(0)
        at = os.stat(place)
        if (at.st_dev, at.st_ino) in seen:
            continue
        seen.add((at.st_dev, at.st_ino))
        for name in sorted(os.listdir(place)):
            path = place / name
            if name.startswith("."):
                continue
            if path.is_dir():
                (links if path.is_symlink() else own).append(path)
            else:
                yield path


def by_stem(folder: Path, suffixes: frozenset[str], notes: Notes) -> tuple[dict[str, Path], set[str]]:
    """The same by file stem, and the stems that several files have: a problem, unless they are copies of one another,
    as nobody knows which of them an annotation, or an image, of this stem belongs to.
    """
    groups: dict[str, list[Path]] = {}
    for file in files_below(folder, suffixes, notes).values():
        groups.setdefault(file.stem, []).append(file)
    found = {}
    for stem, (first, *others) in groups.items():
        different = [file for file in others if not _copies(first, file)]
        notes.left_out["copies of a file in another folder"] += len(others) - len(different)
        for file in different:
            notes.problems.append(
                f"{file.relative_to(folder).as_posix()}: {first.relative_to(folder).as_posix()} has the same stem and "
                "another content. Rename or remove one of them."
            )
        if not different:
            found[stem] = first
    return found, groups.keys() - found.keys()


def _copies(a: Path, b: Path) -> bool:
    """Whether two files have the same content, or as images the same pixels: metadata may differ."""
    if a.read_bytes() == b.read_bytes():
        return True
    if a.suffix.lower() not in IMAGES:
        return False
    try:
        with Image.open(a) as first, Image.open(b) as second:
            return first.size == second.size and np.array_equal(np.asarray(first), np.asarray(second))
    except Exception:  # broken files raise whatever the format's reader stumbles on; what is unreadable is told later
        return False


def inside(folder: Path, name: str) -> Path | None:
    """The path below a folder that a relative file name means; None where it leads out of the folder."""
    path = PurePosixPath(posixpath.normpath(name.replace("\\", "/")))
    if path.is_absolute() or Path(path).drive or path.parts[:1] == ("..",):
        return None
    return folder / path


def is_file(path: Path) -> bool:
    """``path.is_file()``, and False where the name is none that a file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def image_size(image: Path, name: str) -> tuple[int, int]:
    """(width, height) in pixels, turned as the camera's EXIF note says, which is how Ultralytics reads the image.

    Args:
        image: The file.
        name: What to call it in a message.

    Raises:
        ConvertError: If it cannot be read.
    """
    try:
        with Image.open(image) as header:
            width, height = header.size
            if header.format == "TIFF":  # Pillow may have turned this one already, by its version
                width, height = header.tag_v2[Base.ImageWidth], header.tag_v2[Base.ImageLength]
            turned = header.getexif().get(Base.Orientation) in EXIF_TURNED
    except Exception as error:  # broken headers raise whatever the format's reader stumbles on
        why = "an unknown or broken format" if isinstance(error, ModuleNotFoundError) else error  # asked for last
        raise ConvertError(f"{name}: not readable as an image ({why}). Replace or remove it.") from error
    return (height, width) if turned else (width, height)


def content_fraction(file: Path) -> float:
    """A number in [0, 1) that is drawn by a hash of a file's content: files of one content have the same."""
    return int(files.digest(file)[:12], 16) / 2**48


def read_json(file: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ConvertError: If there is none.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConvertError(f"{name}: not readable as JSON ({error}). Repair or remove it.") from error
    if not isinstance(content, dict):
        raise ConvertError(f"{name}: holds a {type(content).__name__}, expected an object. Repair or remove it.")
    return content


def number(value: Any) -> float:
    """The number that a JSON value or a text means, NaN if it is none."""
    if isinstance(value, bool):
        return float("nan")
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return float("nan")
