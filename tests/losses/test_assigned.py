"""Queries against a student's responses: which query speaks, where, and what is left of it without any box."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from ultralytics.utils.tal import TaskAlignedAssigner

from tskd_yolo.losses import Response
from tskd_yolo.losses.assigned import (
    Assigned,
    AssignedResponse,
    Queries,
    anchors,
    as_assigned,
    nothing_assigned,
    overlaps,
    spoken,
)
from tskd_yolo.losses.crd import box_distance

SIZE, STRIDES, CLASSES = (32, 64), (8, 16), 3
CELLS, CPU = [(4, 8), (2, 4)], torch.device("cpu")
LOCATIONS = 4 * 8 + 2 * 4


def scene(images: int = 2, bins: int = 1) -> SimpleNamespace:
    """A student of two levels, annotated boxes, what is assigned, and queries near the boxes."""
    random = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random)

    student = [
        Response(
            draw(images, 4 * bins, h, w), draw(images, CLASSES, h, w), draw(images, 2, h, w), draw(images, 2, h, w)
        )
        for h, w in ((SIZE[0] // s, SIZE[1] // s) for s in STRIDES)
    ]
    corner = torch.rand(images, 4, 2, generator=random) * 20
    boxes = torch.cat((corner, corner + 8 + 10 * torch.rand(images, 4, 2, generator=random)), dim=2)
    near = (boxes + draw(images, 4, 4)).repeat(1, 3, 1) / torch.tensor([64, 32, 64, 32])
    place = torch.randint(0, 4, (images, LOCATIONS), generator=random)
    scale = torch.rand(images, LOCATIONS, generator=random) * (torch.rand(images, LOCATIONS, generator=random) > 0.6)
    return SimpleNamespace(
        student=student, teacher=Queries(near, draw(images, 12, CLASSES)), assigned=Assigned(boxes, place, scale)
    )  # fmt: skip


def loss(given: SimpleNamespace) -> torch.Tensor:
    return AssignedResponse()(**vars(given), strides=STRIDES, size=SIZE)


@pytest.mark.parametrize("bins", [1, 16])
def test_it_is_what_loops_over_images_and_locations_give(bins):
    given, total, weights = scene(bins=bins), torch.zeros(()), torch.zeros(())
    points, steps = anchors(CELLS, STRIDES, CPU)
    for image in range(2):
        boxes = torch.cat([level.boxes[image].flatten(1) for level in given.student], dim=1)
        scores = torch.cat([level.scores[image].flatten(1) for level in given.student], dim=1)
        queries = given.teacher.boxes[image] * torch.tensor([64, 32, 64, 32])
        probabilities = given.teacher.scores[image].sigmoid()
        confidence = probabilities.amax(dim=1)
        for a in range(LOCATIONS):
            box, scale = given.assigned.boxes[image, given.assigned.place[image, a]], given.assigned.scale[image, a]
            iou = overlaps(box.view(1, 1, 4), queries.unsqueeze(0))[0, 0]
            best = (confidence**0.5 * iou**6).argmax()
            if scale == 0 or iou[best] < 0.5:
                continue
            target = probabilities[best] * scale
            entropy = F.binary_cross_entropy_with_logits(scores[:, a], target, reduction="none")
            total += confidence[best] * ((scores[:, a].sigmoid() - target).abs() * entropy).sum()
            x, y = points[a]
            sides = torch.stack(
                (x - queries[best, 0], y - queries[best, 1], queries[best, 2] - x, queries[best, 3] - y)
            )
            distance = box_distance(boxes[:, a].view(1, -1, 1), (sides / steps[a]).view(1, 4, 1), 5)
            total += confidence[best] * scale * distance.sum()
            weights += confidence[best] * scale
    assert weights > 1
    torch.testing.assert_close(loss(given), total / weights)


def test_a_student_that_says_what_the_queries_say_has_no_loss():
    given = scene()
    said = spoken(given.teacher, given.assigned.boxes, SIZE)
    place = given.assigned.place.unsqueeze(2)
    probability, corners, _ = (x.gather(1, place.expand(-1, -1, x.shape[2])) for x in said)
    scores = torch.logit(probability * given.assigned.scale.unsqueeze(2), eps=1e-12).transpose(1, 2)
    points, steps = anchors(CELLS, STRIDES, CPU)
    boxes = (torch.cat((points - corners[..., :2], corners[..., 2:] - points), dim=2) / steps).transpose(1, 2)
    parts = zip(given.student, scores.split([32, 8], dim=2), boxes.split([32, 8], dim=2))
    given.student = [s._replace(scores=p.view_as(s.scores), boxes=b.view_as(s.boxes)) for s, p, b in parts]
    assert loss(given) < 1e-4


def test_a_sure_query_speaks_and_not_its_unsure_double():
    boxes = torch.tensor([[[8.0, 8, 24, 24]]])
    queries = torch.tensor([[[8.0, 8, 24, 24], [8, 8, 24, 23], [30, 2, 40, 12]]]) / torch.tensor([64, 32, 64, 32])
    scores = torch.tensor([[[-6.0, -6, -6], [-6, 2, -6], [4, 4, 4]]])
    probability, corners, sure = spoken(Queries(queries, scores), boxes, SIZE)
    torch.testing.assert_close(corners[0, 0], torch.tensor([8.0, 8, 24, 23]))
    torch.testing.assert_close(probability[0, 0], scores[0, 1].sigmoid())
    torch.testing.assert_close(sure[0, 0, 0], torch.tensor(2.0).sigmoid())


def test_a_box_that_no_query_covers_by_half_teaches_nothing():
    given = scene()
    far = given.teacher._replace(boxes=torch.tensor([0.9, 0.9, 1.0, 1.0]).expand(2, 12, 4))
    given.teacher = far
    assert spoken(far, given.assigned.boxes, SIZE)[2].abs().max() == 0 and loss(given) == 0


@pytest.mark.parametrize("kind", ["no box", "not asked"])
def test_without_an_assigned_box_loss_and_gradient_are_zero(kind):
    given = scene()
    levels = [level.scores for level in given.student]
    if kind == "not asked":
        given.assigned = nothing_assigned(levels)
    else:
        none = torch.zeros(2, 0, 4)
        inputs = (torch.rand(2, LOCATIONS, CLASSES), torch.rand(2, LOCATIONS, 4), anchors(CELLS, STRIDES, CPU)[0])
        assigner = TaskAlignedAssigner(num_classes=CLASSES, stride=list(STRIDES))
        given.assigned = as_assigned(
            (*inputs, none[..., :1], none), assigner(*inputs, none[..., :1], none, none[..., :1])
        )
    tensors = [t.requires_grad_() for level in given.student for t in level[:2]]
    value = loss(given)
    gradients = torch.autograd.grad(value, tensors)
    assert value == 0 and all(g.abs().max() == 0 for g in gradients)


def test_what_is_assigned_is_read_off_ultralytics_assigner():
    given = scene()
    points = anchors(CELLS, STRIDES, CPU)[0]
    labels, there = torch.zeros(2, 4, 1), torch.ones(2, 4, 1)
    boxes = given.assigned.boxes
    predicted = boxes[:, torch.arange(LOCATIONS) % 4]
    inputs = (torch.rand(2, LOCATIONS, CLASSES), predicted, points, labels, boxes, there)
    _, targets, scores, foreground, _ = outputs = TaskAlignedAssigner(num_classes=CLASSES, stride=list(STRIDES))(
        *inputs
    )
    found = as_assigned(inputs, outputs)
    assert foreground.any() and torch.equal(found.scale > 0, foreground & (scores.sum(2) > 0))
    chosen = found.boxes.gather(1, found.place.unsqueeze(2).expand(-1, -1, 4))
    assert torch.equal(chosen[foreground], targets[foreground])


def test_a_batch_counts_as_its_images_do():
    """Images are kept apart: each alone, weighed by its divisor, gives the whole."""
    whole = scene()
    whole.teacher = whole.teacher._replace(scores=whole.teacher.scores + 4)  # sure of more than one location each

    def only(i: int) -> SimpleNamespace:
        student = [Response(*(t[i : i + 1] for t in level)) for level in whole.student]
        return SimpleNamespace(
            student=student,
            teacher=Queries(*(t[i : i + 1] for t in whole.teacher)),
            assigned=Assigned(*(t[i : i + 1] for t in whole.assigned)),
        )

    def divisor(given: SimpleNamespace) -> torch.Tensor:
        sure = spoken(given.teacher, given.assigned.boxes, SIZE)[2].squeeze(2)
        return (sure.gather(1, given.assigned.place) * given.assigned.scale).sum()

    parts = [only(0), only(1)]
    total = sum(loss(part) * divisor(part) for part in parts)
    assert all(divisor(part) > 1 for part in parts)
    torch.testing.assert_close(loss(whole), total / divisor(whole))
