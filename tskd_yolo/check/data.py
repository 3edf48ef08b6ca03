"""The data set of a run: what is in it, what is odd in its labels, and which images are in both of its splits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ultralytics.data import build_yolo_dataset
from ultralytics.data.utils import check_det_dataset
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER, IterableSimpleNamespace

from tskd_yolo import compat, hashing
from tskd_yolo.data import duplicates, labels
from tskd_yolo.data.duplicates import Hashes, Twin
from tskd_yolo.data.labels import Split
from tskd_yolo.findings import Finding
from tskd_yolo.train import scan
from tskd_yolo.train.doubts import of_twins
from tskd_yolo.train.scan import images_of

KEYS = "task", "imgsz", "single_cls", "classes", "fraction", "split"
"""Ultralytics' arguments that decide what of a data set a run sees."""
FINEST = 8
"""The finest stride of a detector, where no student could be asked."""
LISTED = 50
"""So many pairs of images are listed."""


@dataclass(frozen=True)
class DataSet:
    """What there is to say of a data set."""

    names: dict[int, str]
    judged: str
    """The split on which a run validates."""
    beside: str
    """The other ones, in words: images of it should be in none of them."""
    splits: dict[str, dict[str, int]]
    """Numbers by split, see :meth:`tskd_yolo.data.labels.Split.counts`."""
    classes: list[dict[str, Any]]
    """Per class its name, and images and boxes by split."""
    same: list[Twin]
    near: list[Twin]
    findings: list[Finding]

    def row(self) -> dict[str, Any]:
        """As JSON takes it; files by name."""
        listed = {"same": self.same, "near": self.near}
        return {
            "judged": self.judged,
            "beside": self.beside,
            "splits": self.splits,
            "classes": self.classes,
            "count": {what: len(twins) for what, twins in listed.items()},
            **{
                what: [[Path(t.val).name, Path(t.train).name, round(t.correlation, 3)] for t in twins[:LISTED]]
                for what, twins in listed.items()
            },
        }


def look(values: Mapping[str, Any], *, data: dict[str, Any] | None = None, stride: int = FINEST) -> DataSet:
    """Reads the labels of both splits and looks at every image once.

    Args:
        values: A run's arguments.
        data: The data set as the engine has read its YAML, where it has.
        stride: Of the student's finest level, in pixels.

    Raises:
        ConfigError: If the data cannot be trained on.
    """
    given = {key: values[key] for key in KEYS if values.get(key) is not None}
    args = IterableSimpleNamespace(**{**DEFAULT_CFG_DICT, **given})
    with compat.guarded(trust=values.get("trust") is True):
        data = data or check_det_dataset(values["data"])
        if "task" not in given and data.get("kpt_shape"):  # read as boxes, key points would be corners
            args.task = "pose"
        train, val = (_split(name, args, data) for name in ("train", "val"))
        val = replace(val, name=str(args.split))
        chose = images_of(data, "val") if val.name == "test" else []
    names = {0: "item"} if args.single_cls else data["names"]
    same, near = twins([*train.files, *chose], val.files, kept=_kept(data))
    beside = "train or val" if chose else "train"
    size = {"imgsz": int(args.imgsz), "stride": stride}
    return DataSet(
        names=names,
        judged=val.name,
        beside=beside,
        splits={split.name: split.counts(**size) for split in (train, val)},
        classes=[_class(index, name, train, val) for index, name in names.items()],
        same=same,
        near=near,
        findings=[
            *of_twins(same, near, images=len(val.labels), split=val.name, beside=beside),
            *labels.faults(train),
            *labels.faults(val),
            *labels.oddities(train, val, names=labels.asked(names, args.classes), **size),
            *labels.without_image([train, val]),
        ],
    )


def _split(name: str, args: Any, data: dict[str, Any]) -> Split:
    # rect=False also for val: sorting by shape would take the shapes away.
    place = data[args.split if name == "val" else name]
    build = partial(build_yolo_dataset, args, place, 16, data, mode=name, rect=False)
    return scan.read(name, build)[1]


def _class(index: int, name: str, *splits: Split) -> dict[str, Any]:
    return {
        "name": str(name),
        **{f"{split.name} images": split.images_with(index) for split in splits},
        **{f"{split.name} boxes": int((split.classes == index).sum()) for split in splits},
    }


def _kept(data: Mapping[str, Any]) -> Path:
    """The file that keeps the perceptual hashes of a data set's images."""
    word = hashlib.sha256(str(Path(data["path"]).resolve()).encode()).hexdigest()[:16]
    return hashing.kept(f"images-{word}.json")


def twins(train: Sequence[str], val: Sequence[str], *, kept: Path) -> tuple[list[Twin], list[Twin]]:
    """Images of val that are in train too: the same files, and other files of the same picture.

    Args:
        train, val: The images of both.
        kept: Where perceptual hashes are kept.
    """
    same = duplicates.same_files(train, val)
    hashes = Hashes(kept)
    known = {twin.val for twin in same}
    judged = [file for file in val if file not in known]
    found = dict(zip([*train, *judged], hashes([*train, *judged]), strict=True))
    near = duplicates.same_pictures({file: found[file] for file in train}, {file: found[file] for file in judged})
    try:
        hashes.keep()
    except OSError as error:
        LOGGER.warning(f"the perceptual hashes could not be kept, the next check makes them again: {error}")
    return same, near
