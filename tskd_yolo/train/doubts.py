"""What speaks against a run before its first step: its teacher, by its scores; its data, by what is cheap to see."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tskd_yolo.confidence import Confidence
from tskd_yolo.data import duplicates
from tskd_yolo.data.duplicates import Twin
from tskd_yolo.data.labels import Split, oddities
from tskd_yolo.distill.likeness import BEYOND, Distances
from tskd_yolo.findings import Finding

USELESS = 0.05
"""A teacher's mAP50 below which it is probably not trained, or not on these classes; of one class, its AP50."""
LAGGING = 0.9
"""The part of the best teacher's mAP50-95 that the first of several should have."""
LEAKED = 0.05
"""Share of validation images that are in train too, from which the scores measure memory."""

FEW = 8
"""Of fewer training images it is not known how much they differ."""
FAR = 0.25
"""Share of images without labels beyond the distances of the training images from which they look like another set;
0.05 is what would be expected."""
UNCALIBRATED = 0.1
"""Expected calibration error from which a teacher's scores say something else than how often it is right."""

Score = Mapping[str, Any]
"""A detector's metrics, see :data:`tskd_yolo.hashing.METRICS`; empty where they would say nothing."""


def of_scores(taught: Score, known: Score, *, larger: bool, names: Mapping[int, str]) -> list[Finding]:
    """What speaks against a teacher.

    Args:
        taught: The teacher's metrics on the validation set; empty where it knows none of its classes.
        known: The student's before training; empty where they would say nothing.
        larger: Whether the teacher has more parameters than the student, or sees larger images.
        names: The classes.
    """
    found = []
    best, own = (score.get("metrics/mAP50-95(B)", 0.0) for score in (taught, known))
    if taught and (coarse := taught["metrics/mAP50(B)"]) < USELESS:
        found.append(
            Finding(
                "no", "teacher", f"it finds next to nothing on this validation set (mAP50 {coarse:.3f})",
                "give one that is trained, and on these classes",
            )
        )  # fmt: skip
    elif taught and (weak := _weak(taught, names)):
        found.append(
            Finding(
                "warning", "teacher", f"it hardly finds {', '.join(weak)} (AP50 below {USELESS:g})",
                "look at the labels of these classes, or train it longer: here it has nothing to teach",
            )
        )  # fmt: skip
    if taught and known and best <= own:
        found.append(
            Finding(
                "warning", "teacher",
                f"it is no better than the student already is ({best:.3f} against {own:.3f} mAP50-95)",
                "there is little to learn from it, take a better one",
            )
        )  # fmt: skip
    if not larger:
        found.append(
            Finding("warning", "teacher", "it is not larger than the student", "usually it is one or two sizes up")
        )
    return found


def of_order(taught: Sequence[Score], known: Sequence[Collection[int]]) -> list[Finding]:
    """What speaks against the first of several teachers, whose features and head teach.

    Args:
        taught: The teachers' metrics on the validation set, of the same classes.
        known: The classes that each knows: where these are divided, scores cannot be compared.
    """
    scores = [score.get("metrics/mAP50-95(B)", 0.0) for score in taught]
    first, best = scores[0], max(scores)
    if any({*classes} != {*known[0]} for classes in known) or first >= LAGGING * best:
        return []
    return [
        Finding(
            "warning", "teacher",
            f"the first of several, whose features and head teach, is not the best ({first:.3f} against {best:.3f} "
            "mAP50-95)", "give the best one first",
        )
    ]  # fmt: skip


def _weak(taught: Score, names: Mapping[int, str]) -> list[str]:
    return [str(names[i]) for i, row in enumerate(taught["classes"]) if row and row["AP50"] < USELESS]


def of_data(train: Split, val: Split, *, names: Mapping[int, str], imgsz: int, stride: int) -> list[Finding]:
    """What speaks against the data, beside what the scan of the labels tells: in seconds, so no picture is decoded.

    Args:
        train, val, names, imgsz, stride: As of :func:`tskd_yolo.data.labels.oddities`.
    """
    same = duplicates.same_files(train.files, val.files)
    return [*of_twins(same, [], images=len(val.labels)), *oddities(train, val, names=names, imgsz=imgsz, stride=stride)]


def of_twins(
    same: Sequence[Twin], near: Sequence[Twin], *, images: int, split: str = "val", beside: str = "train"
) -> list[Finding]:
    """What images that are in both splits say of the scores.

    Args:
        same: Images of val whose file is in train.
        near: Images of val whose picture is in train.
        images: Of val.
        split, beside: What val and train are called.
    """
    if not (count := len(same) + len(near)):
        return []
    first = [*same, *near][0]
    parts = [f"{len(same)} the same file"] if same else []
    parts += [f"{len(near)} nearly the same picture"] if near else []
    words = f"{count} of {images} {split} images are in {beside} too ({', '.join(parts)}; such as "
    words += f"{Path(first.val).name}, there {Path(first.train).name})"
    return [
        Finding(
            "no" if count > LEAKED * images else "warning", "splits", words,
            "take them out of one of the two: what a network has trained on says nothing about new images",
        )
    ]  # fmt: skip


# Images without labels ------------------------------------------------------------------------------------------------


def of_leaks(found: Mapping[str, Sequence[tuple[str, str]]]) -> list[Finding]:
    """What images without labels that are in a split say.

    Args:
        found: By split, such images with the file of the split that has the same content.
    """
    findings = []
    for split, pairs in found.items():
        if not pairs:
            continue
        first = f"such as {Path(pairs[0][0]).name}, in {split} {Path(pairs[0][1]).name}"
        left = "the student learns from them" if split == "test" else "are left out"
        words = f"{len(pairs)} images are in {split} too, by content, and {left} ({first})"
        remedy = "take them out of the folder: what a network has learned from is no test of it"
        findings.append(
            Finding("note", "unlabelled", words)
            if split == "train"
            else Finding("warning", "unlabelled", words, remedy)
        )
    return findings


def of_likeness(found: Distances, names: Sequence[str]) -> list[Finding]:
    """What speaks against images that are far from the training set.

    Args:
        found: Their distances.
        names: Of the images.
    """
    if found.far <= FAR:
        return []
    theirs, own = (
        f"{np.percentile(part, 50):.2f} and {np.percentile(part, BEYOND):.2f}" for part in (found.others, found.own)
    )
    examples = ", ".join(Path(names[i]).name for i in np.argsort(-found.others)[:3])
    return [
        Finding(
            "warning", "unlabelled",
            f"{found.far:.0%} of a sample look unlike the training images to the teacher (distances at the 50th and "
            f"{BEYOND}th percentile {theirs}, of training images {own}; the farthest are {examples})",
            "look at them, and leave out what the student will never see",
        )
    ]  # fmt: skip


def of_confidence(found: Confidence | None) -> list[Finding]:
    """What speaks against a teacher whose scores are to be believed on images without labels."""
    if found is None:
        return []
    findings = []
    if found.error is not None and found.error > UNCALIBRATED:
        scaled = f", {found.scaled_error:.2f} at a temperature of {found.temperature:.2f}" if found.temperature else ""
        findings.append(
            Finding(
                "warning", "unlabelled",
                f"the teacher is not calibrated (expected calibration error {found.error:.2f} on val{scaled})",
                "boxes below their threshold count by scores that say something else than how often it is right",
            )
        )  # fmt: skip
    reasons = {each.name: each.threshold.reason.removeprefix("no threshold, ") for each in found.classes}
    if without := [f"{name} ({reason})" for name, reason in reasons.items() if reason]:
        findings.append(
            Finding(
                "warning", "unlabelled",
                f"no score is known from which on the precision is {found.precision:g}: {', '.join(without)}",
                "boxes of these classes count by their score; a teacher that is better in them, or more labelled val "
                "images of them, would have one",
            )
        )  # fmt: skip
    return findings
