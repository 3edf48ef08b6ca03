"""What is odd in labels: each oddity made on purpose, counted, and told with a remedy."""

from __future__ import annotations

import numpy as np
import pytest

from tskd_yolo.data import labels
from tskd_yolo.data.labels import Split, faults, oddities, without_image

NAMES = {0: "dent", 1: "hole"}
BOX = (0.5, 0.5, 0.5, 0.5)


def split(name: str, *images: list[tuple], shape: tuple[int, int] = (64, 64), **more) -> Split:
    """A split of images with rows (class, centre x, centre y, width, height)."""
    found = [
        {
            "im_file": f"/set/images/{name}/{i}.png",
            "shape": shape,
            "cls": np.array([row[:1] for row in rows], np.float32).reshape(-1, 1),
            "bboxes": np.array([row[1:] for row in rows], np.float32).reshape(-1, 4),
        }
        for i, rows in enumerate(images)
    ]
    return Split(name, found, **more)


def both() -> list[tuple]:
    return [(0, *BOX), (1, 0.25, 0.25, 0.4, 0.4)]


def told(train: Split, val: Split, **more) -> list[str]:
    size = {"imgsz": 64, "stride": 8, **more}
    return [f"{f.level} {f}" for f in oddities(train, val, names=NAMES, **size)]


def test_of_sound_labels_nothing_is_told():
    assert told(split("train", both(), both()), split("val", both())) == []
    assert faults(split("train", both())) == []


@pytest.mark.parametrize(
    ("rows", "method", "count"),
    [
        ([(0, 0.5, 0.5, 0.0, 0.5), (0, *BOX)], "flat", 1),
        ([(0, 0.9, 0.5, 0.5, 0.5), (0, 0.75, 0.5, 0.505, 0.5)], "outside", 1),  # the second is rounding
        ([(0, *BOX), (1, *BOX), (0, 0.4, 0.5, 0.5, 0.5)], "ambiguous", 1),
        ([], "empty", 1),
        (both(), "empty", 0),
    ],
)
def test_boxes_are_counted(rows, method, count):
    assert getattr(split("train", rows, both()), method)() == count
    assert getattr(split("train", both(), both()), method)() == 0


@pytest.mark.parametrize(
    ("shape", "box", "imgsz", "tiny"),
    [
        ((64, 64), (0.25, 0.25), 64, 0),  # 16 px is two cells
        ((64, 64), (0.24, 0.25), 64, 1),
        ((64, 64), (0.1, 0.9), 64, 0),  # thin and long: what counts is the area
        ((64, 128), (0.25, 0.25), 64, 1),  # 64 px is the longer side: 16 x 8 px
        ((64, 64), (0.12, 0.12), 128, 1),
        ((64, 64), (0.13, 0.13), 128, 0),
        ((64, 64), (0.0, 0.5), 64, 0),  # without area, told elsewhere
    ],
)
def test_a_box_is_tiny_by_the_size_that_the_network_sees(shape, box, imgsz, tiny):
    assert split("train", [(0, 0.5, 0.5, *box)], shape=shape).tiny(imgsz=imgsz, stride=8) == tiny


def test_classes_that_a_split_lacks_are_told():
    only = [(0, *BOX)]
    assert told(split("train", only), split("val", both()))[0].startswith(
        "warning classes: never labelled in the train split: hole; label them"
    )
    assert told(split("train", both()), split("val", only))[0].startswith(
        "warning classes: never labelled in the val split: hole; move"
    )


@pytest.mark.parametrize(("classes", "left"), [(None, [0, 1]), (1, [1]), ([0], [0]), ([], [])])
def test_classes_that_a_run_leaves_out_are_not_missed(classes, left):
    assert list(labels.asked(NAMES, classes)) == left


def test_a_class_on_few_of_many_images_is_told():
    train = split("train", both(), *([(0, *BOX)] for _ in range(30)))
    (line,) = told(train, split("val", both()))
    assert "on fewer train images than a tenth of what the median class has (16): hole (1); check" in line
    assert told(split("train", both(), *([(0, *BOX)] for _ in range(8))), split("val", both())) == []


@pytest.mark.parametrize(("empty", "level"), [(1, "note"), (3, "warning")])
def test_images_without_boxes_weigh_where_they_are_most(empty, level, monkeypatch):
    monkeypatch.setattr(labels, "_without_file", lambda split: 0)
    (line,) = told(split("train", both(), both(), *([] for _ in range(empty))), split("val", both()))
    assert line.startswith(f"{level} labels: {empty} of {2 + empty} train images have no box")


@pytest.mark.parametrize(("left_out", "level"), [(1, "warning"), (2, "no")])
def test_images_that_are_left_out_weigh_by_their_share(left_out, level):
    lost = [(f"{i}.png", "negative label values") for i in range(left_out)]
    (found,) = faults(split("train", *(both() for _ in range(10)), left_out=lost))
    assert found.level == level and f"{left_out} of {10 + left_out} train images are left out ({left_out} with" in str(
        found
    )
    assert "the first is 0.png" in found.reason


def test_what_the_scan_repairs_is_told():
    repeated, flat = faults(split("val", [(0, 0.5, 0.5, 0, 0.5)], repeated=3))
    assert "3 boxes of the val split are there twice" in repeated.reason
    assert "1 boxes of the val split have no area" in flat.reason


def test_odd_boxes_are_told():
    rows = [(0, 0.9, 0.5, 0.5, 0.5), (0, *BOX), (1, *BOX), (0, 0.1, 0.1, 0.05, 0.05)]
    said = " ".join(told(split("train", rows), split("val", both())))
    assert "1 boxes of the train split reach over the edge" in said
    assert "1 boxes of the train split are there once more with another class" in said
    assert "warning labels: 1 of 4 boxes of the train split are smaller than 16 px at imgsz=64 (2 cells of" in said


def test_sizes_are_told_only_where_they_are_known():
    train = split("train", [*both(), (0, 0.1, 0.1, 0.05, 0.05)])
    for label in train.labels:
        del label["shape"]
    assert not train.sized and told(train, split("val", both())) == []


def test_labels_without_image_and_images_without_labels(tmp_path):
    for kind in ("images", "labels"):
        (tmp_path / kind / "train").mkdir(parents=True)
    images = [tmp_path / "images" / "train" / f"{name}.png" for name in ("a", "b")]
    for image in images:
        image.touch()
    for name in ("a.txt", "gone.txt", "classes.txt", "notes.md"):
        (tmp_path / "labels" / "train" / name).touch()
    found = split("train", [], [])
    for label, image in zip(found.labels, images, strict=True):
        label["im_file"] = str(image)
    (orphan,) = without_image([found])
    assert "1 label files have no image, the first is gone.txt" in str(orphan)
    counts = found.counts(imgsz=64, stride=8)
    assert (counts["images"], counts["empty"], counts["without_file"], counts["boxes"]) == (2, 2, 1, 0)
    (labels_of_train,) = labels._empty(found)
    assert "2 of 2 train images have no box, 1 of them no label file either" in str(labels_of_train)
