"""The splits of a data set: their files, and which of them judges."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from ultralytics.data.utils import check_det_dataset, get_split_fraction, img2label_paths

from tskd_yolo.config import ConfigError
from tskd_yolo.data.dataset import SPLITS
from tskd_yolo.data.duplicates import same_files
from tskd_yolo.files import digest, relative
from tskd_yolo.train.scan import images_of

Files = Mapping[str, Mapping[str, Mapping[str, str]]]
"""By split, by ``images`` and ``labels``, and by name: ``SIZE TIME SHA256`` of an image, ``SHA256`` of a label file."""


class Judging(NamedTuple):
    """On which split the runs are judged, by which weights the verdict is, and why not by best.pt on a test split.

    best.pt is chosen on val. There its figures are too high, and so are differences between arms whose figures swing
    differently; only a split that chose nothing can judge it.
    """

    split: str
    weights: str
    why: str


def judging(data: str, asked: Any) -> Judging:
    """The test split and best.pt where there is such a split; val and last.pt otherwise, or where val is asked for.

    Args:
        data: The data YAML.
        asked: ``test``, ``val``, or None.

    Raises:
        ConfigError: If the test split is asked for and cannot judge, or anything else is asked for.
    """
    if asked not in (None, "", "val", "test"):
        raise ConfigError([f"split: must be test or val, got {asked!r}."])
    if asked == "val":
        return Judging("val", "last", "split=val was asked for")
    why = _unfit(check_det_dataset(data))
    if why and asked == "test":
        raise ConfigError([f"split: {why}, so it cannot judge; give a data YAML with a test: split, or split=val."])
    return Judging("val", "last", why) if why else Judging("test", "best", "")


def _unfit(data: Mapping[str, Any]) -> str:
    """Why a data set has no test split that can judge; empty where it has."""
    if not data.get("test"):
        return "the data YAML names no test: split"
    images = images_of(data, "test")
    if not images:
        return "the images of the test: split were not found"
    if not any(os.path.isfile(label) and os.path.getsize(label) for label in img2label_paths([*images])):
        return "the test: split has no labels"
    elsewhere = [file for split in ("train", "val") for file in images_of(data, split)]
    again = len({twin.val for twin in same_files(elsewhere, images)})
    return f"{again} of {len(images)} images of the test: split are in train or val, too" if again else ""


def files_of(data: str, fraction: Any, known: Files | None = None) -> dict[str, dict[str, dict[str, str]]]:
    """Images and labels of every split, by their content.

    Args:
        data: The data YAML.
        fraction: Of the training images, or one for each split in a list, as Ultralytics takes it.
        known: What was found before. An image that has the size and the time that it had then is not read again.
    """
    content = check_det_dataset(data)
    found = {}
    for split in SPLITS:
        images = images_of(content, split, get_split_fraction(fraction, split))
        if images:
            before = known[split]["images"] if known and split in known else {}
            names = [_name(file, content) for file in images]
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
                told = list(pool.map(_dated, images, [before.get(name, "") for name in names]))
            found[split] = {
                "images": dict(zip(names, told)),
                "labels": {_name(file, content): _content(file) for file in img2label_paths([*images])},
            }
    return found


def contents(found: Mapping[str, str]) -> dict[str, str]:
    """Of files of one kind the content alone: one that was copied has another time, and is the same."""
    return {name: told.rpartition(" ")[2] for name, told in found.items()}


def _name(file: str, data: Mapping[str, Any]) -> str:
    return Path(relative(file, data["path"])).as_posix()


def _dated(file: str, known: str) -> str:
    found = os.stat(file)
    dated = f"{found.st_size} {found.st_mtime_ns} "
    return known if known.startswith(dated) else dated + _content(file)


def _content(file: str) -> str:
    return digest(file)[:16] if os.path.isfile(file) else "none"
