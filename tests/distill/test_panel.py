"""Several teachers: what they say together, and whose features are compared."""

from __future__ import annotations

import pytest
import torch

from tests.distill.helpers import NAMES, load, make, make_batch, make_student
from tskd_yolo import config
from tskd_yolo.config import ConfigError
from tskd_yolo.distill.classes import UNHEARD
from tskd_yolo.distill.distiller import Distiller
from tskd_yolo.distill.panel import LEAST
from tskd_yolo.distill.resample import average
from tskd_yolo.distill.teacher import Teacher
from tskd_yolo.losses import Response
from tskd_yolo.losses.crd import expected_distances


def together(student, files, names=NAMES, **settings) -> Distiller:
    """A distiller with a teacher for each file."""
    given = {"teacher": "t.pt", "balance": "fixed", **settings}
    classes = dict(enumerate(names))
    first, *others = (Teacher(load(file), like=student, names=classes) for file in files)
    values = config.build({**config.DEFAULTS, "drd": 1.0, **given})
    return Distiller(student=student, teacher=first, config=values, seed=3, others=others)


def answers(distiller: Distiller, images: torch.Tensor) -> list[Response]:
    """What is heard on the levels of the first branch."""
    term = next(term for term in distiller.terms if term.key == "crd")
    levels = [voice.teacher(images) for voice in distiller.panel.voices]
    return [term._response(levels, stride, (64, 64)) for stride in distiller.match.strides]


@pytest.mark.slow
@pytest.mark.parametrize("others", [["26s"], ["26s", "11s"]], ids=str)
def test_probabilities_are_the_mean_of_all(others, files):
    student, images = make_student(), make_batch()["img"]
    found = answers(together(student, [files["11s"], *(files[other] for other in others)]), images)
    each = [answers(make(make_student(), files[kind]), images) for kind in ("11s", *others)]
    for level, *alone in zip(found, *each, strict=True):
        expected = torch.stack([a.scores.sigmoid() for a in alone]).mean(dim=0)
        torch.testing.assert_close(level.scores.sigmoid(), expected, rtol=1e-3, atol=1e-5)
        assert level.boxes.shape[1] == 4 and level.box_features is not None
        sides = torch.stack([expected_distances(a.boxes.flatten(2)).view_as(level.boxes) for a in alone])
        inside = (level.boxes >= sides.amin(dim=0) - 1e-3) & (level.boxes <= sides.amax(dim=0) + 1e-3)
        assert inside.all(), "a mean lies between what each says"


def test_two_that_are_one_say_what_it_says(files):
    student, images = make_student(), make_batch()["img"]
    found = answers(together(student, [files["11s"], files["11s"]]), images)
    for level, alone in zip(found, answers(make(make_student(), files["11s"]), images), strict=True):
        torch.testing.assert_close(level.scores, alone.scores, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(
            level.boxes.flatten(2), expected_distances(alone.boxes.flatten(2)), rtol=1e-3, atol=1e-3
        )


def test_each_counts_by_its_ap_in_each_class(files):
    found = together(make_student(), [files["11s"], files["26s"]])
    assert found.panel.weights("one2many").tolist() == [[0.5] * 3] * 2
    found.panel.weigh(torch.tensor([[0.6, 0.0, 0.0], [0.2, 0.5, 0.0]]))
    weights = found.panel.weights("one2many")
    torch.testing.assert_close(weights[:, 0], torch.tensor([0.75, 0.25]))
    torch.testing.assert_close(weights[:, 1], torch.tensor([LEAST, 0.5]) / (LEAST + 0.5))
    assert weights[:, 2].tolist() == [0.5, 0.5]


def test_classes_may_be_divided_among_teachers(detector):
    student, images = make_student(), make_batch()["img"]
    one, other = detector("yolo11n.yaml", NAMES[:2]), detector("yolov8n.yaml", NAMES[1:])
    found = together(student, [one, other])
    assert found.panel.known("one2many") is None
    assert found.panel.weights("one2many").tolist() == [[1, 0.5, 0], [0, 0.5, 1]]
    names = dict(enumerate(NAMES))
    first, second = (Teacher(load(file), like=student, names=names, responses=True)(images) for file in (one, other))
    for level, stride in zip(answers(found, images), (8, 16, 32)):
        for place, theirs in ((0, first), (2, second)):
            expected = theirs[stride].responses["one2many"].scores[:, place].sigmoid()
            torch.testing.assert_close(level.scores[:, place].sigmoid(), expected, rtol=1e-3, atol=2e-6)
            assert (expected > torch.tensor(UNHEARD).sigmoid()).all()
    (term,) = [term for term in found.terms if term.key == "crd"]
    assert term.module.own is None and term.module.cross.tolist() == [0, 1], "the first one's head knows two"


def test_every_teacher_is_asked_and_features_are_the_firsts(files):
    student, batch = make_student(), make_batch()
    found = together(student, [files["11s"], files["26s"]])
    alone = make(make_student(), files["11s"])
    assert found.learned.state_dict().keys() == alone.learned.state_dict().keys()
    maps, expected = (d.teacher_outputs(batch["img"]).maps for d in (found, alone))
    assert all(torch.equal(a, b) for name in maps for a, b in zip(maps[name], expected[name], strict=True))
    found.attach(student, batch["img"])
    vector, items = student.loss(batch)
    vector[-3:].sum().backward()
    assert all(items[f"{term}_loss"] > 0 for term in ("drd", "ded", "crd"))
    assert next(student.parameters()).grad.any()
    assert all(teacher.unmoved() for teacher in found.teachers) and len(found.teachers) == 2


def test_a_branch_is_taught_by_those_that_have_it(files):
    student = make_student("yolo26n.yaml")
    found = together(student, [files["26s"], files["11s"]])
    assert found.panel.speaking("one2many") == [0, 1] and found.panel.speaking("one2one") == [0]
    assert found.panel.weights("one2one") is None and found.untaught == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kinds", "names", "words"),
    [
        (["yolo11n.yaml", "yolov8n-rtdetr.yaml"], NAMES, "an RT-DETR answers by queries, which are not averaged"),
        (["yolo11n.yaml", "yolov3-tiny.yaml"], NAMES, r"has no level for the student's strides \[8\]"),
        (["yolo11n.yaml", "yolov8n.yaml"], ("x", "y", "z"), "has no class in common with the data"),
    ],
    ids=["queries", "levels", "classes"],
)
def test_what_cannot_be_asked_together_is_refused(kinds, names, words, detector):
    with pytest.raises(ConfigError, match=words):
        together(make_student(), [detector(kind, NAMES) for kind in kinds], names)


def test_an_average_without_weights_is_the_plain_mean():
    boxes = torch.rand(2, 1, 4, 2, 2)
    said = [Response(b, torch.full((1, 3, 2, 2), s), b[:, :1], b[:, :2]) for b, s in zip(boxes, (0.0, 2.0))]
    found = average(said)
    probabilities = torch.tensor([0.5, torch.tensor(2.0).sigmoid()])
    torch.testing.assert_close(found.scores.sigmoid(), probabilities.mean().expand(1, 3, 2, 2))
    weights = (probabilities / probabilities.sum()).view(2, 1, 1, 1, 1)
    torch.testing.assert_close(found.boxes, (boxes * weights).sum(dim=0))
    assert found.box_features is said[0].box_features and average(said[:1]) is said[0]
