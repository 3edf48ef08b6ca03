"""Files of settings, and what is found by its name."""

from __future__ import annotations

import pytest
import yaml
from ultralytics.utils import DEFAULT_CFG_DICT, IterableSimpleNamespace

from tskd_yolo.config import KEPT, folder
from tskd_yolo.settings_files import resolve, without_file
from tskd_yolo.train import checks


@pytest.mark.parametrize("name", ["neu.yaml", "demo.yaml"])
def test_our_data_sets_are_found_by_name_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = {"data": name, "epochs": 3}
    resolve(arguments)
    assert arguments == {"data": str(folder("datasets") / name), "epochs": 3}


def test_the_users_own_file_of_that_name_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "neu.yaml").write_text("names: [a]")
    arguments = {"data": "neu.yaml"}
    resolve(arguments)
    assert arguments == {"data": "neu.yaml"}


def test_our_models_are_found_by_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = {"model": "timm-resnet18.yaml"}
    resolve(arguments)
    assert arguments == {"model": str(folder("cfg") / "models" / "timm-resnet18.yaml")}
    for theirs in ("yolo11n.yaml", "default.yaml", "timm-resnet18"):
        arguments = {"model": theirs}
        resolve(arguments)
        assert arguments == {"model": theirs}


@pytest.mark.parametrize("value", ["coco8.yaml", "else/neu.yaml", "neu", "", ".", None, 3])
def test_anything_else_is_left_to_ultralytics(value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = {"data": value, "cfg": value}
    resolve(arguments)
    assert arguments == {"data": value, "cfg": value}


def test_a_settings_file_is_found_by_name_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = {"cfg": "default.yaml"}
    resolve(arguments)
    assert arguments == {"cfg": str(folder("cfg") / "default.yaml")}


def test_what_yolo_train_merges_from_a_file_is_taken_out(tmp_path):
    content = {"epochs": 7, "mode": "train", "save_dir": "a", "exist_ok": True, "trust": False}
    file = tmp_path / "args.yaml"
    file.write_text(yaml.safe_dump(content))
    merged = {**content, "cfg": str(file), "model": "yolo11n.yaml"}
    assert without_file(merged) == {"epochs": 7, "trust": False, "model": "yolo11n.yaml"}
    assert without_file({**merged, "save_dir": "b"})["save_dir"] == "b"  # the caller's own
    assert without_file({"epochs": 3, "cfg": None}) == {"epochs": 3}


def test_settings_of_a_file_are_the_base_of_a_trainer_too(tmp_path):
    file = tmp_path / "args.yaml"
    file.write_text(yaml.safe_dump({"epochs": 7, "drd": 0.5, "save_dir": "a", "trust": False, "data": "neu.yaml"}))
    read = checks.base(file)
    assert read == {**DEFAULT_CFG_DICT, **KEPT, "epochs": 7, "drd": 0.5, "data": str(folder("datasets") / "neu.yaml")}
    assert checks.base(IterableSimpleNamespace(**DEFAULT_CFG_DICT)) == {**DEFAULT_CFG_DICT, **KEPT}
