"""The images to label: found in a folder, a list or by a pattern, and read in batches, one after the other."""

from __future__ import annotations

import glob
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from ultralytics.utils import LOGGER
from ultralytics.utils.ops import scale_boxes
from ultralytics.utils.patches import imread

from tskd_yolo.config import ConfigError
from tskd_yolo.data.convert.files import IMAGES, Notes, files_below

GREY = 114
"""What is beside an image in a batch, as Ultralytics pads."""
WORKERS = 8
"""Processes that read images for a GPU, at most; for a CPU there are none, since it is what is short."""


def find(source: str, *, out: Path | None = None) -> dict[str, Path]:
    """The images of a folder, of a list in a ``.txt`` file, of a pattern such as ``images/*.png``, or the one named.

    Args:
        source: Which.
        out: Where the data set is written: what is there already is no image to label.

    Returns:
        By the path that each gets in the data set: that below the folder, the list's folder, or the part of a pattern
        before its first wildcard. Which other files are there does not count, so a second call gives the same names.

    Raises:
        ConfigError: If there is none, or two would have one label file.
    """
    place = Path(source)
    if place.is_dir():
        found = {_renamed(name): file for name, file in files_below(place, IMAGES, Notes()).items()}
    else:
        found = _named(_wanted(_files(source, place), out), _root(source, place))
    found = _told(found)
    if not found:
        kinds = ", ".join(sorted(IMAGES))
        raise ConfigError([f"source: {source} holds no image; give a folder, a .txt list or a pattern of {kinds}."])
    if problems := _shared(found):
        raise ConfigError(problems)
    return found


def _files(source: str, place: Path) -> list[Path]:
    """Files of a list, each once; those of a pattern; or the one that is named."""
    if place.suffix.lower() == ".txt" and place.is_file():
        try:
            lines = [line.strip() for line in place.read_text(encoding="utf-8-sig").splitlines()]
        except UnicodeDecodeError as error:
            raise ConfigError([f"source: {source} must be text in UTF-8, got other bytes; save it anew."]) from error
        paths = [place.parent / line for line in dict.fromkeys(lines) if line and not line.startswith("#")]
        if gone := [path for path in paths if not path.is_file()]:
            raise ConfigError([f"source: {len(gone)} files of {source} are not there, the first is {gone[0]}."])
    else:
        paths = [Path(path) for path in sorted(glob.glob(source, recursive=True))]
    return [path for path in paths if path.suffix.lower() in IMAGES and path.is_file()]


def _wanted(paths: Sequence[Path], out: Path | None) -> list[Path]:
    """Those that are not below ``out``. There they are links, so it is their folder that tells."""
    wanted = [path for path in paths if out is None or not path.parent.resolve().is_relative_to(out.resolve())]
    if own := len(paths) - len(wanted):
        LOGGER.info(f"source: {own} images in {out} are left out; they are what is written there.")
    return wanted


def _root(source: str, place: Path) -> Path:
    """The folder below which files of a list or of a pattern are named."""
    if place.is_file():
        return Path(os.path.abspath(place.parent))
    parts = Path(os.path.abspath(source)).parts
    fixed = next((number for number, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return Path(*parts[:fixed])


def _named(paths: Sequence[Path], root: Path) -> dict[str, Path]:
    """Files by their path below a folder; one that is elsewhere, as a list may have it, by its whole path."""
    found: dict[str, Path] = {}
    for path in (Path(os.path.abspath(path)) for path in paths):
        name = _renamed(path.relative_to(root if path.is_relative_to(root) else path.anchor).as_posix())
        if found.setdefault(name, path) != path:
            raise ConfigError([f"source: {found[name]} and {path} would both be {name}; rename or move one of them."])
    return found


def _renamed(name: str) -> str:
    """A path below ``images/train`` without another folder ``images``: of several Ultralytics takes the last.

    A folder ``images_`` gets one more stroke too, or it would become one with ``images``.
    """
    *folders, last = PurePosixPath(name).parts
    return str(PurePosixPath(*(f"{part}_" if part.rstrip("_") == "images" else part for part in folders), last))


def _told(found: Mapping[str, Path]) -> dict[str, Path]:
    """Images without those whose path is no UTF-8, which neither a label file nor a list could name."""
    good = {name: file for name, file in found.items() if _utf8(str(file))}
    if bad := [os.fsencode(name) for name in found if name not in good]:
        LOGGER.warning(
            f"source: {len(bad)} images have names that are not UTF-8 and are left out, the first is {bad[0]!r}; "
            "rename them."
        )
    return good


def _utf8(text: str) -> bool:
    """Whether a name can be written; bytes that are no text are surrogates in it."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _shared(names: Iterable[str]) -> list[str]:
    """A sentence for each label file that several images would have."""
    groups: dict[PurePosixPath, list[str]] = defaultdict(list)
    for name in names:
        groups[PurePosixPath(name).with_suffix("")].append(name)
    return [
        f"source: {' and '.join(group)} would have one label file; rename or move one of them."
        for group in groups.values()
        if len(group) > 1
    ]


# Reading --------------------------------------------------------------------------------------------------------------


class Read(NamedTuple):
    """An image: its name, its pixels ``(h, w, 3)`` in BGR with the longer side as the teacher sees it, and
    (height, width) of the original.
    """

    name: str
    pixels: np.ndarray
    size: tuple[int, int]


class Batch(NamedTuple):
    """Images ``(N, 3, H, W)`` in RGB, values from 0 to 1; what they are; and the names of those that cannot be read."""

    images: Tensor
    read: list[Read]
    unreadable: list[str]

    def boxes(self, index: int, boxes: Tensor) -> Tensor:
        """Boxes ``(D, 4)`` of one of the images in pixels of its original, clipped to it."""
        read, shape = self.read[index], (self.images.shape[2], self.images.shape[3])
        ratio = tuple(side / original for side, original in zip(read.pixels.shape[:2], read.size))
        top, left = _margins(read.pixels.shape[:2], shape)
        found: Any = scale_boxes(shape, boxes.clone(), read.size, ratio_pad=(ratio, (left, top)))
        return found


class _Images(Dataset):
    def __init__(self, files: Mapping[str, Path], imgsz: int) -> None:
        self.files, self.imgsz = list(files.items()), imgsz

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Read | str:
        """One image, or the name of one that cannot be read."""
        name, file = self.files[index]
        image = read(file)
        if image is None:
            return name
        size = image.shape[0], image.shape[1]
        ratio = self.imgsz / max(size)
        if ratio != 1:  # as Ultralytics' data set does
            height, width = (min(math.ceil(side * ratio), self.imgsz) for side in size)
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        return Read(name, image, size)


def read(file: Path) -> np.ndarray | None:
    """An image in BGR, or None where it cannot be read."""
    try:
        return imread(str(file), cv2.IMREAD_COLOR)
    except Exception:  # broken files raise whatever the format's reader stumbles on
        return None


def batches(files: Mapping[str, Path], *, imgsz: int, stride: int, batch: int, device: torch.device) -> Iterator[Batch]:
    """Images as Ultralytics validates them: the longer side of ``imgsz`` pixels, padded to one shape per batch.

    Args:
        files: The images by name; each is read when it is its turn.
        imgsz: Pixels.
        stride: The teacher's coarsest.
        batch: Images at a time.
        device: Where they go.
    """
    workers = 0 if device.type in {"cpu", "mps"} else min(WORKERS, os.cpu_count() or 1)
    loader: Any = DataLoader(_Images(files, imgsz), batch_size=batch, num_workers=workers, collate_fn=list)
    for rows in loader:
        good = [row for row in rows if isinstance(row, Read)]
        yield Batch(
            _together(good, stride).to(device).float() / 255, good, [row for row in rows if isinstance(row, str)]
        )


def _together(rows: Sequence[Read], stride: int) -> Tensor:
    """Bytes ``(N, 3, H, W)`` in RGB; the sides as :meth:`ultralytics.data.base.BaseDataset.set_rectangle` has them."""
    sides = [max((row.pixels.shape[axis] for row in rows), default=stride) for axis in (0, 1)]
    height, width = (math.ceil(side / stride + 0.5) * stride for side in sides)
    canvas = np.full((len(rows), height, width, 3), GREY, np.uint8)
    for place, row in zip(canvas, rows):
        top, left = _margins(row.pixels.shape[:2], (height, width))
        place[top : top + row.pixels.shape[0], left : left + row.pixels.shape[1]] = row.pixels[..., ::-1]
    return torch.from_numpy(canvas).permute(0, 3, 1, 2)


def _margins(inner: Sequence[int], outer: Sequence[int]) -> tuple[int, int]:
    """Pixels above and left of an image in the middle of its batch's shape."""
    return (outer[0] - inner[0]) // 2, (outer[1] - inner[1]) // 2
