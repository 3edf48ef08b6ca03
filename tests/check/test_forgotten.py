"""Labels that were forgotten, by what the teacher is sure of."""

from __future__ import annotations

import numpy as np
import pytest

from tskd_yolo.check.forgotten import of_detections
from tskd_yolo.confidence import LEAST, Detections

NAMES = {0: "pit", 1: "scale"}


def detections(*classes: tuple[int, int]) -> Detections:
    """Per class how many sure detections are right and how many are not."""
    right = np.concatenate([np.repeat([True, False], counts) for counts in classes])
    label = np.repeat(np.arange(len(classes)), [sum(counts) for counts in classes])
    return Detections(np.full(len(label), 0.9, np.float32), right, label, np.full(len(classes), 50))


def test_a_class_that_is_found_and_not_labelled_is_told():
    (finding,) = of_detections(val=detections((48, 2), (30, 0)), train=detections((38, 2), (20, 20)), names=NAMES)
    assert finding.level == "warning" and finding.about == "labels" and "scale (20 of 40)" in finding.reason
    assert "pit" not in finding.reason.split(": ")[1]


@pytest.mark.parametrize(
    ("val", "train"),
    [
        (detections((48, 2), (30, 0)), detections((38, 2), (30, 10))),
        (detections((48, 2), (20, 20)), detections((38, 2), (20, 20))),
        (detections((48, 2), (30, 0)), detections((38, 2), (0, LEAST - 1))),
    ],
    ids=["some mistakes", "a class on which the teacher is never right often enough", "too few to say anything"],
)
def test_what_may_be_the_teachers_mistake_is_not_told(val, train):
    assert of_detections(val=val, train=train, names=NAMES) == []
