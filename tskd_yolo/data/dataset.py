"""Writing an Ultralytics data set: ``images/<split>``, ``labels/<split>`` and ``data.yaml``.

Originals are only read and linked to. A set is built beside its place and moved there when it is whole.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml

LOGGER = logging.getLogger("ultralytics")

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
        left_out: Number of things that were left out on purpose, by what they are.
    """

    images: dict[str, int]
    boxes: dict[str, dict[str, int]]
    clipped: int
    skipped: list[str]
    out: Path
    left_out: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        splits = ", ".join(
            f"{name} {count} images with {sum(self.boxes[name].values())} boxes" for name, count in self.images.items()
        )
        classes: Counter[str] = Counter()
        for boxes in self.boxes.values():
            classes.update(boxes)
        return (
            f"{self.out}: {splits}; {self.clipped} boxes clipped, {len(self.skipped)} problems skipped"
            + "".join(f"; left out: {count} {what}" for what, count in self.left_out.items())
            + f"\nboxes per class: {', '.join(f'{name} {count}' for name, count in classes.items())}"
        )


@dataclass(frozen=True)
class Sample:
    """One image with what is on it.

    Args:
        image: The original image file.
        name: Its file name in the data set.
        split: One of ``SPLITS``.
        size: (width, height) in pixels.
        boxes: (class name, corners) per object, clipped to the image.
        clipped: Number of these boxes that had to be clipped.
    """

    image: Path
    name: str
    split: str
    size: tuple[int, int]
    boxes: list[tuple[str, Corners]]
    clipped: int


def write(
    samples: Sequence[Sample],
    out: Path,
    names: Sequence[str],
    skipped: list[str],
    left_out: Mapping[str, int] | None = None,
) -> Summary:
    """Writes the data set, counts what was written and compares it with what there was to write.

    Raises:
        FileExistsError: As :func:`data_set_folder`.
        OSError: If something could not be written, or is not there afterwards.
    """
    images = Counter(sample.split for sample in samples)
    splits = [split for split in SPLITS if images[split]]
    boxes = {split: dict.fromkeys(names, 0) for split in splits}
    index = {name: i for i, name in enumerate(names)}
    with data_set_folder(out, names=names, splits=splits) as folder:
        for sample in samples:
            link_image(sample.image, folder / "images" / sample.split / sample.name)
            _write_labels(sample, index, folder / "labels" / sample.split / f"{Path(sample.name).stem}.txt")
            for name, _ in sample.boxes:
                boxes[sample.split][name] += 1
        for split in splits:
            _check_counts(folder, split, images=images[split], boxes=sum(boxes[split].values()))
    return Summary(
        images={split: images[split] for split in splits},
        boxes=boxes,
        clipped=sum(sample.clipped for sample in samples),
        skipped=skipped,
        out=Path(out).expanduser().resolve(),
        left_out=dict(left_out or {}),
    )


def _check_counts(folder: Path, split: str, *, images: int, boxes: int) -> None:
    """Raises OSError unless so many images, as many label files and so many boxes in them were written."""
    labels = [file.read_text(encoding="ascii") for file in (folder / "labels" / split).iterdir()]
    there = sum(1 for _ in (folder / "images" / split).iterdir()), len(labels), sum(t.count("\n") for t in labels)
    if there != (images, images, boxes):
        raise OSError(
            f"{folder.name}, {split}: {there[0]} images, {there[1]} label files and {there[2]} boxes are there after "
            f"writing {images} images with {boxes} boxes. Choose an out= on another disk."
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
        if (out / "data.yaml").exists():
            LOGGER.info(f"{out}: the data set that was there is replaced.")
        _swap(folder, out, old=work / "old")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def gone(images: Path) -> str | None:
    """What to do about a prepared folder of links whose originals were moved or removed; None if they are there."""
    link = next(images.iterdir(), None) if images.is_dir() else None
    if link is None or not link.is_symlink() or link.exists():
        return None
    return (
        f"{images} links to images in {Path(os.readlink(link)).parent}, which are gone; restore them, or prepare the "
        "set again: one by name is made anew once its folder is removed, convert and autolabel take another out=."
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


def link_image(original: Path, link: Path) -> None:
    """Makes ``link`` show the original image; copies it where links cannot be made."""
    original = original.resolve()
    for make in (link.symlink_to, link.hardlink_to):
        try:
            make(original)
            return
        except (OSError, NotImplementedError):  # no rights (Windows), another disk, or a file system without links
            continue
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
