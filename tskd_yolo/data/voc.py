"""Pascal VOC to Ultralytics: a folder of images and one XML per image becomes a data set one can train on.

convert(images=Path("IMAGES"), annotations=Path("ANNOTATIONS"), out=Path("my-set"))
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import parse
from PIL import Image

from tskd_yolo.data.dataset import SPLITS, Corners, Sample, Summary, split_function, write

LOGGER = logging.getLogger("ultralytics")

SUFFIXES = frozenset(
    (".avif", ".bmp", ".dng", ".heic", ".heif", ".jp2", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp")
)

EXIF_ORIENTATION = 274
EXIF_TURNED = frozenset((5, 6, 7, 8))  # orientations that swap width and height


class VocError(ValueError):
    """A Pascal VOC folder that cannot be converted as it is.

    Args:
        problems: One sentence each: the file, what was found, what to do.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n  ".join([f"{len(self.problems)} problem(s) in the Pascal VOC folders:", *self.problems])


def convert(
    *,
    images: Path,
    annotations: Path,
    out: Path,
    split: Callable[[str], str] | float = 0.2,
    names: Sequence[str] | None = None,
    skip: bool = False,
) -> Summary:
    """Turns a Pascal VOC folder into an Ultralytics data set.

    Image and XML belong together when they have the same file stem; the XML's ``filename`` is not read, since it is
    often wrong. Classes come from the XML's objects. Coordinates are taken as they are, from 0 to the image's width and
    height. An XML without objects makes a background image. ``difficult`` objects count like all others.

    The set is built beside ``out`` and moved there at the end: after a failure ``out`` is as it was before. Images are
    linked to, or copied where the file system has no links.

    Args:
        images: Folder of the images, with any suffix Ultralytics reads.
        annotations: Folder of the XML files.
        out: Folder to make. One made by an earlier run is replaced.
        split: A function from an image's file stem to "train", "val" or "test", which may raise ValueError for a stem
            it does not know; or the share of validation images, 0 to 1. The share is drawn by a hash of the stem, so
            that an image keeps its split when others come or go.
        names: Class names in the order of their index. Without it: the names found, sorted.
        skip: Leave out a file or box with a problem, instead of stopping.

    Raises:
        VocError: If there are problems; all of them are in the one message. Also with ``skip`` if there is then nothing
            to train or to validate on.
        ValueError: If ``split`` or ``names`` make no sense.
        FileExistsError: If ``out`` is there and is not a data set made by this module.
    """
    chosen = split_function(split)
    if names is not None and (not names or len(set(names)) != len(names)):
        raise ValueError(f"names must be different class names, at least one, got {list(names)}.")
    if any(Path(source).resolve().is_relative_to(Path(out).expanduser().resolve()) for source in (images, annotations)):
        raise FileExistsError(f"{out}: contains the folder to read from and would replace it. Choose another folder.")
    problems: list[str] = []
    samples = list(_read(Path(images), Path(annotations), chosen, names, problems))
    found = sorted({name for sample in samples for name, _ in sample.boxes})
    missing = _what_is_missing(samples, found if names is None else names)
    if missing or (problems and not skip):
        raise VocError(*problems, *missing)
    summary = write(samples, out, found if names is None else names, problems)
    LOGGER.info(str(summary))
    return summary


def _read(
    images: Path, annotations: Path, split: Callable[[str], str], names: Sequence[str] | None, problems: list[str]
) -> Iterator[Sample]:
    """Yields the samples that can be used, in order of their stems; appends what is wrong to ``problems``."""
    found = _by_stem(images, SUFFIXES, problems)
    xmls = _by_stem(annotations, frozenset((".xml",)), problems)
    for stem in sorted(found.keys() | xmls.keys()):
        if stem not in found:
            problems.append(f"{xmls[stem].name}: no image of this name in {images}. Add it or remove the XML.")
        elif stem not in xmls:
            problems.append(
                f"{found[stem].name}: no XML of this name in {annotations}. Add one (without objects if there is "
                "nothing on the image) or remove the image."
            )
        else:
            try:
                yield _sample(found[stem], xmls[stem], split, names, problems)
            except VocError as error:
                problems.extend(error.problems)


def _by_stem(folder: Path, suffixes: frozenset[str], problems: list[str]) -> dict[str, Path]:
    """The folder's files with one of these suffixes, by stem; hidden files do not count."""
    if not folder.is_dir():
        problems.append(f"{folder}: no such folder. Name the one that holds the {'/'.join(sorted(suffixes))} files.")
        return {}
    files: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() not in suffixes or file.name.startswith(".") or not file.is_file():
            continue
        if file.stem in files:
            problems.append(f"{file.name}: {files[file.stem].name} has the same stem. Rename or remove one of them.")
        else:
            files[file.stem] = file
    return files


def _sample(
    image: Path, xml: Path, split: Callable[[str], str], names: Sequence[str] | None, problems: list[str]
) -> Sample:
    """Reads one pair of files. Problems of single boxes are appended; problems of a file raise VocError."""
    size = _image_size(image)
    root = _parse(xml)
    _check_size(xml, root, size)
    boxes, clipped = [], 0
    for number, item in enumerate(root.findall("object"), start=1):
        where = f"{xml.name}, object {number}"
        try:
            name = _class_name(where, item, names)
            raw = _corners(where, item)
            box = _clip(where, raw, size)
        except VocError as error:
            problems.extend(error.problems)
        else:
            boxes.append((name, box))
            if box != raw:
                clipped += 1
    return Sample(image, _split_of(image, split), size, boxes, clipped)


def _split_of(image: Path, split: Callable[[str], str]) -> str:
    """The split of one image; VocError if the function knows none for it."""
    try:
        name = split(image.stem)
    except ValueError as error:
        raise VocError(f"{image.name}: the split function refuses it ({error}). Rename or remove it.") from error
    if name not in SPLITS:
        raise VocError(f"{image.name}: split is {name!r}, expected one of {SPLITS}. Correct the split function.")
    return name


def _image_size(image: Path) -> tuple[int, int]:
    """(width, height) in pixels, turned as the camera's EXIF note says, which is how Ultralytics reads the image."""
    try:
        with Image.open(image) as header:
            width, height = header.size
            turned = header.getexif().get(EXIF_ORIENTATION) in EXIF_TURNED
    except Exception as error:  # broken headers raise whatever the format's reader stumbles on
        raise VocError(f"{image.name}: not readable as an image ({error}). Replace or remove it.") from error
    return (height, width) if turned else (width, height)


def _parse(xml: Path) -> Element:
    """The root of an annotation file. DOCTYPE and entities are refused: they can read files or fill the memory."""
    try:
        root: Element | None = parse(xml, forbid_dtd=True).getroot()
    except DefusedXmlException as error:
        raise VocError(f"{xml.name}: unsafe XML ({error}). Remove its DOCTYPE and entities.") from error
    except (ParseError, ValueError, LookupError, OSError) as error:
        raise VocError(f"{xml.name}: not readable as XML ({error}). Repair or remove it.") from error
    if root is None or root.tag != "annotation":
        tag = None if root is None else root.tag
        raise VocError(f"{xml.name}: starts with <{tag}>, expected <annotation>. Is it a Pascal VOC file?")
    return root


def _check_size(xml: Path, root: Element, size: tuple[int, int]) -> None:
    """Raises VocError if the XML states a size other than the image's. Stating none is fine."""
    if root.find("size") is None:
        return
    stated = tuple((root.findtext(f"size/{key}") or "").strip() for key in ("width", "height"))
    if tuple(map(_number, stated)) != size:
        raise VocError(
            f"{xml.name}: says the image is {' x '.join(stated)}, the file is {size[0]} x {size[1]} pixels. "
            "Find out which is right: the boxes may belong to another image or another scale."
        )


def _class_name(where: str, item: Element, names: Sequence[str] | None) -> str:
    """The class of one object; VocError if it has none or one that is not asked for."""
    name = (item.findtext("name") or "").strip()
    if not name:
        raise VocError(f"{where}: has no class name. Add <name> or remove the object.")
    if names is not None and name not in names:
        raise VocError(f"{where}: class {name!r} is not one of {', '.join(names)}. Correct it or add it to names.")
    return name


def _corners(where: str, item: Element) -> Corners:
    """The coordinates of one object as written; VocError unless they are four numbers that span a box."""
    texts = {key: (item.findtext(f"bndbox/{key}") or "").strip() for key in ("xmin", "ymin", "xmax", "ymax")}
    x1, y1, x2, y2 = map(_number, texts.values())
    stated = ", ".join(f"{key}={text or 'missing'}" for key, text in texts.items())
    if not all(map(math.isfinite, (x1, y1, x2, y2))):
        raise VocError(f"{where}: {stated}, expected four finite numbers. Correct or remove the box.")
    if x1 >= x2 or y1 >= y2:
        raise VocError(f"{where}: {stated} is empty or inverted, expected min < max. Correct or remove the box.")
    return x1, y1, x2, y2


def _clip(where: str, corners: Corners, size: tuple[int, int]) -> Corners:
    """The part of the box that lies on the image; VocError if there is none."""
    (x1, y1, x2, y2), (width, height) = corners, size
    inside = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        raise VocError(
            f"{where}: box {corners} lies outside the image of {width} x {height} pixels. Correct or remove it."
        )
    return inside


def _number(text: str) -> float:
    """The number written, NaN if it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _what_is_missing(samples: Sequence[Sample], names: Sequence[str]) -> list[str]:
    """What keeps Ultralytics from training on these samples, whatever else was wrong."""
    used = {sample.split for sample in samples}
    missing = [
        f"No usable image falls into {name!r}. Change the split." for name in ("train", "val") if name not in used
    ]
    if not names:
        missing.append("No usable box in any XML, so no class is known. Check the annotations or give names.")
    return missing
