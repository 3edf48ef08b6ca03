"""The data set's folder: begun, gone on with, never mixed with anything else."""

from __future__ import annotations

import json
import os
import re

import cv2
import numpy as np
import pytest
import yaml

from tests.autolabel.helpers import IMAGES, NAMES, THRESHOLDS
from tskd_yolo.autolabel import record
from tskd_yolo.autolabel.record import Folder, Settings
from tskd_yolo.config import ConfigError

SETTINGS = Settings([{"name": "t.pt", "sha256": "0" * 64}], NAMES, THRESHOLDS, "/in", "/val", {"imgsz": 64})


@pytest.fixture
def originals(tmp_path):
    found = {}
    for number, image in enumerate(IMAGES):
        found[image.name] = tmp_path / "in" / image.name
        found[image.name].parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(found[image.name]), np.full((*image.size[::-1], 3), 40 * number, np.uint8))
    return found


@pytest.fixture
def folder(tmp_path):
    found = Folder(tmp_path / "out", SETTINGS)
    found.begin(channels=3, facts={})
    return found


def test_images_labels_and_scores_are_written(folder, originals):
    for image in IMAGES:
        folder.add(originals[image.name], image)
    out = folder.out
    assert (out / "labels/train/x.txt").read_text() == "0 0.35 0.5 0.5 0.8\n"
    assert (out / "labels/train/sub/y & z.txt").read_text() == ""
    assert (out / "images/train/x.png").samefile(originals["x.png"])
    assert sorted(folder.read()) == sorted(IMAGES)
    row = json.loads((out / "scores/train/x.json").read_text())
    assert row["detections"][1] == {"label": 1, "score": 0.45, "box": [0.0, 0.0, 9.5, 9.25], "kept": False}
    told = row["provenance"]
    assert told["teacher"] == SETTINGS.teacher and told["thresholds"] == dict(zip(NAMES, THRESHOLDS))
    assert told["imgsz"] == 64 and told["version"] and told["original"] == str(originals["x.png"])
    content = yaml.safe_load((out / "data.yaml").read_text())
    assert content == {"path": str(out), "train": "images/train", "val": "/val", "names": dict(enumerate(NAMES))}


def test_another_image_under_a_name_is_labelled_anew(folder, originals, caplog):
    for image in IMAGES:
        folder.add(originals[image.name], image)
    os.utime(originals["z.png"])  # the same content at another time
    cv2.imwrite(str(originals["x.png"]), np.full((10, 10, 3), 200, np.uint8))
    again = Folder(folder.out, SETTINGS)
    assert list(again.left(originals)) == ["x.png"]
    assert "1 images are others than those that were labelled under their names" in caplog.text
    assert not (folder.out / "labels/train/x.txt").exists() and not (folder.out / "images/train/x.png").is_symlink()
    jpeg = originals["z.png"].with_suffix(".jpg")
    originals["z.png"].rename(jpeg)
    assert again.left({"z.jpg": jpeg}) == {"z.jpg": jpeg}
    assert not (folder.out / "images/train/z.png").is_symlink()
    again.add(jpeg, IMAGES[2]._replace(name="z.jpg"))
    assert again.left({"z.jpg": jpeg}) == {}


def test_what_is_done_is_not_written_again(folder, originals):
    folder.add(originals["x.png"], IMAGES[0])
    (folder.out / "labels/train/x.txt").write_text("0 0.5 0.5 0.1 0.1\n")  # somebody has corrected it
    again = Folder(folder.out, SETTINGS)
    again.begin(channels=3, facts={})
    assert sorted(again.left(originals)) == ["sub/y & z.png", "z.png"]
    assert (folder.out / "labels/train/x.txt").read_text() == "0 0.5 0.5 0.1 0.1\n"


def test_an_image_that_was_cut_short_is_left(folder, originals):
    folder.add(originals["x.png"], IMAGES[0])
    (folder.out / "labels/train/x.txt").unlink()  # killed before the last file
    assert "x.png" in folder.left(originals) and list(folder.read()) == []
    folder.add(originals["x.png"], IMAGES[0])
    assert list(folder.read()) == IMAGES[:1]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"teacher": [{"name": "t.pt", "sha256": "1" * 64}]}, "other settings (teacher);"),
        ({"thresholds": [0.5] * 3, "source": "/else"}, "other settings (thresholds and source);"),
    ],
)
def test_other_settings_do_not_go_on(folder, changed, words):
    with pytest.raises(ConfigError, match=re.escape(f"was begun with {words} give the same, or another folder")):
        Folder(folder.out, SETTINGS._replace(**changed)).begin(channels=3, facts={})


def test_a_teacher_under_another_name_goes_on(folder):
    (teacher,) = SETTINGS.teacher
    Folder(folder.out, SETTINGS._replace(teacher=[{**teacher, "name": "renamed.pt"}])).begin(channels=3, facts={})


def test_what_is_foreign_is_left_alone(tmp_path, folder, originals):
    other = tmp_path / "other"
    assert record.begun(other) is None
    other.mkdir()
    (other / ".autolabel.json.1.part").touch()  # killed at the very beginning
    assert record.begun(other) is None
    for content in ("{}", "[]", "no", '{"made_by": "tskd-yolo autolabel"}'):
        (other / "autolabel.json").write_text(content)
        with pytest.raises(ConfigError, match="is there and was not made by tskd-yolo autolabel"):
            record.begun(other)
    with pytest.raises(ConfigError, match="is there and was not made"):
        record.begun(originals["x.png"])
    (folder.out / "labels/train/z.txt").write_text("0 0.5 0.5 1 1\n")
    with pytest.raises(ConfigError, match=r"1 label files .* have no record of their scores, .*labels/train/z\.txt"):
        folder.left(originals)
    cv2.imwrite(str(folder.out / "images/train/x.png"), np.full((3, 3, 3), 7, np.uint8))
    with pytest.raises(ConfigError, match=r"x\.png is there and is not"):
        folder.add(originals["x.png"], IMAGES[0])
    assert not (folder.out / "labels/train/x.txt").exists()


def test_without_val_the_data_yaml_says_so(tmp_path):
    Folder(tmp_path / "out", SETTINGS._replace(val=None)).begin(channels=1, facts={})
    text = (tmp_path / "out" / "data.yaml").read_text()
    assert "There was no validation set" in text and yaml.safe_load(text)["val"] == "images/train"
    assert yaml.safe_load(text)["channels"] == 1


def test_detections_become_labels_from_their_threshold_on():
    rows = [(0, 0.8, (1, 2, 30, 40)), (0, 0.79, (2, 2, 30, 40)), (1, 0.29, (1, 2, 30, 40)), (2, 0.99, (1, 2, 30, 40)),
            (2, 0.2, (1, 2, 30, 40)), (0, 0.9, (5, 5, 5.001, 9)), (0, 0.7, (1, 2, 30, 40.001))]  # fmt: skip
    found = record.labelled("x.png", (64, 64), rows, THRESHOLDS)
    assert [(each.label, each.score, each.kept) for each in found.detections] == [
        (2, 0.99, False), (0, 0.8, True), (0, 0.79, False),
    ]  # fmt: skip


def test_a_rounded_threshold_lets_its_own_detection_through():
    assert record.rounded(0.123456) == 0.1234 and record.rounded(1.01) == 1.01 and record.rounded(0.3) == 0.3
