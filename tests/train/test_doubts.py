"""What speaks against a run before its first step: sentences by score, by class, and by images in both splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tskd_yolo.data.duplicates import Twin
from tskd_yolo.data.labels import Split
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
    assert [f.about for f in found] == ["splits"] and "(1 the same file; such as b.png, in train a.png)" in str(*found)
