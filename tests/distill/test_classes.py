"""Which of a teacher's classes is which of the student's, and what a teacher says in the student's classes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.distill.helpers import NAMES, load, make_batch, make_student
from tskd_yolo import config
from tskd_yolo.config import ConfigError
from tskd_yolo.distill.classes import CAP, UNHEARD, Union, folded, match, only, only_of_one, read, wrong
from tskd_yolo.distill.distiller import Distiller
from tskd_yolo.distill.teacher import Teacher


def named(names) -> dict[int, str]:
    return dict(enumerate(names))


CASES = {
    "the same": ("a b c", "a b c", {}, [[0], [1], [2]], []),
    "another order": ("a b c", "c a b", {}, [[2], [0], [1]], []),
    "the teacher knows more": ("a b c", "c a", {}, [[2], [0]], ["b"]),
    "the teacher knows less": ("a c", "a b c", {}, [[0], [], [1]], []),
    "some in common": ("x a y", "b a", {}, [[], [1]], ["x", "y"]),
    "case, blanks, dashes folded": ("Rolled-in_Scale B", "b rolled_in-scale", {}, [[1], [0]], []),
    "by map": ("pit dent", "hole crack", {"pit": "hole"}, [[0], []], ["dent"]),
    "several into one": ("pit dent hole", "hole", {"pit": "hole", "dent": "hole"}, [[0, 1, 2]], []),
    "dropped": ("pit hole", "pit hole", {"pit": None}, [[], [1]], ["pit"]),
    "the map goes before the name": ("a b", "a b", {"a": "b", "b": "a"}, [[1], [0]], []),
    "map folded": ("Deep-Pit x", "hole x", {"deep pit": "HOLE"}, [[0], [1]], []),
    "spelled twice": ("Pit pit", "pit", {}, [[1, 0]], []),
    "twice on both sides": ("Pit crack pit", "pit crack Pit", {}, [[2], [1], [0]], []),
    "nothing": ("a b", "x y", {}, [[], []], ["a", "b"]),
}


@pytest.mark.parametrize("case", CASES)
def test_classes_are_brought_together(case):
    theirs, ours, mapping, members, lost = CASES[case]
    found = match(named(theirs.split()), named(ours.split()), mapping)
    assert (found.members, found.lost) == (members, lost)
    assert found.known == [place for place, outputs in enumerate(members) if outputs]
    assert found.alike == (case in {"the same", "map folded"})
    assert wrong(mapping, named(theirs.split()), named(ours.split())) == []


def test_one_class_is_all_of_the_teachers_but_those_dropped():
    assert match(named("abc"), {0: "item"}, single=True).members == [[0, 1, 2]]
    found = match(named("abc"), {0: "item"}, {"b": None}, single=True)
    assert found.members == [[0, 2]] and found.lost == ["b"]


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (" Crack", "crack", True),
        ("rolled-in_scale", "Rolled in scale", True),
        ("a  b", "a_b", True),
        ("ab", "a b", False),
    ],
)
def test_names_fold_by_case_blanks_and_dashes(a, b, same):
    assert (folded(a) == folded(b)) == same


def test_what_is_told_of_classes():
    def told(theirs: str, ours: str, mapping=None) -> list[str]:
        return match(named(theirs.split()), named(ours.split()), mapping).told()

    assert told("a b", "a b") == []
    assert told("a b", "c b", {"a": "c"})[1] == "mapped: a -> c"
    many = match(named(f"c{i}" for i in range(80)), named(["c0", "x"]))
    assert many.told()[-1] == "left out of the teacher's, 79: c1, c2, c3, c4, c5, c6, ..."
    assert many.told(alone=False)[1] == "not known to it: x" and many.told()[1] == "learned from the labels alone: x"
    assert told("a b", "b a") == ["the teacher's are in another order; they are matched by name"]
    assert told("a x y", "a b c", {"x": "c"}) == [
        "the teacher knows 2 of the 3 that are to be learned", "mapped: x -> c", "learned from the labels alone: b",
        "left out of the teacher's, 1: y",
    ]  # fmt: skip


@pytest.mark.parametrize("kept", [[1, 2], (1, 2)], ids=str)
def test_classes_that_a_run_leaves_out_are_not_taught(kept):
    matched = only(match(named("a b x".split()), named("a b c".split())), kept)
    assert matched.members == [[], [1], []] and matched.known == [1] and not matched.alike
    assert matched.told() == [
        "the teacher knows 1 of the 2 that are to be learned", "learned from the labels alone: c",
        "left out by classes=, and not taught: a", "left out of the teacher's, 1: x",
    ]  # fmt: skip
    assert only(matched, None) == matched and only(matched, 1).known == [1]
    alone = match(named("a b".split()), named(["item"]), single=True)
    assert only(alone, [1]) == alone


def test_classes_left_out_of_one_class_are_not_taught():
    theirs, names = named("a b x".split()), named("a b c".split())
    alone = match(theirs, named(["item"]), single=True)
    assert alone.members == [[0, 1, 2]]
    assert only_of_one(alone, theirs, names, [0]).members == [[0, 2]], "x is none of the data's, and stays"
    assert only_of_one(alone, theirs, names, 1).members == [[1, 2]] and only_of_one(alone, theirs, names, None) == alone


# The map --------------------------------------------------------------------------------------------------------------


def test_a_map_is_read_from_a_file_or_taken_as_it_is(tmp_path):
    (tmp_path / "map.yaml").write_text("pit: hole\n3: x\ndent:\n")
    expected = {"pit": "hole", "3": "x", "dent": None}
    assert read(tmp_path / "map.yaml") == read(str(tmp_path / "map.yaml")) == read(expected) == expected
    assert read(None) is None and read("") is None


@pytest.mark.parametrize("text", ["- pit", "pit: [a, b]", "pit", "a: {b: c}", "a: [", ""])
def test_a_file_that_is_no_map_is_named(text, tmp_path):
    (tmp_path / "map.yaml").write_text(text)
    with pytest.raises(ConfigError, match="map.yaml maps no names to names"):
        read(tmp_path / "map.yaml")
    with pytest.raises(ConfigError, match="nowhere.yaml was not found"):
        read(tmp_path / "nowhere.yaml")


def test_unknown_names_in_a_map_are_told_with_the_nearest():
    problems = wrong({"crak": "hole", "pit": "hols", "zzz": None}, named(["crack", "pit"]), named(["hole"]))
    assert problems == [
        "classes_map: the teacher has no class 'crak'; did you mean 'crack'?",
        "classes_map: the data has no class 'hols'; did you mean 'hole'?",
        "classes_map: the teacher has no class 'zzz'; it has crack, pit.",
    ]


# The head -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, -1])
def test_probabilities_of_members_are_added(dim):
    logits = torch.tensor([[0.3, -1.0, 2.0, -2.0, -3.0]])
    logits = logits.view(1, 5, 1, 1) if dim == 1 else logits.view(1, 1, 5)
    found = Union(3, [1, 1], dim)(logits).flatten()
    assert torch.equal(found[[0, 2]], torch.tensor([0.3, 2.0])), "classes of one member stay as they are"
    torch.testing.assert_close(found[1].sigmoid(), torch.tensor([-1.0, -2.0, -3.0]).sigmoid().sum())


def test_a_sum_stays_below_one_and_keeps_a_gradient():
    logits = torch.tensor([[4.0, 4.0, 4.0], [0.5, 0.4, 0.3], [-40.0, -40.0, -40.0]]).T.view(1, 3, 3, 1)
    logits = logits.requires_grad_()
    found = Union(1, [0, 0], 1)(logits).sigmoid().flatten()
    assert (found < 1).all() and found[0] > found[1] > CAP and found[2] < 1e-10
    (gradient,) = torch.autograd.grad(found[:2].sum(), [logits])
    assert (gradient[0, :, :2] > 0).all()


KINDS = "yolo11n.yaml", "yolo26n.yaml", "yolov8n-rtdetr.yaml"
OTHER = "pit", "hole", "Scale"
"""The student's: two that the teacher knows, in another order, and one that it does not."""


def teachers(detector, kind: str, names, mapping=None, single: bool = False) -> tuple[Teacher, Teacher]:
    """The same teacher with its own classes, and with the student's."""
    file, student = detector(kind, NAMES), make_student()
    own = Teacher(load(file), like=student, names=named(NAMES), responses=True)
    brought = match(named(NAMES), named(names), mapping, single)
    return own, Teacher(load(file), like=student, names=named(names), classes=brought, responses=True)


def scores_of(teacher: Teacher, images: torch.Tensor) -> list[torch.Tensor]:
    """Logits ``(..., classes)`` of every level and branch, or of the queries."""
    levels = teacher(images)
    if levels.queries is not None:
        return [levels.queries.scores]
    return [r.scores.movedim(1, -1) for level in levels.values() for r in level.responses.values()]


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_speaks_in_the_students_classes(kind, detector):
    own, brought = teachers(detector, kind, OTHER)
    images = torch.rand(2, 3, 64, 64)
    for before, after in zip(scores_of(own, images), scores_of(brought, images), strict=True):
        torch.testing.assert_close(after[..., [0, 2]], before[..., [1, 2]], rtol=1e-4, atol=1e-4)
        assert (after[..., 1] == UNHEARD).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("single", [True, False])
def test_several_classes_of_a_teacher_are_one(kind, single, detector):
    mapping = None if single else {"crack": "pit"}
    own, brought = teachers(detector, kind, ["item"] if single else ["pit", "scale"], mapping, single)
    images = torch.rand(2, 3, 64, 64)
    for before, after in zip(scores_of(own, images), scores_of(brought, images), strict=True):
        together = before.sigmoid()[..., [0, 1, 2] if single else [0, 1]].sum(dim=-1)
        few = together < CAP
        assert few.any() or "rtdetr" in kind
        assert (after[..., 0].sigmoid()[~few] >= CAP - 1e-4).all()
        torch.testing.assert_close(after[..., 0].sigmoid()[few], together[few], rtol=1e-3, atol=1e-4)
    assert after.shape[-1] == (1 if single else 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", [OTHER, ["pit"], ["a", *NAMES, "b"]], ids=["as many", "fewer", "more"])
def test_its_detector_finds_the_students_classes(kind, names, detector):
    _, brought = teachers(detector, kind, names)
    found = brought.detector()
    with torch.no_grad():
        output = found(torch.rand(1, 3, 64, 64))
    assert list(found.names.values()) == list(names)
    if "rtdetr" in kind:
        assert output.shape[2] == 6 and output[..., 5].max() < len(names)
    else:
        assert output[0].shape[1] == 4 + len(names)


@pytest.mark.parametrize("kind", KINDS[:2])
def test_tails_of_a_brought_head_give_its_outputs(kind, detector):
    _, brought = teachers(detector, kind, ["pit", "scale"], {"crack": "pit"})
    for stride, level in brought(torch.rand(2, 3, 64, 64)).items():
        for branch, outputs in level.responses.items():
            tail = brought.tails(stride, branch, 1).score
            torch.testing.assert_close(tail(outputs.class_features), outputs.scores, rtol=1e-4, atol=1e-4)


def test_a_teacher_of_no_common_class_is_left_as_it_is(detector):
    own, brought = teachers(detector, KINDS[0], ["x", "y"])
    images = torch.rand(1, 3, 64, 64)
    for before, after in zip(scores_of(own, images), scores_of(brought, images), strict=True):
        assert torch.equal(before, after)


# Terms ----------------------------------------------------------------------------------------------------------------


def distiller(detector, kind: str, student: nn.Module, names, **settings) -> Distiller:
    values = config.build({**config.DEFAULTS, "drd": 1.0, "balance": "fixed", "teacher": "t.pt", **settings})
    frozen = Teacher(load(detector(kind, NAMES)), like=student, names=named(names))
    return Distiller(student=student, teacher=frozen, config=values, seed=3)


@pytest.mark.parametrize("variant", ["default", "paper"])
@pytest.mark.parametrize("kind", KINDS[:2])
def test_a_class_that_the_teacher_does_not_know_is_not_taught(kind, variant, detector):
    student, batch = make_student(kind), make_batch()
    found = distiller(detector, kind, student, OTHER, drd=0, ded=0, variant=variant)
    found.attach(student, batch["img"])
    vector, _ = student.loss(batch)
    gradients = torch.autograd.grad(vector[-3:].sum(), [layers[-1].weight for layers in student.model[-1].cv3],
                                    allow_unused=True)  # fmt: skip
    if variant == "paper":  # the cross response alone: it does not go through the student's last layer
        assert all(g is None or not g.any() for g in gradients)
    else:
        assert all(not g[1].any() for g in gradients) and any(g[0].any() and g[2].any() for g in gradients)


def test_without_a_common_class_features_teach_alone(detector):
    student, batch = make_student(), make_batch()
    found = distiller(detector, KINDS[0], student, ["x", "y", "z"])
    assert list(found.on) == ["drd", "ded"] and "no class in common" in found.left_out["crd"]
    found.attach(student, batch["img"])
    _, items = student.loss(batch)
    assert items["drd_loss"] > 0 and items["ded_loss"] > 0 and items["crd_loss"] == 0
