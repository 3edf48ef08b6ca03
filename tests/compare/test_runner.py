"""Running a comparison: one at a time in a folder, how far it is, and nothing done twice."""

from __future__ import annotations

import json
import re
import shutil
import socket
import threading
import time
from types import SimpleNamespace

import pytest
from filelock import FileLock

from tests.compare.helpers import asked, words
from tskd_yolo.cli import main
from tskd_yolo.compare import runner
from tskd_yolo.compare.plan import Run
from tskd_yolo.compare.runner import compare, time_left
from tskd_yolo.config import ConfigError

pytestmark = pytest.mark.usefixtures("at_hand")


def test_two_comparisons_in_one_folder_are_refused(files, tmp_path):
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"):
        with pytest.raises(ConfigError, match="another comparison is at work"):
            compare(**asked(files, tmp_path / "out"))


def test_control_c_is_told_in_a_sentence(files, tmp_path, monkeypatch, capsys):
    def stop(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "compare", stop)
    assert main(words(asked(files, tmp_path / "out"))) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_after_control_c_no_other_run_is_begun(plan, monkeypatch):
    begun = []

    class Worker:
        """Lasts until its input closes, as a real one does."""

        def __init__(self, *_, **__):
            begun.append(self)
            self.closed = threading.Event()
            self.stdin = SimpleNamespace(write=lambda _: None, flush=lambda: None, close=self.closed.set)

        def wait(self):
            assert self.closed.wait(30)
            return 1

    monkeypatch.setattr(runner.subprocess, "Popen", Worker)
    with pytest.raises(KeyboardInterrupt), runner._spread(plan) as submit:
        future = submit(runner.run_chain, plan, plan.runs)
        while not begun:
            time.sleep(0.01)
        raise KeyboardInterrupt
    assert len(begun) == 1 < len(plan.runs) and future.result() == [str(plan.runs[0])]
    assert not runner._STOP.is_set(), "a later comparison in this process can start"


def test_a_run_that_could_not_be_begun_says_so_in_its_log(plan):
    run = Run("plain_same_time", 9)
    plan.log(run).parent.mkdir(parents=True, exist_ok=True)
    assert runner.run_chain(plan, [run]) == ["plain_same_time-9"]
    assert "was not started: it needs the times of plain and tskd of this seed" in plan.log(run).read_text()


def test_a_pace_is_of_runs_with_as_many_beside_them():
    rows, run = [{"jobs": 8}, {"jobs": 1}], Run("plain_same_time", 3)
    assert "tskd-3 was trained with jobs=8 and plain-3 with jobs=1" in runner._no_pace(run, *rows, "time")
    assert runner._no_pace(run, *rows, "process_time") == runner._no_pace(run, {}, {"jobs": 1}, "time") == ""


def test_the_time_left_is_each_arms_pace_times_what_is_left():
    spent = {Run("plain", 0): (10, 100.0), Run("tskd", 0): (5, 100.0), Run("plain_same_time", 0): (0, 0.0),
             Run("plain", 1): (0, 0.0), Run("ded", 1): (0, 0.0)}  # fmt: skip
    # plain 10 s and tskd 20 s per epoch; ded is taken as their mean, plain_same_time as tskd
    epochs = {"plain": 10, "tskd": 10, "plain_same_time": 10, "ded": 4}
    assert time_left(spent, done=[Run("plain", 0)], epochs=epochs) == pytest.approx(100 + 200 + 100 + 60)
    assert time_left({Run("plain", 0): (0, 0.0)}, done=[], epochs=epochs) is None


def test_finished_runs_are_read_and_shown_without_training(plan, files, capsys):
    assert compare(**asked(files, plan.out, arms="plain,tskd,ultralytics", seeds=3)) == 0
    said = capsys.readouterr().out
    assert "tskd: helps" in said
    assert "Judged: last.pt on the val split (the data YAML names no test: split)." in said
    for name in ("compare.json", "compare.csv", "compare.html"):
        text = re.sub(r"data:image/jpeg;base64,[\w+/=]+", "", (plan.out / name).read_text(encoding="utf-8"))
        assert str(files) not in text and str(plan.out) not in text, name
        assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", text), name
    table = (plan.out / "compare.csv").read_text().splitlines()
    assert len(table) == 1 + 3 * 3 * 2 + 1 and "AP50-95 crazing" in table[0]
    assert json.loads((plan.out / "compare.json").read_text())["curves"]["plain"]["0"]["epoch"] == [1, 2, 3]


@pytest.mark.slow
def test_latency_is_measured_of_a_run_whose_weights_are_there(plan, files, monkeypatch):
    ordered = []
    monkeypatch.setattr(runner, "order", lambda _, name, job: ordered.append(job.get("networks")) or True)
    shutil.rmtree(plan.folder("latency"), ignore_errors=True)
    kept = plan.folder(Run("plain", 2)) / "weights" / "last.pt"
    asked_for = asked(files, plan.out, arms="plain,tskd,ultralytics", seeds=3)
    assert compare(**asked_for) == 0 and ordered == []
    note = "Latency not measured: no run has its last.pt any more."
    assert note in (plan.out / "compare.html").read_text(encoding="utf-8")
    kept.parent.mkdir()
    kept.touch()
    assert compare(**asked_for) == 0 and ordered[0]["student"] == str(kept)
