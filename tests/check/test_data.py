"""What a check says of a data set: numbers by split and class, and images in both splits, by name."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml

from tests.helpers import NAMES, copied_data, task_data
from tskd_yolo import hashing
from tskd_yolo.check import data as checked
from tskd_yolo.config import ConfigError
from tskd_yolo.data import duplicates


@pytest.fixture(autouse=True)
def settings_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(hashing, "USER_CONFIG_DIR", tmp_path / "settings")


def look(file, **more):
    return checked.look({"data": str(file), "imgsz": 64, **more})


def test_a_data_set_is_counted_by_split_and_class(data):
    found = look(data)
    assert found.names == dict(enumerate(NAMES))
    assert {name: (split["images"], split["left_out"]) for name, split in found.splits.items()} == {
        "train": (8, 0),
        "val": (4, 0),
    }
    assert sum(row["train boxes"] for row in found.classes) == found.splits["train"]["boxes"]
    assert found.splits["val"]["tiny"] > 0, "the shapes of val were lost"
    assert (found.same, found.near) == ([], [])


@pytest.mark.parametrize("task", ["pose", "segment", "obb"])
def test_labels_of_another_task_are_counted_by_their_boxes(task, tmp_path):
    file = task_data(tmp_path, task)
    lines = sum(label.read_text().count("\n") for label in (tmp_path / "set" / "labels" / "train").iterdir())
    for known in ({}, {"task": task}):  # the run may have been refused before its task was known
        found = look(file, **known).splits["train"]
        assert (found["boxes"], found["left_out"], found["outside"]) == (lines, 0, 0)


def test_one_class_is_what_single_cls_makes_of_them(data):
    found = look(data, single_cls=True)
    assert [row["name"] for row in found.classes] == ["item"]
    assert found.classes[0]["train boxes"] == found.splits["train"]["boxes"]


def test_images_in_both_splits_are_named_without_their_folders(data, tmp_path):
    file = copied_data(data, tmp_path)
    for n in range(3):
        shutil.copy(tmp_path / f"set/images/train/strip_{n:04d}.png", tmp_path / f"set/images/val/copy_{n}.png")
    found = look(file)
    row = found.row()
    assert row["count"] == {"same": 3, "near": 0} and str(tmp_path) not in json.dumps(row)
    assert row["same"][0] == ["copy_0.png", "strip_0000.png", 1.0]
    assert [(f.level, f.about) for f in found.findings][0] == ("no", "splits")


def test_a_test_split_is_held_against_train_and_val(data, tmp_path):
    file = copied_data(data, tmp_path)
    for kind, suffix in (("images", "png"), ("labels", "txt")):
        shutil.copytree(tmp_path / "set" / kind / "val", tmp_path / "set" / kind / "test")
        shutil.copy(tmp_path / f"set/{kind}/train/strip_0000.{suffix}", tmp_path / f"set/{kind}/test/other.{suffix}")
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), "test": "images/test"}))
    found = look(file, split="test")
    assert (found.judged, found.beside, found.row()["count"]) == ("test", "train or val", {"same": 5, "near": 0})
    words = "5 of 5 test images are in train or val too (5 the same file; such as other.png, there strip_0000.png)"
    assert words in str(found.findings[0])
    assert set(found.splits) == {"train", "test"} and "test boxes" in found.classes[0]
    assert look(file).row()["count"] == {"same": 0, "near": 0}


def test_pictures_are_read_once(data, monkeypatch):
    read = []
    perceptual = duplicates._perceptual
    monkeypatch.setattr(duplicates, "_perceptual", lambda path: read.append(path) or perceptual(path))
    assert look(data) and len(read) == 12
    assert look(data) and len(read) == 12


def test_hashes_that_cannot_be_kept_are_told(data, tmp_path, caplog):
    (tmp_path / "settings").write_text("a file where the folder should be")
    assert look(data).splits and "could not be kept" in caplog.text


def test_a_set_without_labels_is_refused(data, tmp_path):
    file = copied_data(data, tmp_path)
    shutil.rmtree(tmp_path / "set" / "labels")
    with pytest.raises(ConfigError, match="the train images could not be read"):
        look(file)
