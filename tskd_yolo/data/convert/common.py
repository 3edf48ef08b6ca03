"""What every layout's conversion does once its files are read: check, split, write, count."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tskd_yolo.data.convert.files import ConvertError, Notes, content_fraction, image_size
from tskd_yolo.data.dataset import SPLITS, Corners, Sample, Summary, write

LOGGER = logging.getLogger("ultralytics")


@dataclass(frozen=True)
class Options:
    """What every conversion takes.

    Args:
        out: Folder to make. One made by an earlier run is replaced, and that is said; any other is refused.
        val: Share of validation images, between 0 and 1, of the images that the layout itself puts into no split. It is
            drawn by a hash of each image's content: an image keeps its split when others come or go, wherever it lies
            and whatever it is called, and two copies of one image are never in two splits.
        test: Share of test images, drawn in the same way; from 0 to below 1 - val.
        names: Class names in the order of their index; a class that is not among them is a problem. Without it: those
            that the layout defines, otherwise those that were found, sorted.
        skip: Leave out a file or box with a problem and say so, instead of stopping.
        background: An image without an annotation is a background image and no problem.

    Raises:
        ValueError: If shares or names make no sense.
    """

    out: Path
    val: float = 0.2
    test: float = 0.0
    names: Sequence[str] | None = None
    skip: bool = False
    background: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.val < 1:
            raise ValueError(f"val must be a share between 0 and 1, got {self.val}.")
        if not 0 <= self.test < 1 or not self.val + self.test < 1:
            raise ValueError(f"test must be a share from 0 to below 1 - val, got {self.test} beside val={self.val}.")
        if self.names is not None and (not self.names or len(set(self.names)) != len(self.names)):
            raise ValueError(f"names must be different class names, at least one, got {list(self.names)}.")


class Box(NamedTuple):
    """One object as its annotation has it, unchecked.

    Args:
        where: What to call it in a message: the file and the place in it.
        name: Its class.
        corners: In pixels, from 0 to the image's width and height; NaN where there was no number.
        stated: How the annotation writes them, for messages.
    """

    where: str
    name: str
    corners: Corners
    stated: str = ""


@dataclass(frozen=True)
class Found:
    """One image as a layout describes it, unchecked.

    Args:
        image: The file.
        name: Its path below the folder of images, with ``/``.
        boxes: Its objects.
        source: What to call its annotation in a message.
        size: (width, height) that the annotation states, as it writes them; None where it states none.
        among: The splits among which its content decides: one where the layout has decided already.
        broken: Whether an object of it could not be read, and is not among the boxes.
    """

    image: Path
    name: str
    boxes: Sequence[Box]
    source: str
    size: tuple[object, object] | None = None
    among: tuple[str, ...] = SPLITS
    broken: bool = False


NO_BOX_LEFT = "images whose annotation is broken as a whole"
"""They are no background: something was seen on them."""


def build(
    found: Iterable[Found],
    notes: Notes,
    options: Options,
    *,
    sources: Sequence[Path],
    names: Sequence[str] | None = None,
) -> Summary:
    """Checks what was found, splits it and writes the data set.

    Args:
        found: The images. Reading them may add to ``notes``.
        notes: What came up.
        options: What was asked for.
        sources: Folders and files that are read, which ``out`` must neither hold nor lie in.
        names: Class names that the layout itself defines.

    Raises:
        ConvertError: If there are problems; all of them are in the one message. Also with ``skip`` if there is then
            nothing to train or to validate on.
        FileExistsError: If ``out`` is there and is not a data set made by this package, or is among the sources.
    """
    _check_apart(options.out, sources)
    wanted = options.names or names
    samples = _distinct(list(_checked(found, notes, options, wanted)), notes)
    used = sorted({name for sample in samples for name, _ in sample.boxes})
    missing = _what_is_missing(samples, wanted or used)
    if missing or (notes.problems and not options.skip):
        raise ConvertError(*notes.problems, *missing)
    summary = write(samples, options.out, wanted or used, notes.problems, +notes.left_out)
    for problem in summary.skipped:
        LOGGER.warning(f"left out: {problem}")
    LOGGER.info(str(summary))
    return summary


def _check_apart(out: Path, sources: Sequence[Path]) -> None:
    place = Path(out).expanduser().resolve()
    for source in map(Path.resolve, map(Path, sources)):
        if source.is_relative_to(place):
            raise FileExistsError(
                f"{out}: contains the folder to read from and would replace it. Choose another folder."
            )
        if source.is_dir() and place.is_relative_to(source):  # the next run would read what this one wrote
            raise FileExistsError(f"{out}: lies in {source}, which is read. Choose another folder, outside of it.")


def _checked(
    found: Iterable[Found], notes: Notes, options: Options, names: Sequence[str] | None
) -> Iterator[tuple[str, Sample]]:
    """The samples that can be used, each with its image's path below the folder of images."""
    for item in found:
        try:
            sample = _sample(item, notes, options, names)
        except ConvertError as error:
            notes.problems.extend(error.problems)
        else:
            if (item.boxes or item.broken) and not sample.boxes:
                notes.left_out[NO_BOX_LEFT] += 1
            else:
                yield item.name, sample


def _sample(item: Found, notes: Notes, options: Options, names: Sequence[str] | None) -> Sample:
    """One image with its boxes. Problems of single boxes are noted; problems of a file raise ConvertError."""
    size = image_size(item.image, item.name)
    _check_size(item, size)
    boxes, clipped = [], 0
    for box in item.boxes:
        try:
            _check_class(box, names)
            corners = _clip(box, size)
        except ConvertError as error:
            notes.problems.extend(error.problems)
        else:
            boxes.append((box.name, corners))
            clipped += corners != box.corners
    return Sample(item.image, item.image.name, _split(item, options), size, boxes, clipped)


def _check_size(item: Found, size: tuple[int, int]) -> None:
    """Raises ConvertError if the annotation states a size other than the image's. Stating none is fine."""
    if item.size is not None and item.size != size:
        stated = " x ".join(map(str, item.size))
        raise ConvertError(
            f"{item.source}: says the image is {stated}, the file is {size[0]} x {size[1]} pixels. "
            "Find out which is right: the boxes may belong to another image or another scale."
        )


def _check_class(box: Box, names: Sequence[str] | None) -> None:
    if not box.name:
        raise ConvertError(f"{box.where}: has no class name. Name it or remove the object.")
    if names is not None and box.name not in names:
        raise ConvertError(
            f"{box.where}: class {box.name!r} is not one of {', '.join(names)}. Correct it or add it to names."
        )


def _clip(box: Box, size: tuple[int, int]) -> Corners:
    """The part of the box that lies on the image; ConvertError if it is no box or none of it does."""
    x1, y1, x2, y2 = box.corners
    stated = box.stated or f"box {tuple(box.corners)}"
    if not all(map(math.isfinite, box.corners)):
        raise ConvertError(f"{box.where}: {stated}, expected four finite numbers. Correct or remove the box.")
    if x1 >= x2 or y1 >= y2:
        raise ConvertError(
            f"{box.where}: {stated} is empty or inverted, expected min < max. Correct or remove the box."
        )
    width, height = size
    inner = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
    if inner[0] >= inner[2] or inner[1] >= inner[3]:
        raise ConvertError(
            f"{box.where}: {stated} lies outside the image of {width} x {height} pixels. Correct or remove it."
        )
    return inner


def _split(item: Found, options: Options) -> str:
    """The split of one image: where the layout leaves a choice, its content decides."""
    if len(item.among) == 1:
        return item.among[0]
    try:
        fraction = content_fraction(item.image)
    except OSError as error:
        raise ConvertError(f"{item.name}: not readable ({error}). Replace or remove it.") from error
    if "val" in item.among and fraction < options.val:
        return "val"
    # The same part of [0, 1) for every image, so that val does not change when a test split is asked for.
    if "test" in item.among and options.val <= fraction < options.val + options.test:
        return "test"
    return item.among[0]


def _distinct(found: list[tuple[str, Sample]], notes: Notes) -> list[Sample]:
    """Samples whose files do not collide: where several have one stem, their folders become part of the name.

    Letter case does not tell files apart, since it does not on every file system.
    """
    stems = Counter(Path(name).stem.casefold() for name, _ in found)
    taken: dict[str, str] = {}
    samples = []
    for path, sample in found:
        parts = PurePosixPath(path).parts
        name = sample.image.name if stems[Path(path).stem.casefold()] == 1 else "__".join(parts)
        if (stem := Path(name).stem.casefold()) in taken:
            notes.problems.append(f"{path}: {taken[stem]} has the same name but for letter case or suffix. Rename one.")
            continue
        taken[stem] = path
        samples.append(Sample(sample.image, name, sample.split, sample.size, sample.boxes, sample.clipped))
    return samples


def _what_is_missing(samples: Sequence[Sample], names: Sequence[str]) -> list[str]:
    """What keeps Ultralytics from training on these samples, whatever else was wrong."""
    used = {sample.split for sample in samples}
    missing = [
        f"No usable image falls into {name!r}. Change the split or give more images."
        for name in ("train", "val")
        if name not in used
    ]
    if not names:
        missing.append("No usable box in any annotation, so no class is known. Check the annotations or give names.")
    return missing
