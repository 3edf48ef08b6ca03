"""Tasks: which of Ultralytics' trainers and validators is behind each, and what a task asks of teacher and data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ultralytics.models.yolo.detect import DetectionTrainer, DetectionValidator
from ultralytics.models.yolo.obb import OBBTrainer, OBBValidator
from ultralytics.models.yolo.pose import PoseTrainer, PoseValidator
from ultralytics.models.yolo.segment import SegmentationTrainer, SegmentationValidator

from tskd_yolo.config import ConfigError, teachers
from tskd_yolo.distill.matching import HEADS, head_of, task_of

TRAINERS: dict[str, type[DetectionTrainer]] = {
    "detect": DetectionTrainer,
    "segment": SegmentationTrainer,
    "pose": PoseTrainer,
    "obb": OBBTrainer,
}
VALIDATORS: dict[str, type[DetectionValidator]] = {
    "detect": DetectionValidator,
    "segment": SegmentationValidator,
    "pose": PoseValidator,
    "obb": OBBValidator,
}


def become(trainer: Any, task: str) -> None:
    """Gives a trainer the engine of a task, in place: nobody knows the task before the model has been read.

    Raises:
        ConfigError: If it has the engine of another task already.
    """
    trainer.__class__ = of_task(type(trainer), task)


def of_task(kind: type, task: str) -> type:
    """A trainer class with the engine of a task under it: the class itself, or a subclass of the same name.

    Raises:
        ConfigError: If it has the engine of another task already.
    """
    engine = TRAINERS[task]
    if issubclass(kind, engine):
        own = next(name for name, other in reversed(TRAINERS.items()) if issubclass(kind, other))
        if own == task:
            return kind
    elif not any(issubclass(kind, other) for other in TRAINERS.values() if other is not DetectionTrainer):
        made = next((known for known in kind.__subclasses__() if known.__bases__ == (kind, engine)), None)
        return made or type(kind.__name__, (kind, engine), {"__module__": kind.__module__, "__doc__": kind.__doc__})
    raise ConfigError([f"task: {kind.__name__} is not the trainer of {task}; take tskd_yolo.Trainer."])


def decided(asked: str | None, student: Mapping[str, Any] | None, loaded: Iterable[Any]) -> str:
    """The task of a run: that of the student, or where it was not read that which was asked for, or of a teacher.

    Args:
        asked: The value of ``task=``.
        student: The student's YAML.
        loaded: The teachers.
    """
    own = HEADS.get(head_of(student)) if student else None
    return own or asked or next(filter(None, map(task_of, loaded)), "detect")


def wrong(
    task: str, values: Mapping[str, Any], data: Mapping[str, Any], loaded: Iterable[Any], *, asked: str | None
) -> list[str]:
    """What does not fit the task of a run, one sentence each.

    Args:
        task: As of :func:`decided`.
        values: The run's arguments.
        data: The data set: its ``kpt_shape``, and its ``names``, which are empty where it was not read.
        loaded: The teachers.
        asked: The value of ``task=``.
    """
    problems, models = [], list(loaded)
    if asked not in (None, task):
        problems.append(
            f"task: {asked} was asked for and the student is one for {task}; leave it out, or give another."
        )
    problems += [
        f"teacher: {model.pt_path} is one for {theirs} and the student one for {task}; give two of the same task."
        for model in models
        if (theirs := task_of(model)) not in (None, task)
    ]
    if task != "detect" and values["unlabelled"]:
        problems.append(
            f"unlabelled: images without labels teach detectors, and the student is one for {task}; leave it out, or "
            "give unlabelled=False."
        )
    if task == "pose" and data["names"]:
        problems += _wrong_points(data["kpt_shape"], models)
    if task == "obb" and values["crd"]:
        problems += _wrong_boxes(values)
    return problems


def _wrong_points(shape: Any, models: Iterable[Any]) -> list[str]:
    """What is wrong with the shape of the data's key points, or of the teachers'."""
    if not shape:
        return ["data: it has no kpt_shape, which pose needs; give the number of key points and 2 or 3 in its YAML."]
    return [
        f"teacher: its key points have the shape {theirs} and those of the data {list(shape)}; give one of that shape."
        for model in models
        if task_of(model) == "pose" and (theirs := list(model.model[-1].kpt_shape)) != list(shape)
    ]


def _wrong_boxes(values: Mapping[str, Any]) -> list[str]:
    """What brings rotated boxes together by position: the distances of each are along axes of its own."""
    problems, size = [], values["teacher_imgsz"]
    if size and size != values["imgsz"]:
        problems.append(
            "teacher_imgsz: CRD does not bring rotated boxes (obb) to another grid; add crd=0, or leave it out."
        )
    if len(teachers(values["teacher"])) > 1:
        problems.append("teacher: CRD does not average rotated boxes (obb); give one teacher.")
    return problems
