"""Which class of a teacher is which of the data's, and what its sizes say."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tskd_yolo.check import pair


@pytest.mark.parametrize(
    ("theirs", "ours", "pairs", "lost"),
    [
        (["a", "b"], ["b", "a"], {"b": "b", "a": "a"}, []),
        (["Dent ", "hole"], ["dent", "hole"], {"dent": "Dent ", "hole": "hole"}, []),
        (["DENT", "dent"], ["dent", "Dent"], {"dent": "dent", "Dent": "DENT"}, []),  # the exact spelling first
        (["a", "b", "c"], ["b", "d"], {"b": "b", "d": None}, ["a", "c"]),
        ([], ["a"], {"a": None}, []),
    ],
)
def test_classes_are_paired_by_name(theirs, ours, pairs, lost):
    found = pair.classes(theirs=dict(enumerate(theirs)), names=dict(enumerate(ours)))
    assert found == {"pairs": pairs, "lost": lost}


def test_several_classes_of_a_teacher_may_be_one_of_the_data():
    theirs, names = {0: "long", 1: "short", 2: "pit"}, {0: "scratch", 1: "pit"}
    found = pair.classes(theirs=theirs, names=names, mapping={"long": "scratch", "short": "scratch"})
    assert found == {"pairs": {"scratch": "long, short", "pit": "pit"}, "lost": []}


@pytest.mark.parametrize(
    ("pairs", "level", "words"),
    [
        ({"a": "a", "b": "b"}, None, ""),
        ({"a": None, "b": "b"}, "note", "does not know a; give classes_map="),
        ({"a": None, "b": None}, "warning", "knows none of them, so CRD is off"),
        ({}, None, ""),
    ],
)
def test_classes_that_the_teacher_does_not_know_are_told(pairs, level, words):
    found = pair.unknown(pairs)
    assert [f.level for f in found] == ([level] if level else []) and all(words in str(f) for f in found)


@pytest.mark.parametrize(("trained", "sees", "told"), [(640, 320, True), (640, 480, False), (64, 64, False),
                                                       (480, 640, False),
                                                       (None, 64, False), ([640, 480], 64, False)])  # fmt: skip
def test_a_teacher_that_sees_less_than_it_was_trained_on_is_told(trained, sees, told):
    args, config = SimpleNamespace(imgsz=sees), SimpleNamespace(teacher_imgsz=None)
    found = pair.sizes(SimpleNamespace(trained_at=[("a.pt", trained)], args=args, config=config))
    assert [f.level for f in found] == (["warning"] if told else [])
    if told:
        assert "the teacher was trained at 640 px and sees 320 px here; add teacher_imgsz=640" in str(*found)
        config.teacher_imgsz = 640
        assert pair.sizes(SimpleNamespace(trained_at=[("a.pt", trained)], args=args, config=config)) == []


def test_a_teacher_that_sees_more_than_it_was_trained_on_is_told():
    args, config = SimpleNamespace(imgsz=224), SimpleNamespace(teacher_imgsz=None)
    (found,) = pair.sizes(SimpleNamespace(trained_at=[("a.pt", 128)], args=args, config=config))
    assert (found.level, found.remedy) == ("warning", "train it at this size")
    assert found.reason == "the teacher was trained at 128 px and sees 224 px here"


def test_of_several_teachers_the_one_of_another_size_is_named():
    args, config = SimpleNamespace(imgsz=64), SimpleNamespace(teacher_imgsz=None)
    (found,) = pair.sizes(SimpleNamespace(trained_at=[("a.pt", 64), ("b.pt", 640)], args=args, config=config))
    assert found.reason == "b.pt was trained at 640 px and sees 64 px here"


def test_a_file_is_told_by_name_and_content(teacher, tmp_path):
    found = pair.file(teacher)
    assert found["name"] == "teacher.pt" and len(found["sha256"]) == 16
    (tmp_path / "yolo11-own.yaml").write_text("nc: 3\n")
    own = pair.file(tmp_path / "yolo11n-own.yaml")
    assert own["name"] == "yolo11-own.yaml" and len(own["sha256"]) == 16
    assert pair.file("yolo11n.yaml") == {"name": "yolo11n.yaml", "sha256": None}


def test_names_of_a_teacher_are_read_where_it_loads(teacher, tmp_path):
    assert pair.teacher_names({"teacher": str(teacher)})[0] == "crazing"
    (tmp_path / "no.pt").write_text("garbage")
    for path in (None, 7, tmp_path / "no.pt", tmp_path / "nowhere.pt"):
        assert pair.teacher_names({"teacher": path}) is None
