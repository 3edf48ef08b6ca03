"""The worker: what an arm is trained with, what its folder says, and what goes on after an interruption."""

from __future__ import annotations

import importlib.util
import io
import os
import subprocess
import sys

import pytest
from ultralytics import utils
from ultralytics.data import utils as data_utils
from ultralytics.nn import tasks

from tskd_yolo import compat
from tskd_yolo.compare import worker
from tskd_yolo.config import folder


def test_a_worker_finds_data_where_our_trainer_finds_it(monkeypatch):
    """In a checkout Ultralytics would prepare a set inside it, and only the arms that distil beside it."""
    seen = []
    monkeypatch.setattr(utils, "DATASETS_DIR", folder("datasets"))
    monkeypatch.setattr(data_utils, "DATASETS_DIR", folder("datasets"))
    monkeypatch.setattr(worker, "train", lambda **job: seen.append((data_utils.DATASETS_DIR, tasks.SAFE_LOAD)))
    monkeypatch.setattr(worker, "_end_with_the_caller", lambda: None)
    for safe in ("1", "0"):
        monkeypatch.setenv("ULTRALYTICS_SAFE_LOAD", safe)
        monkeypatch.setattr(sys, "stdin", io.StringIO('{"kind": "train"}\n'))
        worker.main()
    assert seen == [(compat.datasets_folder(), True), (compat.datasets_folder(), False)]


def test_what_a_run_leaves_names_no_folder(tmp_path):
    (tmp_path / "map.yaml").write_text("a: b\n")
    given = {"teacher": "/a/t.pt", "drd": 1, "classes_map": str(tmp_path / "map.yaml"), "unlabelled": [str(tmp_path)]}
    told = worker._named(given)
    assert told["unlabelled"] == [tmp_path.name] and told["classes_map"].startswith("map.yaml (sha256 ")
    assert str(tmp_path) not in str(told) and "teacher" not in told and told["drd"] == 1
    assert worker._named({"unlabelled": False}) == {"unlabelled": False}


@pytest.mark.parametrize("trust", [True, False])
def test_a_resumed_run_is_told_where_its_files_are_now(trust, tmp_path, monkeypatch):
    resumed = []

    class Student:
        def __init__(self, file):
            pass

        def train(self, **given):
            resumed.append({key: value for key, value in given.items() if key not in {"trainer", "save_dir"}})

    monkeypatch.setattr(worker, "YOLO", Student)
    monkeypatch.setattr(worker, "progress", lambda run: "interrupted")
    mine = {"teacher": "t.pt", "trust": trust, "drd": 1, "unlabelled": ["/new"]}
    for settings, common in ((mine, {"data": "/new/a.yaml", "epochs": 3}), ({"distill_model": "t.pt"}, {"device": 0})):
        worker._train(0, tmp_path, "yolo11n.yaml", common, settings)
    trusted = {"trust": True} if trust else {}
    assert resumed == [
        {"resume": True, "data": "/new/a.yaml", "teacher": "t.pt", "unlabelled": ["/new"], **trusted},
        {"resume": True, "device": 0, "distill_model": "t.pt"},
    ]


@pytest.mark.slow
def test_latency_not_measured_is_a_note_and_is_tried_again(files, detector, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "onnx" else found(name, *a))
        note = worker.latency(folder=str(tmp_path / "latency"), networks={}, imgsz=64, teacher_imgsz=96)
    assert note["note"].startswith("not measured: onnx") and "not installed" in note["note"]
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    networks = {"student": str(detector("yolo11n.yaml")), "teacher": files / "teacher.pt"}
    timed = worker.latency(folder=str(tmp_path / "latency"), networks=networks, imgsz=64, teacher_imgsz=96)
    assert set(timed["milliseconds"]) == {"student", "teacher"} and min(timed["milliseconds"].values()) > 0
    assert not list(files.glob("*.onnx")), "nothing is left beside the user's own file"


FORKS = """
import multiprocessing, threading, time
from tskd_yolo.compare import worker
threading.Thread(target=worker._end_with_the_caller, daemon=True).start()
time.sleep(0.2)  # it is reading
loader = multiprocessing.get_context("fork").Process(target=print, args=("loaded",))
loader.start()
loader.join(20)
print("waits" if loader.is_alive() else "done", flush=True)
loader.kill()
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_loader_of_a_worker_does_not_wait_for_its_input():
    ends = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", FORKS], **ends) as job:
        assert job.stdout.read().split() == ["loaded", "done"]
