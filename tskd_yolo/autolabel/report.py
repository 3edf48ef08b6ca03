"""The page of what a teacher labelled: per class its threshold, its reliability, and a contact sheet."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from markupsafe import Markup

from tskd_yolo import files
from tskd_yolo.autolabel.record import Detection, Labelled
from tskd_yolo.autolabel.review import Uncertain, order
from tskd_yolo.autolabel.source import read
from tskd_yolo.compare import charts
from tskd_yolo.compare.images import jpeg
from tskd_yolo.compare.page import page

PAGE = "autolabel.html"
SHOWN = 8
"""Crops of each kind on a contact sheet."""
LISTED = 20
"""Images to review that the page lists; the file has all."""
AROUND = 0.3
"""What is shown around a box on each side, in lengths of its longer side."""
TILE = 160
"""Pixels of a side of a crop."""
COLOUR = 255, 199, 88
"""Of a box, in BGR."""


class Crop(NamedTuple):
    """A detection on a contact sheet: a data URI, empty where the image cannot be read, its score and its image."""

    uri: str
    score: float
    name: str


class _Found(NamedTuple):
    score: float
    name: str
    box: tuple[float, float, float, float]


class Sheet:
    """What is kept of a class for its contact sheet while all images go by: the first and the last of its labels, and
    what nearly became one.
    """

    def __init__(self) -> None:
        self.labels = self.images = self.uncertain = 0
        self.most: list[_Found] = []
        self.least: list[tuple[float, _Found]] = []
        self.below: list[_Found] = []

    def add(self, image: Labelled, found: Sequence[Detection]) -> None:
        """Counts an image's detections of this class."""
        self.images += any(each.kept for each in found)
        for each in found:
            row = _Found(each.score, image.name, each.box)
            if each.kept:
                self.labels += 1
                _keep(self.most, row)
                _keep(self.least, (-row.score, row))
            else:
                self.uncertain += 1
                _keep(self.below, row)

    def kinds(self) -> dict[str, list[_Found]]:
        """Detections by what they are, each in order and once."""
        return {
            "most": sorted(self.most, reverse=True),
            "least": [row for _, row in sorted(self.least, reverse=True) if row not in self.most],
            "below": sorted(self.below, reverse=True),
        }


def _keep(heap: list[Any], row: Any) -> None:
    """Keeps the :data:`SHOWN` largest."""
    if len(heap) < SHOWN:
        heapq.heappush(heap, row)
    else:
        heapq.heappushpop(heap, row)


def count(images: Iterable[Labelled], classes: int) -> tuple[list[Sheet], dict[str, int]]:
    """Sheets by class, and numbers of images: all, those without a label, and those with uncertain detections."""
    sheets = [Sheet() for _ in range(classes)]
    counts = {"images": 0, "empty": 0, "uncertain": 0}
    for image in images:
        counts["images"] += 1
        counts["empty"] += not image.labels
        counts["uncertain"] += bool(image.uncertain)
        for label in {found.label for found in image.detections}:
            sheets[label].add(image, [found for found in image.detections if found.label == label])
    return sheets, counts


def rows(names: Sequence[str], thresholds: Sequence[float], sheets: Sequence[Sheet]) -> list[dict[str, Any]]:
    """Per class its threshold and what was found, as JSON takes it."""
    return [
        {"name": name, "threshold": t, "labels": s.labels, "images": s.images, "uncertain": s.uncertain}
        for name, t, s in zip(names, thresholds, sheets)
    ]


# The page -------------------------------------------------------------------------------------------------------------


def write(
    summary: Mapping[str, Any],
    sheets: Sequence[Sheet],
    review: Sequence[Uncertain],
    *,
    image: Callable[[str], Path],
    out: Path,
) -> None:
    """Writes :data:`PAGE`.

    Args:
        summary: What is known of the run.
        sheets: By class.
        review: Images with uncertain detections.
        image: The place of an image.
        out: The data set's folder.
    """
    first = heapq.nsmallest(LISTED, review, key=order)
    cut = _Cutter(image)
    crops = [{kind: [cut(row) for row in found] for kind, found in sheet.kinds().items()} for sheet in sheets]
    files.replace(out / PAGE, autolabel_page(summary, crops, first).encode("utf-8"))


def autolabel_page(
    summary: Mapping[str, Any], crops: Sequence[Mapping[str, Sequence[Crop]]], review: Sequence[Uncertain]
) -> str:
    """The page, with crops by class and kind, and the images to review first."""
    measured = summary["confidence"]
    return page(
        "autolabel.html",
        folder=Path(__file__).with_name("templates"),
        s=summary,
        measured={row["name"]: row for row in measured["classes"]} if measured else {},
        chart=reliability(measured["bins"]) if measured else None,
        legend=charts.legend(list(SERIES.items())),
        sheets=list(zip(summary["classes"], crops)),
        review=review,
    )


SERIES = {"measured": 1, "a score that is the precision": 0}
"""Lines of the chart, with their style."""


def reliability(bins: Sequence[Mapping[str, Any]]) -> Markup:
    """Mean score and precision of each bin, beside the diagonal on which both are equal."""
    runs = [([part["score"] for part in bins], [part["precision"] for part in bins]), ([0, 1], [0, 1])]
    series = [charts.Series(name, style, [run]) for (name, style), run in zip(SERIES.items(), runs)]
    return charts.lines("Reliability; the numbers are in the table", series, x_label="mean score", y_label="precision")


class _Cutter:
    """Cuts detections out of their images. The image that was read last is kept: neighbours are often on one."""

    def __init__(self, image: Callable[[str], Path]) -> None:
        self._image = image
        self._last: tuple[str, np.ndarray | None] = "", None

    def __call__(self, found: _Found) -> Crop:
        if self._last[0] != found.name:
            self._last = found.name, read(self._image(found.name))
        pixels = self._last[1]
        return Crop("" if pixels is None else jpeg(crop(pixels, found.box)), found.score, found.name)


def crop(image: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """A square around a box, which is drawn: ``(TILE, TILE, 3)``; black beyond the image's edge."""
    x1, y1, x2, y2 = box
    side = max((1 + 2 * AROUND) * max(x2 - x1, y2 - y1), 8.0)
    scale = TILE / side
    left, top = (x1 + x2 - side) / 2, (y1 + y2 - side) / 2
    move = np.array([[scale, 0, -left * scale], [0, scale, -top * scale]])
    # An affine map reads single pixels: where an image becomes much smaller, it is averaged before.
    source = cv2.blur(image, (round(1 / scale),) * 2) if scale < 0.7 else image
    tile = cv2.warpAffine(source, move, (TILE, TILE), flags=cv2.INTER_LINEAR)
    start, end = ((round((x - left) * scale), round((y - top) * scale)) for x, y in ((x1, y1), (x2, y2)))
    cv2.rectangle(tile, start, end, (0, 0, 0), 3)
    cv2.rectangle(tile, start, end, COLOUR, 1)
    return tile


def text(summary: Mapping[str, Any], out: Path) -> str:
    """What a terminal shows."""
    counts = summary["counts"]
    lines = [
        f"{counts['images']} images, {counts['empty']} of them without a label, {counts['uncertain']} to review",
        "",
        f"  {'class':<24}{'threshold':>10}{'labels':>9}{'images':>9}{'uncertain':>11}",
    ]
    for row in summary["classes"]:
        shown = "none" if row["threshold"] > 1 else f"{row['threshold']:.3f}"
        lines.append(
            f"  {str(row['name'])[:23]:<24}{shown:>10}{row['labels']:>9}{row['images']:>9}{row['uncertain']:>11}"
        )
    return "\n".join([*lines, "", f"  {out}"])
