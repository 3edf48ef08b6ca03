"""What a detector's scores are worth on a validation set: thresholds per class, reliability, and a temperature.

A score says how sure a detector is, and not how often it is right. On labelled images both can be compared: which score
a class needs so that nine of ten detections are right, and how far scores are from the shares that are right.
"""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit
from scipy.stats import binomtest
from torch import Tensor, nn
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.utils import LOGGER
from ultralytics.utils.nms import non_max_suppression

from tskd_yolo import files, hashing

PRECISION = 0.9
"""The precision that a threshold is set for, where no other is asked for."""
FLOOR = 0.05
"""Scores below it are not looked at: nearly all of a detector's boxes are there, and nearly none is right."""
LEAST = 10
"""Of fewer detections no threshold is read: ten of ten that are right leave a precision below 0.75 possible."""
TOLD = 10
"""So many classes are told of, the worst calibrated ones."""
BINS = 10
"""Bins of equal width between 0 and 1 in which scores are compared with shares that are right."""
NEVER = 1.01
"""The threshold of a class that has none: no score reaches it."""
STEEPEST = 20.0
"""A temperature is looked for between one by this and this."""
IOU = 0
"""The place of an IoU of 0.5 among those at which Ultralytics matches."""

Look = Callable[[Tensor], list[dict[str, Tensor]]]
"""Detections on images ``(N, C, H, W)``, values from 0 to 1: for each image ``bboxes`` ``(D, 4)``, corners in pixels of
what it was given, ``conf`` ``(D,)`` and ``cls`` ``(D,)``, the best first."""


class Detections(NamedTuple):
    """All detections on a validation set with a score of :data:`FLOOR` or more.

    Shapes:
        score, right and label ``(D,)``: the score, whether it has a labelled object of its class to itself at an IoU of
        0.5, its class; truths ``(C,)``: labelled objects per class.
    """

    score: np.ndarray
    right: np.ndarray
    label: np.ndarray
    truths: np.ndarray


class Bin(NamedTuple):
    """Detections with scores in ``[low, high)``: how many, their mean score, and the share of them that is right."""

    low: float
    high: float
    detections: int
    score: float
    precision: float


class Threshold(NamedTuple):
    """From which score on detections of a class are right often enough, and what is left then.

    Args:
        score: The threshold; :data:`NEVER` where there is none.
        detections: Those on the validation set with this score or more.
        precision: The share of them that is right; None where there is none.
        lowest: The lower end of its 95 % interval (Wilson's); None as above.
        recall: The share of labelled objects that they find; None where the set has no object of the class.
        reason: Why there is no threshold; empty where there is one.
    """

    score: float
    detections: int
    precision: float | None
    lowest: float | None
    recall: float | None
    reason: str = ""

    @property
    def found(self) -> bool:
        """Whether there is one."""
        return not self.reason


class OfClass(NamedTuple):
    """A class: its labelled objects, its detections, its threshold, its bins and their calibration error."""

    name: str
    truths: int
    detections: int
    threshold: Threshold
    bins: list[Bin]
    error: float | None


class Confidence(NamedTuple):
    """What scores are worth; classes are those of the data, in their order.

    ``error`` and ``scaled_error`` are the expected calibration error before and after scores were brought to
    ``sigmoid(logit(score) / temperature)``; None without detections. ``temperature`` is None where none can be fitted.
    """

    precision: float
    classes: list[OfClass]
    bins: list[Bin]
    error: float | None
    temperature: float | None
    scaled_error: float | None

    @property
    def thresholds(self) -> list[float]:
        """Per class the score from which on a detection counts."""
        return [each.threshold.score for each in self.classes]

    def told(self, thresholds: bool = True) -> list[str]:
        """The classes that have no threshold, the calibration, and that of classes, the worst first, a line each.

        Args:
            thresholds: Whether they are asked for.
        """
        without = [each for each in self.classes if thresholds and not each.threshold.found]
        lines = [f"{each.name}: {each.threshold.reason}" for each in without]
        if self.temperature is not None:
            lines.append(
                f"expected calibration error {self.error:.3f}, and {self.scaled_error:.3f} at a temperature of "
                f"{self.temperature:.2f}"
            )
        by_class = sorted(((each.error, each.name) for each in self.classes if each.error is not None), reverse=True)
        if len(by_class) > 1:
            lines.append(f"by class {', '.join(f'{name} {error:.3f}' for error, name in by_class[:TOLD])}")
        return lines

    def row(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            "precision": self.precision,
            "classes": [
                {
                    "name": each.name,
                    "truths": each.truths,
                    "detections": each.detections,
                    "threshold": each.threshold._asdict(),
                    "bins": [part._asdict() for part in each.bins],
                    "error": each.error,
                }
                for each in self.classes
            ],
            "bins": [part._asdict() for part in self.bins],
            "error": self.error,
            "temperature": self.temperature,
            "scaled_error": self.scaled_error,
        }


# From detections ------------------------------------------------------------------------------------------------------


def of(detections: Detections, names: Mapping[int, str], *, precision: float = PRECISION) -> Confidence:
    """What the scores of these detections are worth.

    Args:
        detections: On a validation set.
        names: The data's classes.
        precision: The precision that thresholds are set for, above 0 and at most 1.
    """
    score, right, label, truths = detections
    rows = []
    for index, name in sorted(names.items()):
        own = label == index
        bins = reliability(score[own], right[own])
        found = threshold(score[own], right[own], truths=int(truths[index]), precision=precision)
        rows.append(OfClass(str(name), int(truths[index]), int(own.sum()), found, bins, calibration_error(bins)))
    bins, heat = reliability(score, right), temperature(score, right)
    scaled = None if heat is None else calibration_error(reliability(scale(score, heat), right))
    return Confidence(precision, rows, bins, calibration_error(bins), heat, scaled)


def threshold(score: np.ndarray, right: np.ndarray, *, truths: int, precision: float = PRECISION) -> Threshold:
    """The lowest score ``t`` with ``P(t) >= precision``, where ``P(t)`` is the share of right ones with a score >= t.

    ``t`` is one of the scores, since detections of equal score come and go together, and at least :data:`LEAST`
    detections reach it.

    Args:
        score, right: Of one class, ``(D,)``.
        truths: Its labelled objects.
        precision: What is wanted.
    """
    order = np.argsort(-score, kind="stable")
    score, hits = score[order], np.cumsum(right[order].astype(bool))
    last = np.flatnonzero(np.append(score[1:] != score[:-1], True)) if len(score) else np.zeros(0, int)
    last = last[last + 1 >= LEAST]
    enough = last[hits[last] >= precision * (last + 1) - 1e-9]
    if not len(enough):
        return Threshold(NEVER, 0, None, None, 0.0 if truths else None, _reason(len(score), truths, precision))
    count = int(enough[-1]) + 1
    kept = int(hits[count - 1])
    lowest = float(binomtest(kept, count).proportion_ci(method="wilson").low)
    return Threshold(float(score[count - 1]), count, kept / count, lowest, kept / truths if truths else None)


def _reason(count: int, truths: int, precision: float) -> str:
    if not truths:
        return "no threshold, the validation set has no object of this class"
    if count < LEAST:
        return f"no threshold, {count} detections on the validation set are too few ({LEAST} are needed)"
    return f"no threshold, its detections nowhere reach a precision of {precision:g}"


def reliability(score: np.ndarray, right: np.ndarray) -> list[Bin]:
    """Scores beside the shares that are right, in :data:`BINS` bins of equal width; bins without a detection are left
    out.
    """
    place = np.minimum((score * BINS).astype(int), BINS - 1)
    bins = []
    for number in range(BINS):
        own = place == number
        if count := int(own.sum()):
            low, high = number / BINS, (number + 1) / BINS
            bins.append(Bin(low, high, count, float(score[own].mean()), float(right[own].mean())))
    return bins


def calibration_error(bins: Iterable[Bin]) -> float | None:
    """The expected calibration error ``sum_b n_b / n |precision_b - score_b|``; None without a detection.

    Source:
        Naeini et al., "Obtaining well calibrated probabilities using Bayesian binning", AAAI 2015.
    """
    rows = list(bins)
    total = sum(part.detections for part in rows)
    return sum(part.detections * abs(part.precision - part.score) for part in rows) / total if total else None


def temperature(score: np.ndarray, right: np.ndarray) -> float | None:
    """The ``T`` that makes ``sigmoid(logit(score) / T)`` most likely: the lowest mean binary cross entropy.

    Above 1 scores were too sure of themselves. It changes no order and so no threshold's precision. None where all
    detections are right, or none is: no ``T`` is best then.

    Source:
        Guo et al., "On calibration of modern neural networks", ICML 2017, for two classes.
    """
    if len(score) < LEAST or right.all() or not right.any():
        return None
    z, y = _logits(score), right.astype(float)

    def cost(log_heat: float) -> float:
        scaled = z / np.exp(log_heat)
        return float(np.mean(np.logaddexp(0.0, scaled) - y * scaled))

    limit = float(np.log(STEEPEST))
    return float(np.exp(minimize_scalar(cost, bounds=(-limit, limit), method="bounded").x))


def scale(score: np.ndarray, heat: float) -> np.ndarray:
    """``sigmoid(logit(score) / heat)``."""
    return expit(_logits(score) / heat)


def _logits(score: np.ndarray) -> np.ndarray:
    return logit(np.clip(score.astype(float), 1e-6, 1 - 1e-6))


# From a detector ------------------------------------------------------------------------------------------------------


def look(detector: Callable[..., Any], *, augment: bool = False, iou: float = 0.7, max_det: int = 300) -> Look:
    """Detections as Ultralytics validates them: several classes at one place, NMS within each.

    Args:
        detector: Decodes its boxes, as of :meth:`tskd_yolo.distill.teacher.Teacher.detector`, or of several together
            :class:`tskd_yolo.distill.regions.Together`.
        augment: Ultralytics' test-time augmentation, where the head has it.
        iou: Of NMS.
        max_det: Detections of an image at most.
    """
    given: dict[str, Any] = dict(conf_thres=FLOOR, iou_thres=iou, multi_label=True, max_det=max_det)
    given["max_time_img"] = float("inf")  # past its limit Ultralytics leaves the rest of a batch without detections
    ended = bool(getattr(detector, "end2end", False))

    def seen(images: Tensor) -> list[dict[str, Tensor]]:
        with torch.no_grad():
            raw = detector(images, augment=True) if augment else detector(images)
            rows = non_max_suppression(raw, end2end=ended, **given)
        return [{"bboxes": row[:, :4], "conf": row[:, 4], "cls": row[:, 5]} for row in rows]

    return seen


def detections(seen: Look, *, loader: Any, device: torch.device) -> Detections:
    """Matches detections with labels as Ultralytics does for its mAP, at an IoU of 0.5.

    Args:
        seen: The detector, whose classes are the data's.
        loader: Ultralytics' loader of the validation set.
        device: Where the detector is.
    """
    names = loader.dataset.data["names"]
    with tempfile.TemporaryDirectory() as folder:
        validator: Any = DetectionValidator(loader, save_dir=Path(folder), args={"plots": False, "task": "detect"})
        validator.device, validator.data = device, loader.dataset.data
        validator.init_metrics(_named(names))
        for batch in loader:
            batch = validator.preprocess(batch)
            validator.update_metrics(seen(batch["img"]), batch)
    stats = {key: np.concatenate(parts) for key, parts in validator.metrics.stats.items()}
    return Detections(
        score=stats["conf"].astype(np.float32),
        right=stats["tp"][:, IOU].astype(bool),
        label=stats["pred_cls"].astype(int),
        truths=np.bincount(stats["target_cls"].astype(int), minlength=len(names)),
    )


def _named(names: Mapping[int, str]) -> nn.Module:
    """What the validator asks for the names of classes."""
    module: Any = nn.Module()
    module.names = dict(names)
    return module


def measured(
    seen: Look, networks: Sequence[nn.Module], *, loader: Any, device: torch.device, settings: Mapping[str, Any]
) -> Detections:
    """:func:`detections`, from an earlier run where there was one with these networks, images and settings.

    Args:
        seen, loader, device: As there.
        networks: The networks that it asks, in their order.
        settings: What else decides what it finds, as JSON takes it: size of the images, augmentation, NMS.
    """
    name = hashing.fingerprint(
        {"what": "detections", "floor": FLOOR, "read": hashing.as_read(loader.dataset), **settings},
        network=nn.ModuleList(networks),
        dataset=loader.dataset,
    )
    file = hashing.kept(f"{name[:32]}.npz")
    known = _recalled(file)
    if known is None:
        known = detections(seen, loader=loader, device=device)
        _keep(file, known)
    return known


def _recalled(file: Path) -> Detections | None:
    """What was kept; None where there is nothing, or nothing that can be read."""
    try:
        with np.load(file, allow_pickle=False) as found:
            return Detections(*(found[key] for key in Detections._fields))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # never kept, or damaged: it is done again
        return None


def _keep(file: Path, found: Detections) -> None:
    """Writes detections down; a folder that cannot be written costs the next run a validation, and is told."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **found._asdict())
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        files.replace(file, buffer.getvalue())
    except OSError as error:
        LOGGER.warning(f"the detections on the validation set could not be kept for later runs: {error}")
