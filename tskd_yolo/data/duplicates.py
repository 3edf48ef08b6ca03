"""Images that are in two splits: the same file by content, and the same picture saved, scaled or lit anew.

A picture that a network has trained on is no test of it. Files are compared by their content. Pictures are found in two
steps. A perceptual hash (:func:`imagehash.phash`, 64 bits of the lowest frequencies) names candidates: different
pictures differ in about 32 bits. Two pieces of one steel sheet can agree in it and still be two pictures, so a
candidate counts only where the fine detail agrees too, see :func:`alike`.
"""

from __future__ import annotations

import functools
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import cv2
import imagehash
import numpy as np
from PIL import Image

from tskd_yolo import files

BITS = 12
"""In how many of its 64 bits the perceptual hash of a candidate may differ. Hashes of independent bits come as near in
one pair of four million; a picture that was saved as JPEG anew differs in up to 8 bits as a rule."""
SIDE = 64
"""Candidates are compared at so many pixels a side."""
SHIFT = 3
"""By so many of them in either direction one may be shifted: 5 % of the image."""
BLUR = 3.0
"""What is coarser than this many of these pixels (a standard deviation) does not count: shading, which many images of
one line share."""
ALIKE = 0.85
"""Correlation of the fine detail from which two pictures are one. Saved anew at JPEG quality 40 an image of NEU-DET has
0.9 as a rule; of the candidates there, those at 0.85 and more are one piece of steel to the eye."""
VISIBLE = 0.5
"""Standard deviation of the fine detail, in grey levels of 255, below which there is nothing to compare."""
COMMON = 128
"""From so many images it is worked out what all have in common: the pattern of the lamps and of the lens."""
HEAD = 4096
"""So many bytes tell most files of one length apart."""
PAIRS = 1 << 20
"""Hashes that are compared at a time."""

_ONES = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)

T = TypeVar("T")


class Twin(NamedTuple):
    """An image of val that is in train too, and how much the fine detail correlates: 1 for the same file."""

    val: str
    train: str
    correlation: float


# The same file --------------------------------------------------------------------------------------------------------


def same_files(train: Iterable[str], val: Iterable[str]) -> list[Twin]:
    """Images of val whose file is in train byte by byte, under whatever name.

    Only files of equal length, beginning and middle are read whole, so that it takes seconds. A file that cannot be
    read is none of them.
    """
    left = [(set(train), set(val))]
    steps: list[Callable[[str], Any]] = [os.path.getsize, head, files.digest]
    for key in steps:
        left = [group for pair in left for group in _grouped(*pair, key)]
    return sorted(Twin(file, min(trained), 1.0) for trained, judged in left for file in judged)


def _grouped(train: set[str], val: set[str], key: Callable[[str], Any]) -> list[tuple[set[str], set[str]]]:
    """Those with an equal key, where both have some."""
    groups: dict[Any, tuple[set[str], set[str]]] = defaultdict(lambda: (set(), set()))
    for place, split in enumerate((train, val)):
        for file in split:
            try:
                groups[key(file)][place].add(file)
            except OSError:  # whoever reads the image says so
                continue
    return [group for group in groups.values() if all(group)]


def head(file: str) -> bytes:
    """The beginning of a file and what stands in its middle: images with a border, not compressed, begin alike.

    Raises:
        OSError: If it cannot be read.
    """
    with open(file, "rb") as opened:
        first = opened.read(HEAD)
        opened.seek(os.fstat(opened.fileno()).st_size // 2)
        return first + opened.read(HEAD)


# The same picture -----------------------------------------------------------------------------------------------------


class Hashes:
    """Perceptual hashes of images, kept in a file by the content of each.

    A file that was looked at before, with the same length and time, is not read again. A damaged file of hashes is as
    good as none.

    Args:
        file: Where they are kept.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._known: dict[str, list[Any]] = {}
        """Length, time and content by path."""
        self._hashes: dict[str, str] = {}
        """Perceptual hash by content; empty for a picture that cannot be read."""
        self._asked: set[str] = set()
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            self._known, self._hashes = dict(found["files"]), dict(found["hashes"])
        except (OSError, ValueError, TypeError, KeyError):  # never kept, or damaged: they are made anew
            self._known, self._hashes = {}, {}

    def __call__(self, paths: Sequence[str]) -> list[str]:
        """The hash of every image, in hexadecimal; empty for one that cannot be read."""
        self._asked.update(paths)
        contents = _together(self._content, paths)
        missing = {content: path for content, path in zip(contents, paths) if content not in self._hashes}
        self._hashes |= dict(zip(missing, _together(_perceptual, list(missing.values()))))
        return [self._hashes[content] for content in contents]

    def _content(self, path: str) -> str:
        found = os.stat(path)
        known = self._known.get(path)
        if isinstance(known, list) and known[:2] == [found.st_size, found.st_mtime_ns] and len(known) == 3:
            return str(known[2])
        content = files.digest(path)
        self._known[path] = [found.st_size, found.st_mtime_ns, content]
        return content

    def keep(self) -> None:
        """Writes the hashes of what was asked for down; raises OSError where that cannot be."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        known = {path: entry for path, entry in self._known.items() if path in self._asked}
        hashes = {entry[2]: self._hashes[entry[2]] for entry in known.values()}
        files.write_json(self.file, {"files": known, "hashes": hashes})


def same_pictures(train: Mapping[str, str], val: Mapping[str, str]) -> list[Twin]:
    """Images of val that show what an image of train shows, other files than it though.

    Args:
        train, val: Perceptual hashes by path, see :class:`Hashes`.

    Returns:
        For each such image of val the image of train that is most like it.
    """
    trained, judged = ([path for path, word in split.items() if word] for split in (train, val))
    detail = functools.lru_cache(maxsize=1 << 15)(Details(trained))
    found = []
    for path, others in _candidates([val[p] for p in judged], [train[p] for p in trained]):
        if detail(judged[path]).std() < VISIBLE:  # blank sheets have one hash: every pair of them would be looked at
            continue
        pairs = [Twin(judged[path], trained[o], alike(detail(judged[path]), detail(trained[o]))) for o in others]
        best = max(pairs, key=lambda twin: twin.correlation)
        if best.correlation >= ALIKE:
            found.append(best)
    return found


def _candidates(val: Sequence[str], train: Sequence[str]) -> Iterable[tuple[int, list[int]]]:
    """For each hash of val that has some the places of hashes of train which differ in :data:`BITS` bits at most."""
    theirs = np.array([int(word, 16) for word in train], np.uint64)
    rows = max(PAIRS // max(len(theirs), 1), 1)
    for start in range(0, len(val) if len(theirs) else 0, rows):
        ours = np.array([int(word, 16) for word in val[start : start + rows]], np.uint64)
        differing = (ours[:, None] ^ theirs).view(np.uint8).reshape(len(ours), len(theirs), 8)
        near = _ONES[differing].sum(2, dtype=np.uint8) <= BITS
        for row in np.flatnonzero(near.any(1)):
            yield start + int(row), np.flatnonzero(near[row]).tolist()


def alike(a: np.ndarray, b: np.ndarray) -> float:
    """How far two pictures have the same fine detail: the best normalised correlation over small shifts.

    Shading and brightness do not count, and a picture without detail is like no other: two blank sheets are two sheets.

    Args:
        a, b: Fine detail ``(SIDE, SIDE)``, see :data:`BLUR`.
    """
    part = b[SHIFT:-SHIFT, SHIFT:-SHIFT]
    if min(a.std(), part.std()) < VISIBLE:
        return 0.0
    return float(cv2.matchTemplate(a, part, cv2.TM_CCOEFF_NORMED).max())


class Details:
    """The fine detail of images ``(SIDE, SIDE)``, without what is the same in all images of a data set.

    A camera that does not move sees its lamps in every image. So the mean detail of many images is taken out of each,
    as strongly as it is in it: ``d - (d * m) / (m * m) m``.

    Args:
        paths: Images of the data set.
    """

    FEW = 8
    """Of fewer images the mean is the images themselves."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths[:: max(len(paths) // COMMON, 1)][:COMMON]

    @functools.cached_property
    def _common(self) -> np.ndarray | None:
        """The mean, of length 1; None where it cannot be told."""
        if len(self._paths) < self.FEW:
            return None
        mean = np.mean([_detail(path) for path in self._paths], axis=0)
        length = float(np.linalg.norm(mean))
        return mean / length if length else None

    def __call__(self, path: str) -> np.ndarray:
        """Of one image, in grey levels of 255."""
        detail = _detail(path)
        return detail if self._common is None else detail - (detail * self._common).sum() * self._common


def _detail(path: str) -> np.ndarray:
    with Image.open(path) as image:
        small = np.asarray(_grey(image).resize((SIDE, SIDE), Image.Resampling.BOX), np.float32)
    return small - cv2.GaussianBlur(small, (0, 0), BLUR)


def _grey(image: Image.Image) -> Image.Image:
    """An image in grey levels of 8 bits; of 16 bits Pillow would cut everything above 255 off."""
    if not image.mode.startswith("I"):
        return image.convert("L")
    return Image.fromarray(np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8))


def _perceptual(path: str) -> str:
    try:
        with Image.open(path) as image:
            image.draft("L", (4 * SIDE, 4 * SIDE))  # a large JPEG is decoded at a part of its size
            return str(imagehash.phash(_grey(image)))
    except (OSError, ValueError, Image.DecompressionBombError):  # cut short, or of a kind that Pillow cannot read
        return ""


def _together(work: Callable[[str], T], paths: Sequence[str]) -> list[T]:
    """The result for every path: reading and decoding leave other threads their turn."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(work, paths))
