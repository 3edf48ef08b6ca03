"""One step: what is added to the detection loss, whom its gradient reaches, and what is left behind."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel

from tests.helpers import make_detector
from tskd_yolo import config
from tskd_yolo.distill.distiller import Distiller
from tskd_yolo.distill.step import boxes_of
from tskd_yolo.distill.teacher import Teacher, load
from tskd_yolo.distill.terms import level_weights
from tskd_yolo.losses import crd

NAMES = "crack", "pit", "scale"
UNEQUAL = dict(drd=2.0, ded=0.5, crd=0.25)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("teachers")
    return {kind: make_detector(folder / f"{kind}.pt", f"yolo{kind}.yaml", NAMES) for kind in ("11s", "26s")}


def make_student(model: str = "yolo11n.yaml") -> DetectionModel:
    torch.manual_seed(1)
    student = DetectionModel(model, nc=3, verbose=False)
    student.args = get_cfg()
    return student.train()


def make(student, file: Path, **settings) -> Distiller:
    values = config.build({**config.DEFAULTS, "balance": "fixed", "teacher": str(file), **settings})
    frozen = Teacher(load(file), like=student, names=dict(enumerate(NAMES)))
    return Distiller(student=student, teacher=frozen, config=values, seed=3)


def make_batch(boxes: int = 3, images: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {
        "img": torch.rand(images, 3, 64, 64, generator=generator),
        "cls": torch.arange(boxes).view(-1, 1).float() % 3,
        "bboxes": torch.rand(boxes, 4, generator=generator) * 0.3 + 0.3,
        "batch_idx": (
            torch.arange(boxes) * images // max(boxes, 1)
        ).float(),  # grouped by image, as Ultralytics collates
    }


def step(distiller: Distiller, student, batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    distiller.attach(student, batch["img"])
    return student.loss(batch)


def hooks(*models) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for model in models for m in model.modules())


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
    where = {"drd": "neck", "ded": "stages"}
    assert set(distiller.learned) == {"neck", "stages", "drd", "ded", "crd"} - {off, where.get(off)}
    assert bool(distiller.readers.head.towers) == bool(distiller.teacher.reader.towers) == (off != "crd")
    vector, items = step(distiller, student, batch)
    assert items[f"{off}_loss"] == 0 and vector[-3 + ["drd", "ded", "crd"].index(off)] == 0
    assert sum(items[f"{t}_loss"] > 0 for t in ("drd", "ded", "crd")) == 2


@pytest.mark.parametrize(("settings", "layers"), [({}, 1), (dict(variant="paper"), 2)], ids=["default", "paper"])
def test_the_cross_response_runs_through_one_layer_or_two(settings, layers, files):
    distiller = make(make_student(), files["11s"], **settings)
    (term,) = [term for term in distiller.terms if term.key == "crd"]
    assert [[len(part) for part in tail] for tail in term.tails] == [[layers, layers]] * 3
    assert distiller.readers.head.entry_stage == distiller.teacher.reader.entry_stage == 2 - layers


def test_responses_alone_need_no_adapter_on_the_neck(files):
    distiller = make(make_student(), files["11s"], drd=0, ded=0)
    assert set(distiller.learned) == {"crd"}


@pytest.mark.parametrize("settings", [{}, dict(variant="paper")], ids=["default", "paper"])
def test_a_step_gives_the_criterion_back_and_leaves_no_hook(settings, files):
    student, batch = make_student(), make_batch()
    student.criterion = student.init_criterion()
    own = student.criterion
    distiller = make(student, files["11s"], **settings)
    step = distiller.attach(student, batch["img"])
    assert student.criterion is step
    student.loss(batch)
    assert student.criterion is own
    assert hooks(student, distiller.teacher.model, own.assigner) == 0
    assert step.teacher is None and not step.capture.caught


def test_a_step_that_never_came_is_undone(files):
    student, batch = make_student(), make_batch()
    distiller = make(student, files["11s"])
    for _ in range(2):
        distiller.attach(student, batch["img"])
    distiller.detach()
    assert type(student.criterion).__name__ == "v8DetectionLoss" and hooks(student, distiller.teacher.model) == 0
    vector, items = student.loss(batch)
    assert "drd_loss" not in items


@pytest.mark.parametrize("kind", ["11s", "26s"])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(kind, files):
    student = load(files[kind]).eval()
    student.args = get_cfg()
    batch = make_batch()
    items = step(make(student, files[kind]), student, batch)[1]
    for name in ("drd", "ded", "crd"):
        assert 0 <= items[f"{name}_loss"] < 1e-3


@pytest.mark.parametrize("graph", ["fixed", "trained"])
@pytest.mark.parametrize(("model", "kind"), [("yolo11n.yaml", "11s"), ("yolo26n.yaml", "26s")])
def test_gradient_reaches_student_and_adapters_and_no_teacher(model, kind, graph, files, monkeypatch):
    monkeypatch.setattr(
        crd, "LOCATION_STEP", 1
    )  # where a teacher with random weights is most confident may be one level only
    student = make_student(model)
    distiller = make(student, files[kind], graph=graph)
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


@pytest.mark.parametrize("settings", [{}, dict(graph="trained"), dict(variant="paper")], ids=str)
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


@pytest.mark.parametrize("settings", [{}, dict(graph="trained"), dict(variant="paper")], ids=str)
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


def test_levels_are_paired_by_stride_and_the_rest_is_reported(files):
    student, batch = make_student("yolov8n-p2.yaml"), make_batch()
    distiller = make(student, files["11s"])
    assert distiller.match.strides == [8, 16, 32] and distiller.match.unpaired == [4]
    assert len(distiller.pairs("neck")) == 3
    vector, items = step(distiller, student, batch)
    vector.sum().backward()
    assert all(items[f"{t}_loss"] > 0 and items[f"{t}_loss"].isfinite() for t in ("drd", "ded", "crd"))


def test_evenly_spaced_channels_of_the_teacher_are_compared(files):
    student, batch = make_student(), make_batch()
    for settings, steps, widths in (
        ({}, [2, 4, 8], [64, 64, 64]),
        (dict(variant="paper"), [1, 1, 1], [128, 256, 512]),
    ):
        distiller = make(student, files["11s"], **settings)
        assert [pair.channel_step for pair in distiller.pairs("neck")] == steps
        assert all(isinstance(a, nn.Conv2d) for a in distiller.learned["neck"])  # though as many as ours
        cut, whole = distiller.teacher_outputs(batch["img"]).maps["neck"], distiller.teacher(batch["img"])
        assert [m.shape[1] for m in cut] == widths
        for found, stride, step in zip(cut, distiller.match.strides, steps, strict=True):
            assert torch.equal(found, whole[stride].features[:, ::step])
            assert found.untyped_storage().nbytes() == found.nbytes  # the rest is forgotten


def test_a_level_where_the_teacher_finds_nothing_teaches_nothing(files):
    student, batch = make_student(), make_batch()
    for settings, silent in (({}, True), (dict(variant="paper"), False)):
        distiller = make(student, files["11s"], drd=1, ded=1, crd=0, **settings)
        for layers in distiller.teacher.head.cv3[1:]:
            layers[-1].bias.fill_(-50.0)
        step = distiller.attach(student, batch["img"])
        predictions = student(batch["img"])
        terms = step.losses(step.read(predictions), batch).values
        found = torch.autograd.grad(sum(terms.values()), predictions["feats"])
        assert found[0].norm() > 0
        assert [bool(g.norm() < 1e-9 * found[0].norm()) for g in found[1:]] == [silent, silent]
        distiller.detach()


def test_ded_compares_backbone_stages_or_in_the_paper_the_neck(files):
    student, batch = make_student(), make_batch()
    for settings, place, sizes in (
        ({}, "stages", [(64, 8), (64, 4), (64, 4)]),
        (dict(variant="paper"), "neck", [(128, 8), (256, 4), (512, 2)]),
    ):
        distiller = make(student, files["11s"], drd=0, crd=0, **settings)
        maps = distiller.teacher_outputs(batch["img"]).maps
        assert [(m.shape[1], m.shape[2]) for m in maps[place]] == sizes
        assert list(maps) == [place] and set(distiller.learned) == {place, "ded"}


def test_a_term_is_left_out_where_all_that_it_teaches_is_frozen(files):
    student, batch = make_student(), make_batch()
    distiller = make(student, files["11s"])
    student.model[6].cv2.conv.weight.requires_grad_(True)
    for layer in student.model[:6]:
        layer.requires_grad_(False)
    assert distiller.leave_out_frozen() == []
    student.model[6].requires_grad_(False)
    assert distiller.leave_out_frozen() == ["ded"] and list(distiller.on) == ["drd", "crd"]
    items = step(distiller, student, batch)[1]
    assert items["ded_loss"] == 0 and items["drd_loss"] > 0 and items["crd_loss"] > 0
    assert distiller.leave_out_frozen() == []


def test_weights_of_levels_add_up_to_one():
    scores = torch.tensor([[6.0, 1.0], [2.0, 1.0]])
    assert torch.equal(level_weights(scores), torch.tensor([0.8, 0.2]))
    assert level_weights(torch.zeros(0, 2)).tolist() == [0, 0]


def test_nothing_that_learns_is_in_the_student(files):
    student = make_student()
    before = list(student.state_dict())
    distiller = make(student, files["11s"], graph="trained")
    assert list(student.state_dict()) == before
    own = {id(p) for p in student.parameters()}
    assert not own & {id(p) for p in distiller.learned.parameters()}


def test_boxes_of_gives_pixel_corners_on_an_oblong_image():
    batch = {
        "bboxes": torch.tensor([[0.5, 0.5, 0.5, 0.25], [0.25, 0.75, 0.1, 0.5]]),
        "batch_idx": torch.tensor([1.0, 0.0]),
    }
    boxes = boxes_of(batch, images=2, size=(64, 128))
    torch.testing.assert_close(boxes.xyxy, torch.tensor([[32.0, 24, 96, 40], [25.6, 32, 38.4, 64]]))
    assert boxes.image.tolist() == [1, 0] and (boxes.images, boxes.size) == (2, (64, 128))
    none = boxes_of({"bboxes": torch.zeros(0, 4), "batch_idx": torch.zeros(0)}, images=2, size=(64, 64))
    assert none.xyxy.shape == (0, 4) and none.image.shape == (0,)


def test_boxes_of_image_numbers_in_half_precision_are_read():
    batch = {"bboxes": torch.tensor([[0.5, 0.5, 1.0, 1.0]]).half(), "batch_idx": torch.tensor([[1.0]])}
    boxes = boxes_of(batch, images=2, size=(64, 96))
    assert boxes.xyxy.dtype == torch.float32 and boxes.xyxy.tolist() == [[0, 0, 96, 64]] and boxes.image.shape == (1,)


def test_a_branch_that_the_teacher_lost_by_fusing_is_named(tmp_path):
    student = DetectionModel("yolo26n.yaml", nc=len(NAMES), verbose=False)
    fused = DetectionModel("yolo26s.yaml", nc=len(NAMES), verbose=False).eval()
    fused.fuse(verbose=False)  # keeps one2many only
    fused.names = dict(enumerate(NAMES))
    teacher = Teacher(fused, like=student, names=dict(enumerate(NAMES)), responses=True)
    settings = config.build({**config.DEFAULTS, "teacher": "t.pt"})
    distiller = Distiller(student=student, teacher=teacher, config=settings, seed=0)
    assert distiller.match.branches == ["one2many"] and distiller.untaught == ["one2one"]
