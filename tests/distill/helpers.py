"""Students, distillers and batches of the tests of one step."""

from __future__ import annotations

import functools
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from ultralytics.cfg import get_cfg

from tests.helpers import model_kind
from tskd_yolo import config
from tskd_yolo.distill import teacher
from tskd_yolo.distill.distiller import Distiller
from tskd_yolo.distill.teacher import Teacher

NAMES = "crack", "pit", "scale"


@functools.cache
def _student(model: str) -> Any:
    torch.manual_seed(1)
    return model_kind(model)[0](model, nc=3, verbose=False)


def make_student(model: str = "yolo11n.yaml") -> Any:
    """A student in training mode, the same every time."""
    student = deepcopy(_student(model))
    student.args = get_cfg()
    return student.train()


@functools.cache
def _loaded(file: Path) -> nn.Module:
    return teacher.load(file)


def load(file: Path) -> nn.Module:
    """The network of a teacher's checkpoint, which is read once."""
    return deepcopy(_loaded(file))


@functools.cache
def _teacher(file: Path) -> Teacher:
    return Teacher(load(file), like=_student("yolo11n.yaml"), names=dict(enumerate(NAMES)))


def make(student: nn.Module, file: Path, **settings: object) -> Distiller:
    """A distiller with weights that are fixed, unless the settings say otherwise."""
    values = config.build({**config.DEFAULTS, "drd": 1.0, "balance": "fixed", "teacher": str(file), **settings})
    return Distiller(student=student, teacher=deepcopy(_teacher(file)), config=values, seed=3)


def make_batch(boxes: int = 3, images: int = 2) -> dict[str, torch.Tensor]:
    """Random images with boxes, grouped by image as Ultralytics collates them."""
    generator = torch.Generator().manual_seed(2)
    return {
        "img": torch.rand(images, 3, 64, 64, generator=generator),
        "cls": torch.arange(boxes).view(-1, 1).float() % 3,
        "bboxes": torch.rand(boxes, 4, generator=generator) * 0.3 + 0.3,
        "batch_idx": (torch.arange(boxes) * images // max(boxes, 1)).float(),
    }


def step(distiller: Distiller, student: nn.Module, batch: dict) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The student's loss of a batch, with the terms in it."""
    distiller.attach(student, batch["img"])
    return student.loss(batch)


def hooks(*models: nn.Module) -> int:
    """Number of hooks on the models' modules."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for model in models for m in model.modules())
