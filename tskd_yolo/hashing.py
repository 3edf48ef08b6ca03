"""What decides a result, as a hash; and a network's score on a validation set, which is kept under such a hash.

So a teacher is validated once per data set and image size, and not before every run.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from ultralytics.utils import LOGGER, USER_CONFIG_DIR

from tskd_yolo import __version__, files

VALIDATION = (
    "imgsz", "batch", "conf", "iou", "max_det", "single_cls", "classes", "agnostic_nms", "augment", "rect", "nms",
    "amp", "quantize", "device",
)  # fmt: skip
"""Ultralytics' arguments that a score depends on, beside the data."""

METRICS = {"metrics/mAP50(B)", "metrics/mAP50-95(B)", "classes"}
"""What a score consists of: means over the classes, and for each class ``AP50`` and ``AP50-95``, or None where the set
has no box of it."""


def hash_tensors(tensors: Iterable[Tensor], hashed: Any = None) -> Any:
    """Adds tensors' bytes, in the order of their elements, to ``hashed`` or to a new sha256; returns the hash.

    Device and memory format do not count; shape and type count only so far as the bytes show them.
    """
    hashed = hashlib.sha256() if hashed is None else hashed
    for tensor in tensors:
        hashed.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return hashed


def fingerprint(values: Any, *, network: Any, dataset: Any, folder: Path | None = None) -> str:
    """A hash over plain values, a network's weights, a data set's images and labels, and what computes with them.

    Images count by name (from ``folder`` on, so that the set may move), size and time, labels by content.
    """
    hashed = hashlib.sha256(json.dumps([values, versions()], sort_keys=True).encode())
    for name, value in network.state_dict().items():
        hashed.update(f"{name} {value.dtype}".encode())
        hash_tensors([value], hashed)
    for file, label in zip(dataset.im_files, dataset.labels, strict=True):
        name = files.relative(file, folder) if folder else file
        try:
            found = os.stat(file)
            hashed.update(os.fsencode(f"{name} {found.st_size} {found.st_mtime_ns}"))
        except OSError:  # among images without labels, where another takes its place
            hashed.update(os.fsencode(f"{name} missing"))
        for array in (label["cls"], label["bboxes"], *label["segments"]):
            hashed.update(np.ascontiguousarray(array).tobytes())
    return hashed.hexdigest()


def as_read(dataset: Any) -> dict[str, Any]:
    """How a data set reads the same files: in how many channels, and whether each image keeps its shape."""
    return {"channels": dataset.channels, "rect": bool(dataset.rect)}


def versions() -> dict[str, str]:
    """Of what computes a result; empty where a library is not there."""
    found = {"tskd_yolo": __version__}
    for library in ("torch", "ultralytics", "numpy", "opencv-python", "albumentations", "timm"):
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:  # opencv has several names, albumentations is optional
            found[library] = ""
    return found


def kept(name: str) -> Path:
    """Where a file is that later runs find again: in Ultralytics' settings folder."""
    return USER_CONFIG_DIR / "tskd-yolo" / name


class Score:
    """The score of one network on one validation set, in a file of Ultralytics' settings folder.

    Args:
        network: What is validated.
        dataset: The validation set, an Ultralytics data set.
        args: The run's arguments.
    """

    def __init__(self, *, network: Any, dataset: Any, args: Any) -> None:
        values = {**{k: str(getattr(args, k, None)) for k in VALIDATION}, "read": as_read(dataset)}
        name = fingerprint(values, network=network, dataset=dataset)
        self.file = kept(f"{name[:32]}.json")

    def recall(self) -> dict[str, Any]:
        """What was kept; empty where there is nothing, or nothing that can be read."""
        try:
            found = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # never kept, or damaged: it is measured again
            return {}
        return found if _whole(found) else {}

    def keep(self, score: Mapping[str, Any]) -> None:
        """Writes the score down; a folder that cannot be written costs the next run a validation, and is told."""
        means = {key: float(score[key]) for key in sorted(METRICS - {"classes"})}
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            files.replace(self.file, json.dumps({**means, "classes": score["classes"]}).encode())
        except OSError as error:
            LOGGER.warning(f"the score could not be kept for later runs: {error}")


def _whole(found: Any) -> bool:
    """Whether this is a score. Those of earlier versions knew no classes."""
    if not isinstance(found, dict) or found.keys() != METRICS or not isinstance(found["classes"], list):
        return False
    rows = [row for row in found["classes"] if row is not None]
    whole = all(isinstance(row, dict) and row.keys() == {"AP50", "AP50-95"} for row in rows)
    numbers = [found[key] for key in METRICS - {"classes"}] + [v for row in rows if whole for v in row.values()]
    return whole and all(isinstance(number, float) for number in numbers)
