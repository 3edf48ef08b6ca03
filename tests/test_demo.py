"""The demonstration, cut short: everything it announces is there at the end, and it can be interrupted."""

from __future__ import annotations

import json

import cv2
import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def short(monkeypatch):
    from tskd_yolo import demo

    monkeypatch.setattr(demo, "EPOCHS", {"teacher": 1, "plain": 1, "distilled": 1})
    for name, value in {"IMGSZ": 64, "BATCH": 4, "TRAIN": 8, "VAL": 6}.items():
        monkeypatch.setattr(demo, name, value)
    return demo.demo


def test_it_leaves_three_runs_and_goes_on_when_interrupted(short, tmp_path):
    folder = short(out=tmp_path / "demo", seed=1)
    rows = [json.loads((folder / who / "demo.json").read_text()) for who in ("teacher", "plain", "distilled")]
    assert rows[0]["parameters"] > rows[1]["parameters"] == rows[2]["parameters"]
    table = (folder / "table.md").read_text()
    assert all(word in table for word in ("teacher", "plain", "distilled", "GFLOPs", "mAP50-95"))
    picture = cv2.imread(str(folder / "picture.png"))
    assert picture.shape[1] > 4 * 128 and picture.std() > 10
    assert "drd_loss" in (folder / "distilled" / "results.csv").read_text()
    assert "drd_loss" not in (folder / "plain" / "results.csv").read_text()

    (folder / "distilled" / "demo.json").unlink()
    before = (folder / "teacher" / "weights" / "last.pt").stat().st_mtime_ns
    short(out=tmp_path / "demo", seed=1)
    assert (folder / "distilled" / "demo.json").exists()
    assert (folder / "teacher" / "weights" / "last.pt").stat().st_mtime_ns == before
