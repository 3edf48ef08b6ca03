"""Writing an Ultralytics data set: ``images/<split>``, ``labels/<split>`` and ``data.yaml``.

Originals are only read and linked to. A set is built beside its place and moved there when it is whole.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

MARKER = "# Made by tskd-yolo: the folder around this file is replaced as a whole when it is made again."
SPLITS = ("train", "val", "test")

Corners = tuple[float, float, float, float]
"""(x1, y1, x2, y2) in pixels from the image's top left corner."""


@dataclass(frozen=True)
class Summary:
    """What a conversion wrote.

    Args:
        images: Number of images per split.
        boxes: Number of boxes per split and class name.
        clipped: Number of boxes that reached over the image's edge and were clipped to it.
        skipped: The problems whose file or box was left out; empty unless ``skip=True``.
        out: The data set's folder, absolute.
    """

    images: dict[str, int]
    boxes: dict[str, dict[str, int]]
    clipped: int
    skipped: list[str]
    out: Path

    def __str__(self) -> str:
        splits = ", ".join(
            f"{name} {count} images with {sum(self.boxes[name].values())} boxes" for name, count in self.images.items()
        )
        return f"{self.out}: {splits}; {self.clipped} boxes clipped, {len(self.skipped)} problems skipped"


@dataclass(frozen=True)
class Sample:
    """One image with what is on it.

    Args:
        image: The original image file.
        split: One of ``SPLITS``.
        size: (width, height) in pixels.
        boxes: (class name, corners) per object, clipped to the image.
        clipped: Number of these boxes that had to be clipped.
    """

    image: Path
    split: str
    size: tuple[int, int]
    boxes: list[tuple[str, Corners]]
    clipped: int


def write(samples: Sequence[Sample], out: Path, names: Sequence[str], skipped: list[str]) -> Summary:
    """Writes the data set and counts what was written."""
    images = Counter(sample.split for sample in samples)
    splits = [split for split in SPLITS if images[split]]
    boxes = {split: dict.fromkeys(names, 0) for split in splits}
    index = {name: i for i, name in enumerate(names)}
    with data_set_folder(out, names=names, splits=splits) as folder:
        for sample in samples:
            _link(sample.image, folder / "images" / sample.split / sample.image.name)
            _write_labels(sample, index, folder / "labels" / sample.split / f"{sample.image.stem}.txt")
            for name, _ in sample.boxes:
                boxes[sample.split][name] += 1
    return Summary(
        images={split: images[split] for split in splits},
        boxes=boxes,
        clipped=sum(sample.clipped for sample in samples),
        skipped=skipped,
        out=Path(out).expanduser().resolve(),
    )


@contextmanager
def data_set_folder(out: Path, *, names: Sequence[str], splits: Sequence[str]) -> Iterator[Path]:
    """Gives an empty data set folder to fill, and moves it to ``out`` if the block ends well.

    The folder has ``images/<split>``, ``labels/<split>`` and ``data.yaml`` already.

    Raises:
        FileExistsError: If ``out`` is there, not empty, and was not made by this function.
    """
    out = Path(out).expanduser().resolve()
    _check_replaceable(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        folder = work / "new"
        for split in splits:
            (folder / "images" / split).mkdir(parents=True)
            (folder / "labels" / split).mkdir(parents=True)
        content = (
            {"path": str(out)} | {split: f"images/{split}" for split in splits} | {"names": dict(enumerate(names))}
        )
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        (folder / "data.yaml").write_text(f"{MARKER}\n{text}", encoding="utf-8")
        yield folder
        _check_replaceable(out)
        _swap(folder, out, old=work / "old")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def gone(images: Path) -> str | None:
    """What to do about a prepared folder of links whose originals were moved or removed; None if they are there."""
    link = next(images.iterdir(), None) if images.is_dir() else None
    if link is None or not link.is_symlink() or link.exists():
        return None
    return (
        f"{images} links to images in {Path(os.readlink(link)).parent}, which are gone; restore them, or remove the "
        "prepared folder to have it made again from where they are now."
    )


def label_line(index: int, corners: Corners, size: tuple[int, int]) -> str:
    """One line of an Ultralytics label file: class index, centre x, centre y, width, height, as shares of the image."""
    (x1, y1, x2, y2), (width, height) = corners, size
    shares = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
    return " ".join([str(index), *(f"{share:.9g}" for share in shares)])


def _write_labels(sample: Sample, index: Mapping[str, int], file: Path) -> None:
    """Writes one label file, empty for a background image."""
    lines = (label_line(index[name], corners, sample.size) + "\n" for name, corners in sample.boxes)
    file.write_text("".join(lines), encoding="ascii")


def _link(original: Path, link: Path) -> None:
    """Makes ``link`` show the original image; copies it where links cannot be made."""
    try:
        link.symlink_to(original.resolve())
    except (OSError, NotImplementedError):  # no rights (Windows), or no links on this file system
        shutil.copyfile(original, link)


def _check_replaceable(out: Path) -> None:
    """Raises FileExistsError unless ``out`` is free, an empty folder, or a data set made by this module."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    file = out / "data.yaml"
    if file.is_file() and file.read_bytes().splitlines()[:1] == [MARKER.encode()]:
        return
    raise FileExistsError(
        f"{out}: is there already and was not made by tskd-yolo. Move it away or choose another folder."
    )


def _swap(new: Path, out: Path, *, old: Path) -> None:
    """Moves ``new`` to ``out``; what was there goes to ``old``, and back if the move fails."""
    if out.exists():
        out.rename(old)
    try:
        new.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise


def split_function(split: Callable[[str], str] | float) -> Callable[[str], str]:
    """The split as a function, whichever way it was given."""
    if callable(split):
        return split
    share = float(split)
    if not 0 < share < 1:
        raise ValueError(f"split must be a function or a share between 0 and 1, got {split}.")

    def by_hash(stem: str) -> str:
        digest = hashlib.sha256(os.fsencode(stem)).digest()
        return "val" if int.from_bytes(digest[:8], "big") < share * 2**64 else "train"

    return by_hash
