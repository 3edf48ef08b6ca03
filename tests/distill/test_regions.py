"""What the teacher sees in images without labels, and that no loss takes them for images of nothing but background."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.distill.helpers import make, make_batch, make_student
from tests.distill.test_step import waits
from tskd_yolo import confidence
from tskd_yolo.distill.features import TeacherOutputs
from tskd_yolo.distill.regions import FAINT, Seer, Together, detector, ignored, rows, see, together, without
from tskd_yolo.distill.step import boxes_of
from tskd_yolo.losses.boxes import covered, slots
from tskd_yolo.losses.crd import Target

SIZE = 64, 64
STRIDES = 8, 16, 32
LOCATIONS = 8 * 8 + 4 * 4 + 2 * 2


def said(*seen: tuple[int, int, int, float, float]) -> TeacherOutputs:
    """A teacher's outputs on three images, of which the last two have no labels.

    Args:
        *seen: Image, location, class, probability, and half the side of the box in strides.
    """
    scores = torch.full((3, 3, LOCATIONS), -12.0)
    boxes = torch.zeros(3, 4, LOCATIONS)
    for image, location, label, probability, half in seen:
        scores[image, label, location] = torch.logit(torch.tensor(probability))
        boxes[image, :, location] = half
    place = scores.amax(dim=1).topk(LOCATIONS // 8).indices
    chosen = boxes.gather(2, place.unsqueeze(1).expand(-1, 4, -1))
    return TeacherOutputs({}, {"one2many": Target(scores, place, chosen, [])})


def seer(*thresholds: float, pseudo: bool = False) -> Seer:
    return Seer(torch.tensor(thresholds or (0.5, 0.5, 0.5)), branch="one2many", strides=STRIDES, pseudo=pseudo)


def test_boxes_come_from_confident_locations_and_count_by_class():
    middle = 3 * 8 + 2  # x 20, y 28
    outputs = said((0, 5, 0, 0.99, 1.0), (1, middle, 1, 0.7, 1.0), (1, 64 + 5, 0, 0.4, 0.5), (2, 0, 2, 0.04, 1.0))
    found = seer(0.5, 0.6, 0.5)(outputs, 1, SIZE)
    assert found.xyxy.shape == (2, LOCATIONS // 8, 4)
    torch.testing.assert_close(found.xyxy[0, :2], torch.tensor([[12.0, 20, 28, 36], [16, 16, 32, 32]]))
    assert found.label[0, :2].tolist() == [1, 0] and found.sure[0].tolist() == [True, *[False] * 9]
    torch.testing.assert_close(found.weight[0, :3], torch.tensor([1.0, 0.4, 0.0]))
    assert not found.weight[1].any(), f"below {FAINT} there is nothing"
    assert not seer(0.5, 1.01, 0.5)(outputs, 1, SIZE).sure.any()


@pytest.mark.parametrize("last", [False, True])
def test_one_is_a_detector_on_the_branch_that_counts(last, files):
    """A teacher that was trained without NMS has the other branch in its checkpoint's place."""
    distiller = make(make_student(), files["26s"])
    distiller.teacher.model.end2end = last
    see(distiller, torch.full((3,), 0.5), pseudo=False)
    seen, images = detector(distiller), make_batch()["img"]
    with torch.no_grad():
        found, raw = seen(images)
    assert not seen.end2end and found.shape == (2, 4 + 3, LOCATIONS)
    torch.testing.assert_close(found[:, 4:], raw["one2many"]["scores"].sigmoid())
    assert distiller.teacher.model.end2end == last


@pytest.mark.parametrize("scale", [1, 1.5])
def test_several_are_a_detector_of_what_the_terms_hear(scale):
    outputs, asked = said((1, 3 * 8 + 2, 1, 0.7, 1.0)), []
    distiller = SimpleNamespace(seer=seer(), match=SimpleNamespace(scale=scale))
    distiller.teacher_outputs = lambda images, size: asked.append(size) or outputs
    images = torch.zeros(3, 3, round(64 * scale), round(64 * scale))
    found = Together(distiller)(images)
    assert asked == [SIZE] and found.shape == (3, 4 + 3, LOCATIONS // 8)
    best = found[1, 5].argmax()
    expected = [20 * scale, 28 * scale, 16 * scale, 16 * scale, 0, 0.7, 0]
    torch.testing.assert_close(found[1, :, best], torch.tensor(expected), atol=1e-4, rtol=1e-4)
    (row,) = confidence.look(Together(distiller))(images)[1]["conf"]
    assert row == pytest.approx(0.7)


def test_of_boxes_on_one_object_the_most_confident_is_kept():
    near = (1, 3 * 8 + 3, 1, 0.9, 3.0), (1, 3 * 8 + 4, 1, 0.8, 3.0)
    other = (1, 4 * 8 + 3, 0, 0.7, 3.0)
    found = seer()(said(*near, other), 1, SIZE)
    assert found.label[0, :2].tolist() == [1, 0] and (found.probability[0] > 0).sum() == 2


def test_boxes_are_cut_to_the_image_and_counted():
    watch = seer()
    found = watch(said((1, 0, 0, 0.9, 3.0), (2, 63, 0, 0.3, 3.0)), 1, SIZE)
    assert found.xyxy[0, 0].tolist() == [0, 0, 28, 28] and found.xyxy[1, 0].tolist() == [36, 36, 64, 64]
    assert watch.collect() == (2, 2, 1) and watch.collect() == (0, 0, 0)


def test_regions_weigh_by_confidence_beside_annotated_boxes():
    batch = {"bboxes": torch.tensor([[0.5, 0.5, 0.5, 0.5]]), "batch_idx": torch.zeros(1)}
    found = seer(0.5, 0.9, 0.5)(said((1, 9, 0, 0.8, 0.5), (2, 9, 1, 0.25, 0.5)), 1, SIZE)
    boxes = together(boxes_of(batch, images=3, size=SIZE), found, 1)
    masks = covered(boxes, 8, 8)
    assert masks.foreground[0].sum() == 16 and masks.foreground[1].sum() == 1
    torch.testing.assert_close(masks.foreground[2].sum(), torch.tensor(0.25))
    torch.testing.assert_close(masks.background, 1 - masks.foreground)
    kept, valid = slots(boxes, 8)
    torch.testing.assert_close(valid[:, 0], torch.tensor([1.0, 1.0, 0.25]))
    assert valid[:, 1:].sum() == 0 and kept.xyxy.view(3, 8, 4)[0, 0].tolist() == [16, 16, 48, 48]


def test_of_many_boxes_the_surest_are_instances():
    outputs = said(*((1, 7 * i, 0, 0.3 + 0.05 * i, 0.4) for i in range(9)), (1, 80, 1, 0.9, 0.4))
    boxes = together(boxes_of({"bboxes": torch.zeros(0, 4), "batch_idx": torch.zeros(0)}, images=2, size=SIZE),
                     seer(0.99, 0.99, 0.99)(outputs, 1, SIZE), 0)  # fmt: skip
    kept = slots(boxes, 3)[1][0]
    torch.testing.assert_close(kept, torch.tensor([0.9, 0.7, 0.65]))


# The detection loss ---------------------------------------------------------------------------------------------------


def joint(labelled: int = 3, others: int = 2, boxes: int = 4) -> dict:
    """A batch of labelled images, and of others behind them."""
    batch, more = make_batch(boxes, labelled), torch.rand(others, 3, 64, 64)
    return {**batch, "img": torch.cat((batch["img"], more)), "labelled": labelled}


def predicted(student, images, part: slice | None = None):
    """Predictions that gradients can be asked of, of some of the images."""
    with torch.no_grad():
        found = student(images)
    found = found if part is None else rows(found, part)
    for branch in branches(found):
        for key in ("boxes", "scores"):
            branch[key] = branch[key].detach().clone().requires_grad_()
    return found


def branches(predictions: dict) -> list[dict]:
    return [predictions] if "boxes" in predictions else list(predictions.values())


@pytest.mark.slow
@pytest.mark.parametrize(("model", "kind"), [("yolo11n.yaml", "11s"), ("yolo26n.yaml", "26s")])
@pytest.mark.parametrize("boxes", [0, 4])
def test_detection_is_the_same_with_or_without_others(boxes, model, kind, files):
    student, batch = make_student(model), joint(boxes=boxes)
    distiller = make(student, files[kind])
    see(distiller, torch.full((3,), 0.5), pseudo=False)
    step = distiller.attach(student, batch["img"])
    found = student(batch["img"])
    tensors = [branch[key] for branch in branches(found) for key in ("boxes", "scores")]
    alone = predicted(lambda _: rows(found, slice(3)), None)
    vector, items = step(found, batch)
    expected, known = student.criterion(alone, {**batch, "img": batch["img"][:3]})
    assert torch.equal(vector[:3], expected) and all(torch.equal(items[key], known[key]) for key in known)
    gradients = torch.autograd.grad(vector[:3].sum(), tensors)
    expected.sum().backward()
    theirs = [branch[key].grad for branch in branches(alone) for key in ("boxes", "scores")]
    for gradient, other in zip(gradients, theirs, strict=True):
        torch.testing.assert_close(gradient[:3], other, rtol=0, atol=0)
        assert not gradient[3:].any(), "no image without labels is taken for background"


@pytest.mark.slow
@pytest.mark.parametrize(("model", "kind"), [("yolo11n.yaml", "11s"), ("yolo26n.yaml", "26s")])
@pytest.mark.parametrize("settings", [{}, dict(crd=0), dict(drd=0, ded=0)], ids=["all", "maps", "responses"])
@pytest.mark.parametrize("others", [1, 2])
def test_the_terms_reach_the_student_through_both_kinds(others, settings, model, kind, files):
    student, batch = make_student(model), joint(others=others)
    distiller = make(student, files[kind], **settings)
    see(distiller, torch.full((3,), 0.5), pseudo=True)
    distiller.attach(student, batch["img"])
    vector, items = student.loss(batch)
    vector.sum().backward()
    assert vector.isfinite().all() and all(items[f"{term}_loss"] > 0 for term in distiller.on)
    assert all(p.grad is None or p.grad.isfinite().all() for p in student.parameters())
    assert distiller.seer.collect()[0] == others


def test_a_batch_of_either_kind_alone_is_a_batch(files):
    student = make_student()
    distiller = make(student, files["11s"])
    see(distiller, torch.full((3,), 0.5), pseudo=True)
    whole = make_batch(4, 3)
    distiller.attach(student, whole["img"])
    expected, _ = student.loss(whole)
    distiller.attach(student, whole["img"])
    given, _ = student.loss({**whole, "labelled": 3})
    torch.testing.assert_close(given, expected)


@pytest.mark.slow
@pytest.mark.parametrize("thresholds", [0.001, 0.5])
def test_our_part_does_not_wait_for_the_device(thresholds, files):
    student, batch = make_student(), joint()
    distiller = make(student, files["11s"])
    see(distiller, torch.full((3,), thresholds), pseudo=False)
    waits(distiller, student, batch)  # the first step makes the grid of locations
    assert waits(distiller, student, batch) == []


# Confident boxes as labels --------------------------------------------------------------------------------------------


def test_what_is_uncertain_is_neither_object_nor_background():
    inside = 3 * 8 + 3  # of the sure box, whose middle it is
    outputs = said((1, inside, 1, 0.9, 1.0), (1, 7, 1, 0.3, 1.5), (1, 56, 0, 0.1, 0.1), (1, 62, 2, 0.04, 1.0))
    watch = seer()
    found = watch(outputs, 1, SIZE)
    place = ignored(outputs.responses["one2many"].scores[1:], found, watch.points(SIZE, torch.device("cpu"))[0])
    assert not place[0, 1, inside] and place[0, 1, 7] and place[0, 0, 56] and not place[0, 2, 62]
    assert place[0, 1, 6] and place[0, 1, 15], "cells that an uncertain box covers"
    assert not place[0, 0, 7] and not place[0, 1, 40] and not place[1].any()


def test_uncertain_places_have_no_gradient_and_sure_ones_have(files):
    student, batch = make_student(), joint(boxes=0)
    student.criterion = student.init_criterion()
    outputs = said((1, 27, 1, 0.9, 1.5), (1, 7, 1, 0.3, 1.0))
    watch = seer(pseudo=True)
    found = watch(outputs, 1, SIZE)
    predictions = predicted(student, batch["img"][:2])
    vector = watch.detection(student.criterion, predictions, {**batch, "img": batch["img"][:3]}, outputs, found)
    vector.sum().backward()
    scores = predictions["scores"].grad
    assert scores[0, 1, 7] == 0 and scores[0, 0, 7] > 0, "not of that class, background of the others"
    assert scores[0, 1].min() < 0 and predictions["boxes"].grad[0].abs().sum() > 0, "the sure box is an object"
    assert not predictions["boxes"].grad[1].any() and (scores[1] > 0).all(), "the other image is background"


def test_of_a_class_that_no_teacher_knows_nothing_is_said(files):
    student, batch = make_student(), joint(boxes=0)
    student.criterion = student.init_criterion()
    outputs = said((1, 27, 1, 0.9, 1.5))
    watch = Seer(torch.full((3,), 0.5), branch="one2many", strides=STRIDES, pseudo=True, known=[1, 2])
    found = watch(outputs, 1, SIZE)
    predictions = predicted(student, batch["img"][:2])
    vector = watch.detection(student.criterion, predictions, {**batch, "img": batch["img"][:3]}, outputs, found)
    vector.sum().backward()
    scores = predictions["scores"].grad
    assert not scores[:, 0].any() and scores[0, 1].min() < 0 and (scores[1, 1:] > 0).all()


def test_an_image_of_which_all_is_uncertain_adds_nothing(files):
    student = make_student()
    student.criterion = student.init_criterion()
    predictions = predicted(student, torch.rand(2, 3, 64, 64))
    place = torch.ones(2, 3, LOCATIONS, dtype=torch.bool)
    batch = {"img": torch.zeros(2, 3, 64, 64), "cls": torch.zeros(0, 1), "bboxes": torch.zeros(0, 4),
             "batch_idx": torch.zeros(0)}  # fmt: skip
    vector, _ = student.criterion(without(predictions, place), batch)
    assert vector.sum() < 1e-6
