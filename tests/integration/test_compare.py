"""Whole comparisons that train: paired, killed and gone on with, with a run that fails, and on Ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.compare.helpers import asked, words
from tests.helpers import finished_run, finished_teacher
from tskd_yolo.cli import main
from tskd_yolo.compare import worker
from tskd_yolo.compare.plan import checked
from tskd_yolo.compare.runner import compare
from tskd_yolo.compare.runs import progress, rows

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def test_arms_of_a_seed_start_alike_and_train_for_tskds_time(files, tmp_path, in_process):
    out = tmp_path / "out"
    assert compare(**asked(files, out, arms="plain,ultralytics,tskd,plain_same_time,ded", jobs=2)) == 0
    report = json.loads((out / "compare.json").read_text())
    assert report["paired"] == {"weights": True, "images": True, "files": True} and report["complete"]
    assert len(set(report["memory_format"].values())) == 1 and len(report["memory_format"]) == 5
    rows = {arm: a["rows"][0] for arm, a in report["arms"].items()}
    assert all(0 < row["seconds"] and row["last"]["images"] == 4 and row["best"] for row in rows.values())
    terms = {arm: report["curves"][arm]["0"].get("train/drd_loss") for arm in rows}
    assert terms["plain"] is None and terms["tskd"][0] > 0 and terms["ded"] == [0]
    assert report["curves"]["ded"]["0"]["train/ded_loss"][0] > 0
    assert "train/dis_loss" in report["curves"]["ultralytics"]["0"]
    pace = rows["plain"]["process_seconds"] / rows["plain"]["epochs"]
    assert rows["plain_same_time"]["epochs"] == max(1, round(rows["tskd"]["process_seconds"] / pace))
    assert str(tmp_path) not in (out / "compare.html").read_text()


def test_a_killed_comparison_takes_its_runs_with_it_and_goes_on(files, tmp_path):
    out = tmp_path / "out"
    values = asked(files, out, epochs=6)
    plan = checked(values)
    finished_teacher(plan, 0.3)
    finished_run(plan, "plain", 0, 0.1)
    command = [sys.executable, "-m", "tskd_yolo", *words(values)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)
    run, deadline = out / "tskd-0", time.time() + 120
    while len(rows(run)) < 2 and time.time() < deadline:  # its checkpoint is whole whenever it is killed
        time.sleep(0.1)
    begun = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert begun and psutil.wait_procs(begun, timeout=60)[1] == [], "the run goes on without its comparison"
    assert 2 <= len(rows(run)) < 6 and progress(run) == "interrupted"
    assert compare(**values) == 0
    report = json.loads((out / "compare.json").read_text())
    assert report["resumed"] == ["tskd-0"] and report["complete"]
    assert report["curves"]["tskd"]["0"]["epoch"] == list(range(1, 7))
    assert report["arms"]["tskd"]["rows"][0]["epochs"] == 6
    stamps = {f: f.stat().st_mtime_ns for f in out.glob("*/weights/*.pt")}
    assert compare(**values) == 0
    assert stamps == {f: f.stat().st_mtime_ns for f in out.glob("*/weights/*.pt")}, "a finished run was repeated"


def test_a_failed_run_is_named_with_its_log_and_hurts_no_other(files, tmp_path, capfd):
    out = tmp_path / "out"
    values = asked(files, out)
    plan = checked(values)
    out.mkdir()
    finished_teacher(plan, 0.3)
    finished_run(plan, "plain", 0, 0.1)
    (out / "tskd-0").write_text("a file where a folder has to be")
    assert main(words(values)) == 1
    said = capfd.readouterr()
    assert "tskd-0 failed; its log is" in said.err and "Error" in (out / "logs" / "tskd-0.txt").read_text()
    assert "tskd: no evidence: it shares no finished seed" in said.out
    assert "these runs failed: tskd-0" in (out / "compare.html").read_text()


@pytest.mark.soak
def test_an_interrupted_run_goes_on_and_a_cut_file_starts_anew(files, tmp_path, monkeypatch):
    values = checked(asked(files, tmp_path / "out", epochs=2))

    class Stop(Exception):
        pass

    def save_and_stop(trainer):
        super(type(trainer), trainer).save_model()
        raise Stop

    for who, trainer in {"ultralytics": worker.PlainTrainer, "tskd": worker.DistilledTrainer}.items():
        run = tmp_path / "out" / f"{who}-0"
        job = dict(arm=who, seed=0, folder=str(run), model="yolo11n.yaml", common=values.common,
                   settings=values.settings_of(who), judged=["val", "last"], jobs=1)  # fmt: skip
        with monkeypatch.context() as patch, pytest.raises(Stop):
            patch.setattr(trainer, "save_model", save_and_stop, raising=False)
            worker.train(**job, epochs=None)
        assert progress(run) == "interrupted"
        row = worker.train(**job, epochs=None)
        assert row["resumed"] and row["epochs"] == 2 and progress(run) == "trained"
    (run / "weights" / "last.pt").write_bytes(b"cut off")
    assert progress(run) == progress(tmp_path / "nowhere") == "nothing"


def test_ray_spreads_the_runs(files, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    values = asked(files, tmp_path / "out", ray=True, jobs=2)
    finished_teacher(checked(values), 0.3)
    assert compare(**values) == 0
    report = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert report["complete"] and report["paired"] == {"weights": True, "images": True, "files": True}
