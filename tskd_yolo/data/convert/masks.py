"""Masks: a folder of images and one mask per image, whose regions become boxes.

convert(Path("IMAGES"), Options(out=Path("my-set")), masks=Path("MASKS"), classes={1: "crack", 2: "dent"})
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
from PIL import Image

from tskd_yolo.data.convert.common import Box, Found, Options, build
from tskd_yolo.data.convert.files import IMAGES, ConvertError, Notes, files_below
from tskd_yolo.data.dataset import Summary

MASKS = frozenset((".bmp", ".png", ".tif", ".tiff"))
"""Suffixes of masks: formats that keep every value. A JPEG would blur them."""

Classes = str | Mapping[int, str]
"""One class for every value but 0, or a class for each value."""


def convert(
    images: Path,
    options: Options,
    *,
    masks: Path | None = None,
    classes: Classes = "defect",
    folders: bool = False,
    renamed: Mapping[str, str] | None = None,
    min_area: int = 1,
) -> Summary:
    """Turns images and their masks into an Ultralytics data set: every connected region of one class is a box.

    A mask has the size of its image, its file name but for the suffix, and lies in the same subfolder of ``masks`` as
    the image does of ``images``. Its value 0 is background. Pixels that touch at a corner are connected. A mask of
    zeros makes a background image.

    Ultralytics' own ``convert_segment_masks_to_yolo_seg`` is not used: it takes the values 1, 2, ... only, writes into
    the folder as it goes, passes over values without a class and over images without a mask, and gives polygons.

    Args:
        images: Folder of the images.
        options: What every conversion takes.
        masks: Folder of the masks. Without it a mask lies beside its image, which must then be no PNG, BMP or TIFF.
        classes: The class of each value, or one class for all of them.
        folders: The class is the name of the folder below ``images`` that the image lies in, the uppermost one.
        renamed: With ``folders``, class names by what the folders are called, where that differs.
        min_area: Regions of fewer pixels are left out, and counted.

    Raises:
        ConvertError, FileExistsError: As :func:`~tskd_yolo.data.convert.common.build`.
    """
    images, masks = Path(images), Path(masks or images)
    notes = Notes()
    found = _read(images, masks, options, None if folders else classes, renamed or {}, min_area, notes)
    names = list(dict.fromkeys([classes] if isinstance(classes, str) else classes.values()))
    return build(found, notes, options, sources=(images, masks), names=None if folders else names)


def _read(
    images: Path,
    masks: Path,
    options: Options,
    classes: Classes | None,
    renamed: Mapping[str, str],
    min_area: int,
    notes: Notes,
) -> Iterator[Found]:
    """Yields the images in order of their paths; notes what has no partner."""
    together = masks.resolve() == images.resolve()
    pictures = files_below(images, IMAGES - MASKS if together else IMAGES, notes)
    maps = files_below(masks, MASKS, notes)
    if not together:  # one of the folders may lie in the other
        pictures, maps = _outside(masks, pictures), _outside(images, maps)
    drawn: dict[str, str] = {}
    for name in maps:
        if (other := drawn.setdefault(_stem(name), name)) != name:
            notes.problems.append(f"{name}: {other} is a mask of this name, too. Remove one of them.")
    for stem in sorted(drawn.keys() - set(map(_stem, pictures))):
        notes.problems.append(f"{drawn[stem]}: no image of this name in {images}. Add it or remove the mask.")
    for name, image in pictures.items():
        mask = drawn.get(_stem(name))
        if mask is None and not options.background:
            notes.problems.append(
                f"{name}: no mask of this name in {masks}. Add one (of zeros if there is nothing on the image) or "
                "remove the image."
            )
            continue
        try:
            of = classes if classes is not None else _folder(name, renamed)
            boxes, size = _boxes(masks / mask, mask, of, min_area, notes) if mask else ([], None)
        except ConvertError as error:
            notes.problems.extend(error.problems)
        else:
            yield Found(image, name, boxes, mask or "", size)


def _outside(folder: Path, found: Mapping[str, Path]) -> dict[str, Path]:
    """Those of the files that do not lie below a folder, unless all of them do."""
    return {name: file for name, file in found.items() if folder.resolve() not in file.resolve().parents} or dict(found)


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _folder(name: str, renamed: Mapping[str, str]) -> str:
    """The class that an image's folder names."""
    first, *rest = PurePosixPath(name).parts
    if not rest:
        raise ConvertError(f"{name}: lies in no subfolder that could name its class. Move it into one.")
    return renamed.get(first, first)


def _boxes(
    file: Path, name: str, classes: Classes, min_area: int, notes: Notes
) -> tuple[list[Box], tuple[object, object]]:
    """The regions of a mask, and its size."""
    values = read_mask(file, name)
    height, width = values.shape[:2]
    if isinstance(classes, str):
        anything = np.asarray(np.atleast_3d(values).any(axis=2))
        return regions(name, anything, classes, min_area, notes), (width, height)
    if values.ndim == 3 and (values != values[..., :1]).any():
        raise ConvertError(
            f"{name}: is a colour image, expected one value per pixel for the classes {_listed(classes)}. Save it with "
            "one channel."
        )
    values = values[..., 0] if values.ndim == 3 else values
    there = [int(value) for value in np.unique(values) if value]
    if strange := [value for value in there if value not in classes]:
        raise ConvertError(
            f"{name}: holds the value {strange[0]}, which is no class of {_listed(classes)}. Correct it or add it to "
            "names."
        )
    boxes = []
    for value in there:
        boxes += regions(name, values == value, classes[value], min_area, notes)
    return boxes, (width, height)


def _listed(classes: Mapping[int, str]) -> str:
    return ", ".join(f"{value}:{name}" for value, name in classes.items())


def read_mask(file: Path, name: str) -> np.ndarray[Any, Any]:
    """The values of a mask, of shape (height, width), or with three channels behind where it has colours.

    A palette image gives its indices, and transparency does not count.

    Raises:
        ConvertError: If it cannot be read, or has values that are no whole numbers.
    """
    try:
        with Image.open(file) as mask:
            whole = mask.mode in {"1", "L", "P", "I", "I;16", "I;16B", "I;16L"}
            content = np.asarray(mask if whole else mask.convert("L" if mask.mode == "LA" else "RGB"))
            real = mask.mode == "F"
    except Exception as error:  # broken files raise whatever the format's reader stumbles on
        raise ConvertError(f"{name}: not readable as an image ({error}). Replace or remove it.") from error
    if real:
        raise ConvertError(f"{name}: holds real numbers, expected whole ones. Save it with 8 or 16 bits.")
    return content


def regions(where: str, mask: np.ndarray[Any, Any], name: str, min_area: int, notes: Notes) -> list[Box]:
    """A box for every connected region of a mask, from its first pixel to behind its last.

    Args:
        where: What to call it in a message.
        mask: Of shape (height, width), True where the class is.
        name: The class.
        min_area: Regions of fewer pixels are left out, and noted.
        notes: Where to.
    """
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    boxes = []
    for x, y, width, height, area in stats[1:].tolist():  # the first is the background
        if area < min_area:
            notes.left_out[f"regions of fewer than {min_area} pixels"] += 1
        else:
            boxes.append(Box(where, name, (x, y, x + width, y + height)))
    return boxes
