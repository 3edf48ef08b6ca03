"""The protocol's scripts keep tuning and judging apart: splits, seeds, and what is judged once."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml

from tests.helpers import made_up

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(params=["finetune", "claim"])
def script(request, monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module(request.param)


@pytest.fixture
def finetune(monkeypatch, tmp_path) -> ModuleType:
    """The script with a comparison that is finished at once; ``asked`` is what it was asked for."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("finetune")

    def compare(**values) -> int:
        module.asked = values
        out = Path(values["out"])
        out.mkdir(parents=True, exist_ok=True)
        means = {"best": made_up(0.3), "last": made_up(0.28)}
        weights = "best" if values["split"] == "test" else "last"
        report = {
            "judged": {"split": values["split"], "weights": weights},
            "metric": "mAP50-95",
            "teacher": {"last": made_up(0.32)},
            "arms": {"plain": {"mean": means}},
        }
        (out / "compare.json").write_text(json.dumps(report))
        (out / "compare.csv").write_text("arm\n")
        return 0

    monkeypatch.setattr(module, "compare", compare)
    return module


def run(module: ModuleType, folder: Path, *more: str) -> int:
    given = {"runs": str(folder / "runs"), "out": str(folder / "results"), **dict(m.split("=", 1) for m in more)}
    teacher = [] if module.__name__ == "claim" else ["teacher=teacher.pt"]  # a stage of it names its own
    return module.main([*teacher, *(f"{key}={value}" for key, value in given.items())])


def test_tuning_is_on_val_with_the_seeds_for_it(finetune, tmp_path, capsys):
    assert run(finetune, tmp_path, "ded=2", "name=ded2") == 0
    asked = finetune.asked
    assert (asked["split"], asked["seeds"], asked["arms"]) == ("val", [0, 1, 2, 3, 4], "plain,tskd")
    assert (asked["data"], asked["model"], asked["imgsz"], asked["epochs"], asked["batch"], asked["ded"]) == (
        "neu3.yaml", "yolo11n.pt", 128, 20, 32, 2
    )  # fmt: skip
    assert {file.name for file in (tmp_path / "results").iterdir()} == {"tune_ded2.json", "tune_ded2.csv"}
    said = (tmp_path / "results" / "tune_ded2.json").read_text()
    assert str(tmp_path) not in said and "ded=2" in json.loads(said)["command"]
    assert "The teacher is +4.0 points of mAP50-95 ahead of plain on val." in capsys.readouterr().out


def test_judging_is_on_test_with_other_seeds_and_all_arms(finetune, tmp_path, capsys):
    assert run(finetune, tmp_path, "split=test") == 0
    asked = finetune.asked
    assert (asked["split"], asked["seeds"]) == ("test", [10, 11, 12, 13, 14])
    arms = asked["arms"].split(",")
    assert arms[:-1] == ["plain", "plain_same_time", "ultralytics", "tskd", "without_ded", "without_crd"]
    assert yaml.safe_load(Path(arms[-1]).read_text()).keys() == {"short", "hints"}
    assert (tmp_path / "results" / "finetune_neu_128.json").exists()
    assert "+2.0 points of mAP50-95 ahead of plain on test: below 3.0, so the protocol says" in capsys.readouterr().out


def test_a_candidate_is_judged_once(finetune, tmp_path):
    assert run(finetune, tmp_path, "split=test") == run(finetune, tmp_path, "split=test") == 0, "the same goes on"
    with pytest.raises(SystemExit, match="finetune_neu_128.json is there: a candidate is judged once"):
        run(finetune, tmp_path, "split=test", f"runs={tmp_path / 'others'}")
    assert run(finetune, tmp_path, f"runs={tmp_path / 'others'}") == 0, "tuning is as often as needed"


@pytest.mark.parametrize("seeds", ["5", "[3,10]"])
def test_seeds_that_chose_settings_do_not_judge(seeds, script, tmp_path):
    judging = ["split=test"] if script.__name__ == "finetune" else []
    with pytest.raises(SystemExit, match=r"^seeds: .*3.* choose settings and must not judge them, too; give others"):
        run(script, tmp_path, f"seeds={seeds}", *judging)


def test_seeds_that_judge_do_not_choose(finetune, tmp_path):
    with pytest.raises(SystemExit, match=r"^seeds: 11 judge settings and must not choose them, too; .*0, 1, 2"):
        run(finetune, tmp_path, "seeds=[2,11]")


def test_another_split_is_refused(finetune, tmp_path):
    with pytest.raises(SystemExit, match="split: must be val"):
        run(finetune, tmp_path, "split=train")


def test_the_claim_is_judged_by_what_chose_nothing(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    claim, asked, kept = importlib.import_module("claim"), [], []
    monkeypatch.setattr(claim, "trained", lambda *_: tmp_path / "teacher.pt")
    monkeypatch.setattr(claim, "compare", lambda **values: asked.append(values) or 0)
    monkeypatch.setattr(claim, "keep", lambda _, __, name, *___: kept.append(name))
    assert run(claim, tmp_path, "stages=11n,best") == 0 and kept == ["claim_11n", "claim_best"]
    assert [(v["model"], v["imgsz"]) for v in asked] == [("yolo11n.pt", 640), ("yolo11s.pt", 640)]
    assert {(Path(v["data"]).name, v["split"], str(v["seeds"])) for v in asked} == {
        ("neu3.yaml", "test", "[10, 11, 12, 13, 14]")
    }
    monkeypatch.setattr(claim, "compare", lambda **_: 2)
    assert run(claim, tmp_path, "stages=26n") == 2 and "claim_26n" not in kept, "not all of its runs are through"


def test_a_command_names_files_and_no_folder_of_this_machine(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    asked = ["share=10", "teacher=[/a/t10/weights/best.pt,/a/t2/weights/best.pt]", "model=/x/n.pt", "out=/a/out"]
    told = importlib.import_module("common").public([*asked, "seeds=[0,1]", "arms=plain,/a/arms.yaml"])
    assert told == (
        "share=10 teacher=[t10/weights/best.pt,t2/weights/best.pt] model=n.pt out=out seeds=[0,1] arms=plain,arms.yaml"
    )
    others = ["teacher=/home/alice/weights/t.pt", "model=/weights/best.pt", "data=/home/alice/few/10/labelled.yaml"]
    told = importlib.import_module("common").public(others)
    assert told == "teacher=t.pt model=weights/best.pt data=10/labelled.yaml"


def test_a_measurement_names_the_commit_of_its_script(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    common = importlib.import_module("common")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert common._commit() == common.COMMIT and "thread(s)" in common.machine()["hardware"]
    if (BENCHMARKS.parent / ".git").exists():
        assert re.fullmatch(r"[0-9a-f]{7,}(-dirty)?", common.COMMIT)
