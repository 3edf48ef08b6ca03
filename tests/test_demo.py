"""The demonstration, cut short: everything it announces is there at the end, and it can be interrupted."""

from __future__ import annotations

import json

import cv2
import pytest
import yaml

from tskd_yolo import demo
from tskd_yolo.cli import main


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(demo, "EPOCHS", {"teacher": 1, "plain": 1, "distilled": 1, "few labels": 1})
    for name, value in {"IMGSZ": 64, "BATCH": 4, "TRAIN": 8, "VAL": 6, "EVERY": 4}.items():
        monkeypatch.setattr(demo, name, value)
    return demo.demo


@pytest.mark.parametrize("seed", ["abc", "-1", "1.5", "True", "4294967296"])
def test_a_seed_that_is_none_is_told(seed, tmp_path, capsys):
    assert main(["demo", f"seed={seed}", f"out={tmp_path / 'demo'}"]) == 1
    said = capsys.readouterr().err
    assert "seed: must be a whole number from 0 to 4294967295, got" in said and "Traceback" not in said
    assert not list(tmp_path.iterdir())


def test_a_folder_of_another_seed_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tskd_yolo.data.drawn.prepare", lambda *_, **__: 1 / 0)
    for seed, error in ((0, ZeroDivisionError), (0, ZeroDivisionError), (1, ValueError)):
        with pytest.raises(error):
            demo.demo(out=tmp_path / "demo", seed=seed)
    assert main(["demo", "seed=1", f"out={tmp_path / 'demo'}"]) == 1
    assert "have seed=0, got 1; give seed=0, or another folder (out=)." in capsys.readouterr().err
    (tmp_path / "demo" / "demo.json").write_text("[]")
    assert main(["demo", f"out={tmp_path / 'demo'}"]) == 1
    assert "was not made by a demonstration; give another folder." in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "few.yaml").write_text("mine")
    assert main(["demo", f"out={tmp_path / 'mine'}"]) == 1
    assert "mine is there and holds no demonstration; give another folder." in capsys.readouterr().err
    assert [f.read_text() for f in (tmp_path / "mine").iterdir()] == ["mine"]


@pytest.mark.slow
def test_it_leaves_four_runs_and_goes_on_when_interrupted(short, tmp_path):
    folder = short(out=tmp_path / "demo", seed=1)
    runs = [folder / who for who in ("teacher", "plain", "distilled", "few-labels")]
    teacher, *students = [json.loads((run / "demo.json").read_text())["parameters"] for run in runs]
    assert [teacher > student for student in students] == [True] * 3 and len(set(students)) == 1
    table = (folder / "table.md").read_text()
    assert all(word in table for word in ("teacher", "plain", "distilled", "few labels", "GFLOPs", "mAP50-95"))
    picture = cv2.imread(str(folder / "picture.png"))
    assert picture.shape[1] > 5 * 128 and picture.std() > 10
    assert "drd_loss" in (folder / "distilled" / "results.csv").read_text()
    assert "drd_loss" not in (folder / "plain" / "results.csv").read_text()
    few = yaml.safe_load((folder / "few-labels" / "args.yaml").read_text())
    lists = [(folder / "data" / f"{name}.txt").read_text().split() for name in ("few", "rest")]
    assert [len(names) for names in lists] == [2, 6] and few["data"] == str(folder / "few.yaml")
    assert few["unlabelled"] == [str(folder / "data" / "rest.txt")]

    (folder / "distilled" / "demo.json").unlink()
    before = (folder / "teacher" / "weights" / "last.pt").stat().st_mtime_ns
    short(out=tmp_path / "demo", seed=1)
    assert (folder / "distilled" / "demo.json").exists()
    assert (folder / "teacher" / "weights" / "last.pt").stat().st_mtime_ns == before
