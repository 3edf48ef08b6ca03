"""The teachers as one detector: their classes brought to the data's, what several find fused."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from ultralytics.nn.modules.head import Detect
from ultralytics.utils.torch_utils import select_device

from tskd_yolo import confidence, files
from tskd_yolo.autolabel.plan import Plan
from tskd_yolo.confidence import FLOOR, Look
from tskd_yolo.config import ConfigError, collected
from tskd_yolo.distill import classes, teacher
from tskd_yolo.distill.classes import Classes
from tskd_yolo.distill.matching import task_of
from tskd_yolo.distill.teacher import Teacher
from tskd_yolo.train.checks import wrong_channels

NMS: dict[str, Any] = {"iou": 0.7, "max_det": 300}
"""Ultralytics' own when it validates."""
FUSED = 0.55
"""IoU from which boxes of several teachers are one: the default of the library."""
FUSION = {"method": "weighted box fusion", "iou": FUSED, "scores": "absent_model_aware_avg"}


class Panel(NamedTuple):
    """Teachers that are ready to label."""

    networks: list[nn.Module]
    """Each decodes its boxes, and has the classes of the data."""
    classes: list[Classes]
    """Which class of each teacher is which of these."""
    files: list[dict[str, str]]
    """Name and SHA-256 of each."""
    names: dict[int, str]
    imgsz: int
    stride: int
    device: torch.device
    augment: bool

    def look(self) -> Look:
        """What the teacher finds, or what several find together."""
        looks = [confidence.look(network, augment=self.augment, **NMS) for network in self.networks]
        if len(looks) == 1:
            return looks[0]
        knowers = groups([each.known for each in self.classes])
        return lambda images: fuse([look(images) for look in looks], knowers, images.shape[2:])

    def settings(self) -> dict[str, Any]:
        """What decides which detections there are, as JSON takes it."""
        fusion = {"fusion": FUSION} if len(self.networks) > 1 else {}
        return {"imgsz": self.imgsz, "augment": self.augment, "nms": NMS, **fusion}


def load(plan: Plan, data: Mapping[str, Any] | None) -> Panel:
    """Loads the teachers.

    Args:
        plan: What was asked for.
        data: The data set whose classes they get, as Ultralytics has read its YAML; without it their own.

    Raises:
        ConfigError: Naming everything that is wrong with them.
    """
    errors: list[str] = []
    models = []
    for file in plan.teachers:
        with collected(errors):
            models.append(_detector(file))
    theirs = classes.of_all(model.names for model in models)
    names = dict(data["names"]) if data else theirs
    mapping = None
    with collected(errors):
        mapping = classes.read(plan.classes_map)
    if models:
        errors += classes.wrong(mapping, theirs, names)
        errors += wrong_channels(models, data["channels"] if data else 3)
    sizes = {file: _trained_at(model) for file, model in zip(plan.teachers, models)}
    if plan.imgsz is None and len({*sizes.values()}) > 1:
        told = ", ".join(f"{Path(file).name} {size}" for file, size in sizes.items())
        errors.append(f"imgsz: the teachers were trained at different sizes ({told}); give imgsz=.")
    if errors:
        raise ConfigError(errors)
    matched = [classes.match(model.names, names, mapping) for model in models]
    if problems := _useless(plan, models, matched):
        raise ConfigError(problems)
    device = select_device(plan.device, verbose=False)
    size = plan.imgsz or next(iter(sizes.values()))
    return _ready(models, matched, names, size, device, plan.augment)


def _detector(file: str) -> Any:
    """A teacher.

    Raises:
        ConfigError: If it cannot be loaded, or is for another task: labels are boxes.
    """
    model = teacher.load(file)
    if (task := task_of(model)) != "detect":
        raise ConfigError([f"teacher: {file} is one for {task}, and labels are upright boxes; give a detector."])
    return model


def _useless(plan: Plan, models: Sequence[Any], matched: Sequence[Classes]) -> list[str]:
    """What speaks against teachers that can be loaded."""
    problems = []
    for file, model, found in zip(plan.teachers, models, matched):
        name = Path(file).name
        if not found.known:
            problems.append(f"teacher: {name} knows none of the data's classes; give classes_map=, or another teacher.")
        if plan.augment and (getattr(model, "end2end", False) or type(model.model[-1]) is not Detect):
            problems.append(
                f"augment: the head of {name} has no test-time augmentation in Ultralytics; leave augment out."
            )
    return problems


def _ready(
    models: Sequence[Any], matched: list[Classes], names: dict[int, str], size: int, device: torch.device, augment: bool
) -> Panel:
    paths = [Path(model.pt_path) for model in models]
    strides = [int(max(model.stride)) for model in models]
    networks = [
        Teacher(model.to(device), like=model, names=names, classes=found).detector()
        for model, found in zip(models, matched)
    ]
    told = [{"name": path.name, "sha256": files.digest(path)} for path in paths]
    return Panel(networks, matched, told, names, size, max(strides), device, augment)


def _trained_at(model: Any) -> int:
    """The size of the images that a detector was trained on, in pixels."""
    size = dict(model.args).get("imgsz")
    return size if isinstance(size, int) else 640


# Fusing ---------------------------------------------------------------------------------------------------------------


def groups(known: Sequence[Sequence[int]]) -> dict[tuple[int, ...], list[int]]:
    """Classes by the teachers that know them.

    Args:
        known: The classes that each teacher knows.
    """
    found: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for label in sorted({label for own in known for label in own}):
        found[tuple(place for place, own in enumerate(known) if label in own)].append(label)
    return found


def fuse(
    found: Sequence[Sequence[dict[str, Tensor]]], knowers: Mapping[tuple[int, ...], Sequence[int]], shape: Sequence[int]
) -> list[dict[str, Tensor]]:
    """Detections of several teachers as one list per image, by weighted box fusion.

    Boxes of a class that overlap become one with their mean corners, weighted by score. Its score is the mean of theirs
    with a zero for each teacher that knows the class and found nothing there.

    Source:
        Solovyev et al., "Weighted boxes fusion: ensembling boxes from different object detection models", Image and
        Vision Computing 107 (2021); the package ensemble-boxes.

    Args:
        found: What each teacher finds on each image, as :data:`tskd_yolo.confidence.Look` gives it.
        knowers: As of :func:`groups`.
        shape: Height and width of the images, in pixels.
    """
    return [_fused([each[index] for each in found], knowers, shape) for index in range(len(found[0]))]


def _fused(
    found: Sequence[dict[str, Tensor]], knowers: Mapping[tuple[int, ...], Sequence[int]], shape: Sequence[int]
) -> dict[str, Tensor]:
    from ensemble_boxes import weighted_boxes_fusion

    device = found[0]["conf"].device
    scale = torch.tensor([shape[1], shape[0]] * 2, dtype=torch.float32)
    parts = []
    for teachers, labels in knowers.items():
        rows = [_of_classes(found[place], labels, scale) for place in teachers]
        boxes, scores, label = weighted_boxes_fusion(
            *([row[part].numpy() for row in rows] for part in range(3)), iou_thr=FUSED, conf_type=FUSION["scores"]
        )
        parts.append(torch.cat((_column(boxes, 4) * scale, _column(scores, 1), _column(label, 1)), dim=1))
    joined = torch.cat(parts)
    joined = joined[joined[:, 4] >= FLOOR]
    joined = joined[joined[:, 4].argsort(descending=True, stable=True)][: NMS["max_det"]].to(device)
    return {"bboxes": joined[:, :4], "conf": joined[:, 4], "cls": joined[:, 5]}


def _of_classes(found: dict[str, Tensor], labels: Sequence[int], scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes as shares of the image, scores and classes, of some classes; without boxes that have no area."""
    boxes = (found["bboxes"].cpu().float() / scale).clamp(0, 1)
    label = found["cls"].cpu()
    own = torch.isin(label, torch.tensor(labels, dtype=label.dtype)) & (boxes[:, 2:] > boxes[:, :2]).all(1)
    return boxes[own], found["conf"].cpu().float()[own], label[own]


def _column(values: Any, width: int) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32).reshape(-1, width)
