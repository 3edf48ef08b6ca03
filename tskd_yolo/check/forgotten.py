"""Labels that may have been forgotten: the teacher is sure of a class on training images where none is labelled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch.utils.data import DataLoader
from ultralytics.data import build_yolo_dataset
from ultralytics.utils import IterableSimpleNamespace

from tskd_yolo import confidence
from tskd_yolo.confidence import Detections
from tskd_yolo.findings import Finding
from tskd_yolo.train.trainer import Trainer

IMAGES = 300
"""So many images of each split are looked at, evenly spread."""
MISSING = 0.3
"""Share of confident detections without a label from which labels may be missing; on val it is 0.1 at most."""


def look(trial: Trainer) -> list[Finding]:
    """Compares what the first teacher finds on a sample of train and of val with their labels.

    Args:
        trial: A run that has begun, and whose teacher knows classes of the data.
    """
    assert trial.distiller is not None
    detector = trial.distiller.teacher.detector().to(trial.device)
    seen = confidence.look(detector)
    found = {
        name: confidence.detections(seen, loader=_sample(trial, name), device=trial.device) for name in ("val", "train")
    }
    return of_detections(**found, names=trial.data["names"])


def of_detections(val: Detections, train: Detections, names: Mapping[int, str]) -> list[Finding]:
    """What the two say of the labels of train.

    Where nine of ten detections of a class are right on val, at a score that is read off there, more than three of ten
    without a label on train, which the teacher knows by heart, are no mistakes of the teacher's.

    Args:
        val, train: Detections of both splits.
        names: The classes.
    """
    limits = confidence.of(val, names).classes
    rows = []
    for index, limit in zip(sorted(names), limits, strict=True):
        sure = (train.label == index) & (train.score >= limit.threshold.score)
        count, alone = int(sure.sum()), int((sure & ~train.right).sum())
        if count >= confidence.LEAST and alone > MISSING * count:
            rows.append(f"{names[index]} ({alone} of {count})")
    if not rows:
        return []
    return [
        Finding(
            "warning", "labels",
            "where the teacher is sure of a class on train images, at scores of which nine in ten are right on val, no "
            f"such box is labelled: {', '.join(rows)}",
            "look whether labels of it were forgotten: the student is taught that nothing is there",
        )
    ]  # fmt: skip


def _sample(trial: Trainer, split: str) -> Any:
    """A loader of some images of a split, as validation reads them."""
    size = trial.config.teacher_imgsz or trial.args.imgsz
    args = IterableSimpleNamespace(**{**vars(trial.args), "imgsz": size})
    dataset: Any = build_yolo_dataset(args, trial.data[split], trial.batch_size, trial.data, mode="val", rect=False)
    places = np.unique(np.linspace(0, len(dataset) - 1, min(IMAGES, len(dataset))).round().astype(int)).tolist()
    return DataLoader(dataset, batch_size=trial.batch_size, sampler=places, collate_fn=dataset.collate_fn)
