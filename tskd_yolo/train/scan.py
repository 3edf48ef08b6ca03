"""The scan of a data set's labels, as Ultralytics makes it: what it finds wrong is refused or counted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ultralytics.data import build_yolo_dataset
from ultralytics.data import dataset as scanner
from ultralytics.data.base import BaseDataset
from ultralytics.data.utils import IMG_FORMATS
from ultralytics.utils import LOGGER

from tskd_yolo import compat, config, hashing
from tskd_yolo.config import ConfigError
from tskd_yolo.data import index
from tskd_yolo.data.labels import Split


class _Listener:
    """Stands in for the logger of Ultralytics' scan and remembers what it says of single files."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, message: str, *args: Any) -> None:
        self.lines += str(message).splitlines()
        LOGGER.info(message, *args)

    def __getattr__(self, name: str) -> Any:
        return getattr(LOGGER, name)


def scanned(mode: str, build: Callable[[], Any]) -> Any:
    """The data set that ``build`` makes; what its scan finds wrong is refused or counted.

    Args:
        mode: ``train`` or ``val``.
        build: Makes the data set as Ultralytics does.

    Raises:
        ConfigError: As :func:`read`.
    """
    dataset, split = read(mode, build)
    _tell(split)
    return dataset


def read(mode: str, build: Callable[[], Any]) -> tuple[Any, Split]:
    """The data set that ``build`` makes, and its labels with what the scan has left out of them.

    Args:
        mode, build: As of :func:`scanned`.

    Raises:
        ConfigError: If there are no images or no labels, or labels name classes that the data set does not have.
    """
    listener = _Listener()
    try:
        with compat.swapped(scanner, "LOGGER", listener):
            dataset = build()
    except (OSError, RuntimeError, ValueError, AssertionError) as error:
        listener.lines += str(error).splitlines()
        _refuse_beyond(listener.lines, mode)
        said = compat.plain(error).split("; See http")[0].replace(".cache", "")
        raise ConfigError(
            [f"data: the {mode} images could not be read ({said}); correct the set or its YAML."]
        ) from error
    _refuse_beyond(listener.lines, mode)
    left_out = [(_file(line), _reason(line)) for line in listener.lines if ": ignoring corrupt" in line]
    twice = sum(int(n) for line in listener.lines for n in re.findall(r": (\d+) duplicate labels removed", line))
    return dataset, Split(mode, dataset.labels, left_out, twice)


def scan_before_launch(args: Any, data: dict[str, Any]) -> None:
    """Reads the data once before processes are launched, so that its mistakes are told by the one that launches them.

    Args:
        args: The run's arguments, as the engine holds them.
        data: The data set, as the engine has read its YAML.

    Raises:
        ConfigError: As :func:`scanned`, or if there is no image without labels where some are asked for.
    """
    batch = max(int(args.batch), 1)
    with compat.swapped(args, "cache", False):  # each process reads its images into memory itself
        for mode, split in (("train", "train"), ("val", args.split)):
            build = partial(build_yolo_dataset, args, data[split], batch, data, mode=mode, rect=mode == "val")
            scanned(mode, build)
    if places := config.sources(getattr(args, "unlabelled", None)):
        index.images(places, suffixes=IMG_FORMATS, kept=hashing.kept)


def images_of(data: Mapping[str, Any], split: str, fraction: Any = 1.0) -> list[str]:
    """The images of a split as Ultralytics finds them; none where the data YAML or the disk has no such split."""
    if not data.get(split):
        return []
    reader: Any = SimpleNamespace(prefix="", fraction=fraction)
    try:
        with compat.silent():
            return BaseDataset.get_img_files(reader, data[split])
    except FileNotFoundError:  # what the YAML names is not there; a split that training needs was checked before
        return []


def _tell(split: Split) -> None:
    """Says how many images and boxes are left out, or teach nothing."""
    reasons = Counter(reason for _, reason in split.left_out)
    if reasons:
        words = "; ".join(f"{count} with {reason}" for reason, count in reasons.most_common())
        LOGGER.warning(f"{split.name}: {len(split.left_out)} images are left out: {words}.")
    if split.repeated:
        LOGGER.warning(f"{split.name}: {split.repeated} boxes that were there twice are counted once.")
    if flat := split.flat():
        LOGGER.warning(f"{split.name}: {flat} boxes have no area; {_FLAT[split.name]}.")


_FLAT = {"train": "they teach nothing", "val": "nothing can find them, so they lower the recall"}


def _refuse_beyond(lines: Sequence[str], mode: str) -> None:
    beyond = [line for line in lines if "exceeds dataset class count" in line]
    if beyond:
        name, number, count = re.findall(
            r"([^\s:]+): ignoring .* class (\d+) exceeds dataset class count (\d+)", beyond[0]
        )[0]
        raise ConfigError(
            [
                f"data: labels of {len(beyond)} {mode} images name classes beyond the {count} of the set, the first is "
                f"class {number} in that of {Path(name).name}; correct the labels or the names."
            ]
        )


def _file(line: str) -> str:
    """The name of the image that a line of the scan is about."""
    return re.split(r"[\\/]", line.split(": ignoring corrupt", 1)[0])[-1]


def _reason(line: str) -> str:
    """Why an image is left out, without what is its alone."""
    text = line.split(": ignoring corrupt image/label: ", 1)[-1]
    if text.startswith("No module named"):  # of an unknown format Ultralytics asks a plugin last, which is not there
        return "an unreadable image"
    return re.sub(r"\[.*|'[^']*'|<.*", "", text).strip() or "an unknown fault"
