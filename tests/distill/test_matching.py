"""Which teacher fits which student: families of architectures, and lists of classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from ultralytics.nn.tasks import yaml_model_load

from tests.distill.helpers import NAMES, load
from tskd_yolo.distill.matching import family, mismatches

KINDS = "yolov8n.yaml", "yolo11n.yaml", "yolo26n.yaml"


@pytest.mark.parametrize("width", "nsmlx")
@pytest.mark.parametrize(
    ("stem", "name"), [("yolov8", "YOLOv8"), ("yolo11", "YOLO11"), ("yolo12", "YOLO12"), ("yolo26", "YOLO26")]
)
def test_every_width_of_a_family_is_recognised(stem, name, width):
    assert family(yaml_model_load(f"{stem}{width}.yaml")) == name


@pytest.mark.parametrize(
    "model", "yolov8n-p2 yolov8n-p6 yolov8n-ghost yolov5n yolov10n yolo11n-seg yolo26n-p2 yolo11n-cls rtdetr-l".split()
)
def test_other_architectures_belong_to_no_family(model):
    assert family(yaml_model_load(f"{model}.yaml")) is None


def test_the_family_is_read_from_what_a_built_model_carries(detector):
    for kind, name in zip(KINDS, ("YOLOv8", "YOLO11", "YOLO26"), strict=True):
        assert family(load(detector(kind, NAMES)).yaml) == name


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
        (dict(model="yolov8n.yaml"), ["YOLO11", "YOLOv8", "one family"]),
        (dict(model="yolo11n-seg.yaml"), ["model:", "not a plain"]),
        (dict(names=("crack", "pit", "rust")), ["3 classes", "crack, pit, scale", "crack, pit, rust"]),
        (dict(names=("crack", "pit")), ["3 classes", "has 2"]),
        (dict(names=("crack", "pit", "pit")), ["crack, pit, pit"]),
        (dict(names=[f"c{i}" for i in range(80)]), ["has 80", "c5, ..."]),
    ],
    ids=["family", "segmentation", "list", "count", "doubled", "many"],
)
def test_each_mismatch_is_one_sentence(change, words, unlike):
    (sentence,) = unlike(**change)
    assert all(word in sentence for word in words) and sentence.endswith(".") and "\n" not in sentence


def test_mismatches_are_told_together(unlike):
    assert len(unlike(names=("a", "b"), model="yolo26n.yaml")) == 2
