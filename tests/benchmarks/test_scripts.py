"""The measuring scripts run and write what they promise; what they measure is no test's business."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ultralytics.engine import trainer as engine
from ultralytics.utils import LOGGER

from tests.compare.helpers import asked
from tests.data.helpers import draw_image
from tests.helpers import finished_run, finished_teacher, tiny_data
from tskd_yolo.compare.plan import checked
from tskd_yolo.data import index

pytestmark = pytest.mark.slow
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TINY = Namespace(imgsz=64, batch=2, boxes=3, classes=6, device="cpu", amp="True", cuda_graphs="True")


@pytest.fixture
def load(monkeypatch) -> Callable[..., dict[str, Any]]:
    """Runs a script in this process, as Python runs a file, and gives its names."""
    before, level = set(sys.modules), LOGGER.level
    monkeypatch.syspath_prepend(BENCHMARKS)  # a script finds those beside it

    def run(script: str, *arguments: str, name: str = "__main__") -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", [f"benchmarks/{script}", *arguments])
        return runpy.run_path(str(BENCHMARKS / script), run_name=name)

    yield run
    LOGGER.setLevel(level)
    for module in set(sys.modules) - before:
        if Path(getattr(sys.modules[module], "__file__", None) or "/").parent == BENCHMARKS:
            del sys.modules[module]


@pytest.mark.soak
def test_step_cost_writes_its_keys_for_every_pair(load, tmp_path):
    file = tmp_path / "cost.json"
    size = ["--imgsz", "64", "--batch", "2", "--repeats", "1", "--device", "cpu", "--no-memory"]
    load("step_cost.py", "--pairs", "yolo26n:yolo26s", *size, "--json", str(file))
    rows = json.loads(file.read_text())
    assert [row["pair"] for row in rows] == ["yolo26n:yolo26s"]
    for row in rows:
        times = [row[f"{name}_s"] for name in ("student_step", "teacher_forward", "distill_step", "builtin_step")]
        assert all(t > 0 for t in times)
        assert row["ratio_to_floor"] == pytest.approx(times[2] / (times[0] + times[1]), rel=0.02)
        assert row["ratio_to_builtin"] == pytest.approx(times[2] / times[3], rel=0.02)


@pytest.mark.soak
def test_step_cost_tells_memory_as_processes_of_their_own_do(load, monkeypatch):
    script = load("step_cost.py", name="step_cost")
    told = script["child"]("distill", "yolo11n:yolo11s", TINY)
    assert all(told[key] > 0 for key in ("peak", "weights", "kept"))
    mib = 2**20
    peaks = {name: 100 * mib for name in script["STEPS"]} | {"distill": 150 * mib, "builtin": 300 * mib}
    monkeypatch.setitem(
        script["memory"].__globals__, "child",
        lambda name, *_: {"peak": peaks[name], "weights": 40 * mib, "kept": 10 * mib},
    )  # fmt: skip
    found = script["memory"]("yolo11n:yolo11s", TINY)
    assert (found["ratio_to_memory_floor"], found["ratio_to_builtin_memory"]) == (1.0, 0.5)
    assert (found["distill_peak_mib"], found["teacher_weights_mib"], found["teacher_kept_mib"]) == (150, 40, 10)


def test_screening_compares_and_names_machine_and_command(load, files, tmp_path):
    given = dict(arms="plain,tskd", epochs=1, imgsz=64, batch=4, seeds=1)
    runs = {**asked(files, tmp_path / "runs"), **given}
    plan = checked({key: runs[key] for key in ("data", "model", "teacher", "device", "out", *given)})
    finished_teacher(plan, 0.3)
    for arm in ("plain", "tskd"):
        finished_run(plan, arm, 0, 0.1)
    with pytest.raises(SystemExit) as ended:
        load(
            "screening.py",
            *[f"teacher={files / 'teacher.pt'}", f"data={files / 'tiny.yaml'}"],
            *[f"runs={tmp_path / 'runs'}", f"out={tmp_path}"],
            *[f"{key}={value}" for key, value in given.items()],
        )
    assert ended.value.code == 0
    said = (tmp_path / "screening_neu_128.json").read_text()
    report = json.loads(said)
    assert {"command", "hardware", "versions", "commit"} <= report.keys()
    assert list(report["comparison"]["arms"]) == ["plain", "tskd"]
    assert str(tmp_path) not in said  # no path of the machine it ran on
    assert (tmp_path / "screening_neu_128.csv").exists()


@pytest.mark.soak
def test_finetune_tunes_on_val_and_names_machine_and_command(load, files, tmp_path, in_process):
    (tmp_path / "arms.yaml").write_text("longer: {epochs: 2}\n")
    with pytest.raises(SystemExit) as ended:
        load(
            "finetune.py",
            *[f"teacher={files / 'teacher.pt'}", f"data={files / 'tiny.yaml'}", "split=val", "seeds=1"],
            *[f"runs={tmp_path / 'runs'}", f"out={tmp_path}", f"arms=plain,{tmp_path / 'arms.yaml'}"],
            *["model=yolo11n.yaml", "epochs=1", "imgsz=64", "batch=4", "nbs=4", "warmup_epochs=0"],
        )
    assert ended.value.code == 0
    said = (tmp_path / "tune_neu_128.json").read_text()
    report = json.loads(said)
    assert report["comparison"]["judged"]["split"] == "val" and "arms=plain,arms.yaml" in report["command"]
    assert report["comparison"]["arms"]["longer"]["rows"][0]["epochs"] == 2
    assert str(tmp_path) not in said and (tmp_path / "tune_neu_128.csv").exists()


def test_gradients_measures_every_part_of_every_term(load, data, teacher, tmp_path):
    file = tmp_path / "gradients.json"
    size = ["imgsz=64", "batch=4", "batches=1"]
    load("gradients.py", f"teacher={teacher}", f"data={data}", *size, f"json={file}")
    report = json.loads(file.read_text())
    crd = {"cross_class", "cross_box", "own_class", "own_box"}
    ded = {f"stages.{part}" for part in ("detection", "foreground", "background", "structure")}
    assert report["parts"].keys() == crd | ded | {"detection", "pixel", "instance"}
    assert all(part["norm"] > 0 and -1.001 <= part["cosine"] <= 1.001 for part in report["parts"].values())
    assert report["parts"]["detection"]["cosine"] == pytest.approx(1, abs=1e-3)
    assert 0 < report["clipped"]["plain"] != report["clipped"]["tskd"]
    assert str(tmp_path) not in file.read_text()


def test_the_claim_refuses_a_stage_that_is_none_in_one_sentence(load):
    with pytest.raises(SystemExit) as ended:
        load("claim.py", "stages=11n,foo")
    assert ended.value.code == "stages: foo is none; choose from 11n, 26n, best."
    with pytest.raises(SystemExit) as ended:
        load("claim.py", "model=yolo11n.pt", "teacher=mine.pt")
    assert str(ended.value.code).startswith("model, teacher: a stage names its own")


def test_a_script_is_run_as_a_file_from_any_folder(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS.parent)}
    line = [sys.executable, str(BENCHMARKS / "gradients.py"), "data=a.yaml", "what=1"]
    result = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("what: is not an argument; choose from ") and not list(tmp_path.iterdir())


def test_cache_cost_finds_the_live_terms_in_the_cache(load, tmp_path):
    file = tmp_path / "cache.json"
    size = ["--imgsz", "64", "--batch", "2", "--images", "4", "--loaded", "4", "--later", "1"]
    load("cache_cost.py", "--pair", "yolo11n:yolo11s", *size, "--json", str(file))
    found = json.loads(file.read_text())
    assert set(found["epoch"]) == {"plain", "same_format", "live", "cached", "first"}
    assert all(found["epoch"][arm]["cpu"] > 0 for arm in found["epoch"])
    assert max(found["terms"]["error"].values()) < 0.01
    assert str(tmp_path) not in file.read_text()


def test_index_cost_reads_only_what_has_changed(load, tmp_path, monkeypatch):
    monkeypatch.setattr(index, "SETTLED", 10**7)
    load("index_cost.py", "--images", "40", "--folders", "4", "--times", "1", "--json", str(tmp_path / "index.json"))
    found = json.loads((tmp_path / "index.json").read_text())
    assert found["images"] == 41 and found["first"] > 0
    assert found["command"] == "python benchmarks/index_cost.py --images 40 --folders 4 --times 1 --json index.json"


def teacher_words(folder: Path) -> list[str]:
    """What a teacher of two steps is asked for with."""
    words = f"data={tiny_data(folder)} model=yolo11n.yaml imgsz=64 epochs=1 batch=4 nbs=4 workers=0".split()
    return [*words, f"runs={folder / 'runs'}", f"out={folder}"]


def test_a_teacher_is_trained_once_and_leaves_its_row(load, tmp_path):
    given = [*teacher_words(tmp_path), "more=x,y", "name=nine"]
    load("teachers.py", *given)
    best = tmp_path / "runs" / "nine" / "weights" / "best.pt"
    before = best.stat().st_mtime_ns
    load("teachers.py", *given)
    said = (tmp_path / "teachers.json").read_text()
    row = json.loads(said)["nine"]
    assert row["more"] == ["x", "y"] and row["model"] == "yolo11n.yaml" and row["val"].keys() == {"mAP50", "mAP50-95"}
    assert best.stat().st_mtime_ns == before and str(tmp_path) not in said
    names = torch.load(best, weights_only=False)["model"].names
    assert list(names.values())[-2:] == ["x", "y"]
    with pytest.raises(SystemExit) as ended:
        load("teachers.py", *given, "epochs=7", "bf16=True")
    assert ended.value.code == "bf16, epochs: nine was begun with others; take them, or give another name=."
    with pytest.raises(SystemExit) as ended:
        load("teachers.py", *given, "bf16=maybe")
    assert ended.value.code == "bf16: must be True or False, got 'maybe'."


def test_a_teacher_can_be_trained_in_bfloat16(load, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "autocast", engine.autocast)
    seen = []
    monkeypatch.setattr(
        torch.nn.SiLU, "forward", lambda _, x: seen.append((x.dtype, x.requires_grad)) or x.sigmoid() * x
    )
    load("teachers.py", *teacher_words(tmp_path), "name=b", "bf16=True")
    assert (torch.bfloat16, True) in seen


def test_a_teacher_without_a_name_is_refused_in_one_sentence(load):
    with pytest.raises(SystemExit) as ended:
        load("teachers.py", "epochs=1")
    assert str(ended.value.code).startswith("name: missing; give name=WORD")


def test_a_share_is_judged_once_and_loses_no_row(load, tmp_path):
    refuse = load("fewlabels.py", name="fewlabels")["refuse_again"]
    file = tmp_path / "fewlabels_neu_128.json"
    refuse(file, 10, ["plain"], tmp_path, "test")
    file.write_text(json.dumps([{"share": 10, "arms": {"plain": {}, "pseudo": {}, "tskd_all": {}}}]))
    refuse(file, 25, ["plain"], tmp_path, "test")
    with pytest.raises(SystemExit, match="has a share of 10 %: it is judged once"):
        refuse(file, 10, ["plain", "pseudo"], tmp_path, "test")
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "compare.json").touch()
    refuse(file, 10, ["plain", "pseudo"], tmp_path, "test")
    with pytest.raises(SystemExit, match="has rows of pseudo too, which would be lost"):
        refuse(file, 10, ["plain"], tmp_path, "val")


def test_few_labels_are_the_first_by_hash_and_epochs_alike(load, tmp_path, monkeypatch):
    script = load("fewlabels.py", name="fewlabels")
    for split, count in {"train": 200, "val": 2, "test": 2}.items():
        for kind in ("dent", "rust"):
            for number in range(count):
                draw_image(tmp_path / "set" / "images" / split / f"{kind}_{number}.png")
    whole = {"path": tmp_path / "set", "names": {0: "dent", 1: "rust"}}
    whole |= {split: str(tmp_path / "set" / "images" / split) for split in ("train", "val", "test")}
    monkeypatch.setitem(script["data_sets"].__globals__, "LISTS", tmp_path)
    few = script["data_sets"](whole, 10, tmp_path, steps=100)
    names = (tmp_path / "neu_10.txt").read_text().split()
    assert [sum(name.startswith(kind) for name in names) for kind in ("dent", "rust")] == [20, 20]
    labelled = [Path(line).name for line in (tmp_path / "labelled.txt").read_text().splitlines()]
    assert sorted(labelled) == sorted(names * 2), "an epoch is a twentieth of the steps"
    rest = {Path(line).name for line in few["rest"].read_text().splitlines()}
    assert len(rest) == 360 and not rest & {*names}
    assert script["schedule"](few["labelled"], 100) == {"epochs": 20, "close_mosaic": 10, "warmup_epochs": 3}
    (tmp_path / "neu_10.txt").write_text("dent_0.png\n")
    with pytest.raises(SystemExit, match="has other images than their hash chooses"):
        script["data_sets"](whole, 10, tmp_path, steps=100)


def test_small_defects_are_four_tenths_as_wide_and_high(load, tmp_path):
    names = load("small.py", name="small")
    settings = names["main"].__globals__
    settings["IMAGES"], settings["VAL"], settings["TEST"] = {"few": 8, "many": 24}, 2, 3
    names["main"]([f"out={tmp_path / 'small'}"])
    rows = [line.split() for file in (tmp_path / "small" / "many").rglob("labels/*/*.txt") for line in file.open()]
    assert len(rows) > 10 and all(max(map(float, row[3:])) < 0.4 for row in rows)
    few, many = ([*sorted((tmp_path / "small" / kind / "images" / "train").iterdir())] for kind in ("few", "many"))
    assert [a.read_bytes() for a in few] == [b.read_bytes() for b in many[:8]]
    judged = [*(tmp_path / "small" / "few" / "images" / "test").iterdir()]
    assert len({file.read_bytes() for file in (*judged, *many)}) == 3 + 24
    with pytest.raises(SystemExit, match="size: unknown; give out=FOLDER"):
        names["main"](["size=3"])
