"""DeepPCB's layout: ``<name>_test.jpg`` beside ``<name>_temp.jpg``, and one text file of boxes per tested image.

convert(Path("DeepPCB"), Options(out=Path("my-set")))
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tskd_yolo.data.convert.common import Box, Found, Options, build
from tskd_yolo.data.convert.files import ConvertError, Notes, files_below, inside, is_file, number
from tskd_yolo.data.dataset import SPLITS, Summary

TYPES = {1: "open", 2: "short", 3: "mousebite", 4: "spur", 5: "copper", 6: "pin-hole"}
"""Classes by the number in the files; 0 is the background and not used."""

LISTS = {"trainval.txt": ("train", "val"), "test.txt": ("test",)}
"""Between which splits the content of an image decides, by the list that names it."""


def root_of(source: Path) -> Path | None:
    """The folder with the lists or the groups of images: ``source`` itself or its ``PCBData``; None if neither is."""
    for folder in (source / "PCBData", source):
        if any(is_file(folder / name) for name in LISTS) or any(folder.glob("**/*_test.jpg")):
            return folder
    return None


def convert(source: Path, options: Options) -> Summary:
    """Turns a folder in DeepPCB's layout into an Ultralytics data set of its tested images.

    The lists ``trainval.txt`` and ``test.txt`` name an image and its boxes per line,
    ``group20085/20085/20085000.jpg group20085/20085_not/20085000.txt``; the image itself is called
    ``20085000_test.jpg``. Those of ``test.txt`` make the test split, those of ``trainval.txt`` are divided into train
    and val by their content. Where there is no list, every ``*_test.jpg`` is taken, with the text file in the folder
    beside its own that ends in ``_not``, and its content decides. Templates (``*_temp.jpg``) are not taken.

    A line of boxes is ``x1 y1 x2 y2 type``, with blanks as in the files or commas as in their description.

    Args:
        source: The folder, or the one around it: that of the lists is called ``PCBData``.
        options: What every conversion takes.

    Raises:
        ConvertError, FileExistsError: As :func:`~tskd_yolo.data.convert.common.build`.
    """
    source = Path(source)
    notes = Notes()
    root = root_of(source)
    if root is None:
        raise ConvertError(f"{source}: has neither {' nor '.join(LISTS)} nor images *_test.jpg. Name DeepPCB's folder.")
    found = _read(root, options, notes)
    return build(found, notes, options, sources=(source,), names=list(TYPES.values()))


def _read(root: Path, options: Options, notes: Notes) -> Iterator[Found]:
    """Yields the tested images; notes what has no partner."""
    there = {name for name in files_below(root, frozenset((".jpg",)), notes) if name.endswith("_test.jpg")}
    lists = [name for name in LISTS if is_file(root / name)]
    pairs = _listed(root, lists, notes) if lists else {name: (_beside(name), SPLITS) for name in sorted(there)}
    for name in sorted(there - pairs.keys()):
        notes.problems.append(f"{name}: neither {' nor '.join(lists)} names it. Add it to one or remove the image.")
    for name, (boxes, among) in pairs.items():
        try:
            yield _pair(root, name, boxes, among, options)
        except ConvertError as error:
            notes.problems.extend(error.problems)


def _listed(root: Path, lists: list[str], notes: Notes) -> dict[str, tuple[str, tuple[str, ...]]]:
    """By image, its file of boxes and the splits among which its content decides, as the lists have it."""
    pairs: dict[str, tuple[str, tuple[str, ...]]] = {}
    for name in lists:
        lines = (root / name).read_text(encoding="utf-8", errors="replace").splitlines()
        for count, line in enumerate(lines, start=1):
            words = line.split()
            if not words:
                continue
            if len(words) != 2:
                notes.problems.append(f"{name}, line {count}: expected image and boxes, got {line!r}. Correct it.")
                continue
            image = words[0].removesuffix(".jpg").removesuffix("_test") + "_test.jpg"
            if image in pairs:
                notes.problems.append(f"{name}, line {count}: {image} is in a list already. Remove one of the lines.")
                continue
            pairs[image] = words[1], LISTS[name]
    return pairs


def _beside(image: str) -> str:
    """The file of boxes that belongs to an image: ``a/00041/00041000_test.jpg``, ``a/00041_not/00041000.txt``."""
    folder, _, name = image.rpartition("/")
    return f"{folder}_not/{name.removesuffix('_test.jpg')}.txt"


def _pair(root: Path, image: str, boxes: str, among: tuple[str, ...], options: Options) -> Found:
    """One image with its boxes.

    Raises:
        ConvertError: If one of the files is missing, or lies elsewhere.
    """
    place, file = inside(root, image), inside(root, boxes)
    if place is None or not is_file(place):
        raise ConvertError(f"{image}: no such image in {root}. Add it or remove it from the list.")
    if file is None or not is_file(file):
        if options.background:
            return Found(place, image, [], boxes, among=among)
        raise ConvertError(f"{image}: no boxes {boxes} in {root}. Add the file, empty if there are none, or remove it.")
    return Found(place, image, list(read_boxes(file, boxes)), boxes, among=among)


def read_boxes(file: Path, name: str) -> Iterator[Box]:
    """The boxes in a text file.

    Args:
        file: The file.
        name: What to call it in a message.

    Raises:
        ConvertError: If it cannot be read, or a line has another number of words.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConvertError(f"{name}: not readable as text ({error}). Repair or remove it.") from error
    for count, line in enumerate(lines, start=1):
        words = line.replace(",", " ").split()
        if not words:
            continue
        where = f"{name}, line {count}"
        if len(words) != 5:
            raise ConvertError(f"{where}: expected 'x1 y1 x2 y2 type', got {line!r}. Correct or remove the line.")
        x1, y1, x2, y2, kind = map(number, words)
        yield Box(where, TYPES.get(kind, words[4]), (x1, y1, x2, y2), f"'{line.strip()}'")  # type: ignore[call-overload]
