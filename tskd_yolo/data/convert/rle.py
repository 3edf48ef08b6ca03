"""Run-length masks in a CSV, as Kaggle's competitions have them: columns ``ImageId,ClassId,EncodedPixels``.

convert(Path("train_images"), Path("train.csv"), Options(out=Path("my-set"), background=True))
"""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from tskd_yolo.data.convert.common import Box, Found, Options, build
from tskd_yolo.data.convert.files import IMAGES, ConvertError, Notes, files_below, image_size
from tskd_yolo.data.convert.masks import regions
from tskd_yolo.data.dataset import Summary

COLUMNS = ("ImageId", "ClassId", "EncodedPixels")
JOINED = ("ImageId_ClassId", "EncodedPixels")
"""The older form: ``0002cc93b.jpg_1``."""


class Run(NamedTuple):
    """One row: a class on an image, with its mask as text, empty where there is none."""

    where: str
    image: str
    value: str
    pixels: str


def convert(
    images: Path,
    annotations: Path,
    options: Options,
    *,
    classes: Mapping[int, str] | None = None,
    min_area: int = 1,
) -> Summary:
    """Turns images and a CSV of run-length masks into an Ultralytics data set: every connected region is a box.

    A mask is pairs of numbers, ``start length start length ...``, over the image's pixels from 1 on, down the columns:
    pixel 2 lies below pixel 1. Both forms of the CSV are read, with ``ImageId`` and ``ClassId`` in two columns or
    joined by ``_`` in one. A row without pixels says that the class is not on the image.

    Args:
        images: Folder of the images that ``ImageId`` names.
        annotations: The CSV.
        options: What every conversion takes. Where the CSV has rows for images with a defect only, ``background`` says
            that the others have none.
        classes: Class names by ``ClassId``. Without it the ``ClassId`` is the name.
        min_area: Regions of fewer pixels are left out, and counted.

    Raises:
        ConvertError, FileExistsError: As :func:`~tskd_yolo.data.convert.common.build`.
    """
    images, annotations = Path(images), Path(annotations)
    notes = Notes()
    found = _read(images, annotations, options, classes, min_area, notes)
    names = None if classes is None else list(dict.fromkeys(classes.values()))
    return build(found, notes, options, sources=(images, annotations), names=names)


def _read(
    images: Path,
    annotations: Path,
    options: Options,
    classes: Mapping[int, str] | None,
    min_area: int,
    notes: Notes,
) -> Iterator[Found]:
    """Yields the images in order of their paths; notes what has no partner."""
    pictures = files_below(images, IMAGES, notes)
    rows: dict[str, list[Run]] = {}
    try:
        for row in read_rows(annotations, notes):
            rows.setdefault(row.image, []).append(row)
    except ConvertError as error:
        notes.problems.extend(error.problems)
    for name in sorted(rows.keys() - pictures.keys()):
        notes.problems.append(f"{rows[name][0].where}: no image {name} in {images}. Add it or remove the row.")
    for name, image in pictures.items():
        if name not in rows and not options.background:
            notes.problems.append(
                f"{name}: no row in {annotations.name}. Add one (without pixels if there is nothing on the image), "
                "remove the image, or say that such images are background."
            )
            continue
        known = len(notes.problems)
        try:
            boxes = _boxes(image, name, rows.get(name, []), classes, min_area, notes)
        except ConvertError as error:
            notes.problems.extend(error.problems)
        else:
            broken = len(notes.problems) > known or not all(row.value for row in rows.get(name, []))
            yield Found(image, name, boxes, annotations.name, broken=broken)


@contextlib.contextmanager
def _long_fields() -> Iterator[None]:
    """Inside, the field of a CSV may be longer than 128 KiB, as a mask's is on a large image."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def read_rows(file: Path, notes: Notes) -> list[Run]:
    """The rows of the CSV that name an image, in order; one without image or class is noted.

    Raises:
        ConvertError: If the file cannot be read or has other columns.
    """
    try:
        with _long_fields(), open(file, encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines)
            columns = [(name or "").strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            if not {*COLUMNS} <= {*columns} and not {*JOINED} <= {*columns}:
                raise ConvertError(
                    f"{file.name}: has the columns {', '.join(columns) or 'none'}, expected {','.join(COLUMNS)} or "
                    f"{','.join(JOINED)}. Is it the CSV of masks?"
                )
            rows = [(f"{file.name}, line {reader.line_num}", row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConvertError(f"{file.name}: not readable as CSV ({error}). Repair it or name another.") from error
    runs = [_run(row, where) for where, row in rows]
    notes.problems += [
        f"{run.where}: has no image or no class. Correct or remove the row."
        for run in runs
        if not (run.image and run.value)
    ]
    return [run for run in runs if run.image]


def _run(row: Mapping[str, Any], where: str) -> Run:
    """One row of either form; image or class are empty where they are missing."""
    texts = {key: (row.get(key) or "").strip() for key in {*COLUMNS, *JOINED}}
    image, value = texts["ImageId"], texts["ClassId"]
    if "ImageId_ClassId" in row:
        image, _, value = texts["ImageId_ClassId"].rpartition("_")
    return Run(where, image, value, texts["EncodedPixels"])


def _boxes(
    image: Path, name: str, rows: list[Run], classes: Mapping[int, str] | None, min_area: int, notes: Notes
) -> list[Box]:
    """The regions of all masks of one image; a mask that is none is noted."""
    boxes: list[Box] = []
    size = image_size(image, name)
    for row in rows:
        if not row.value:
            continue
        try:
            label = _class(row, classes)
            if row.pixels:
                boxes += regions(row.where, decode(row.pixels, size, row.where), label, min_area, notes)
        except ConvertError as error:
            notes.problems.extend(error.problems)
    return boxes


def _class(row: Run, classes: Mapping[int, str] | None) -> str:
    if classes is None:
        return row.value
    named = {str(value): name for value, name in classes.items()}
    if row.value not in named:
        raise ConvertError(
            f"{row.where}: ClassId {row.value!r} is not one of {', '.join(named)}. Correct it or add it to names."
        )
    return named[row.value]


def decode(text: str, size: tuple[int, int], where: str) -> np.ndarray[Any, Any]:
    """The mask that run lengths mean, of shape (height, width).

    Args:
        text: ``start length ...``, pixels counted from 1 on down the columns, ascending and without overlap.
        size: (width, height).
        where: What to call it in a message.

    Raises:
        ConvertError: If it is no such text, or leads beyond the image.
    """
    width, height = size
    try:
        numbers = [int(word) for word in text.split()]
    except ValueError as error:
        raise ConvertError(f"{where}: EncodedPixels holds a word that is no number. Correct or remove it.") from error
    if len(numbers) % 2:
        raise ConvertError(f"{where}: EncodedPixels has {len(numbers)} numbers, expected pairs. Correct or remove it.")
    # COCO's form of the same: lengths by turns of background and mask. Its decoder trusts them, so they are checked.
    counts, end = [], 0
    for start, length in zip(numbers[::2], numbers[1::2]):
        if start - 1 < end or length < 1:
            raise ConvertError(
                f"{where}: EncodedPixels has the run '{start} {length}' after pixel {end}, expected ascending runs of "
                "at least one pixel, counted from 1. Correct or remove it."
            )
        counts += [start - 1 - end, length]
        end = start - 1 + length
    if end > width * height:
        raise ConvertError(
            f"{where}: EncodedPixels leads to pixel {end}, the image has {width} x {height}. Is it the mask of another "
            "image or scale?"
        )
    encoded = coco_mask.frPyObjects({"counts": [*counts, width * height - end], "size": [height, width]}, height, width)
    return coco_mask.decode(encoded)
