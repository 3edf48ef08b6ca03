"""Arguments: every mistake is told at once, and nobody gets a threshold that was not asked for."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tskd_yolo.autolabel import plan
from tskd_yolo.config import ConfigError

WHOLE = {"teacher": "t.pt", "source": "images", "out": "out"}


def problems(**given) -> list[str]:
    with pytest.raises(ConfigError) as error:
        plan.checked({**WHOLE, **given})
    return error.value.problems


def test_a_plan_has_defaults_and_finds_data_by_name(tmp_path):
    found = plan.checked({**WHOLE, "data": "neu.yaml", "device": "cpu"})
    assert (found.teachers, found.conf, found.precision, found.imgsz, found.exports) == (["t.pt"], None, 0.9, None, [])
    assert Path(found.data).is_file() and found.out == Path("out").resolve() and found.augment is False
    given = plan.checked({**WHOLE, "teacher": "[a.pt,b.pt]", "conf": 0.5, "export": "[cvat,labelstudio]"})
    assert given.teachers == ["a.pt", "b.pt"] and given.data is None and given.exports == ["cvat", "labelstudio"]


def test_without_a_threshold_nothing_is_labelled():
    assert problems() == [
        "conf: missing; give data=FILE.yaml, on whose val images a threshold per class is measured, or one for all "
        "classes such as conf=0.5."
    ]


def test_every_mistake_is_told_at_once():
    wrong = {"teacher": "", "source": "", "out": "", "conf": 0.01, "precision": 2, "imgsz": 100, "batch": 0,
             "device": "0,1", "export": "voc", "augment": "yes", "classes_map": "a.yaml",
             "trust": 1, "sped": 3}  # fmt: skip
    found = problems(**wrong)
    keys = {sentence.partition(":")[0] for sentence in found}
    assert keys == set(wrong) and all(sentence.endswith((".", "?")) for sentence in found)
    assert "conf: must be a number from 0.05 to 1, got 0.01." in found
    assert "export: 'voc' is no format; the formats are cvat, labelstudio." in found


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"conf": 0.5, "precision": 0.9}, "thresholds are measured for it, and conf= gives one; drop one"),
        ({"precision": 0.9}, "it is measured on labelled images; add data=FILE.yaml"),
        ({"conf": True}, "conf: must be a number"),
        ({"conf": 0.5, "teacher": "timm:resnet18"}, "timm:resnet18 has no detection head"),
        ({"conf": 0.5, "teacher": ["a.pt", "a.pt"]}, "a list of different ones"),
        ({"conf": 0.5, "device": "cuda:99"}, "device: 'cuda:99' cannot be used here"),
        ({"conf": 0.5, "classes_map": "map.yaml"}, "it leads to the classes of a data set; add data=FILE.yaml"),
    ],
)
def test_what_excludes_each_other_is_refused(given, sentence):
    assert any(sentence in problem for problem in problems(**given))


def test_several_teachers_need_the_library_that_fuses(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ensemble_boxes" else find(name))
    (sentence,) = problems(conf=0.5, teacher="[a.pt,b.pt]")
    assert "pip install ensemble-boxes" in sentence
    assert plan.checked({**WHOLE, "conf": 0.5}).teachers == ["t.pt"]
