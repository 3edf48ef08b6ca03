"""What of a student corresponds to what of its teacher: levels by stride, channels, head branches, and classes."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from ultralytics.nn.tasks import yaml_model_load

from tskd_yolo.distill.features import STAGE_STRIDES, StageReader, neck_width, strides, tower_widths, towers
from tskd_yolo.rounding import ceil_div

FAMILIES = {"YOLOv8": "yolov8.yaml", "YOLO11": "yolo11.yaml", "YOLO12": "yolo12.yaml", "YOLO26": "yolo26.yaml"}

CHANNELS = 64
"""How many channels of a map, or somewhat more, the feature terms compare where the widths differ."""

SPATIAL_STEPS = 2, 2, 1
"""Distance of the cells that are read of each backbone stage: all of stride 4 would cost more than the neck."""


class Pair(NamedTuple):
    """A map that feature terms compare: its stride in pixels, the student's channels and the teacher's.

    Of the teacher's channels one in ``channel_step`` is compared, of the cells one in ``spatial_step`` in either
    direction.
    """

    stride: int
    student: int
    teacher: int
    channel_step: int = 1
    spatial_step: int = 1

    @property
    def compared(self) -> int:
        """Channels that are compared."""
        return ceil_div(self.teacher, self.channel_step)

    def cut(self, features: Tensor) -> Tensor:
        """What is compared of the teacher's map ``(N, C, H, W)``, as a copy: the rest can be forgotten."""
        if self.channel_step == self.spatial_step == 1:
            return features
        part = features[:, :: self.channel_step, :: self.spatial_step, :: self.spatial_step]
        return part.contiguous(memory_format=torch.channels_last)


class Match:
    """The levels, maps and branches that two detectors have in common.

    Args:
        student: The student.
        teacher_head: The teacher's Detect module.
        teacher_stages: The teacher's early stages.
        entry_stage: The head stage after which the student's activations enter the teacher's head.
    """

    def __init__(self, *, student: Any, teacher_head: Any, teacher_stages: StageReader, entry_stage: int) -> None:
        head = student.model[-1]
        self.head, self.teacher_head, self.entry_stage = head, teacher_head, entry_stage
        self.stages, self.teacher_stages = StageReader(student), teacher_stages
        self.strides = [s for s in strides(head) if s in strides(teacher_head)]
        self.unpaired = sorted(set(strides(head)) ^ set(strides(teacher_head)))
        """Strides of levels that only one of the two has."""
        self.branches = [branch for branch in towers(head) if branch in towers(teacher_head)]
        self.untaught = [branch for branch in towers(head) if branch not in self.branches]
        """Branches that only the student has."""

    def neck(self, all_channels: bool = False) -> list[Pair]:
        """The levels of the neck."""
        pairs = []
        for stride in self.strides:
            student, teacher = (neck_width(head, stride) for head in (self.head, self.teacher_head))
            pairs.append(Pair(stride, student, teacher, 1 if all_channels else channel_step(student, teacher)))
        return pairs

    def early_stages(self) -> list[Pair]:
        """The early stages of the backbone."""
        widths = zip(STAGE_STRIDES, self.stages.widths, self.teacher_stages.widths, SPATIAL_STEPS, strict=True)
        return [Pair(stride, s, t, channel_step(s, t), spatial_step) for stride, s, t, spatial_step in widths]

    def towers(self, branch: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        """(student, teacher) width of the box and of the class tower, per level."""
        widths = []
        for stride in self.strides:
            student, teacher = (
                tower_widths(head, branch, stride, self.entry_stage) for head in (self.head, self.teacher_head)
            )
            widths.append(((student[0], teacher[0]), (student[1], teacher[1])))
        return widths


def channel_step(student: int, teacher: int) -> int:
    """One in so many of a teacher's channels is compared with a student of this width."""
    return 1 if student == teacher else max(teacher // min(student, CHANNELS), 1)


# Families and classes -------------------------------------------------------------------------------------------------


@functools.lru_cache
def _official(name: str) -> tuple:
    return _architecture(yaml_model_load(FAMILIES[name]))


def _architecture(model_yaml: Mapping[str, Any]) -> tuple:
    """What all widths of a family have in common: which modules are wired how, and the form of the head."""
    rows = tuple((str(row[0]), str(row[2])) for row in [*model_yaml["backbone"], *model_yaml["head"]])
    return rows, model_yaml.get("reg_max", 16), bool(model_yaml.get("end2end"))


def family(model_yaml: Mapping[str, Any]) -> str | None:
    """``YOLOv8``, ``YOLO11``, ``YOLO12`` or ``YOLO26``, whatever the width; None for any other architecture."""
    return next((name for name in FAMILIES if _official(name) == _architecture(model_yaml)), None)


def mismatches(*, student_yaml: dict[str, Any], teacher: Any, names: Mapping[int, str]) -> list[str]:
    """Why this teacher cannot teach this student these classes, one sentence each; empty if it can."""
    problems = []
    yamls = {"model": student_yaml, "teacher": teacher.yaml}
    families = [family(model_yaml) for model_yaml in yamls.values()]
    for (role, model_yaml), name in zip(yamls.items(), families, strict=True):
        if name is None:
            stem = Path(model_yaml.get("yaml_file") or "custom").stem
            problems.append(f"{role}: its architecture ({stem}) is not a plain YOLOv8, 11, 12 or 26 detector; use one.")
    if None not in families and families[0] != families[1]:
        problems.append(
            f"teacher: a {families[1]} cannot teach a {families[0]} yet; use a student and a teacher of one family."
        )
    ours, theirs = sorted(map(folded, names.values())), sorted(map(folded, teacher.names.values()))
    if ours != theirs:
        problems.append(
            f"teacher: it knows {len(theirs)} classes ({_short(teacher.names)}) and the data has {len(ours)} "
            f"({_short(names)}); train the teacher on the same class list."
        )
    return problems


def folded(name: Any) -> str:
    """A class name without what does not tell classes apart: case, and blanks around it."""
    return str(name).strip().casefold()


def _short(names: Mapping[int, str], most: int = 6) -> str:
    first = [str(n) for n in list(names.values())[:most]]
    return ", ".join([*first, "..."] if len(names) > most else first)


def class_order(*, teacher: Mapping[int, str], names: Mapping[int, str]) -> list[int]:
    """The teacher's output for each of ``names``, which it knows all: the exact spelling first, each output once."""
    left = dict(teacher)
    order = []
    for _, name in sorted(names.items()):
        same = [i for i, other in left.items() if other == name]
        same = same or [i for i, other in left.items() if folded(other) == folded(name)]
        order.append(same[0])
        del left[same[0]]
    return order
