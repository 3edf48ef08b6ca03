"""Terms in a step: what is added to the detection loss, whom its gradient reaches, and what draws random numbers."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel

from tests.distill.helpers import NAMES, load, make, make_batch, make_student, step
from tskd_yolo import config
from tskd_yolo.distill.distiller import Distiller
from tskd_yolo.distill.teacher import Teacher
from tskd_yolo.losses import crd

UNEQUAL = dict(drd=2.0, ded=0.5, crd=0.25)


@pytest.mark.parametrize(("model", "kind"), [("yolo11n.yaml", "11s"), ("yolo26n.yaml", "26s")])
def test_each_term_reaches_the_total_with_its_own_weight(model, kind, files):
    student, batch = make_student(model), make_batch()
    distiller = make(student, files[kind], **UNEQUAL)
    plain = make_student(model).loss(batch)
    step = distiller.attach(student, batch["img"])
    predictions = student(batch["img"])
    terms = step.losses(step.read(predictions), batch).values
    vector, items = student.loss(batch, predictions)
    branches = ["crd:one2many", "crd:one2one"] if "26" in model else ["crd:one2many"]
    assert list(terms) == ["drd", "ded", *branches] and all(t > 0 for t in terms.values())
    terms["crd"] = torch.stack([terms[name] for name in branches]).sum()
    assert len(vector) == len(plain[0]) + 3 and list(items)[-3:] == ["drd_loss", "ded_loss", "crd_loss"]
    torch.testing.assert_close(vector[:-3], plain[0])
    for index, (name, weight) in enumerate(UNEQUAL.items()):
        torch.testing.assert_close(vector[-3 + index], weight * terms[name] * 2)  # times the batch, as Ultralytics does
        torch.testing.assert_close(items[f"{name}_loss"], (weight * terms[name]).detach())
        assert not items[f"{name}_loss"].requires_grad


@pytest.mark.parametrize("off", ["drd", "ded", "crd"])
def test_a_term_of_weight_zero_is_not_computed(off, files):
    student, batch = make_student(), make_batch()
    distiller = make(student, files["11s"], **{off: 0})
    adapters = {"stages"} if off != "ded" else set()  # DRD needs none
    assert set(distiller.learned) == adapters | {"drd", "ded", "crd"} - {off}
    assert bool(distiller.readers.head.towers) == bool(distiller.teacher.reader.towers) == (off != "crd")
    vector, items = step(distiller, student, batch)
    assert items[f"{off}_loss"] == 0 and vector[-3 + ["drd", "ded", "crd"].index(off)] == 0
    assert sum(items[f"{t}_loss"] > 0 for t in ("drd", "ded", "crd")) == 2


@pytest.mark.parametrize("kind", ["11s", "26s"])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(kind, files):
    student = load(files[kind]).eval()
    student.args = get_cfg()
    batch = make_batch()
    items = step(make(student, files[kind]), student, batch)[1]
    for name in ("drd", "ded", "crd"):
        assert 0 <= items[f"{name}_loss"] < 1e-3


@pytest.mark.parametrize(("model", "kind"), [("yolo11n.yaml", "11s"), ("yolo26n.yaml", "26s")])
def test_gradient_reaches_student_and_adapters_and_no_teacher(model, kind, files, monkeypatch):
    monkeypatch.setattr(
        crd, "LOCATION_STEP", 1
    )  # where a teacher with random weights is most confident may be one level only
    student = make_student(model)
    distiller = make(student, files[kind])
    vector, _ = step(distiller, student, make_batch())
    vector[-3:].sum().backward()  # ours alone
    assert student.model[0].conv.weight.grad.any()
    for name, parameter in distiller.learned.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.dim() == 1 or parameter.grad.any(), name
    assert all(p.grad is None and not p.requires_grad for p in distiller.teacher.model.parameters())
    head = student.model[-1]
    names = ("cv2", "cv3", "one2one_cv2", "one2one_cv3") if kind == "26s" else ("cv2", "cv3")
    for tower in names:
        for layers in getattr(head, tower):
            assert layers[-1].weight.grad.any(), tower


@pytest.mark.parametrize("settings", [{}, dict(variant="paper")], ids=str)
def test_a_batch_without_boxes_gives_finite_gradients(settings, files):
    student = make_student()
    distiller = make(student, files["11s"], **settings)
    vector, items = step(distiller, student, make_batch(boxes=0))
    vector.sum().backward()
    assert all(value.isfinite() for value in items.values())
    for parameter in [*student.parameters(), *distiller.learned.parameters()]:
        assert parameter.grad is None or parameter.grad.isfinite().all()


def random_state() -> tuple:
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


@pytest.mark.parametrize("settings", [{}, dict(variant="paper")], ids=str)
def test_building_and_a_step_leave_every_random_number(settings, files):
    student, batch = make_student(), make_batch()
    values = config.build({**config.DEFAULTS, "teacher": "t.pt", **settings})
    frozen = Teacher(load(files["11s"]), like=student, names=dict(enumerate(NAMES)), responses=True)
    before = random_state()  # the student itself draws none
    distiller = Distiller(student=student, teacher=frozen, config=values, seed=3)
    step(distiller, student, batch)[0].sum().backward()
    assert random_state() == before


def test_the_seed_decides_the_first_weights(files):
    student = make_student()
    frozen = make(student, files["11s"]).teacher
    values = config.build({**config.DEFAULTS, "teacher": "t.pt"})
    states = [
        Distiller(student=student, teacher=frozen, config=values, seed=seed).learned.state_dict() for seed in (3, 3, 4)
    ]
    same = [all(torch.equal(states[0][k], other[k]) for k in states[0]) for other in states[1:]]
    assert same == [True, False]


def test_nothing_that_learns_is_in_the_student(files):
    student = make_student()
    before = list(student.state_dict())
    distiller = make(student, files["11s"])
    assert list(student.state_dict()) == before
    own = {id(p) for p in student.parameters()}
    assert not own & {id(p) for p in distiller.learned.parameters()}


def test_a_branch_that_the_teacher_lost_by_fusing_is_named(tmp_path):
    student = DetectionModel("yolo26n.yaml", nc=len(NAMES), verbose=False)
    fused = DetectionModel("yolo26s.yaml", nc=len(NAMES), verbose=False).eval()
    fused.fuse(verbose=False)  # keeps one2many only
    fused.names = dict(enumerate(NAMES))
    teacher = Teacher(fused, like=student, names=dict(enumerate(NAMES)), responses=True)
    settings = config.build({**config.DEFAULTS, "teacher": "t.pt"})
    distiller = Distiller(student=student, teacher=teacher, config=settings, seed=0)
    assert distiller.match.branches == ["one2many"] and distiller.untaught == ["one2one"]
