"""A teacher without a detection head: its maps teach DRD and DED, and CRD is off."""

from __future__ import annotations

import pytest
import torch

from tests.distill.helpers import NAMES, make_batch, make_student, step
from tskd_yolo import ConfigError, config
from tskd_yolo.distill.classes import match
from tskd_yolo.distill.distiller import Distiller
from tskd_yolo.distill.feature_model import FeatureModel
from tskd_yolo.distill.feature_teacher import FeatureTeacher
from tskd_yolo.distill.records import pack, unpack

STUDENT = "yolo11n.yaml"


def made(student: torch.nn.Module, name: str, **settings: object) -> Distiller:
    """A distiller whose teacher is a timm model with random weights."""
    torch.manual_seed(6)
    teacher = FeatureTeacher(FeatureModel(name), like=student, classes=match({}, dict(enumerate(NAMES))))
    values = {**config.DEFAULTS, "drd": 1.0, "balance": "fixed", "teacher": f"timm:{name}", **settings}
    return Distiller(student=student, teacher=teacher, config=config.build(values), seed=3)


@pytest.mark.parametrize(
    ("name", "levels", "unpaired", "stages"),
    [
        ("test_resnet", {8: 48, 16: 192, 32: 96}, [], {4: 32, 8: 48, 16: 192}),
        ("test_vit", {16: 64}, [8, 32], {16: 64}),
    ],
)
def test_maps_teach_at_the_strides_that_they_have(name, levels, unpaired, stages):
    student = make_student(STUDENT)
    distiller = made(student, name)
    assert distiller.left_out == {"crd": "the teacher has no detection head; its maps teach DRD and DED"}
    assert {pair.stride: pair.teacher for pair in distiller.pairs("neck")} == levels
    assert {pair.stride: pair.teacher for pair in distiller.pairs("stages")} == stages
    assert distiller.match.unpaired == unpaired and distiller.untaught == [] and distiller.match.headless
    for _ in range(2):
        student.zero_grad()
        vector, items = step(distiller, student, make_batch())
        assert items["drd_loss"] > 0 and items["ded_loss"] > 0 and items["crd_loss"] == 0
        vector[-3:].sum().backward()  # ours alone
        assert next(student.parameters()).grad.any(), "of the very first layer"
        assert all(p.grad is not None and p.grad.isfinite().all() for p in distiller.learned.parameters())
    assert distiller.teacher.unmoved() and all(p.grad is None for p in distiller.teacher.model.parameters())


@pytest.mark.parametrize("variant", ["paper", "hints"])
def test_other_variants_take_it_too(variant):
    student = make_student(STUDENT)
    _, items = step(made(student, "test_resnet", variant=variant), student, make_batch())
    assert items["drd_loss"] > 0 and items["ded_loss"] > 0 and items["crd_loss"] == 0


def test_levels_of_a_teacher_without_scores_weigh_the_same():
    student = make_student(STUDENT)
    distiller = made(student, "test_resnet")
    outputs = distiller.teacher_outputs(make_batch()["img"])
    assert outputs.level_scores is None and outputs.responses == {}
    source = distiller.source("neck")
    assert source.total([torch.tensor(v) for v in (1.0, 2.0, 6.0)], outputs) == 3


def test_its_outputs_can_be_kept():
    student, batch = make_student(STUDENT), make_batch()
    distiller = made(student, "test_vit")
    _, items = step(distiller, student, batch)
    kept = unpack(pack(distiller.teacher_outputs(batch["img"])))
    distiller.cache = lambda images, batch, teacher: kept
    distiller.attach(student, batch["img"], batch)
    _, again = student.loss(batch)
    for term in ("drd_loss", "ded_loss"):
        torch.testing.assert_close(items[term], again[term], rtol=0.02, atol=1e-4)


def test_it_is_frozen_has_a_size_and_no_detector():
    student = make_student(STUDENT)
    teacher = made(student, "test_vit").teacher
    teacher.measure(64)
    assert teacher.params == sum(p.numel() for p in teacher.model.parameters()) and 0 < teacher.gflops < 1
    assert not any(p.requires_grad for p in teacher.model.parameters()) and not teacher.model.training
    with pytest.raises(TypeError, match="timm:test_vit has no detection head"):
        teacher.detector()
    teacher.cast(torch.bfloat16)
    levels = teacher(torch.rand(1, 3, 64, 64))
    assert levels[16].features.dtype == torch.bfloat16 and teacher.unmoved()


def test_a_student_of_grey_images_is_taught_by_it():
    student = make_student(STUDENT)
    teacher = made(student, "test_vit").teacher
    grey = torch.rand(1, 1, 64, 64)
    assert torch.equal(teacher(grey)[16].features, teacher(grey.expand(-1, 3, -1, -1))[16].features)


def test_a_larger_image_is_paired_by_position():
    student = make_student(STUDENT)
    teacher = made(student, "test_vit").teacher
    values = config.build({**config.DEFAULTS, "drd": 1.0, "balance": "fixed", "teacher": "timm:test_vit"})
    distiller = Distiller(student=student, teacher=teacher, config=values, seed=3, scale=2.0)
    assert [(pair.stride, pair.teacher_stride) for pair in distiller.pairs("neck")] == [(8, 16), (16, 16)]
    batch = make_batch()
    large = torch.nn.functional.interpolate(batch["img"], (128, 128))
    distiller.attach(student, batch["img"], None, large)
    assert student.loss(batch)[1]["drd_loss"] > 0


def test_it_teaches_alone():
    student = make_student(STUDENT)
    teacher = made(student, "test_vit").teacher
    values = config.build({**config.DEFAULTS, "drd": 1.0, "teacher": "timm:test_vit"})
    with pytest.raises(ConfigError, match="timm:test_vit has no detection head and no response to average; give it al"):
        Distiller(student=student, teacher=teacher, others=[teacher], config=values, seed=3)
