"""Whole calls: what is written trains, is gone on with after a kill, and is mixed with nothing else."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
import yaml
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import check_det_dataset

from tests.autolabel.helpers import asked
from tests.helpers import logged
from tskd_yolo import confidence, files
from tskd_yolo.autolabel import review
from tskd_yolo.autolabel.record import Folder
from tskd_yolo.autolabel.run import autolabel
from tskd_yolo.cli import main
from tskd_yolo.confidence import Detections
from tskd_yolo.config import ConfigError


def words(given) -> list[str]:
    return ["autolabel", *(f"{key}={value}" for key, value in given.items())]


def contents(out):
    """What was written, but what says when."""
    return {str(f.relative_to(out)): f.read_bytes() for f in sorted(out.rglob("*")) if f.is_file()}


@pytest.fixture
def easy(monkeypatch):
    """Validation images on which the first two classes have thresholds: 0.4 and 0.7."""
    score = np.concatenate([np.linspace(0.9, 0.4, 20), np.linspace(0.9, 0.7, 20), np.full(9, 0.5)])
    found = Detections(score.astype(np.float32), np.ones(49, bool), np.repeat([0, 1, 2], [20, 20, 9]), np.full(6, 30))
    monkeypatch.setattr(confidence, "measured", lambda *args, **given: found)


@pytest.mark.slow
def test_a_killed_call_goes_on_where_it_was(sure, data, pictures, tmp_path, watched, easy, monkeypatch, capsys):
    given = asked(tmp_path, sure, pictures, data=data, export="cvat,labelstudio")
    shutil.copy(next((data.parent / "set" / "images" / "val").iterdir()), pictures / "twin.png")
    (pictures / "broken.jpg").write_text("no image")
    add, killed = Folder.add, []

    def until_it_is_killed(self, original, found):
        if found.name.endswith(killed[0] if killed else ""):
            raise KeyboardInterrupt
        add(self, original, found)

    killed.append(sorted(file.name for file in pictures.glob("*.*"))[2])
    monkeypatch.setattr(Folder, "add", until_it_is_killed)
    assert main(words({**given, "batch": 1})) == 130 and "the same command goes on" in capsys.readouterr().err
    before = contents(tmp_path / "out" / "labels")
    assert len(before) == 1 + (sum(watched()) - 2) and sum(watched()) < 6
    monkeypatch.setattr(Folder, "add", add)
    done = len(before)
    watched().clear()
    with logged() as lines:
        assert main(words({**given, "batch": 1})) == 0
    assert sum(watched()) == 6 - done
    text = "\n".join(lines)
    assert f"{done} of 7 images are labelled already" in text and "1 images could not be read" in text
    assert "1 images are in the validation or test set too" in text and "(twin.png)" in text
    out = tmp_path / "out"
    assert contents(out / "labels").items() >= before.items() and len(contents(out / "labels")) == 6
    record = json.loads((out / "autolabel.json").read_text())
    assert record["settings"]["thresholds"][:3] == [0.4, pytest.approx(0.7, abs=1e-4), 1.01]
    assert (
        len(record["in_train"]) == 6 and record["left_out"] == ["twin.png"] and record["unreadable"] == ["broken.jpg"]
    )
    assert record["counts"]["images"] == 6 and {"cvat.xml", "labelstudio.json"} <= {f.name for f in out.iterdir()}
    with open(out / "uncertain.csv", encoding="utf-8", newline="") as file:
        uncertainty = [float(row["uncertainty"]) for row in csv.DictReader(file)]
    assert uncertainty == sorted(uncertainty, reverse=True) and len(uncertainty) == record["counts"]["uncertain"]
    again = contents(out)
    assert main(words(given)) == 0 and contents(out) == {**again, "autolabel.json": contents(out)["autolabel.json"]}


def test_what_is_written_is_read_by_ultralytics(sure, data, pictures, tmp_path, easy):
    summary = autolabel(**asked(tmp_path, sure, pictures, data=str(data)))
    assert summary["counts"]["images"] == 6 and sum(row["labels"] for row in summary["classes"]) > 0
    found = check_det_dataset(str(tmp_path / "out" / "data.yaml"))
    assert found["names"][2] == "patches" and found["val"] == str(data.parent / "set" / "images" / "val")
    review.write_certain(["strip_0001.png", "images_/strip_0005.png"], tmp_path / "out")
    for train, count in (("images/train", 6), ("certain.txt", 2)):
        dataset = YOLODataset(img_path=str(tmp_path / "out" / train), data=found, imgsz=64, augment=False)
        assert len(dataset) == count and all(len(label["cls"]) for label in dataset.labels)
        if count == 6:
            boxes = sum(len(label["cls"]) for label in dataset.labels)
            assert boxes == sum(row["labels"] for row in summary["classes"])
    assert not list(pictures.rglob("*.txt")) and not list(pictures.rglob("*.cache"))


@pytest.mark.slow
def test_several_teachers_label_with_one_threshold(sure, sure_too, pictures, tmp_path):
    summary = autolabel(**asked(tmp_path, f"[{sure},{sure_too}]", pictures, conf=0.3, augment=True))
    assert [file["name"] for file in summary["teacher"]] == ["sure.pt", "sure-too.pt"]
    record = json.loads((tmp_path / "out" / "autolabel.json").read_text())
    assert record["settings"]["detector"]["fusion"]["method"] == "weighted box fusion"
    assert record["settings"]["thresholds"] == [0.3] * 6 and record["confidence"] is None
    rows = [json.loads(file.read_text()) for file in (tmp_path / "out" / "scores").rglob("*.json")]
    scores = [found["score"] for row in rows for found in row["detections"]]
    assert len(rows) == 6 and scores and min(scores) >= 0.15
    assert yaml.safe_load((tmp_path / "out" / "data.yaml").read_text())["val"] == "images/train"


@pytest.mark.slow
def test_other_settings_and_foreign_folders_are_refused(sure, sure_too, pictures, tmp_path, capsys):
    given = asked(tmp_path, sure, pictures, conf=0.5)
    assert main(words(given)) == 0
    before = contents(tmp_path / "out")
    for other, told in (
        ({"teacher": sure_too}, "other settings (teacher)"),
        ({"conf": 0.4}, "other settings (thresholds)"),
    ):
        assert main(words({**given, **other})) == 1
        assert told in capsys.readouterr().err and contents(tmp_path / "out") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    assert main(words({**given, "out": tmp_path / "mine", "teacher": tmp_path / "gone.pt", "source": "none"})) == 1
    told = capsys.readouterr().err
    for sentence in ("3 problems found", "was not made by tskd-yolo", "gone.pt was not found", "holds no image"):
        assert sentence in told
    assert main(words({**given, "out": pictures / "out"})) == 1
    assert "is in the source" in capsys.readouterr().err and not (pictures / "out").exists()
    assert main(["autolabel", "teacher=a.pt", "sorce=b"]) == 1
    assert "sorce: is not an argument; did you mean 'source'?" in capsys.readouterr().err


def test_data_of_many_channels_are_refused_with_the_rest(sure, data, pictures, tmp_path):
    many = tmp_path / "many.yaml"
    many.write_text(yaml.safe_dump({**yaml.safe_load(data.read_text()), "channels": 5}))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    with pytest.raises(ConfigError, match="channels 1 or 3.*has channels 5; give a data set") as error:
        autolabel(**asked(tmp_path, sure, pictures, data=str(many)))
    assert len(error.value.problems) == 2


def test_images_that_all_judge_are_refused(sure, data, tmp_path):
    with pytest.raises(ConfigError, match="source: all 4 images are in the validation or test set too"):
        autolabel(**asked(tmp_path, sure, data.parent / "set" / "images" / "val", data=str(data), conf=0.5))
    assert not (tmp_path / "out").exists()


def test_data_without_its_training_images_measures_all_the_same(sure, data, pictures, tmp_path, easy):
    file = tmp_path / "val.yaml"
    content = yaml.safe_load(data.read_text())
    file.write_text(yaml.safe_dump({**content, "path": str(data.parent / "set"), "train": "images/gone"}))
    with logged() as lines:
        record = autolabel(**asked(tmp_path, sure, pictures, data=str(file), conf=0.5))
    assert any("data: its training images were not found" in line for line in lines) and not record["in_train"]
    assert not any("no threshold" in note for note in record["notes"]), "conf= labels all classes"


def test_a_full_disk_is_told_in_a_sentence(sure, pictures, tmp_path, monkeypatch, capsys):
    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "replace", full)
    assert main(words(asked(tmp_path, sure, pictures, conf=0.5))) == 1
    assert "could not be written ([Errno 28] No space left on device); make room" in capsys.readouterr().err


def test_no_class_with_a_threshold_is_told(sure, data, pictures, tmp_path):
    with pytest.raises(ConfigError, match=r"no class has a threshold for a precision of 0\.99 \(crazing: no thresh"):
        autolabel(**asked(tmp_path, sure, pictures, data=str(data), precision=0.99))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match=r"data: .*none\.yaml could not be read"):
        autolabel(**asked(tmp_path, sure, pictures, data=str(tmp_path / "none.yaml")))
