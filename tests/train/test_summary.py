"""What a run says before its first step: doubts, scores; the table itself is read in whole runs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tskd_yolo import hashing
from tskd_yolo.distill.distiller import Pair
from tskd_yolo.train import summary
from tskd_yolo.train.processes import Processes

SCORE = {"metrics/mAP50(B)": 0.7, "metrics/mAP50-95(B)": 0.4, "classes": [{"AP50": 0.7, "AP50-95": 0.4}]}


def score(value: float) -> dict[str, float]:
    return {"metrics/mAP50(B)": value, "metrics/mAP50-95(B)": value}


@pytest.mark.parametrize(
    ("taught", "known", "larger", "words"),
    [
        (0.8, {}, True, []),
        (0.8, score(0.5), True, []),
        (0.01, {}, True, ["the teacher finds next to nothing on this validation set (mAP50 0.010)"]),
        (0.5, score(0.5), True, ["no better than the student already is (0.500 against 0.500 mAP50-95)"]),
        (0.8, {}, False, ["the teacher is not larger than the student"]),
        (0.01, score(0.5), False, ["next to nothing", "no better", "not larger"]),
    ],
)
def test_what_speaks_against_a_teacher_is_said(taught, known, larger, words):
    sentences = summary.doubts(score(taught), known, larger=larger)
    assert len(sentences) == len(words) and all(word in said for word, said in zip(words, sentences, strict=True))


def test_a_pair_shows_how_many_channels_are_compared():
    pairs = [Pair(8, 64, 64, teacher_stride=8), Pair(16, 64, 128, 2, teacher_stride=16)]
    assert summary._pairs(pairs) == "stride 8: 64 -> 64   stride 16: 64 -> 64 of 128"


def test_a_score_is_measured_once_and_then_remembered(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(hashing, "USER_CONFIG_DIR", tmp_path)
    measured = []
    monkeypatch.setattr(summary, "validate", lambda model, **_: measured.append(model) or SCORE)
    (tmp_path / "a.png").touch()
    labels = [{"cls": np.zeros((1, 1)), "bboxes": np.zeros((1, 4)), "segments": []}]
    loader = SimpleNamespace(dataset=SimpleNamespace(im_files=[str(tmp_path / "a.png")], labels=labels))
    teacher = SimpleNamespace(name="teacher.pt", model=torch.nn.Linear(2, 2), detector=lambda: "its detector")
    given = dict(loader=loader, args=SimpleNamespace(imgsz=64), processes=Processes(1, torch.device("cpu")))
    assert summary.teacher_score(teacher, **given) == SCORE and "is validated, once" in caplog.text
    assert summary.teacher_score(teacher, **given) == SCORE and "was validated on these images before" in caplog.text
    assert measured == ["its detector"]
