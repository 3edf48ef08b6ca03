"""CRD: the teacher's head as a judge of the student's activations, and the student's own response beside it."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import generalized_box_iou

from tests.losses.test_drd import NoHostSync
from tskd_yolo.losses.crd import (
    CRD,
    LOCATION_STEP,
    OVERLAP,
    Response,
    box_distance,
    expected_distances,
    overlap,
    quality_focal,
)
from tskd_yolo.losses.tails import Tails
from tskd_yolo.rounding import ceil_div

PARTS = "cross_class", "cross_box", "own_class", "own_box"
CLASSES = 3


class Scene:
    """Two levels of random responses, tails with a hidden layer or without, a teacher that outputs through them."""

    def __init__(self, n=2, c=16, c_student=None, grid=20, bins=8, seed=0, tied=True, hidden=True):
        torch.manual_seed(seed)
        c_student = c_student or c
        self.hidden = hidden
        self.widths = [((c_student, c), (c_student, c))] * 2
        self.tails = [Tails(self._tail(c, 4 * bins), self._tail(c, CLASSES)) for _ in range(2)]
        self.teacher, self.student = [], []
        for tail, size in zip(self.tails, (grid, grid // 2)):
            features = torch.randn(2, n, c, size, size)
            outputs = tail.box(features[0]), tail.score(features[1])
            if bins == 1:
                outputs = outputs[0] * 0.3 + 2, outputs[1]  # distances in strides
            if not tied:
                outputs = torch.randn_like(outputs[0]), torch.randn_like(outputs[1])
            self.teacher.append(Response(*outputs, *features))
            boxes = torch.randn(n, 4 * bins, size, size)
            boxes = boxes * 0.3 + 2 if bins == 1 else boxes
            more = torch.randn(2, n, c_student, size, size)
            self.student.append(Response(boxes, torch.randn(n, CLASSES, size, size), *more))

    def _tail(self, c: int, out: int) -> nn.Module:
        hidden = [nn.Conv2d(c, c, 3, padding=1), nn.SiLU()] if self.hidden else []
        return nn.Sequential(*hidden, nn.Conv2d(c, out, 1)).requires_grad_(False)

    def outputs(self, **change) -> dict:
        return {"student": self.student, "teacher": self.teacher, "tails": self.tails, **change}


def leaves(responses: list[Response]) -> list[Response]:
    return [Response(*(t.detach().clone().requires_grad_() for t in r)) for r in responses]


@pytest.fixture(params=[True, False], ids=["hidden layer", "linear tail"])
def scene(request) -> Scene:
    return Scene(hidden=request.param)


def test_the_loss_is_the_sum_of_its_unequal_parts(scene):
    loss = CRD(scene.widths)
    terms = loss.terms(**scene.outputs())
    assert tuple(terms) == PARTS
    assert len({round(float(v), 4) for v in terms.values()}) == 4 and all(v > 0 for v in terms.values())
    torch.testing.assert_close(loss(**scene.outputs()), sum(terms.values()))


def test_the_parts_are_the_formula_location_by_location():
    scene = Scene(n=1, grid=4)
    terms = CRD(scene.widths).terms(**scene.outputs())
    own_class = divisor = 0.0
    boxes = []
    for s, t in zip(scene.student, scene.teacher):
        for y in range(t.scores.shape[2]):
            for x in range(t.scores.shape[3]):
                confidence = t.scores[0, :, y, x].sigmoid()
                divisor += float(confidence.max())
                p = s.scores[0, :, y, x].sigmoid()
                bce = -(confidence * p.log() + (1 - confidence) * (1 - p).log())
                own_class += float(((p - confidence).abs() * bce).sum())
                sides = [r.boxes[0, :, y, x].view(4, -1).softmax(1) for r in (t, s)]
                distance = float((sides[0] * (sides[0] / sides[1]).log()).sum(1).mean())
                meant = [decoded((side @ torch.arange(float(side.shape[1])))[None]) for side in sides]
                distance += OVERLAP * (1 - float(generalized_box_iou(*meant)))
                boxes.append((float(confidence.max()), distance))
    most_confident = sorted(boxes, reverse=True)[: ceil_div(len(boxes), LOCATION_STEP)]
    own_box = sum(w * distance for w, distance in most_confident)
    assert len(boxes) > len(most_confident) == 3
    assert float(terms["own_class"]) == pytest.approx(own_class / divisor, rel=1e-4)
    assert float(terms["own_box"]) == pytest.approx(own_box / divisor, rel=1e-4)


@pytest.mark.parametrize(
    ("part", "reached"),
    [("cross_class", "class_features"), ("cross_box", "box_features"), ("own_class", "scores"), ("own_box", "boxes")],
)
def test_each_part_reaches_its_own_tensor_of_every_level_only(part, reached, scene):
    loss, student = CRD(scene.widths), leaves(scene.student)
    loss.terms(**scene.outputs(student=student))[part].backward()
    alone = [getattr(s, reached).grad for s in student]
    for s in student:
        for name in Response._fields:
            gradient = getattr(s, name).grad
            assert (gradient is not None and gradient.any()) == (name == reached)
    total = leaves(scene.student)
    loss(**scene.outputs(student=total)).backward()
    for s, gradient in zip(total, alone):
        torch.testing.assert_close(getattr(s, reached).grad, gradient)  # in full strength through the total


@pytest.mark.parametrize("hidden", [True, False])
@pytest.mark.parametrize("bins", [1, 8])
def test_every_part_falls_to_zero_on_the_way_to_the_teacher(bins, hidden):
    scene = Scene(bins=bins, hidden=hidden)
    if bins == 1:  # the cross response must say what the teacher says, distances included
        for tail in scene.tails:
            tail.box.append(Affine(0.3, 2))
    loss, values = CRD(scene.widths), []
    for alpha in (0, 0.5, 0.9, 1):
        student = [
            Response(*(torch.lerp(a, b, alpha) for a, b in zip(s, t))) for s, t in zip(scene.student, scene.teacher)
        ]
        values.append(loss.terms(**scene.outputs(student=student)))
    for part in PARTS:
        a, b, c, d = (float(v[part]) for v in values)
        assert a > b > c > d
        assert d == pytest.approx(0, abs=1e-5 if part.startswith("cross") else 1e-6)


class Affine(nn.Module):
    def __init__(self, factor: float, offset: float) -> None:
        super().__init__()
        self.factor, self.offset = factor, offset

    def forward(self, x):
        return x * self.factor + self.offset


@pytest.mark.parametrize("hidden", [True, False])
def test_gradient_reaches_student_and_adapters_but_no_teacher(hidden):
    scene = Scene(c_student=8, hidden=hidden)
    loss, student, teacher = CRD(scene.widths), leaves(scene.student), leaves(scene.teacher)
    loss(**scene.outputs(student=student, teacher=teacher)).backward()
    assert all(t.grad.abs().sum() > 0 for s in student for t in s)
    assert len(list(loss.parameters())) == 4 and all(p.grad.abs().sum() > 0 for p in loss.parameters())
    assert all(t.grad is None for r in teacher for t in r)
    assert all(p.grad is None for tail in scene.tails for part in (tail.box, tail.score) for p in part.parameters())


def mean_terms(**shape) -> dict[str, float]:
    values = []
    for seed in range(3):
        scene = Scene(**shape, seed=seed, tied=False)
        values.append(CRD(scene.widths).terms(**scene.outputs()))
    return {part: float(torch.stack([v[part] for v in values]).mean()) for part in PARTS}


@pytest.mark.parametrize("shape", [dict(c=64), dict(grid=40), dict(n=8)], ids=str)
def test_unrelated_responses_give_one_value_at_any_size(shape):
    base, other = mean_terms(), mean_terms(**shape)
    for part in PARTS:
        assert other[part] == pytest.approx(base[part], rel=0.15)


@pytest.mark.parametrize("factor", [1e-2, 300.0])
def test_scaling_or_shifting_tower_activations_changes_nothing(factor, scene):
    loss = CRD(scene.widths)
    moved = [
        s._replace(box_features=s.box_features * factor - factor, class_features=s.class_features * factor + 3 * factor)
        for s in scene.student
    ]
    before, after = loss.terms(**scene.outputs()), loss.terms(**scene.outputs(student=moved))
    for part in PARTS:
        assert float(after[part]) == pytest.approx(float(before[part]), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bins", [1, 8])
@pytest.mark.parametrize("hidden", [True, False])
def test_large_half_precision_tensors_in_autocast_stay_finite(dtype, bins, hidden):
    scene = Scene(c_student=8, bins=bins, hidden=hidden)
    student = leaves([Response(*((t * 300).to(dtype) for t in s)) for s in scene.student])
    teacher = [Response(*(t.to(dtype) for t in r)) for r in scene.teacher]
    tails = [Tails(tail.box.to(dtype), tail.score.to(dtype)) for tail in scene.tails]
    loss = CRD(scene.widths)
    with torch.autocast("cpu", dtype):
        value = loss(student=student, teacher=teacher, tails=tails)
    value.backward()
    assert value.dtype == torch.float32 and value.isfinite()
    assert all(t.grad.isfinite().all() for s in student for t in s)
    assert all(p.grad.isfinite().all() for p in loss.parameters())


def test_a_teacher_that_sees_only_background_gives_a_small_loss(scene):
    silent = [t._replace(scores=torch.full_like(t.scores, -20.0)) for t in scene.teacher]
    student = leaves(scene.student)
    terms = CRD(scene.widths).terms(**scene.outputs(student=student, teacher=silent))
    assert all(v.isfinite() for v in terms.values())
    assert terms["own_box"] < 1e-4  # no location is confident, so no box counts
    sum(terms.values()).backward()
    assert all(t.grad.isfinite().all() for s in student for t in s)


@pytest.mark.parametrize("c_student", [16, 8])
@pytest.mark.parametrize("grid", [2, 4])
@pytest.mark.parametrize("hidden", [True, False])
def test_levels_of_a_single_pixel_of_a_single_image_stay_finite(grid, c_student, hidden):
    scene = Scene(n=1, grid=grid, c_student=c_student, hidden=hidden)  # the second level has half the size
    student, loss = leaves(scene.student), CRD(scene.widths)
    loss(**scene.outputs(student=student)).backward()
    assert all(t.grad is None or t.grad.isfinite().all() for s in student for t in s)
    assert all(p.grad.isfinite().all() for p in loss.parameters())


def test_no_part_of_it_waits_for_the_device():
    for bins, hidden in ((1, False), (8, True), (8, False)):
        scene = Scene(c_student=8, bins=bins, hidden=hidden)
        loss, student = CRD(scene.widths), leaves(scene.student)
        with NoHostSync():
            loss(**scene.outputs(student=student)).backward()


# The functions --------------------------------------------------------------------------------------------------------


def test_quality_focal_of_two_scores_by_hand():
    # sig(0) = 1/2 against sig(ln 3) = 3/4: |1/2 - 3/4| * ln 2; sig(ln 3) against sig(0): 1/4 * (ln(4/3) + ln 4) / 2
    value = quality_focal(torch.tensor([[0.0, math.log(3)]]), torch.tensor([[math.log(3), 0.0]]))
    assert float(value) == pytest.approx(math.log(2) / 4 + (math.log(4 / 3) + math.log(4)) / 8, rel=1e-6)


def test_quality_focal_is_zero_at_and_falls_towards_the_teacher():
    logits = torch.tensor([[-2.0, 3.0, 2.0]], requires_grad=True)
    value = quality_focal(logits, torch.tensor([[-2.0, 1.0, 5.0]]))
    value.backward()
    assert logits.grad[0, 0] == 0 and logits.grad[0, 1] > 0 > logits.grad[0, 2]
    assert quality_focal(logits, logits) == 0


def test_box_distance_of_distributions_is_torchs_kl_divergence():
    student, teacher = torch.randn(2, 4 * 8, 5), torch.randn(2, 4 * 8, 5)
    for n in range(2):
        for a in range(5):
            s, t = (x[n, :, a].view(4, 8) for x in (student, teacher))
            kl = F.kl_div(s.log_softmax(1), t.log_softmax(1), reduction="none", log_target=True).sum(1).mean()
            torch.testing.assert_close(box_distance(student, teacher)[n, a], kl, rtol=1e-4, atol=1e-6)


def decoded(sides: torch.Tensor) -> torch.Tensor:
    """Boxes around the point (50, 50) from left, top, right, bottom distances ``(A, 4)``."""
    return torch.cat((50 - sides[:, :2], 50 + sides[:, 2:]), dim=1)


def test_box_distance_of_plain_distances_is_torchvisions_giou():
    student, teacher = torch.rand(1, 4, 40) * 5, torch.rand(1, 4, 40) * 5
    student[..., 20:] -= torch.tensor([0, 0, 9.0, 0]).view(4, 1)  # the point may lie outside its own box
    student[:, 0, 20:] += 9.5
    expected = 1 - generalized_box_iou(decoded(student[0].T), decoded(teacher[0].T)).diag()
    torch.testing.assert_close(box_distance(student, teacher)[0], expected, rtol=1e-4, atol=1e-5)


def test_overlap_of_distributions_is_giou_of_expected_distances():
    student, teacher = torch.randn(2, 4 * 8, 5), torch.randn(2, 4 * 8, 5)
    bins = torch.arange(8.0)
    for n in range(2):
        s, t = ((x[n].view(4, 8, 5).softmax(1) * bins[:, None]).sum(1) for x in (student, teacher))
        expected = generalized_box_iou(decoded(s.T), decoded(t.T)).diag()
        torch.testing.assert_close(overlap(student, teacher)[n], expected, rtol=1e-4, atol=1e-5)


def test_box_distance_of_degenerate_boxes_is_finite():
    sides = torch.tensor([[1.0, 2, 3, 4], [0, 0, 0, 0], [-3, -3, 1, 1], [1e4, 1e4, 1e4, 1e4]]).T.unsqueeze(0)
    sides.requires_grad_()
    distance = box_distance(sides, torch.ones(1, 4, 4))
    distance.sum().backward()
    assert distance.isfinite().all() and sides.grad.isfinite().all()
    assert box_distance(sides, sides).abs().max() < 1e-5


@pytest.mark.parametrize("bins", [1, 8])
def test_cross_boxes_of_larger_cells_are_longer_in_the_students(bins):
    scene, units = Scene(bins=bins), (1.0, 2.5)
    loss = CRD(scene.widths)
    target = loss.target(scene.teacher)
    _, before = loss.cross_response(scene.student, target, scene.tails)
    _, after = loss.cross_response(
        scene.student, target, [t._replace(unit=u) for t, u in zip(scene.tails, units, strict=True)]
    )
    first = scene.student[0].boxes[0, 0].numel()
    unit = torch.where(target.place < first, *map(torch.tensor, units)).unsqueeze(1)
    assert after.shape[1] == 4 and unit.unique().tolist() == list(units)
    torch.testing.assert_close(after, unit * expected_distances(before))


def test_a_class_that_counts_nothing_teaches_nothing():
    scene = Scene(tied=False)
    score = [level.scores.requires_grad_() for level in scene.student]
    module = CRD(scene.widths)
    plain = module.terms(student=scene.student, teacher=scene.teacher, tails=scene.tails)
    ones = module.terms(student=scene.student, teacher=scene.teacher, tails=scene.tails, weights=torch.ones(CLASSES))
    assert all(torch.allclose(plain[part], ones[part]) for part in PARTS)
    only = torch.tensor([0.0, 2.0, 0.0])
    weighed = module.terms(student=scene.student, teacher=scene.teacher, tails=scene.tails, weights=only)
    gradients = torch.autograd.grad(weighed["own_class"], score)
    assert all(g[:, [0, 2]].abs().sum() == 0 and g[:, 1].abs().sum() > 0 for g in gradients)
    assert 0 < weighed["own_box"] < 2 * plain["own_box"]
