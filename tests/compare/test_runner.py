"""Comparisons: what is refused, what is run in which order, what goes on after an interruption, what it all says."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers import finished_run, finished_teacher, make_detector, settings, tiny_data
from tskd_yolo.cli import main
from tskd_yolo.compare import runner as module
from tskd_yolo.compare.runner import ARMS, Run, checked, compare, summarise, time_left
from tskd_yolo.compare.worker import progress
from tskd_yolo.config import ConfigError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("compare")
    make_detector(root / "teacher.pt")
    tiny_data(root, train=8, val=4)
    return root


def asked(files, out, **more):
    """Arguments of a comparison of tiny runs."""
    base = settings(out, files / "tiny.yaml", teacher=str(files / "teacher.pt"))
    for key in ("project", "name", "exist_ok", "seed"):
        del base[key]
    return {**base, "out": str(out), "arms": "plain,tskd", "seeds": 1, **more}


def words(values):
    return ["compare", *(f"{key}={value}".replace(" ", "") for key, value in values.items())]


# What is asked for ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (dict(arms="plain,tskdd"), "arms: tskdd is none"),
        (dict(arms="tskd"), "arms: plain is missing"),
        (dict(arms="plain,plain"), "arms: one is named twice"),
        (dict(arms="plain,plain_same_time"), "arms: plain_same_time takes the time of tskd"),
        (dict(arms="plain,drd", drd=0), "drd: is 0, and the arm drd"),
        (dict(drd=0, ded=0, crd=0), "all are 0"),
        (dict(seeds=0), "seeds: must be a number from 1 on"),
        (dict(seeds="many"), "seeds: must be a number of seeds"),
        (dict(seeds="[1,1]"), "list of different seeds"),
        (dict(jobs=0), "jobs: must be a whole number"),
        (dict(ray=3), "ray: must be True or False"),
        (dict(seed=3), "seed: a comparison has several"),
        (dict(project="x"), "project: a comparison has one folder"),
        (dict(resume=True), "resume: a comparison goes on by itself"),
        (dict(arms="plain,tskd,plain_same_time", time=1), "time: plain_same_time takes the time of tskd"),
        (dict(epochs=0), "epochs: must be a whole number from 1 on"),
        (dict(teacher="nowhere.pt"), "teacher: nowhere.pt was not found"),
        (dict(distill_model="a.pt"), "distill_model: "),
        (dict(techer="a.pt"), "techer: is not an argument"),
        (dict(armss="plain"), "did you mean 'arms'?"),
    ],
    ids=lambda value: " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_a_mistake_is_told_and_nothing_is_written(wrong, sentence, files, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words(asked(files, tmp_path / "out", **wrong))) == 1
    said = capsys.readouterr().err
    assert sentence in said and "Traceback" not in said, said
    assert not list(tmp_path.iterdir())


def test_all_mistakes_are_told_at_once(files, tmp_path):
    values = asked(files, tmp_path / "out", arms="tskd,x", seeds=0, jobs=0, seed=1, teacher="nowhere.pt", drd=-1)
    with pytest.raises(ConfigError) as error:
        checked(values)
    for key in ("arms: x", "arms: plain", "seeds", "jobs", "seed:", "teacher", "drd"):
        assert sum(problem.startswith(key) for problem in error.value.problems) == 1, key


def test_ray_that_is_missing_is_named_with_what_installs_it(files, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_installed", lambda name: name != "ray")
    with pytest.raises(ConfigError, match=r"ray: is not installed; pip install 'tskd-yolo\[all\]'"):
        checked(asked(files, tmp_path / "out", ray=True))


def test_seeds_are_a_number_or_a_list_and_all_arms_are_the_default(files, tmp_path):
    values = asked(files, tmp_path / "out")
    assert checked({**values, "seeds": 5}).seeds == [0, 1, 2, 3, 4]
    assert checked({**values, "seeds": [0, 3]}).seeds == checked({**values, "seeds": (0, 3)}).seeds == [0, 3]
    del values["arms"]
    assert checked(values).arms == list(ARMS)


def test_plain_training_for_tskds_time_follows_tskd_and_whole_pairs_come_first(files, tmp_path):
    plan = checked(asked(files, tmp_path / "out", arms="plain,plain_same_time,tskd", seeds=2))
    assert plan.chains == [
        [Run("plain", 0)], [Run("tskd", 0), Run("plain_same_time", 0)],
        [Run("plain", 1)], [Run("tskd", 1), Run("plain_same_time", 1)],
    ]  # fmt: skip


def test_our_keys_reach_the_arms_that_distil_and_one_term_stands_alone(files, tmp_path):
    from tskd_yolo.compare.worker import settings_of

    plan = checked(asked(files, tmp_path / "out", drd=0.7, crd=2))
    assert not {"drd", "crd", "teacher"} & set(plan.common)
    assert settings_of("plain", plan.own) == settings_of("plain_same_time", plan.own) == {}
    assert settings_of("ultralytics", plan.own) == {"distill_model": str(files / "teacher.pt")}
    assert settings_of("tskd", plan.own) == plan.own
    alone = settings_of("crd", plan.own)
    assert (alone["drd"], alone["ded"], alone["crd"]) == (0, 0, 2) and alone["teacher"] == plan.own["teacher"]


def test_a_changed_setting_is_told_and_refused_and_more_arms_and_seeds_are_not(files, tmp_path):
    plan = checked(asked(files, tmp_path / "out"))
    plan.out.mkdir()
    module._same_settings(plan)
    module._same_settings(checked(asked(files, tmp_path / "out", seeds=3, arms="plain,tskd,ded", jobs=2)))
    with pytest.raises(ConfigError) as error:
        module._same_settings(checked(asked(files, tmp_path / "out", epochs=2, drd=0.9)))
    told = "\n".join(error.value.problems)
    assert "epochs: the runs in out have 1, not 2" in told and "drd: the runs in out have" in told
    assert len(error.value.problems) == 2 and "out=" in told


def test_another_teacher_of_the_same_name_is_another_setting(files, tmp_path):
    other = tmp_path / "teacher.pt"
    make_detector(other, seed=8)
    one, two = (module.settings(checked(asked(files, tmp_path / "out", teacher=str(f)))) for f in
                (files / "teacher.pt", other))  # fmt: skip
    assert [key for key in one if one[key] != two[key]] == ["teacher"]
    assert str(tmp_path) not in json.dumps(two)


def test_control_c_is_told_in_a_sentence(files, tmp_path, monkeypatch, capsys):
    def stop(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "compare", stop)
    assert main(words(asked(files, tmp_path / "out"))) == 130
    assert "the same command goes on" in capsys.readouterr().err


# Progress -------------------------------------------------------------------------------------------------------------


def test_the_time_left_is_each_arms_own_pace_times_what_it_has_to_do():
    spent = {Run("plain", 0): (10, 100.0), Run("tskd", 0): (5, 100.0), Run("plain_same_time", 0): (0, 0.0),
             Run("plain", 1): (0, 0.0), Run("ded", 1): (0, 0.0)}  # fmt: skip
    # plain 10 s and tskd 20 s per epoch; ded is taken as their mean, plain_same_time as tskd
    assert time_left(spent, done=[Run("plain", 0)], epochs=10) == pytest.approx(100 + 200 + 100 + 150)
    assert time_left({Run("plain", 0): (0, 0.0)}, done=[], epochs=10) is None


def test_the_parts_of_an_interrupted_run_are_added_up(tmp_path):
    from tskd_yolo.compare.worker import curves, history

    lines = ["epoch,time,loss", "1,10,3", "2,20,2", "2,11,2.5", "3,21,1"]
    (tmp_path / "results.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "resumed.json").write_text('{"seconds": 20, "rows": [[1, 10], [2, 20]]}')
    assert history(tmp_path) == (3, 41.0, True)
    assert curves(tmp_path)["loss"] == [3, 2.5, 1], "the epoch that was repeated stands once"


# What it says ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def plan(files, tmp_path):
    """A comparison whose runs are made up, and finished."""
    plan = checked(asked(files, tmp_path / "out", arms="plain,tskd,ultralytics", seeds=3))
    plan.out.mkdir()
    finished_teacher(plan, 0.30)
    for seed, base in enumerate((0.10, 0.12, 0.11)):
        finished_run(plan, "plain", seed, base)
        finished_run(plan, "tskd", seed, base + (0.05, 0.06, 0.055)[seed])
        finished_run(plan, "ultralytics", seed, base + (0.05, -0.06, 0.0)[seed])
    module._same_settings(plan)
    return plan


def test_the_summary_holds_means_paired_effects_shares_and_words(plan):
    summary = summarise(plan, failed=[])
    tskd = summary["arms"]["tskd"]
    assert tskd["mean"]["last"]["mAP50-95"] == pytest.approx(0.165)
    effect = tskd["effect"]["mAP50-95"]
    assert effect["mean"] == pytest.approx(0.055) and effect["verdict"] == "helps" and effect["seeds"] == 3
    half = 4.302653 * 0.005 / 3**0.5
    assert (effect["low"], effect["high"]) == pytest.approx((0.055 - half, 0.055 + half), abs=1e-6)
    assert tskd["recovered"] == pytest.approx(0.055 / 0.19)
    assert tskd["verdict"].startswith("tskd: helps: +5.5 points")
    assert summary["arms"]["ultralytics"]["effect"]["mAP50-95"]["verdict"] == "no evidence"
    assert tskd["classes"][2]["AP50-95"]["effect"]["mean"] == pytest.approx(0.055)
    assert tskd["effect_on_misses"][0]["fewer"]["mean"] == pytest.approx(0.055), "fewer misses help"
    assert summary["tskd_against"]["ultralytics"]["mean"] == pytest.approx(0.055 - (-0.01 / 3))
    assert summary["paired"] == {"weights": True, "images": True} and summary["complete"]


def test_finished_runs_are_read_and_the_page_is_written_without_training(plan, files, capsys):
    assert compare(**asked(files, plan.out, arms="plain,tskd,ultralytics", seeds=3)) == 0
    assert "tskd: helps" in capsys.readouterr().out
    for name in ("compare.json", "compare.csv", "compare.html"):
        text = re.sub(r"data:image/jpeg;base64,[\w+/=]+", "", (plan.out / name).read_text(encoding="utf-8"))
        assert str(files) not in text and str(plan.out) not in text, name
        assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", text), name
    table = (plan.out / "compare.csv").read_text().splitlines()
    assert len(table) == 1 + 3 * 3 * 2 + 1 and "AP50-95 crazing" in table[0]
    assert json.loads((plan.out / "compare.json").read_text())["curves"]["plain"]["0"]["epoch"] == [1, 2, 3]


def test_arms_that_did_not_start_alike_are_told(plan):
    file = plan.out / "tskd-1" / "result.json"
    row = json.loads(file.read_text())
    row["start"]["images"] = "other"
    file.write_text(json.dumps(row))
    assert summarise(plan, failed=[])["paired"] == {"weights": True, "images": False}


def test_a_seed_that_failed_is_left_out_of_the_pairs(plan):
    (plan.out / "tskd-1" / "result.json").unlink()
    summary = summarise(plan, failed=["tskd-1"])
    assert summary["arms"]["tskd"]["effect"]["mAP50-95"]["seeds"] == 2
    assert not summary["complete"] and summary["failed"] == ["tskd-1"]


# Whole runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_all_arms_of_a_seed_start_alike_and_plain_trains_as_long_as_tskd(files, tmp_path):
    out = tmp_path / "out"
    assert compare(**asked(files, out, arms="plain,ultralytics,tskd,plain_same_time,ded", jobs=2)) == 0
    report = json.loads((out / "compare.json").read_text())
    assert report["paired"] == {"weights": True, "images": True} and report["complete"]
    rows = {arm: a["rows"][0] for arm, a in report["arms"].items()}
    assert all(0 < row["seconds"] and row["last"]["images"] == 4 and row["best"] for row in rows.values())
    terms = {arm: report["curves"][arm]["0"].get("train/drd_loss") for arm in rows}
    assert terms["plain"] is None and terms["tskd"][0] > 0 and terms["ded"] == [0]
    assert report["curves"]["ded"]["0"]["train/ded_loss"][0] > 0
    assert "train/dis_loss" in report["curves"]["ultralytics"]["0"]
    limit = float((out / "plain_same_time-0" / "args.yaml").read_text().split("\ntime: ")[1].split()[0])
    assert limit == pytest.approx(rows["tskd"]["seconds"] / 3600)
    assert str(tmp_path) not in (out / "compare.html").read_text()


@pytest.mark.slow
def test_a_killed_comparison_takes_its_runs_with_it_and_goes_on(files, tmp_path):
    out = tmp_path / "out"
    values = asked(files, out, epochs=6, arms="plain")
    finished_teacher(checked(values), 0.3)
    command = [sys.executable, "-m", "tskd_yolo", *words(values)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)
    run, deadline = out / "plain-0", time.time() + 120
    while progress(run) != "interrupted" and time.time() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(1)  # its run notices
    before = (run / "results.csv").read_text()
    time.sleep(3)
    assert (run / "results.csv").read_text() == before, "the run goes on without its comparison"
    assert 1 <= len(before.splitlines()) - 1 < 6
    assert compare(**values) == 0
    report = json.loads((out / "compare.json").read_text())
    assert report["resumed"] == ["plain-0"] and report["complete"]
    assert report["curves"]["plain"]["0"]["epoch"] == list(range(1, 7))
    assert report["arms"]["plain"]["rows"][0]["epochs"] == 6 and report["paired"]["weights"]
    stamps = {f: f.stat().st_mtime_ns for f in out.glob("*/weights/*.pt")}
    assert compare(**values) == 0
    assert stamps == {f: f.stat().st_mtime_ns for f in out.glob("*/weights/*.pt")}, "a finished run was repeated"


@pytest.mark.slow
def test_an_interrupted_run_of_each_trainer_goes_on_and_a_cut_file_starts_anew(files, tmp_path, monkeypatch):
    from tskd_yolo.compare import worker

    values = checked(asked(files, tmp_path / "out", epochs=3))

    class Stop(Exception):
        pass

    def save_and_stop(trainer):
        super(type(trainer), trainer).save_model()
        raise Stop

    for who, trainer in {"ultralytics": worker.PlainTrainer, "tskd": worker.DistilledTrainer}.items():
        folder = tmp_path / "out" / f"{who}-0"
        job = dict(arm=who, seed=0, folder=str(folder), model="yolo11n.yaml", common=values.common, own=values.own)
        with monkeypatch.context() as patch, pytest.raises(Stop):
            patch.setattr(trainer, "save_model", save_and_stop, raising=False)
            worker.train(**job, seconds=None)
        assert worker.progress(folder) == "interrupted"
        row = worker.train(**job, seconds=None)
        assert row["resumed"] and row["epochs"] == 3 and worker.progress(folder) == "trained"
    (folder / "weights" / "last.pt").write_bytes(b"cut off")
    assert worker.progress(folder) == worker.progress(tmp_path / "nowhere") == "nothing"


@pytest.mark.slow
def test_a_run_that_fails_is_named_with_its_log_and_hurts_no_other(files, tmp_path, capfd):
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


def test_two_comparisons_in_one_folder_are_refused(files, tmp_path):
    from filelock import FileLock

    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"):
        with pytest.raises(ConfigError, match="another comparison is at work"):
            compare(**asked(files, tmp_path / "out"))


@pytest.mark.slow
def test_ray_spreads_the_runs(files, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    values = asked(files, tmp_path / "out", ray=True, jobs=2)
    finished_teacher(checked(values), 0.3)
    assert compare(**values) == 0
    report = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert report["complete"] and report["paired"] == {"weights": True, "images": True}


@pytest.mark.slow
def test_latency_that_cannot_be_measured_is_a_note_and_is_tried_again(files, tmp_path, monkeypatch):
    import importlib.util

    from tskd_yolo.compare import worker

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
