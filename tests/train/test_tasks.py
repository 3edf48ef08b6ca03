"""Tasks: which engine is under a trainer, how its class travels, and what does not fit a task."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import cloudpickle
import pytest
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.models.yolo.segment import SegmentationTrainer
from ultralytics.nn.tasks import guess_model_task, yaml_model_load
from ultralytics.utils import DEFAULT_CFG_DICT

from tests.helpers import timm_file
from tskd_yolo import Trainer, config
from tskd_yolo.config import TASKS, ConfigError
from tskd_yolo.train import checks, tasks, trainer
from tskd_yolo.train.backbone import BackboneMixin


class OwnTrainer(Trainer):
    """A user's."""


def test_a_task_has_a_trainer_and_a_validator_or_is_refused():
    assert [*tasks.TRAINERS] == [*tasks.VALIDATORS] == [*TASKS]
    classes = [tasks.of_task(Trainer, task) for task in TASKS]
    assert classes == [Trainer, trainer.SegmentTrainer, trainer.PoseTrainer, trainer.OBBTrainer]
    for found, task in zip(classes, TASKS):
        assert tasks.of_task(found, task) is found and issubclass(found, Trainer)
        mro = found.__mro__
        assert mro.index(BackboneMixin) < mro.index(tasks.TRAINERS[task]) <= mro.index(DetectionTrainer)


@pytest.mark.parametrize("task", TASKS)
def test_the_class_of_a_task_travels_to_processes(task):
    """Ours by its name, so that a process imports it; one that was made of a user's class by what it is."""
    found = tasks.of_task(Trainer, task)
    assert pickle.loads(pickle.dumps(found)) is found is pickle.loads(cloudpickle.dumps(found))
    own = tasks.of_task(OwnTrainer, task)
    there = pickle.loads(cloudpickle.dumps(own))
    assert issubclass(there, tasks.TRAINERS[task]) and "Trainer" in there.__name__  # or loggers leave it out
    assert tasks.of_task(OwnTrainer, task) is own, "it is made once"


def test_a_trainer_becomes_that_of_a_task_and_of_no_other():
    one = object.__new__(OwnTrainer)
    tasks.become(one, "segment")
    assert isinstance(one, OwnTrainer) and isinstance(one, SegmentationTrainer)
    tasks.become(one, "segment")
    for other in ("detect", "pose"):
        with pytest.raises(
            ConfigError, match=f"task: OwnTrainer is not the trainer of {other}; take tskd_yolo.Trainer"
        ):
            tasks.become(one, other)


@pytest.mark.parametrize(
    ("asked", "student", "expected"),
    [
        (None, "yolo26n-seg", "segment"),
        ("pose", "yolov8n-obb", "obb"),  # and refused
        ("pose", None, "pose"),
        (None, None, "detect"),
    ],
)
def test_the_student_decides_and_then_who_knows(asked, student, expected):
    given = yaml_model_load(f"{student}.yaml") if student else None
    assert tasks.decided(asked, given, []) == expected


@pytest.mark.parametrize("model", ["yolo11n-seg.yaml", "yolo26n-obb.yaml", "yolo11n.yaml"])
def test_a_process_that_leaves_the_checks_to_another_knows_it(model, data, tmp_path, monkeypatch):
    """Only the student tells it where torchrun has started a process, and the teacher has no head."""
    monkeypatch.setattr(checks, "LOCAL_RANK", 1)
    file = timm_file(tmp_path / "vit.safetensors", "test_vit")
    overrides = {"teacher": f"timm:test_vit:{file}", "model": model, "data": str(data)}
    checks.check({**DEFAULT_CFG_DICT, **config.DEFAULTS}, overrides)
    assert overrides["task"] == (guess_model_task(model) or "detect")


def wrong(task: str, **more: Any) -> list[str]:
    """What does not fit a task, of a run that is not of one teacher at one size."""
    values = {"teacher": ["a.pt", "b.pt"], "teacher_imgsz": 128, "imgsz": 64, "crd": 1.0, "unlabelled": [], **more}
    return tasks.wrong(task, values, {"names": {}, "kpt_shape": None}, [], asked=None)


def test_rotated_boxes_are_not_brought_together_by_position():
    first, second = wrong("obb")
    assert first.startswith("teacher_imgsz: CRD does not bring rotated boxes (obb) to another grid; add crd=0")
    assert second == "teacher: CRD does not average rotated boxes (obb); give one teacher."
    assert wrong("obb", crd=0) == wrong("segment") == wrong("pose") == []
    assert wrong("obb", teacher="[a.pt]", teacher_imgsz=64) == []


def test_images_without_labels_are_for_detectors():
    (problem,) = wrong("pose", unlabelled=["/images"])
    assert problem.startswith("unlabelled: images without labels teach detectors, and the student is one for pose")
    assert wrong("detect", unlabelled=["/images"]) == []


def test_of_other_tasks_only_a_model_without_a_head_teaches(monkeypatch):
    monkeypatch.setattr(tasks, "task_of", lambda model: model.task)
    teachers = [SimpleNamespace(pt_path="timm:x", task=None), SimpleNamespace(pt_path="a.pt", task="detect")]
    data = {"names": {}, "kpt_shape": None}
    problems = tasks.wrong("segment", {"crd": 1.0, "unlabelled": []}, data, teachers, asked=None)
    assert problems == ["teacher: a.pt is one for detect and the student one for segment; give two of the same task."]
