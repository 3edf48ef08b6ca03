"""What of a student corresponds to what of its teacher: architectures, levels and stages."""

from __future__ import annotations

import pytest
from ultralytics.nn.tasks import yaml_model_load

from tests.distill.helpers import NAMES, load, make, make_student
from tskd_yolo.distill.matching import Match, no_student


@pytest.mark.parametrize(
    "model", "yolo11n-cls yolo26n-sem yolo26n-depth yoloe-11s-seg yolov8n-worldv2 rtdetr-l".split()
)
def test_a_student_without_a_plain_head_is_refused(model):
    given = yaml_model_load(f"{model}.yaml")
    (sentence,) = no_student(given)
    assert given["head"][-1][2] in sentence and model in sentence and sentence.startswith("model: ")
    assert sentence.endswith("ends in Detect, Segment, Pose or OBB, such as yolo11n.yaml.") and "\n" not in sentence


@pytest.mark.parametrize("model", "yolov3-tiny yolov5n-p6 yolov6n yolov8x-p2 yolov9t yolov10n yolo12x yolo26n".split())
def test_plain_detectors_of_every_family_may_learn(model):
    assert no_student(yaml_model_load(f"{model}.yaml")) == []


@pytest.mark.parametrize("family", ["v8", "11", "12", "26"])
@pytest.mark.parametrize("task", ["seg", "pose", "obb"])
def test_models_of_every_task_may_learn(family, task):
    assert no_student(yaml_model_load(f"yolo{family}n-{task}.yaml")) == []


def without_stages(layers: int):
    """A student whose backbone is taken to end after some layers."""
    student = make_student()
    student.yaml = {**student.yaml, "backbone": student.yaml["backbone"][:layers]}
    return student


def test_a_stage_that_one_backbone_lacks_is_left_out(detector):
    match = Match(student=without_stages(5), teacher=teacher(detector), entry_stage=1)
    assert match.stages.strides == match.teacher_stages.strides == [4, 8] and match.unpaired_stages == [16]
    assert [(pair.stride, pair.spatial_step) for pair in match.early_stages()] == [(4, 2), (8, 2)]


def test_without_any_common_stage_ded_is_off(detector):
    found = make(without_stages(1), detector("yolo11n.yaml", NAMES))
    assert list(found.on) == ["drd", "crd"]
    assert found.left_out == {"ded": "no stage of stride 4, 8, 16 is in both backbones"}


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
    assert match.stages.strides == match.teacher_stages.strides == [4, 8, 16]  # of equal depth


def teacher(detector):
    return load(detector("yolo11n.yaml", NAMES))
