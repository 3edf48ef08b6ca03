"""Images for the pages: where networks disagree, and what DED weighs on them."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from ultralytics.data.augment import LetterBox
from ultralytics.data.utils import check_det_dataset

from tskd_yolo.distill import teacher as teachers
from tskd_yolo.distill.matching import SPATIAL_STEPS
from tskd_yolo.losses.boxes import Boxes, covered
from tskd_yolo.losses.ded import region_weights
from tskd_yolo.losses.paper import spatial_attention
from tskd_yolo.rounding import ceil_div

EACH_WAY = 3
"""Images shown that were gained, and that were lost."""
WIDEST = 320
"""Pixels of the longer side of an embedded image."""


class Heat(NamedTuple):
    """What DED weighs on one map, drawn over the image."""

    stride: int
    strongest: float
    uri: str


class Picture(NamedTuple):
    """One image: its pixels as a data URI, and per network rows as ``seen.json`` has them."""

    name: str
    uri: str
    size: tuple[int, int]
    truth: list[Any]
    found: dict[str, list[Any]]
    gain: int
    heat: list[Heat]

    def hits(self, who: str) -> int:
        """Defects that a network found."""
        return sum(bool(row[2]) for row in self.found[who])

    def false(self, who: str) -> int:
        """Its false alarms."""
        return len(self.found[who]) - self.hits(who)


class Pictures(NamedTuple):
    """Images chosen by a rule, and between which two networks."""

    shown: list[Picture]
    names: dict[int, str]
    before: str
    after: str
    seed: int


def disagreements(
    seen: Mapping[str, Path], *, data: str, names: dict[int, str], teacher: str, imgsz: int, variant: str, seed: int
) -> Pictures:
    """The images on which the last network in ``seen`` finds most more, and most fewer, defects than the one before.

    All networks are set to the same number of false alarms per image, so that a count of found defects compares them.

    Args:
        seen: ``seen.json`` per network: teacher, plain training, distilled.
        data: The data set.
        names: Its classes.
        teacher: Checkpoint, for the paper's attention.
        imgsz: Size at which the networks look.
        variant: Our key, on which it depends what DED weighs.
        seed: The seed, to be told.
    """
    rows = {who: json.loads(file.read_text(encoding="utf-8")) for who, file in seen.items()}
    *_, before, after = rows
    found = {who: {row["file"]: row for row in table} for who, table in rows.items()}
    gains = {file: _hits(row) - _hits(found[before][file]) for file, row in found[after].items()}
    files = choose(gains, {file: len(row["truth"]) for file, row in found[after].items()})
    folder, look = check_det_dataset(data)["path"], DEDWeights(teacher, imgsz, variant, names)
    shown = []
    for file in files:
        image = cv2.imread(str(Path(folder) / file))
        if image is not None:
            boxes = {who: table[file]["found"] for who, table in found.items()}
            truth = found[after][file]["truth"]
            shown.append(_picture(file, image, truth, boxes, gains[file], look(image, truth)))
    return Pictures(shown, names, before, after, seed)


def choose(gains: Mapping[str, int], truths: Mapping[str, int]) -> list[str]:
    """Files by the rule: most defects gained, then most lost; where none differ, those with most defects."""
    gained = sorted((f for f in gains if gains[f] > 0), key=lambda f: (-gains[f], f))[:EACH_WAY]
    lost = sorted((f for f in gains if gains[f] < 0), key=lambda f: (gains[f], f))[:EACH_WAY]
    return gained + lost or sorted(truths, key=lambda f: (-truths[f], f))[:EACH_WAY]


def missed(
    rows: Sequence[Mapping[str, Any]], *, folder: Path, names: dict[int, str], count: int = 2 * EACH_WAY
) -> Pictures:
    """The images of one network with the most missed defects."""
    lost = {row["file"]: len(row["truth"]) - _hits(row) for row in rows}
    table = {row["file"]: row for row in rows}
    shown = []
    for file in sorted((f for f in lost if lost[f] > 0), key=lambda f: (-lost[f], f))[:count]:
        image = cv2.imread(str(folder / file))
        if image is not None:
            row = table[file]
            shown.append(_picture(file, image, row["truth"], {"found": row["found"]}, -lost[file], []))
    return Pictures(shown, names, "truth", "found", 0)


def _hits(row: Mapping[str, Any]) -> int:
    return sum(bool(found[2]) for found in row["found"])


def _picture(file: str, image: Any, truth: list, found: dict[str, list], gain: int, heat: list[Heat]) -> Picture:
    small = _small(image)
    return Picture(Path(file).name, jpeg(small), (small.shape[1], small.shape[0]), truth, found, gain, heat)


def _small(image: Any) -> Any:
    scale = min(1.0, WIDEST / max(image.shape[:2]))
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else image


def jpeg(image: Any) -> str:
    """A BGR image as a data URI."""
    return "data:image/jpeg;base64," + base64.b64encode(cv2.imencode(".jpg", image)[1].tobytes()).decode("ascii")


class DEDWeights:
    """What DED weighs on an image, on every map that it compares, 1 on average.

    By default foreground and background, by areas as :class:`tskd_yolo.losses.ded.DED` has them, here of one image; in
    the paper's form the teacher's spatial attention.
    """

    def __init__(self, file: str, imgsz: int, variant: str, names: dict[int, str]) -> None:
        self.imgsz, self.teacher = imgsz, None
        if variant == "paper":
            model = teachers.load(file)
            self.teacher = teachers.Teacher(model, like=model, names=names, responses=False)
            self.box = LetterBox((imgsz, imgsz), auto=False)

    def __call__(self, image: Any, truth: Sequence[Sequence[float]]) -> list[Heat]:
        """Heat of an image whose defects are rows of class and x1, y1, x2, y2 as parts of its size."""
        shown, weights = self._regions(image, truth) if self.teacher is None else self._attention(image)
        return [
            Heat(stride, float(weight.max()), jpeg(_small(_overlay(shown, weight.numpy()))))
            for stride, weight in weights.items()
        ]

    def _attention(self, image: Any) -> tuple[Any, dict[int, torch.Tensor]]:
        framed: Any = self.box(image=image)
        tensor = torch.from_numpy(np.ascontiguousarray(framed[..., ::-1].transpose(2, 0, 1)))[None].float() / 255
        assert self.teacher is not None
        levels = self.teacher(tensor)
        return framed, {stride: spatial_attention(level.features)[0] for stride, level in levels.items()}

    def _regions(self, image: Any, truth: Sequence[Sequence[float]]) -> tuple[Any, dict[int, torch.Tensor]]:
        scale = self.imgsz / max(image.shape[:2])
        height, width = (max(round(side * scale), 1) for side in image.shape[:2])
        corners = torch.tensor([row[1:5] for row in truth]).view(-1, 4) * torch.tensor([width, height, width, height])
        boxes = Boxes(corners, torch.zeros(len(corners)), 1, (height, width))
        found = {}
        for stride, step in SPATIAL_STEPS.items():
            regions = covered(boxes, ceil_div(height, stride), ceil_div(width, stride), step)
            foreground, background = region_weights(regions)
            weights = foreground * regions.foreground[0] + background * regions.background[0]
            found[stride] = weights / weights.mean()
        return image, found


def _overlay(image: Any, weight: Any) -> Any:
    """A map over its image, from dark (0) to bright (the strongest cell)."""
    scaled = cv2.resize(weight / weight.max(), image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    colour = cv2.applyColorMap((255 * scaled).astype(np.uint8), cv2.COLORMAP_INFERNO)
    return cv2.addWeighted(np.asarray(image), 0.4, colour, 0.6, 0)
