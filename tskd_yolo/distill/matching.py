"""What of a student corresponds to what of its teacher: levels by stride, channels, head branches, and classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from ultralytics.nn.modules.head import RTDETRDecoder

from tskd_yolo.distill.features import STAGE_STRIDES, MapHead, StageReader, neck_width, strides, tower_widths, towers
from tskd_yolo.distill.resample import to_grid
from tskd_yolo.rounding import ceil_div

CHANNELS = 64
"""How many channels of a map, or somewhat more, the feature terms compare where the widths differ."""

HALF, ONE = 0.5, 1.0
"""Levels are partners up to so many powers of two between their strides: half, and one where the images are not of one
size, so that the coarsest level of a student, whose like the teacher of a larger image does not have, is taught."""

SPATIAL_STEPS = {4: 2, 8: 2, 16: 1}
"""Distance of the cells that are read of each backbone stage, by its stride: all of stride 4 would cost more than the
neck."""


class Pair(NamedTuple):
    """A map that feature terms compare: its stride in each network's own pixels, the student's channels and the
    teacher's.

    Of the teacher's channels one in ``channel_step`` is compared, of the cells one in ``spatial_step`` in either
    direction.
    """

    stride: int
    teacher_stride: int
    student: int
    teacher: int
    channel_step: int = 1
    spatial_step: int = 1

    @property
    def compared(self) -> int:
        """Channels that are compared."""
        return ceil_div(self.teacher, self.channel_step)

    def cut(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """What is compared of the teacher's map ``(N, C, H, W)``, on the student's cells, as a copy: the rest can be
        forgotten.

        Args:
            features: The map.
            size: (height, width) of the student's image in pixels.
        """
        height, width = (ceil_div(side, self.stride) for side in size)
        if self.channel_step == self.spatial_step == 1 and features.shape[2:] == (height, width):
            return features
        part = to_grid(features[:, :: self.channel_step], height, width)
        return part[:, :, :: self.spatial_step, :: self.spatial_step].contiguous(memory_format=torch.channels_last)


class Match:
    """The levels, maps and branches that two detectors have in common.

    Levels are paired by position: a stride of the teacher's is as many pixels of the student's image as it is of its
    own, divided by ``scale``. Early stages are paired by their stride in the own image: what they compute depends on
    their depth, and a shallow stage cannot follow a deeper one.

    Args:
        student: The student.
        teacher: The teacher.
        entry_stage: The head stage after which the student's activations enter the teacher's head.
        scale: Size of the teacher's image over that of the student's.
    """

    def __init__(self, *, student: Any, teacher: Any, entry_stage: int, scale: float = 1.0) -> None:
        head, teacher_head = student.model[-1], teacher.model[-1]
        self.head, self.teacher_head, self.entry_stage, self.scale = head, teacher_head, entry_stage, scale
        self._pair_stages(student, teacher)
        ours, theirs = strides(head), strides(teacher_head)
        most = HALF if scale == 1 else ONE
        self.levels = {s: t for s in ours if (t := _nearest(s * scale, theirs, most)) is not None}
        """The teacher's stride for each of the student's that has a partner."""
        self.strides = list(self.levels)
        at = {t: _nearest(t / scale, self.strides, most) for t in theirs}
        self.heard = {s: [t for t in theirs if at[t] == s or t == self.levels[s]] for s in self.strides}
        """The teacher's strides whose responses are heard on each level of the student."""
        self.headless = isinstance(teacher_head, MapHead)
        """Whether the teacher has maps only, and no response."""
        alone = {s for s in ours if s not in self.levels}
        silent = {t for t in theirs if not any(t in heard for heard in self.heard.values())}
        self.unpaired = sorted(alone if self.headless else alone | silent)
        """Strides of levels that have no partner in the other network."""
        self.queries = isinstance(teacher_head, RTDETRDecoder)
        """Whether the teacher answers by queries, and not by a response per location."""
        self.answering = ours if self.queries else self.strides
        """The student's levels whose responses are compared: a query speaks to all of them."""
        self.branches = [branch for branch in towers(head) if self.queries or branch in towers(teacher_head)]
        self.untaught = [branch for branch in towers(head) if branch not in self.branches]
        """Branches that only the student has."""

    def _pair_stages(self, student: Any, teacher: Any) -> None:
        ours, theirs = StageReader(student), StageReader(teacher)
        common = [stride for stride in ours.strides if stride in theirs.strides]
        self.stages, self.teacher_stages = ours.only(common), theirs.only(common)
        self.unpaired_stages = [stride for stride in STAGE_STRIDES if stride not in common]
        """Strides of early stages that one of the backbones does not have."""

    def neck(self, all_channels: bool = False) -> list[Pair]:
        """The levels of the neck."""
        pairs = []
        for stride, theirs in self.levels.items():
            student, teacher = neck_width(self.head, stride), neck_width(self.teacher_head, theirs)
            step = 1 if all_channels else channel_step(student, teacher)
            pairs.append(Pair(stride, theirs, student, teacher, step))
        return pairs

    def early_stages(self) -> list[Pair]:
        """The early stages of the backbone."""
        rows = zip(self.stages.strides, self.stages.widths, self.teacher_stages.widths, strict=True)
        return [Pair(stride, stride, s, t, channel_step(s, t), SPATIAL_STEPS[stride]) for stride, s, t in rows]

    def towers(self, branch: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        """(student, teacher) width of the box and of the class tower, per level."""
        widths = []
        for stride, theirs in self.levels.items():
            student = tower_widths(self.head, branch, stride, self.entry_stage)
            teacher = tower_widths(self.teacher_head, branch, theirs, self.entry_stage)
            widths.append(((student[0], teacher[0]), (student[1], teacher[1])))
        return widths


def _nearest(stride: float, strides: Sequence[int], most: float) -> int | None:
    """The stride nearest to one, on a scale of powers of two; None where none is within ``most`` of them."""
    near = min(strides, key=lambda other: abs(math.log2(other / stride)), default=None)
    return near if near is not None and abs(math.log2(near / stride)) <= most + 1e-6 else None


def channel_step(student: int, teacher: int) -> int:
    """One in so many of a teacher's channels is compared with a student of this width."""
    return 1 if student == teacher else max(teacher // min(student, CHANNELS), 1)


# Architectures --------------------------------------------------------------------------------------------------------

HEADS = {
    "Detect": "detect", "v10Detect": "detect", "Segment": "segment", "Segment26": "segment", "Pose": "pose",
    "Pose26": "pose", "OBB": "obb", "OBB26": "obb",
}  # fmt: skip
"""Heads of students, as model YAMLs name them, with their tasks: box and class towers of three stages on every level,
and beside them what the task has more."""


def task_of(model: Any) -> str | None:
    """The task of a model that may teach or learn; None of one without a head."""
    head = model.model[-1]
    return "detect" if isinstance(head, RTDETRDecoder) else HEADS.get(type(head).__name__)


def head_of(model_yaml: Mapping[str, Any]) -> str:
    """The name of the last layer in a model YAML."""
    return str(model_yaml["head"][-1][2])


def no_student(student_yaml: Mapping[str, Any]) -> list[str]:
    """Why this model cannot be a student, in a sentence; empty if it can."""
    if (head := head_of(student_yaml)) in HEADS:
        return []
    stem = Path(student_yaml.get("yaml_file") or "custom").stem
    return [
        f"model: its architecture ({stem}) ends in {head} and cannot be distilled; give one that ends in Detect, "
        "Segment, Pose or OBB, such as yolo11n.yaml."
    ]
