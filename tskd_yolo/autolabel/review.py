"""What a person should look at first: images with detections that nearly became labels."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from tskd_yolo import files
from tskd_yolo.autolabel.record import UNCERTAIN, Detection, Labelled, usual

FILE = "uncertain.csv"
CERTAIN = "certain.txt"


class Uncertain(NamedTuple):
    """An image to review: its path, how uncertain it is, how many detections missed their threshold, and of the one
    that missed it least its class, score and threshold.
    """

    image: str
    uncertainty: float
    detections: int
    nearest_class: str
    score: float
    threshold: float


def uncertainty(image: Labelled, thresholds: Sequence[float]) -> float:
    """``sum min((s / t - u) / (1 - u), 1)`` over detections with ``u t <= s`` that are no label, where ``u`` is 0.5.

    Each of them counts from 0, at half of its class's threshold ``t``, to 1, where it nearly became a label. So the sum
    is about the number of labels that may be missing. For a class without a threshold ``t`` is 0.5.
    """
    return sum(min((_share(found, thresholds) - UNCERTAIN) / (1 - UNCERTAIN), 1.0) for found in image.uncertain)


def _share(found: Detection, thresholds: Sequence[float]) -> float:
    """A score in thresholds of its class."""
    return found.score / usual(thresholds[found.label])


def row(image: Labelled, names: Sequence[str], thresholds: Sequence[float]) -> Uncertain | None:
    """What there is to say of an image; None where nothing is uncertain."""
    if not image.uncertain:
        return None
    nearest = max(image.uncertain, key=lambda found: _share(found, thresholds))
    return Uncertain(
        image.name,
        round(uncertainty(image, thresholds), 4),
        len(image.uncertain),
        names[nearest.label],
        nearest.score,
        usual(thresholds[nearest.label]),
    )


def write_certain(names: Iterable[str], out: Path) -> None:
    """Writes :data:`CERTAIN`, a list of images as ``train:`` of a data YAML takes it."""
    files.replace(out / CERTAIN, "".join(f"./images/train/{name}\n" for name in names).encode("utf-8"))


def order(row: Uncertain) -> tuple[float, str]:
    """Sorts the most uncertain image first."""
    return -row.uncertainty, row.image


def write(rows: Iterable[Uncertain], out: Path) -> None:
    """Writes :data:`FILE`, the most uncertain image first."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(Uncertain._fields)
    ordered: list[Uncertain] = sorted(rows, key=order)
    table.writerows(ordered)
    files.replace(out / FILE, text.getvalue().encode("utf-8"))
