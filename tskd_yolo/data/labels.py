"""What is odd in the labels of a data set: counted, with a remedy, from what Ultralytics has read of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from ultralytics.data.utils import IMG_FORMATS, img2label_paths

from tskd_yolo.findings import Finding

MANY = 0.1
"""Share of a split's images, or of its boxes, from which something is no longer an exception."""
EMPTY = 0.5
"""Share of training images without a box from which most of an epoch teaches the background."""
RARE = 0.1
"""A class in fewer images than this share of what the median class has is rare."""
CELLS = 2
"""A box whose side is shorter than so many cells of the finest level is tiny: most of it is its edge."""
EDGE = 0.01
"""How far, as a share of the image, a box may reach over its edge: rounding does that."""


@dataclass(frozen=True)
class Split:
    """The labels of one split, as Ultralytics has read them.

    Args:
        name: ``train``, ``val`` or ``test``.
        labels: A mapping per image: ``im_file``, ``cls`` ``(n, 1)`` and ``bboxes`` ``(n, 4)``, centre, width and
            height as shares of the image; ``shape`` (height, width) in pixels, where sizes are asked for. Ultralytics
            takes that out of a set that it has sorted by shape, as it does for validation.
        left_out: Names of the files that were left out, and why.
        repeated: How many boxes were there twice, and are counted once.
    """

    name: str
    labels: Sequence[Mapping[str, Any]]
    left_out: Sequence[tuple[str, str]] = ()
    repeated: int = 0
    boxes: np.ndarray = field(init=False, repr=False)
    """All boxes ``(n, 4)``."""
    classes: np.ndarray = field(init=False, repr=False)
    """The class of each box ``(n,)``."""
    image: np.ndarray = field(init=False, repr=False)
    """In which image each box is ``(n,)``."""

    def __post_init__(self) -> None:
        count = [len(label["cls"]) for label in self.labels]
        boxes = [np.zeros((0, 4)), *(np.asarray(label["bboxes"]).reshape(-1, 4) for label in self.labels)]
        classes = [np.zeros(0), *(np.asarray(label["cls"]).ravel() for label in self.labels)]
        object.__setattr__(self, "boxes", np.concatenate(boxes))
        object.__setattr__(self, "classes", np.concatenate(classes).astype(int))
        object.__setattr__(self, "image", np.repeat(np.arange(len(count)), count))

    @property
    def files(self) -> list[str]:
        """The image files."""
        return [str(label["im_file"]) for label in self.labels]

    @property
    def sized(self) -> bool:
        """Whether the sizes of the images are known."""
        return all("shape" in label for label in self.labels)

    def images_with(self, index: int) -> int:
        """Number of images on which a class is."""
        return len(np.unique(self.image[self.classes == index]))

    def empty(self) -> int:
        """Number of images without a box."""
        return len(self.labels) - len(np.unique(self.image))

    def flat(self) -> int:
        """Number of boxes without area."""
        return int((self.boxes[:, 2:] <= 0).any(1).sum())

    def outside(self) -> int:
        """Number of boxes that reach over the image's edge."""
        centre, half = self.boxes[:, :2], self.boxes[:, 2:] / 2
        return int(((centre - half < -EDGE) | (centre + half > 1 + EDGE)).any(1).sum())

    def ambiguous(self) -> int:
        """Number of boxes that another class has too, on the same image."""
        rows = np.column_stack([self.image, np.round(self.boxes, 6)])
        return len(self.boxes) - len(np.unique(rows, axis=0))  # equal boxes of one class are there once

    def tiny(self, *, imgsz: int, stride: int) -> int:
        """Number of boxes whose side (the root of their area) is below :data:`CELLS` cells.

        Args:
            imgsz: Size in pixels of the longer side of the image that the network sees.
            stride: Of the finest level, in pixels.
        """
        shapes = np.array([label["shape"] for label in self.labels], float).reshape(-1, 2)
        sizes = self.boxes[:, 2:] * (shapes * imgsz / shapes.max(1, keepdims=True))[self.image][:, ::-1]
        side = np.sqrt(sizes.prod(1))
        return int(((side > 0) & (side < CELLS * stride)).sum())

    def counts(self, *, imgsz: int, stride: int) -> dict[str, int]:
        """What there is, for the record; arguments as of :meth:`tiny`."""
        return {
            "images": len(self.labels),
            "left_out": len(self.left_out),
            "empty": self.empty(),
            "without_file": _without_file(self),
            "boxes": len(self.boxes),
            "repeated": self.repeated,
            "flat": self.flat(),
            "outside": self.outside(),
            "ambiguous": self.ambiguous(),
            "tiny": self.tiny(imgsz=imgsz, stride=stride),
        }


# What a scan tells too ------------------------------------------------------------------------------------------------


def faults(split: Split) -> list[Finding]:
    """What Ultralytics leaves out or repairs when it reads the labels, and boxes without area."""
    found = []
    total = len(split.labels) + len(split.left_out)
    if split.left_out:
        reasons = Counter(reason for _, reason in split.left_out).most_common()
        words = ", ".join(f"{count} with {reason}" for reason, count in reasons)
        found.append(
            Finding(
                "no" if len(split.left_out) > MANY * total else "warning",
                "labels",
                f"{len(split.left_out)} of {total} {split.name} images are left out ({words}; the first is "
                f"{split.left_out[0][0]})",
                "correct these labels: coordinates are shares of the image, centre x, centre y, width, height",
            )
        )
    if split.repeated:
        found.append(
            Finding(
                "warning", "labels", f"{split.repeated} boxes of the {split.name} split are there twice and count once",
                "remove the second ones, and find out what wrote them",
            )
        )  # fmt: skip
    if count := split.flat():
        found.append(
            Finding(
                "warning", "labels", f"{count} boxes of the {split.name} split have no area, so nothing can find them",
                "correct or remove them",
            )
        )  # fmt: skip
    return found


# What no scan tells ---------------------------------------------------------------------------------------------------


def oddities(train: Split, val: Split, *, names: Mapping[int, str], imgsz: int, stride: int) -> list[Finding]:
    """What a scan does not tell: classes that are missing or rare, images without boxes, boxes that are odd.

    Args:
        train, val: The two splits.
        names: The classes.
        imgsz, stride: As of :meth:`Split.tiny`.
    """
    found = [*_classes(train, val, names), *_empty(train), *_empty(val)]
    for split in (train, val):
        found += _odd_boxes(split)
    return [*found, *_tiny(train, imgsz, stride)] if train.sized else found


def _classes(train: Split, val: Split, names: Mapping[int, str]) -> list[Finding]:
    """Classes that one of the splits lacks, or that are rare in training."""
    found = []
    with_class = {index: train.images_with(index) for index in names}
    unseen = [name for index, name in names.items() if not with_class[index]]
    if unseen:
        found.append(
            Finding(
                "warning", "classes", f"never labelled in the train split: {_few(unseen)}",
                "label them, or take them out of the names: the student cannot learn them from boxes",
            )
        )  # fmt: skip
    if unjudged := [name for index, name in names.items() if with_class[index] and not val.images_with(index)]:
        found.append(
            Finding(
                "warning", "classes", f"never labelled in the {val.name} split: {_few(unjudged)}",
                f"move some of their images to {val.name}: without them nobody knows how well they are found",
            )
        )  # fmt: skip
    there = [count for count in with_class.values() if count]
    few = {i: count for i, count in with_class.items() if there and 0 < count < RARE * median(there)}
    if few:
        words = _few([f"{names[i]} ({count})" for i, count in few.items()])
        found.append(
            Finding(
                "warning", "classes",
                f"on fewer train images than a tenth of what the median class has ({median(there):g}): {words}",
                "check that they are labelled wherever they are to be seen, or collect more of them",
            )
        )  # fmt: skip
    return found


def _empty(split: Split) -> list[Finding]:
    """Images without a box: good to have some, and a sign of forgotten labels where they are most."""
    if not (count := split.empty()):
        return []
    missing = _without_file(split)
    reason = f"{count} of {len(split.labels)} {split.name} images have no box"
    if missing:
        reason += f", {missing} of them no label file either"
    many = count > EMPTY * len(split.labels)
    remedy = "check that they show nothing, and give those an empty label file" if many or missing else ""
    return [Finding("warning" if many else "note", "labels", reason, remedy)]


def _without_file(split: Split) -> int:
    """Number of images that have no label file."""
    there = {folder: {p.name for p in folder.iterdir()} for folder in _label_folders(split) if folder.is_dir()}
    paths = map(Path, img2label_paths([*split.files]))
    return sum(path.name not in there.get(path.parent, ()) for path in paths)


def _odd_boxes(split: Split) -> list[Finding]:
    """Boxes that reach out of the image, or have two classes."""
    found = []
    if count := split.outside():
        found.append(
            Finding(
                "warning", "labels", f"{count} boxes of the {split.name} split reach over the edge of their image",
                "clip them; where there are many, width or height may be given as a corner",
            )
        )  # fmt: skip
    if count := split.ambiguous():
        found.append(
            Finding(
                "warning", "labels", f"{count} boxes of the {split.name} split are there once more with another class",
                "decide on one class: one of the two answers always counts as a false alarm",
            )
        )  # fmt: skip
    return found


def _tiny(split: Split, imgsz: int, stride: int) -> list[Finding]:
    """Boxes that are too small to be found at this size."""
    if not (count := split.tiny(imgsz=imgsz, stride=stride)):
        return []
    many = count > MANY * len(split.boxes)
    return [
        Finding(
            "warning" if many else "note", "labels",
            f"{count} of {len(split.boxes)} boxes of the {split.name} split are smaller than {CELLS * stride} px at "
            f"imgsz={imgsz} ({CELLS} cells of stride {stride})",
            "train at a larger imgsz, or on tiles" if many else "",
        )
    ]  # fmt: skip


def asked(names: Mapping[int, str], classes: Sequence[int] | int | None) -> dict[int, str]:
    """The classes of a data set that a run trains on: all, or those of Ultralytics' ``classes=``."""
    if classes is None:
        return dict(names)
    wanted = {classes} if isinstance(classes, int) else set(classes)
    return {index: name for index, name in names.items() if index in wanted}


def without_image(splits: Sequence[Split]) -> list[Finding]:
    """Label files beside which there is no image: renamed or removed images, or labels that nobody reads."""
    alone: set[str] = set()
    folders = {Path(file).parent for split in splits for file in split.files}
    images: dict[Path, set[str]] = {}
    for folder in folders:
        stems = {p.stem for p in folder.iterdir() if p.suffix[1:].lower() in IMG_FORMATS}
        images.setdefault(_label_folder(folder), set()).update(stems)
    for labels, stems in images.items():
        if labels.is_dir():
            alone |= {p.name for p in labels.glob("*.txt") if p.stem not in stems and p.name != "classes.txt"}
    if not alone:
        return []
    return [
        Finding(
            "warning", "labels", f"{len(alone)} label files have no image, the first is {min(alone)}",
            "bring the images back or remove the labels; file names have to be equal but for the suffix",
        )
    ]  # fmt: skip


def _label_folders(split: Split) -> set[Path]:
    return {_label_folder(folder) for folder in {Path(file).parent for file in split.files}}


def _label_folder(images: Path) -> Path:
    return Path(img2label_paths([str(images / "x.jpg")])[0]).parent


def _few(words: Sequence[str], most: int = 6) -> str:
    return ", ".join([*words[:most], *([f"and {len(words) - most} more"] if len(words) > most else [])])
