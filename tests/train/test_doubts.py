"""What speaks against a run before its first step: sentences by score, by class, and by images in both splits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tskd_yolo import confidence
from tskd_yolo.confidence import Detections
from tskd_yolo.data.duplicates import Twin
from tskd_yolo.data.labels import Split
from tskd_yolo.distill.likeness import Distances
from tskd_yolo.findings import Finding
from tskd_yolo.train import doubts

NAMES = {0: "dent", 1: "<b>"}


def score(value: float, *classes: float | None) -> dict:
    rows = [None if v is None else {"AP50": v, "AP50-95": v / 2} for v in classes or (value, value)]
    return {"metrics/mAP50(B)": value, "metrics/mAP50-95(B)": value, "classes": rows}


@pytest.mark.parametrize(
    ("taught", "known", "larger", "words"),
    [
        (score(0.8), {}, True, []),
        (score(0.8), score(0.5), True, []),
        (score(0.8, 0.9, None), {}, True, []),
        (score(0.01), {}, True, ["no: it finds next to nothing on this validation set (mAP50 0.010); give one"]),
        (score(0.4, 0.8, 0.01), {}, True, ["warning: it hardly finds <b> (AP50 below 0.05)"]),
        (score(0.5), score(0.5), True, ["warning: it is no better than the student already is (0.500 against 0.500"]),
        (score(0.8), {}, False, ["warning: it is not larger than the student"]),
        (score(0.01), score(0.5), False, ["no: it finds next", "warning: it is no better", "warning: it is not lar"]),
    ],
)
def test_what_speaks_against_a_teacher_is_said(taught, known, larger, words):
    found = doubts.of_scores(taught, known, larger=larger, names=NAMES)
    said = [f"{f.level}: {f.reason}; {f.remedy}" for f in found]
    assert len(said) == len(words) and all(line.startswith(word) for word, line in zip(words, said, strict=True))
    assert all(f.about == "teacher" and f.remedy for f in found)


@pytest.mark.parametrize(
    ("values", "known", "said"),
    [
        ((0.3,), ([0, 1],), False),
        ((0.3, 0.33), ([0, 1], [1, 0]), False),
        ((0.3, 0.1), ([0, 1], [0, 1]), False),
        ((0.3, 0.4), ([0, 1], [0, 1]), True),
        ((0.3, 0.4), ([0], [1]), False),  # of other classes
    ],
)
def test_the_first_of_several_should_be_the_best(values, known, said):
    found = doubts.of_order([score(value) for value in values], known)
    assert [f.level for f in found] == ["warning"] * said
    assert not said or "is not the best (0.300 against 0.400 mAP50-95); give the best one first" in str(found[0])


@pytest.mark.parametrize(("count", "level"), [(0, None), (1, "warning"), (5, "warning"), (6, "no")])
def test_images_in_both_splits_weigh_by_their_share(count, level):
    same = [Twin(f"/val/{i}.png", f"/train/{i}.png", 1.0) for i in range(count)]
    found = doubts.of_twins(same[:2], same[2:], images=100)
    assert [f.level for f in found] == ([level] if level else [])
    if count == 6:
        assert "6 of 100 val images are in train too (2 the same file, 4 nearly the same picture; such as" in str(
            *found
        )


def test_data_is_looked_at_without_decoding_a_picture(tmp_path):
    files = [tmp_path / name for name in ("a.png", "b.png")]
    for file in files:
        Path(file).write_bytes(b"no picture")
    labels = [
        {"im_file": str(f), "shape": (64, 64), "cls": np.zeros((1, 1)), "bboxes": np.full((1, 4), 0.5)} for f in files
    ]
    found = doubts.of_data(Split("train", labels[:1]), Split("val", labels[1:]), names={0: "a"}, imgsz=64, stride=8)
    assert [f.about for f in found] == ["splits"] and "(1 the same file; such as b.png, there a.png)" in str(*found)


# Images without labels ------------------------------------------------------------------------------------------------


def test_images_in_a_split_are_counted_and_val_is_a_warning():
    assert doubts.of_leaks({"train": [], "val": []}) == []
    note, warning = doubts.of_leaks({"train": [("u/a.png", "t/b.png")], "val": [("u/c.png", "v/d.png")] * 3})
    assert (note.level, note.remedy) == ("note", "") and note.reason.startswith("1 images are in train too")
    assert warning.level == "warning" and "3 images are in val too" in warning.reason and warning.remedy
    assert warning.reason.endswith("(such as c.png, in val d.png)")


def test_images_unlike_the_training_set_are_warned_of():
    own, names = np.linspace(1, 2, 100), [f"x/{i}.png" for i in range(100)]
    assert doubts.of_likeness(Distances(own, own + 0.1), names) == []
    (found,) = doubts.of_likeness(Distances(own, own * 3), names)
    assert found.level == "warning" and found.reason.startswith("100% of a sample look unlike")
    assert "(distances at the 50th and 95th percentile 4.50 and 5.85, of training images 1.50 and 1.95;" in found.reason
    assert found.reason.endswith("the farthest are 99.png, 98.png, 97.png)")


def test_a_teacher_whose_scores_say_something_else_is_warned_of():
    generator = np.random.default_rng(0)
    score = generator.uniform(0.1, 1, 4000).astype(np.float32)
    right, label = generator.uniform(size=4000) < score, np.arange(4000) % 2
    truths = np.array([3000, 3000])
    assert doubts.of_confidence(None) == []
    calibrated = confidence.of(Detections(score, right, label, truths), NAMES)
    assert doubts.of_confidence(calibrated) == []
    (found,) = doubts.of_confidence(confidence.of(Detections(np.sqrt(score), right, label, truths), NAMES))
    assert "is not calibrated (expected calibration error" in found.reason and "at a temperature of" in found.reason
    few = confidence.of(Detections(score[:6], right[:6], label[:6], truths), NAMES)
    assert doubts.of_confidence(few)[-1].reason == (
        "no score is known from which on the precision is 0.9: dent (3 detections on the validation set are too few "
        "(10 are needed)), <b> (3 detections on the validation set are too few (10 are needed))"
    )


def test_a_name_that_is_no_text_can_be_told_and_written():
    found = Finding("warning", "unlabelled", "the farthest are a\udcff.png")
    assert str(found).encode("utf-8").endswith(b"a\\udcff.png.")
    assert json.dumps(found.row(), ensure_ascii=False).encode("utf-8")
