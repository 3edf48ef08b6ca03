"""The data set that is written: per image a link, a label file and a record of all scores; begun once, gone on with."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import yaml
from ultralytics.utils import LOGGER

from tskd_yolo import __version__, files
from tskd_yolo.config import ConfigError
from tskd_yolo.data.dataset import label_line, link_image

RECORD = "autolabel.json"
DATA = "data.yaml"
MADE_BY = "tskd-yolo autolabel"
HEAD = "# Made by tskd-yolo autolabel: labels of a teacher. autolabel.html shows them, uncertain.csv is to be reviewed."
NO_VAL = (
    "# There was no validation set: val: names the same images, whose labels are no truth. Put labelled images there."
)
UNCERTAIN = 0.5
"""From this share of its class's threshold on a detection is kept in the record, and makes its image uncertain."""


ASSUMED = 0.5
"""Stands for the threshold of a class that has none, where it is about what is uncertain."""


class Detection(NamedTuple):
    """A detection: class, score, corners in pixels of the original, and whether it became a label."""

    label: int
    score: float
    box: tuple[float, float, float, float]
    kept: bool


class Labelled(NamedTuple):
    """An image: its path below ``images/train``, (width, height) in pixels, and its detections, the best first."""

    name: str
    size: tuple[int, int]
    detections: list[Detection]

    @property
    def labels(self) -> list[Detection]:
        """Those that became labels."""
        return [found for found in self.detections if found.kept]

    @property
    def uncertain(self) -> list[Detection]:
        """Those that missed it."""
        return [found for found in self.detections if not found.kept]


class Settings(NamedTuple):
    """What decides the labels, as JSON takes it: a folder that was begun with others is not gone on with."""

    teacher: list[dict[str, str]]
    names: list[str]
    thresholds: list[float]
    source: str
    val: Any
    detector: dict[str, Any]


class Folder:
    """The data set's folder.

    A label file is written last of an image, so an image that has one is done, and is not written again unless there is
    another image in its place.

    Args:
        out: Where it is.
        settings: What decides the labels.
    """

    def __init__(self, out: Path, settings: Settings) -> None:
        self.out, self.settings = out, settings
        self.provenance = {
            "made_by": MADE_BY,
            "version": __version__,
            "teacher": settings.teacher,
            "thresholds": dict(zip(settings.names, settings.thresholds)),
            **settings.detector,
        }

    def begin(self, *, channels: int, facts: Mapping[str, Any]) -> None:
        """Makes the folder, or verifies that it was begun with these settings.

        Args:
            channels: Of the images, for ``data.yaml``.
            facts: What else is to be known of the run.

        Raises:
            ConfigError: If something else is there, or a data set of other settings.
        """
        before = begun(self.out)
        asked = json.loads(json.dumps(self.settings._asdict()))
        if before is not None:
            known, new = ({**each, "teacher": _hashes(each)} for each in (before["settings"], asked))
            if other := [key for key in new if known.get(key) != new[key]]:
                words = " and ".join(other)
                raise ConfigError(
                    [f"out: {self.out} was begun with other settings ({words}); give the same, or another folder."]
                )
        else:
            self.out.mkdir(parents=True, exist_ok=True)
            self.note(facts)
        for name in ("images", "labels", "scores"):
            (self.out / name / "train").mkdir(parents=True, exist_ok=True)
        if not (self.out / DATA).exists():
            files.replace(self.out / DATA, self._data_yaml(channels).encode("utf-8"))

    def _data_yaml(self, channels: int) -> str:
        content = {
            "path": str(self.out),
            "train": "images/train",
            "val": self.settings.val or "images/train",
            "names": dict(enumerate(self.settings.names)),
            **({"channels": channels} if channels != 3 else {}),
        }
        lines = [HEAD] if self.settings.val else [HEAD, NO_VAL]
        return "\n".join([*lines, yaml.safe_dump(content, sort_keys=False, allow_unicode=True)])

    def note(self, facts: Mapping[str, Any]) -> None:
        """Writes down what the run has come to."""
        content = {"made_by": MADE_BY, "version": __version__, "settings": self.settings._asdict(), **facts}
        files.write_json(self.out / RECORD, content)

    def left(self, images: Mapping[str, Path]) -> dict[str, Path]:
        """Those of the images that have no label file yet, or that of another image that had their name.

        Raises:
            ConfigError: If one has a label file that was not written here.
        """
        done = {name for name in images if self._label(name).exists()}
        if foreign := sorted(name for name in done if not self._scores(name).exists()):
            file = self._label(foreign[0]).relative_to(self.out)
            raise ConfigError(
                [f"out: {len(foreign)} label files in {self.out} have no record of their scores, the first is {file}; "
                 "move them away, or give another folder."]
            )  # fmt: skip
        if others := sorted(name for name in done if not self._is_of(name, images[name])):
            LOGGER.warning(
                f"{len(others)} images are others than those that were labelled under their names, and are labelled "
                f"anew; the first is {others[0]}."
            )
        for name in others:
            self._forget(name)
        return {name: file for name, file in images.items() if name not in done or name in others}

    def _is_of(self, name: str, original: Path) -> bool:
        """Whether the labels under this name are those of this image, by its content."""
        row = json.loads(self._scores(name).read_text(encoding="utf-8"))
        known, found = row["provenance"].get("content"), os.stat(original)
        if row["name"] != name:
            return False
        if known is None or [known["bytes"], known["changed"]] == [found.st_size, found.st_mtime_ns]:
            return True  # an earlier version wrote nothing down about it
        return known["bytes"] == found.st_size and known["sha256"] == files.digest(original)

    def _forget(self, name: str) -> None:
        """Takes away what is there of the image that had this name, its label file first."""
        before = json.loads(self._scores(name).read_text(encoding="utf-8"))["name"]
        for file in (self._label(name), self.image(before), self._scores(name)):
            file.unlink(missing_ok=True)

    def add(self, original: Path, found: Labelled) -> None:
        """Writes an image's record, its link, and at last its label file.

        Raises:
            ConfigError: If there is another image of its name.
        """
        for file in (self._scores(found.name), self._label(found.name), self.image(found.name)):
            file.parent.mkdir(parents=True, exist_ok=True)
        row = {**found._asdict(), "detections": [each._asdict() for each in found.detections]}
        there = os.stat(original)
        content = {"bytes": there.st_size, "changed": there.st_mtime_ns, "sha256": files.digest(original)}
        row["provenance"] = {**self.provenance, "original": str(original), "content": content}
        files.write_json(self._scores(found.name), row)
        show(original, self.image(found.name))
        lines = [label_line(each.label, each.box, found.size) + "\n" for each in found.labels]
        files.replace(self._label(found.name), "".join(lines).encode("ascii"))

    def read(self) -> Iterator[Labelled]:
        """All images that are done, by name, one after the other."""
        for file in sorted((self.out / "scores" / "train").rglob("*.json")):
            row = json.loads(file.read_text(encoding="utf-8"))
            if self._label(row["name"]).exists():
                found = [Detection(d["label"], d["score"], tuple(d["box"]), d["kept"]) for d in row["detections"]]
                yield Labelled(row["name"], tuple(row["size"]), found)

    def image(self, name: str) -> Path:
        """Where an image of the data set is."""
        return self.out / "images" / "train" / name

    def _label(self, name: str) -> Path:
        return self.out / "labels" / "train" / PurePosixPath(name).with_suffix(".txt")

    def _scores(self, name: str) -> Path:
        return self.out / "scores" / "train" / PurePosixPath(name).with_suffix(".json")


def _hashes(settings: Mapping[str, Any]) -> list[Any]:
    """Of the teachers: one that was renamed is the same."""
    return [each.get("sha256") for each in settings.get("teacher", [])]


def begun(out: Path) -> dict[str, Any] | None:
    """The record of a data set that is there already; None where the folder is free.

    Raises:
        ConfigError: If something else is there.
    """
    wrong = ConfigError([f"out: {out} is there and was not made by {MADE_BY}; give another folder."])
    if not out.exists():
        return None
    if not out.is_dir():
        raise wrong
    if not (out / RECORD).is_file():
        if any(not file.name.endswith(".part") for file in out.iterdir()):
            raise wrong
        return None
    try:
        found = json.loads((out / RECORD).read_text(encoding="utf-8"))
    except ValueError:
        raise wrong from None
    if not isinstance(found, dict) or found.get("made_by") != MADE_BY or not isinstance(found.get("settings"), dict):
        raise wrong
    return found


def show(original: Path, place: Path) -> None:
    """Links an image, unless that has been done.

    Raises:
        ConfigError: If another one is there.
    """
    if not os.path.lexists(place):
        link_image(original, place)
    elif not place.exists() or not (place.samefile(original) or files.digest(place) == files.digest(original)):
        raise ConfigError([f"out: {place} is there and is not {original}; give another folder."])


def labelled(
    name: str, size: tuple[int, int], rows: Sequence[tuple[int, float, Sequence[float]]], thresholds: Sequence[float]
) -> Labelled:
    """An image with those of its detections that count: labels, and what reaches :data:`UNCERTAIN` of its threshold.

    Of a class without a threshold nothing becomes a label; what reaches that share of :data:`ASSUMED` is uncertain.

    Boxes without area in the image are left out, and of equal boxes of one class all but the best: where detections
    reach over the image's edge, they may have become equal.

    Args:
        name: As of :class:`Labelled`.
        size: (width, height) in pixels.
        rows: Class, score and corners of each detection.
        thresholds: Per class.
    """
    found: dict[tuple[Any, ...], Detection] = {}
    for label, score, corners in sorted(rows, key=lambda row: -row[1]):
        x1, y1, x2, y2 = (round(float(v), 2) for v in corners)
        if score >= UNCERTAIN * usual(thresholds[label]) and x2 > x1 and y2 > y1:
            kept = Detection(label, round(score, 5), (x1, y1, x2, y2), score >= thresholds[label])
            found.setdefault((label, x1, y1, x2, y2), kept)
    return Labelled(name, size, list(found.values()))


def usual(threshold: float) -> float:
    """The threshold, or :data:`ASSUMED` where there is none."""
    return threshold if threshold <= 1 else ASSUMED


def rounded(threshold: float) -> float:
    """A threshold to four places, downwards, so that the detection whose score it was reaches it."""
    return math.floor(threshold * 1e4) / 1e4
