"""Students that segment, find key points or rotated boxes, in whole runs; each pair of heads is in test_pairs.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from ultralytics import YOLO
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import check_det_dataset

import tskd_yolo
from tests.helpers import NAMES, kept_runs, launched, rows, same, settings, task_data
from tskd_yolo import Trainer, hashing
from tskd_yolo.cli import main
from tskd_yolo.train import trainer as trainers

pytestmark = pytest.mark.slow

SUFFIX = {"segment": "seg", "pose": "pose", "obb": "obb"}
OTHER = ("Crazing", "cut", "patches", "dent")
"""Classes of another teacher: one in another case, one that a map names, one of the data's, one that nobody has."""


@pytest.fixture(scope="session")
def labelled(shared) -> Any:
    """Gives the YAML of a data set of four and two images with labels of a task."""

    def make(task: str, folder: Path) -> None:
        folder.mkdir()
        data = check_det_dataset(str(task_data(folder, task)))
        for split in ("train", "val"):  # with the label caches that the first run would write
            YOLODataset(img_path=data[split], data=data, task=task, imgsz=64, augment=False)

    return lambda task: shared(task, lambda folder: make(task, folder)) / "tiny.yaml"


def given(
    tmp_path: Path, task: str, labelled: Any, detector: Any, family: str = "yolo11", **more: Any
) -> dict[str, Any]:
    """Arguments of a run without a word of its task: the model decides."""
    model = f"{family}n-{SUFFIX[task]}.yaml"
    base = dict(model=model, teacher=str(detector(model)))
    return settings(tmp_path, labelled(task), **{**base, **more})


def words(values: dict[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in values.items()]


def losses(tmp_path: Path, *terms: str) -> bool:
    """Whether the last epoch has a loss of each of these terms."""
    return all(0 < rows(tmp_path)[-1][f"train/{term}_loss"] < 1e5 for term in terms)


CASES = [
    # A larger image for the teacher, whose masks are reduced for the student, and everything pasted everywhere.
    ("segment", "yolo26", dict(teacher_imgsz=96, copy_paste=1.0, single_cls=True), ("drd", "ded", "crd")),
    ("pose", "yolov8", dict(variant="paper", fliplr=1.0), ("drd", "ded")),
    ("obb", "yolo26", dict(teacher_imgsz=96, crd=0), ("drd", "ded")),
]


@pytest.mark.parametrize(("task", "family", "more", "terms"), CASES, ids=[case[0] for case in CASES])
def test_a_model_of_a_task_is_taught_and_stays_a_plain_one(task, family, more, terms, tmp_path, labelled, detector):
    assert main(["train", *words(given(tmp_path, task, labelled, detector, family, **more))]) == 0
    assert losses(tmp_path, *terms)
    best = tmp_path / "run" / "weights" / "best.pt"
    content = torch.load(best, weights_only=False)
    assert "tskd" not in str(content["train_args"]) and type(content["model"]).__module__ == "ultralytics.nn.tasks"
    model = YOLO(best)
    assert model.task == task == content["train_args"]["task"]
    boxes = "obb" if task == "obb" else "boxes"
    assert getattr(model.predict(torch.zeros(1, 3, 64, 64), verbose=False)[0], boxes) is not None


def test_several_teachers_of_a_task_answer_for_mapped_classes(tmp_path, labelled, detector, no_end):
    (tmp_path / "map.yaml").write_text("cut: scratches\n")
    model = "yolov8n-pose.yaml"
    teachers = [str(detector(model)), str(detector(model, OTHER))]
    run = given(
        tmp_path, "pose", labelled, detector, "yolov8", teacher=teachers, classes_map=str(tmp_path / "map.yaml")
    )
    loaded = tskd_yolo.load(model)
    loaded.train(trainer=Trainer, **run)
    trainer = loaded.trainer
    assert type(trainer) is trainers.PoseTrainer and losses(tmp_path, "drd", "ded", "crd")
    known = [frozen.classes.known for frozen in trainer.distiller.teachers]
    assert known == [[*range(len(NAMES))], [NAMES.index(name) for name in ("crazing", "patches", "scratches")]]
    assert trainer.model.kpt_shape == [2, 3]


def test_an_interrupted_run_goes_on_with_its_task(tmp_path, labelled, detector, no_end):
    class Stop(Exception):
        pass

    def stop(trainer: Any) -> None:
        raise Stop

    trainer = Trainer(**given(tmp_path, "segment", labelled, detector, "yolov8", epochs=2, val=False))
    assert type(trainer) is trainers.SegmentTrainer
    trainer.add_callback("on_model_save", stop)
    with pytest.raises(Stop):
        trainer.train()
    assert main(["train", "resume", f"model={trainer.last}"]) == 0
    assert [row["epoch"] for row in rows(tmp_path)] == [1, 2] and losses(tmp_path, "drd", "ded", "crd")


@pytest.mark.parametrize("task", [pytest.param("segment", marks=pytest.mark.soak), "obb"])
def test_kept_outputs_are_those_of_the_live_teacher(task, tmp_path, detector, no_end):
    """Of rotated boxes the view is kept with the outputs, of masks it is drawn again."""
    data = task_data(tmp_path, task)
    model = f"yolov8n-{SUFFIX[task]}.yaml"
    run = dict(teacher=str(detector(model)), model=model, epochs=1)
    cold, warm = kept_runs(tmp_path, data, [run, run])
    assert (cold.asked, warm.asked) == (4, 0) and same(cold.weights, warm.weights)


def test_processes_are_launched_with_the_trainer_of_the_task(tmp_path, labelled, detector, no_end):
    from ultralytics.utils import DEFAULT_CFG_DICT

    parent = Trainer(**given(tmp_path, "obb", labelled, detector))
    state = launched(parent)
    cfg = {**DEFAULT_CFG_DICT, "save_dir": ""}
    assert state["trainer"] is trainers.OBBTrainer
    worker = state["trainer"](cfg=cfg, overrides=state["args"], _callbacks=state["callbacks"])
    assert type(worker) is trainers.OBBTrainer and worker.args.task == "obb" and worker.config == parent.config


@pytest.mark.parametrize("task", ["pose"])
def test_a_check_knows_the_task(task, tmp_path, labelled, detector, monkeypatch):
    monkeypatch.setattr(hashing, "USER_CONFIG_DIR", tmp_path / "settings")
    monkeypatch.chdir(tmp_path)
    run = given(tmp_path, task, labelled, detector, "yolov8")
    code = main(
        ["check", *words({k: v for k, v in run.items() if k not in {"project", "name", "exist_ok"}}), "out=out"]
    )
    found = json.loads((tmp_path / "out" / "check.json").read_text())
    no = {f["about"] for f in found["findings"] if f["level"] == "no"}
    assert code == 2 and no == {"teacher"}, "its weights are random"
    assert "found with detectors only" in str([f["reason"] for f in found["findings"] if f["level"] == "note"])
    assert [row["stride"] for row in found["levels"]] == [8, 16, 32] and found["cost"]["steps"] > 0
    content = yaml.safe_load(labelled(task).read_text())
    lines = [f.read_text().count("\n") for f in Path(content["path"], "labels", "train").iterdir()]
    assert found["data"]["splits"]["train"]["boxes"] == sum(lines)
