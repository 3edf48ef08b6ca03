"""Every kind of teacher with every kind of student: a table, two steps each.

In every pair every map and every level's responses have a loss, its gradient reaches the student, and the teacher is
what it was.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from ultralytics.utils.ops import xyxy2xywh

from tests.distill.helpers import NAMES, make, make_batch, make_student
from tskd_yolo.distill.matching import task_of
from tskd_yolo.losses import crd
from tskd_yolo.settings_files import resolve


class Pairing(NamedTuple):
    """A teacher, a student, and what is expected of them: strides of levels and stages that both have, branches.

    ``names`` are the classes that the teacher knows, ``known`` those of the student's among them, by number.
    """

    teacher: str
    student: str
    levels: list[int]
    unpaired: list[int] = []
    branches: int = 1
    stages: list[int] = [4, 8, 16]
    names: tuple[str, ...] = NAMES
    known: list[int] = [0, 1, 2]
    soak: bool = False  # others show its kind of teacher, its kind of student and its levels

    def __str__(self) -> str:
        return f"{self.teacher} to {self.student}" + (f" of {len(self.names)} classes" if self.names != NAMES else "")


P3_P5 = [8, 16, 32]
PAIRS = [
    Pairing("yolov5n", "yolo26n", P3_P5),
    Pairing("yolov8n", "yolov9t", P3_P5),
    Pairing("yolov9t", "yolov10n", P3_P5),
    Pairing("yolov10n", "yolo11n", P3_P5),
    Pairing("yolo11n", "yolo12n", P3_P5),
    Pairing("yolo12n", "yolov5n", P3_P5),
    Pairing("yolo26n", "yolov8n", P3_P5),
    Pairing("yolo26n", "yolov10n", P3_P5, branches=2),
    Pairing("yolov8n-rtdetr", "yolo11n", P3_P5, soak=True),
    Pairing("yolov8n-rtdetr", "yolo26n-p2", P3_P5, [4], branches=2, soak=True),
    Pairing("yolov8n-p2", "yolo11n", P3_P5, [4], soak=True),
    Pairing("yolo11n", "yolov8n-p2", P3_P5, [4], soak=True),
    Pairing("yolo26n-p2", "yolov8n-p2", [4, *P3_P5]),
    Pairing("yolov8n-p6", "yolo26n", P3_P5, [64]),
    Pairing("yolo26n", "yolov5n-p6", P3_P5, [64]),
    Pairing("yolo11n", "yolov3-tiny", [16, 32], [8]),
    Pairing("yolov3-tiny", "yolo11n", [16, 32], [8], soak=True),
    Pairing("yolov8n", "yolo11n", P3_P5, names=NAMES[1:], known=[1, 2]),
    Pairing("yolo11n", "yolo26n", P3_P5, names=("dent", *NAMES[::-1], "hole")),
    Pairing("yolo26n", "yolo26n", P3_P5, branches=2, names=("dent", "PIT"), known=[1]),
    Pairing("yolov8n-rtdetr", "yolo11n", P3_P5, names=("hole", "Scale"), known=[2]),
    Pairing("timm-resnet50", "timm-resnet18", P3_P5, soak=True),
    Pairing("timm-resnet50", "yolo11n", P3_P5),
    Pairing("yolo11s", "timm-mobilenetv4_conv_small", P3_P5),
    Pairing("timm-vit_small_patch16_dinov3", "yolo11n", P3_P5, stages=[8, 16]),
    Pairing("yolo11n", "timm-convnext_atto", P3_P5),
    Pairing("yolov8n-seg", "yolo11n-seg", P3_P5),
    Pairing("yolo26n-seg", "yolo26n-seg", P3_P5, branches=2, names=("dent", *NAMES[::-1])),
    Pairing("yolo11n-pose", "yolo26n-pose", P3_P5),
    Pairing("yolo26n-pose", "yolov8n-pose", P3_P5, soak=True),
    Pairing("yolov8n-obb", "yolo11n-obb", P3_P5, names=NAMES[1:], known=[1, 2]),
    Pairing("yolo26n-obb", "yolo26n-obb", P3_P5, branches=2, soak=True),
]


def yaml_of(name: str) -> str:
    """The YAML of a detector: Ultralytics' by its name, ours by its path."""
    found = {"model": f"{name}.yaml"}
    resolve(found)
    return found["model"]


def batch_of(distiller: Any) -> dict[str, torch.Tensor]:
    """Images with boxes; where the teacher has queries, with those that it finds, so that it has something to say.

    And with what labels of other tasks have besides: an angle, two key points, masks.
    """
    batch = make_batch(boxes=4)
    batch["keypoints"] = torch.cat((batch["bboxes"][:, None, :2].expand(-1, 2, -1), torch.ones(4, 2, 1)), dim=2)
    batch["masks"] = batch["sem_masks"] = torch.ones(2, 32, 32)
    if task_of(distiller.teacher.model) == "obb":
        batch["bboxes"] = torch.cat((batch["bboxes"], torch.tensor([[0.3], [0.6], [-0.4], [1.2]])), dim=1)
    batch["img"] = torch.nn.functional.interpolate(batch["img"], (128, 128))
    if distiller.match.queries:
        found = distiller.teacher(batch["img"]).queries.boxes.clamp(0.02, 0.98)
        chosen = xyxy2xywh(found[:, :2]).flatten(0, 1)
        batch["bboxes"] = torch.cat((chosen[:, :2], chosen[:, 2:].clamp(min=0.05)), dim=1)
        batch["batch_idx"] = torch.tensor([0.0, 0, 1, 1])
    return batch


def parts_of(distiller: Any, step: Any, student: Any, batch: Any) -> tuple[dict[str, list[float]], Any]:
    """Values of every part of every term in a step, and the student's loss."""
    found: dict[str, list[float]] = {}
    for term in distiller.active:
        before = term.total

        def total(values, teacher, before=before, name=term.name):
            found[name] = [value.item() for value in values]
            return before(values, teacher)

        term.total = total
    vector, _ = student.loss(batch, student(batch["img"]))
    for term in distiller.active:
        del term.total
    return found, vector


def levels_reached(distiller: Any, student: Any, batch: Any) -> dict[str, list[bool]]:
    """By branch, whether the responses of each of the student's compared levels get a gradient of CRD."""
    step = distiller.attach(student, batch["img"])
    predictions = student(batch["img"])
    if distiller.match.queries:
        step.criterion(predictions, batch)
    outputs, reached = step.read(predictions), {}
    for term in distiller.active:
        if term.key == "crd":
            responses = outputs.responses[term.branch]
            value = term(student=outputs, teacher=step.teacher, boxes=boxes(batch))
            gradients = torch.autograd.grad(value, [r.scores for r in responses], retain_graph=True)
            reached[term.branch] = [bool(g.any()) for g in gradients]
    distiller.detach()
    return reached


def boxes(batch: Any) -> Any:
    from tskd_yolo.distill.step import boxes_of

    return boxes_of(batch, images=len(batch["img"]), size=(128, 128))


@pytest.mark.slow
@pytest.mark.parametrize("pair", [pytest.param(p, id=str(p), marks=[pytest.mark.soak] * p.soak) for p in PAIRS])
def test_every_pair_is_taught_on_every_level_it_has(pair, detector, monkeypatch):
    monkeypatch.setattr(crd, "LOCATION_STEP", 1)  # a random teacher may be surest on one level only
    student = make_student(yaml_of(pair.student))
    distiller = make(student, detector(yaml_of(pair.teacher), pair.names))
    match, batch = distiller.match, batch_of(distiller)
    assert (match.strides, match.unpaired, match.stages.strides) == (pair.levels, pair.unpaired, pair.stages)
    assert len(match.branches) == pair.branches and distiller.left_out == {}
    assert distiller.teacher.classes.known == pair.known
    optimizer = torch.optim.SGD([*student.parameters(), *distiller.learned.parameters()], lr=1e-3)
    for _ in range(2):
        step = distiller.attach(student, batch["img"])
        parts, vector = parts_of(distiller, step, student, batch)
        assert [len(parts[key]) for key in ("drd", "ded")] == [len(pair.levels), len(pair.stages)]
        assert len(parts) == 2 + pair.branches and all(0 < value < 1e4 for part in parts.values() for value in part)
        optimizer.zero_grad()
        vector[-3:].sum().backward()  # ours alone
        assert next(p for p in student.parameters() if p.dim() == 4).grad.any(), "of the very first layer"
        assert all(p.grad is not None and p.grad.isfinite().all() for p in distiller.learned.parameters())
        optimizer.step()
    reached = levels_reached(distiller, student, batch)
    assert all(any(levels) if match.queries else all(levels) for levels in reached.values()) and reached
    assert distiller.teacher.unmoved() and all(p.grad is None for p in distiller.teacher.model.parameters())


def test_every_family_is_once_teacher_and_once_student():
    families = {"v5", "v8", "v9", "v10", "11", "12", "26"}

    def of(role: str) -> set[str]:
        return {f for pair in PAIRS for f in families if getattr(pair, role).startswith((f"yolo{f}n", f"yolo{f}t"))}

    assert of("teacher") == of("student") == families
