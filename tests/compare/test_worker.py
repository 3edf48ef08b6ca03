"""The worker: what an arm is trained with, what its folder says, and what goes on after an interruption."""

from __future__ import annotations

import importlib.util

import pytest

from tests.compare.helpers import asked
from tests.helpers import make_detector
from tskd_yolo.compare import worker
from tskd_yolo.compare.plan import checked
from tskd_yolo.compare.worker import curves, history, settings_of


def test_our_keys_reach_arms_that_distil_and_a_term_stands_alone(files, tmp_path):
    plan = checked(asked(files, tmp_path / "out", drd=0.7, crd=2))
    assert not {"drd", "crd", "teacher"} & set(plan.common)
    assert settings_of("plain", plan.own) == settings_of("plain_same_time", plan.own) == {}
    assert settings_of("ultralytics", plan.own) == {"distill_model": str(files / "teacher.pt")}
    assert settings_of("tskd", plan.own) == plan.own
    alone = settings_of("crd", plan.own)
    assert (alone["drd"], alone["ded"], alone["crd"]) == (0, 0, 2) and alone["teacher"] == plan.own["teacher"]


def test_the_parts_of_an_interrupted_run_are_added_up(tmp_path):
    lines = ["epoch,time,loss", "1,10,3", "2,20,2", "2,11,2.5", "3,21,1"]
    (tmp_path / "results.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "resumed.json").write_text('{"seconds": 20, "rows": [[1, 10], [2, 20]]}')
    assert history(tmp_path) == (3, 41.0, True)
    assert curves(tmp_path)["loss"] == [3, 2.5, 1], "the epoch that was repeated stands once"


@pytest.mark.slow
def test_latency_not_measured_is_a_note_and_is_tried_again(files, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "onnx" else found(name, *a))
        note = worker.latency(folder=str(tmp_path / "latency"), networks={}, imgsz=64)
    assert note["note"].startswith("not measured: onnx") and "not installed" in note["note"]
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    networks = {"student": str(make_detector(tmp_path / "student.pt", "yolo11n.yaml")), "teacher": files / "teacher.pt"}
    timed = worker.latency(folder=str(tmp_path / "latency"), networks=networks, imgsz=64)
    assert set(timed["milliseconds"]) == {"student", "teacher"} and min(timed["milliseconds"].values()) > 0
    assert not list(files.glob("*.onnx")), "nothing is left beside the user's own file"
