"""Which teacher fits which student: architectures, levels and stages, and lists of classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from ultralytics.nn.tasks import yaml_model_load

from tests.distill.helpers import NAMES, load
from tskd_yolo.distill.matching import Match, mismatches


@pytest.mark.parametrize("model", "yolo11n-seg yolo11n-cls yolov8n-worldv2 rtdetr-l yolo26n-obb".split())
def test_a_student_without_a_plain_head_is_refused(model, detector):
    known = load(detector("yolo11n.yaml", NAMES))
    given = yaml_model_load(f"{model}.yaml")
    (sentence,) = mismatches(student_yaml=given, teacher=known, names=dict(enumerate(NAMES)))
    assert given["head"][-1][2] in sentence and "give one that ends in Detect" in sentence


@pytest.fixture
def unlike(detector) -> Callable[..., list[str]]:
    """The mismatches of a student with a YOLO11n that knows NAMES."""

    def found(names: Sequence[str] = NAMES, model: str = "yolo11n.yaml") -> list[str]:
        known = load(detector("yolo11n.yaml", NAMES))
        return mismatches(student_yaml=yaml_model_load(model), teacher=known, names=dict(enumerate(names)))

    return found


def test_a_teacher_that_fits_has_no_mismatch_in_any_class_order(unlike):
    assert unlike() == []
    assert unlike(names=NAMES[::-1]) == []
    assert unlike(names=[n.upper() for n in NAMES]) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(model="yolo11n-seg.yaml"), ["model:", "no plain detector"]),
        (dict(names=("crack", "pit", "rust")), ["3 classes", "crack, pit, scale", "crack, pit, rust"]),
        (dict(names=("crack", "pit")), ["3 classes", "has 2"]),
        (dict(names=("crack", "pit", "pit")), ["crack, pit, pit"]),
        (dict(names=[f"c{i}" for i in range(80)]), ["has 80", "c5, ..."]),
    ],
    ids=["segmentation", "list", "count", "doubled", "many"],
)
def test_each_mismatch_is_one_sentence(change, words, unlike):
    (sentence,) = unlike(**change)
    assert all(word in sentence for word in words) and sentence.endswith(".") and "\n" not in sentence


def test_mismatches_are_told_together(unlike):
    assert len(unlike(names=("a", "b"), model="yolo26n-seg.yaml")) == 2


@pytest.mark.parametrize(
    ("scale", "levels"),
    [
        (1.0, {8: 8, 16: 16, 32: 32}),
        (1.75, {8: 16, 16: 32, 32: 32}),
        (2.0, {8: 16, 16: 32, 32: 32}),
        (4.0, {8: 32, 16: 32}),
    ],
)
def test_every_level_that_a_larger_image_reaches_is_paired(scale, levels, detector):
    network = load(detector("yolo11n.yaml", NAMES))
    match = Match(student=network, teacher=network, entry_stage=1, scale=scale)
    assert match.levels == levels and all(match.heard[stride] for stride in levels)
