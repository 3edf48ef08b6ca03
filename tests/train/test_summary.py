"""What a run says before its first step: scores; the table itself is read in whole runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ultralytics.utils import DEFAULT_CFG_DICT

from tests.distill.helpers import NAMES, load, make, make_student
from tskd_yolo import ConfigError, config, hashing
from tskd_yolo.distill.distiller import Distiller, Pair
from tskd_yolo.distill.teacher import Teacher
from tskd_yolo.findings import Finding
from tskd_yolo.train import summary
from tskd_yolo.train.processes import Processes

SCORE = {"metrics/mAP50(B)": 0.7, "metrics/mAP50-95(B)": 0.4, "classes": [{"AP50": 0.7, "AP50-95": 0.4}, None]}


def test_of_several_teachers_the_best_counts_in_each_class():
    def score(*aps):
        return {"classes": [None if ap is None else {"AP50": 2 * ap, "AP50-95": ap} for ap in aps], "metrics/x": 0}

    halves = [score(0.4, 0.0, None), {}, score(0.1, 0.2, None)]
    best = summary.best_of(halves)
    assert [row and row["AP50-95"] for row in best["classes"]] == [0.4, 0.2, None]
    assert best["metrics/mAP50-95(B)"] == pytest.approx(0.3) and best["metrics/mAP50(B)"] == pytest.approx(0.6)
    assert summary.best_of([SCORE]) is SCORE and summary.best_of([{}, SCORE]) is SCORE and summary.best_of([{}]) == {}


def test_a_pair_shows_how_many_channels_are_compared():
    pairs = [Pair(8, 8, 64, 64), Pair(16, 16, 64, 128, 2)]
    assert summary._pairs(pairs) == "stride 8: 64 -> 64   stride 16: 64 -> 64 of 128"


@pytest.mark.parametrize("first", [0, 1])
def test_a_branch_that_only_another_teacher_has_is_told(first, detector):
    files = [detector("yolo11n.yaml", NAMES), detector("yolo26n.yaml", NAMES)]
    student = make_student("yolo26n.yaml")
    frozen = [Teacher(load(file), like=student, names=dict(enumerate(NAMES))) for file in files]
    values = config.build({**config.DEFAULTS, "teacher": [str(file) for file in files]})
    lead, other = frozen[first], frozen[1 - first]
    rows = summary._exceptions(Distiller(student=student, teacher=lead, others=[other], config=values, seed=0))
    told = [row for row in rows if row.startswith("untaught")]
    assert told == ([] if first else [
        "untaught  one2one: the teacher's head has no such branch",
        f"untaught  {other.name} has one2one; named first, it would teach it",
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("start", "row"),
    [
        ({"new": False}, "a pre-trained student, for which ded is 0.1 unless given"),
        ({"new": True}, "a new student, for which ded is 4 unless given"),
        ({"new": False, "resume": True}, None),
        ({"new": False, "balance": "fixed"}, None),
    ],
)
def test_the_block_says_where_the_student_starts(detector, start, row):
    distiller = make(make_student(), detector("yolo11s.yaml"), balance=start.get("balance", "share"))
    args = SimpleNamespace(resume=start.get("resume"))
    block = summary._settings(distiller, distiller.config, args, start["new"])
    rows = [line for line in block if line.startswith("start")]
    assert rows == ([f"start     {row}"] if row else [])


def test_a_score_is_measured_once_and_then_remembered(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(hashing, "USER_CONFIG_DIR", tmp_path)
    measured = []
    monkeypatch.setattr(summary, "validate", lambda model, **_: measured.append(model) or SCORE)
    (tmp_path / "a.png").touch()
    labels = [{"cls": np.zeros((1, 1)), "bboxes": np.zeros((1, 4)), "segments": []}]
    loader = SimpleNamespace(
        dataset=SimpleNamespace(im_files=[str(tmp_path / "a.png")], labels=labels, channels=3, rect=True)
    )
    teacher = SimpleNamespace(name="teacher.pt", model=torch.nn.Linear(2, 2), detector=lambda: "its detector")
    given = dict(loader=loader, args=SimpleNamespace(imgsz=64), processes=Processes(1, torch.device("cpu")))
    assert summary.teacher_score(teacher, **given) == SCORE and "is validated, once" in caplog.text
    assert summary.teacher_score(teacher, **given) == SCORE and "was validated on these images before" in caplog.text
    assert measured == ["its detector"]


def test_the_score_of_every_class_is_told_where_it_has_boxes():
    box = SimpleNamespace(ap_class_index=np.array([0, 2]), ap50=np.array([0.5, 0.25]), ap=np.array([0.4, 0.125]))
    validator = SimpleNamespace(metrics=SimpleNamespace(box=box), names={0: "a", 1: "b", 2: "c"})
    rows = [{"AP50": 0.5, "AP50-95": 0.4}, None, {"AP50": 0.25, "AP50-95": 0.125}]
    assert summary.class_scores(validator) == rows


def test_a_validation_that_does_not_fit_is_told(monkeypatch):
    def validator(*_: Any, **__: Any) -> Any:
        return lambda **_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory"))

    monkeypatch.setattr(summary.tasks, "VALIDATORS", {"detect": validator})
    args = SimpleNamespace(**{**DEFAULT_CFG_DICT, "task": "detect", "amp": True})
    with pytest.raises(ConfigError, match="batch: .* with 32 images at once, .* give a smaller batch"):
        summary.validate(torch.nn.Linear(2, 2), loader=SimpleNamespace(batch_size=32), args=args)


def test_notes_are_not_logged(caplog):
    summary.log([Finding("note", "labels", "one"), Finding("no", "teacher", "two", "do it")])
    assert "one" not in caplog.text and "teacher: two; do it." in caplog.text
