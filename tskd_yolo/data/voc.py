"""Pascal VOC to Ultralytics: a folder of images and one XML per image becomes a data set one can train on.

    convert(images=Path("IMAGES"), annotations=Path("ANNOTATIONS"), out=Path("my-set"))
    neu(Path("neu-det-yolo"))  # NEU-DET in its authors' layout, with the split used throughout this project

What comes out is ``images/<split>/``, ``labels/<split>/`` and ``data.yaml``. The originals are only read and linked to.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

import yaml
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import parse
from PIL import Image

LOGGER = logging.getLogger("ultralytics")

MARKER = "# Made by tskd-yolo: the folder around this file is replaced as a whole when it is made again."
SPLITS = ("train", "val", "test")
SUFFIXES = frozenset(
    (".avif", ".bmp", ".dng", ".heic", ".heif", ".jp2", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp")
)

NEU_NAMES = ("crazing", "inclusion", "patches", "pitted_surface", "rolled-in_scale", "scratches")
NEU_TRAIN = 240  # images <class>_1 ... <class>_240 train, <class>_241 ... <class>_300 validate
NEU_PAGE = "http://faculty.neu.edu.cn/songkechen/zh_CN/zdylm/263270/list/index.htm"

EXIF_ORIENTATION = 274
EXIF_TURNED = frozenset((5, 6, 7, 8))  # orientations that swap width and height

Corners = tuple[float, float, float, float]
"""(x1, y1, x2, y2) in pixels from the image's top left corner."""


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
    chosen = _split_function(split)
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
    summary = _write(samples, out, found if names is None else names, problems)
    LOGGER.info(str(summary))
    return summary


def neu(out: Path, source: Path | None = None) -> Summary:
    """Turns NEU-DET in its authors' layout into an Ultralytics data set with a fixed split and order of classes.

    Args:
        out: Folder to make, as in :func:`convert`.
        source: Folder that holds ``IMAGES`` and ``ANNOTATIONS``, in any letter case. Without it: the folder that the
            environment variable ``TSKD_NEU`` names, then ``NEU-DET`` in Ultralytics' datasets folder.

    Raises:
        FileNotFoundError: If no such folder is found; the message says how to obtain the set.
        VocError: If the folder is not as published.
    """
    places = _neu_places(source)
    for place in places:
        images, annotations = _subfolder(place, "IMAGES"), _subfolder(place, "ANNOTATIONS")
        if images and annotations:
            return convert(images=images, annotations=annotations, out=out, split=_neu_split, names=NEU_NAMES)
    raise FileNotFoundError(
        f"NEU-DET not found, looked for IMAGES and ANNOTATIONS in {' and '.join(map(str, places))}. "
        "Its licence does not let it travel with this project: download it from its authors' page (Northeastern "
        f'University, K. Song and Y. Yan, "NEU surface defect database", {NEU_PAGE}), unpack it so that IMAGES and '
        "ANNOTATIONS lie side by side in one folder, and set the environment variable TSKD_NEU to that folder."
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


def _split_function(split: Callable[[str], str] | float) -> Callable[[str], str]:
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
            clipped += box != raw
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


def _write(samples: Sequence[Sample], out: Path, names: Sequence[str], skipped: list[str]) -> Summary:
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


def _neu_places(source: Path | None) -> list[Path]:
    """Where to look for NEU-DET. A source given by the caller is the only place."""
    if source is not None:
        return [Path(source)]
    from ultralytics.utils import DATASETS_DIR

    named = os.environ.get("TSKD_NEU")
    return [*([Path(named).expanduser()] if named else []), Path(DATASETS_DIR) / "NEU-DET"]


def _subfolder(folder: Path, name: str) -> Path | None:
    """The subfolder of this name in any letter case, None if there is none."""
    if not folder.is_dir():
        return None
    return next(
        (path for path in sorted(folder.iterdir()) if path.is_dir() and path.name.lower() == name.lower()), None
    )


def _neu_split(stem: str) -> str:
    """The split of ``<class>_<k>``."""
    match = re.fullmatch(r".+_(\d+)", stem)
    if match is None:
        raise ValueError("expected a name like crazing_1")
    return "train" if int(match[1]) <= NEU_TRAIN else "val"
