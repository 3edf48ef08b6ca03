"""The measuring scripts run and write what they promise; what they measure is no test's business."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import make_detector, tiny_data

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-3000:]


def test_step_cost_writes_its_keys_for_every_pair(tmp_path):
    file = tmp_path / "cost.json"
    script = ["benchmarks/step_cost.py", "--pairs", "yolo11n:yolo11s,yolo26n:yolo26s", "--imgsz", "64", "--batch", "2"]
    run(*script, "--repeats", "1", "--device", "cpu", "--json", str(file))
    rows = json.loads(file.read_text())
    assert [row["pair"] for row in rows] == ["yolo11n:yolo11s", "yolo26n:yolo26s"]
    for row in rows:
        times = [row[f"{name}_s"] for name in ("student_step", "teacher_forward", "distill_step", "builtin_step")]
        assert all(t > 0 for t in times)
        assert row["ratio_to_floor"] == pytest.approx(times[2] / (times[0] + times[1]), rel=0.02)
        assert row["ratio_to_builtin"] == pytest.approx(times[2] / times[3], rel=0.02)


def test_screening_compares_and_names_machine_and_command(tmp_path):
    data, teacher = tiny_data(tmp_path), make_detector(tmp_path / "teacher.pt")
    run(
        "benchmarks/screening.py",
        *[f"teacher={teacher}", f"data={data}", f"runs={tmp_path / 'runs'}", f"out={tmp_path}"],
        *["arms=plain,tskd", "epochs=1", "imgsz=64", "batch=4", "seeds=1"],
    )
    said = (tmp_path / "screening_neu_128.json").read_text()
    report = json.loads(said)
    assert {"command", "hardware", "versions", "commit"} <= report.keys()
    assert list(report["comparison"]["arms"]) == ["plain", "tskd"]
    assert str(tmp_path) not in said  # no path of the machine it ran on
    assert (tmp_path / "screening_neu_128.csv").exists()


def test_finetune_tunes_on_val_and_names_machine_and_command(tmp_path):
    data, teacher = tiny_data(tmp_path), make_detector(tmp_path / "teacher.pt")
    (tmp_path / "arms.yaml").write_text("longer: {epochs: 2}\n")
    run(
        "benchmarks/finetune.py",
        *[f"teacher={teacher}", f"data={data}", f"runs={tmp_path / 'runs'}", f"out={tmp_path}", "split=val"],
        *[f"arms=plain,{tmp_path / 'arms.yaml'}", "model=yolo11n.yaml", "epochs=1", "imgsz=64", "batch=4", "seeds=1"],
        *["nbs=4", "warmup_epochs=0"],
    )
    said = (tmp_path / "tune_neu_128.json").read_text()
    report = json.loads(said)
    assert report["comparison"]["judged"]["split"] == "val" and "arms=plain,arms.yaml" in report["command"]
    assert report["comparison"]["arms"]["longer"]["rows"][0]["epochs"] == 2
    assert str(tmp_path) not in said and (tmp_path / "tune_neu_128.csv").exists()


def test_gradients_measures_every_part_of_every_term(tmp_path):
    data, teacher, file = tiny_data(tmp_path), make_detector(tmp_path / "teacher.pt"), tmp_path / "gradients.json"
    run(
        "benchmarks/gradients.py",
        f"teacher={teacher}",
        f"data={data}",
        "imgsz=64",
        "batch=4",
        "batches=1",
        f"json={file}",
    )
    report = json.loads(file.read_text())
    crd = {"cross_class", "cross_box", "own_class", "own_box"}
    ded = {f"stages.{part}" for part in ("detection", "foreground", "background", "structure")}
    assert report["parts"].keys() == crd | ded | {"detection", "pixel", "instance"}
    assert all(part["norm"] >= 0 and -1.001 <= part["cosine"] <= 1.001 for part in report["parts"].values())
    assert report["parts"]["detection"]["cosine"] == pytest.approx(1, abs=1e-3)
    assert 0 < report["clipped"]["plain"] != report["clipped"]["tskd"]
    assert str(tmp_path) not in file.read_text()


def test_the_claim_refuses_a_stage_that_is_none_in_one_sentence():
    result = subprocess.run(
        [sys.executable, "benchmarks/claim.py", "stages=11n,foo"],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert result.returncode != 0
    assert result.stderr.strip().splitlines()[-1] == "stages: foo is none; choose from 11n, 26n, terms, best."


def test_cache_cost_finds_the_live_terms_in_the_cache(tmp_path):
    file = tmp_path / "cache.json"
    script = ["benchmarks/cache_cost.py", "--pair", "yolo11n:yolo11s", "--imgsz", "64", "--batch", "2"]
    run(*script, "--images", "4", "--loaded", "4", "--later", "1", "--json", str(file))
    found = json.loads(file.read_text())
    assert set(found["epoch"]) == {"plain", "live", "cached", "first"}
    assert all(found["epoch"][arm]["cpu"] > 0 for arm in found["epoch"])
    assert max(found["terms"]["error"].values()) < 0.01
    assert str(tmp_path) not in file.read_text()
