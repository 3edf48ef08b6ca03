"""The teacher: loaded, verified, folded, frozen, and run once per batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn.distill_model import DistillationModel
from ultralytics.nn.modules.head import (
    OBB,
    OBB26,
    Detect,
    Pose,
    Pose26,
    RTDETRDecoder,
    Segment,
    Segment26,
    v10Detect,
)
from ultralytics.nn.tasks import DetectionModel, OBBModel, PoseModel, RTDETRDetectionModel, SegmentationModel
from ultralytics.utils import LOGGER
from ultralytics.utils.ops import xywh2xyxy
from ultralytics.utils.torch_utils import get_flops, get_num_params

from tskd_yolo import compat
from tskd_yolo.config import TASKS, ConfigError
from tskd_yolo.distill import feature_model
from tskd_yolo.distill.classes import Classes, bring, match
from tskd_yolo.distill.features import Capture, Levels, StageReader, channels, probe, reader, strides, towers
from tskd_yolo.hashing import hash_tensors
from tskd_yolo.losses.tails import Tails

LEARNING: dict[type, tuple[type, ...]] = {
    DetectionModel: (Detect, v10Detect),
    SegmentationModel: (Segment, Segment26),
    PoseModel: (Pose, Pose26),
    OBBModel: (OBB, OBB26),
}
"""Models that may learn, with their heads."""
KINDS = {**LEARNING, RTDETRDetectionModel: (RTDETRDecoder,)}
"""Models that may teach."""

_TASKS = f"{', '.join(TASKS[:-1])} or {TASKS[-1]}"


def load(path: str | Path, *, key: str = "teacher") -> Any:
    """Loads the checkpoint of a model for detect, segment, pose or obb as it was trained, on the CPU and in float32.

    An official name, such as ``yolo11l.pt``, is fetched as Ultralytics fetches ``model=``. Of an interrupted run of
    Ultralytics' built-in distillation the student becomes the teacher, and that is said. ``timm:NAME`` is a model of
    timm's without a detection head.

    Args:
        path: The file.
        key: The argument it was given with, for messages.

    Raises:
        ConfigError: If the file is missing, cannot be read, or holds a model of another kind.
    """
    if key == "teacher" and feature_model.named(path):
        return feature_model.load(str(path))
    model: Any = compat.load(path, key=key)[0]
    if isinstance(model, DistillationModel):
        if key != "teacher":  # Ultralytics would train on with its wrapper
            raise ConfigError(
                [f"{key}: {path} is an interrupted run of distill_model=; finish it and give its best.pt."]
            )
        LOGGER.warning(f"{key} {path} is an interrupted run of distill_model=; its student is used.")
        model.student_model.pt_path = model.pt_path
        model = model.student_model
    kind: Any = type(model)
    wanted = KINDS if key == "teacher" else LEARNING
    if type(model.model[-1]) not in wanted.get(kind, ()):
        found = f"{kind.__name__} for '{getattr(model, 'task', 'unknown')}'"
        more = ", or an RT-DETR" if key == "teacher" else ""
        raise ConfigError([f"{key}: {path} is of type {found}; give a YOLO for {_TASKS}{more}."])
    return model


class Teacher:
    """A frozen detector that gives its levels: batch norms folded, channels last, raw head output, no gradient.

    It belongs to no module tree, so nothing trains it, counts it, copies it or saves it.

    Args:
        model: The loaded detector; it is changed in place.
        like: The student, for its device.
        names: The student's classes; the teacher's class outputs are brought to them.
        classes: Which of the teacher's classes are which of them; by name, where it is missing.
        responses: Whether the head's responses are read, or the neck features only.
    """

    def __init__(
        self,
        model: Any,
        *,
        like: nn.Module,
        names: Mapping[int, str],
        classes: Classes | None = None,
        responses: bool = False,
    ) -> None:
        self.name = Path(getattr(model, "pt_path", None) or "teacher").name
        self.params, self.gflops = get_num_params(model), 0.0
        self.digest = hash_tensors(model.state_dict().values()).hexdigest()
        """Of its weights as they were loaded: what tells it from another one."""
        head = model.model[-1]
        head.fuse = lambda: None  # folding a dual head would drop one of its branches
        try:
            model.fuse(verbose=False)
        finally:
            del head.fuse
        self.classes = classes or match(model.names, names)
        bring(model, self.classes, names)
        device = next(like.parameters()).device
        self.layout = torch.contiguous_format if device.type == "mps" else torch.channels_last
        """The cheapest memory format whose outputs are right: Ultralytics found channels_last wrong on MPS."""
        self.model = model.to(device, memory_format=self.layout).requires_grad_(False).eval()
        self.head, self.channels = head, channels(model)
        if isinstance(head, RTDETRDecoder):
            head.stride = torch.tensor(_input_strides(model))
        else:
            head.training = True  # only the head's own flag: raw output, nothing decoded, no box suppressed
        self.reader = reader(head, responses=responses)
        self._checksum = self._sums()

    def cast(self, dtype: torch.dtype) -> None:
        """Holds the weights in the dtype that autocast would bring them to at every pass."""
        self.model.to(dtype)
        _forget_anchors(self.head)
        self._checksum = self._sums()

    def unmoved(self) -> bool:
        """Whether every weight and statistic is what it was."""
        return self._sums() == self._checksum

    def _sums(self) -> list[float]:
        return [float(v.cpu().double().abs().sum()) for v in self.model.state_dict().values()]  # MPS has no float64

    def __call__(self, images: Tensor) -> Levels:
        """Levels by stride for a batch of images ``(N, C, H, W)``, grey or RGB, whatever the teacher was trained on."""
        return self._levels(images, Capture())

    def with_stages(
        self, images: Tensor, stages: StageReader, keep: Callable[[int, Tensor], Tensor] = lambda _, features: features
    ) -> tuple[Levels, list[Tensor]]:
        """Levels by stride, and ``keep(i, map)`` of each of some stages of the backbone, in the same pass."""
        capture = Capture()
        stages.attach(capture, keep)
        return self._levels(images, capture), stages.read(capture.caught)

    def _levels(self, images: Tensor, capture: Capture) -> Levels:
        self.reader.attach(capture)
        try:
            with torch.no_grad(), _without_prototypes(self.head):
                given = in_channels(images, self.channels).to(self._dtype, memory_format=self.layout)
                predictions = self.model(given)
            return self.reader.read(predictions, capture.caught)
        finally:
            capture.detach()

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def tails(self, stride: int, branch: str, entry_stage: int) -> Tails:
        """The rest of a branch of the head after the stage where the student's activations enter, on one level."""
        level = self.reader.strides.index(stride)
        box, score = (tower[level][entry_stage + 1 :] for tower in towers(self.head)[branch])
        return Tails(box, score)

    def detector(self) -> Any:
        """A copy that decodes its boxes, for validation; boxes of queries come in pixels, as those of other heads.

        It takes images of the student's channels, too.
        """
        copy, taken = deepcopy(self.model).float().eval(), self.channels  # no hook may keep the teacher itself
        copy.register_forward_pre_hook(lambda _, inputs: (in_channels(inputs[0], taken), *inputs[1:]))
        if isinstance(self.head, RTDETRDecoder):
            _forget_anchors(copy.model[-1])
            copy.register_forward_hook(_in_pixels)
        return copy

    def measure(self, imgsz: int) -> None:
        """Counts the floating point operations of one image, in billions."""
        self.gflops = get_flops(self.detector(), imgsz)


def coarser(teachers: Sequence[Teacher], *, than: int) -> bool:
    """Whether a teacher has a level of a larger stride: it takes images whose sides are multiples of that alone."""
    return max(max(strides(teacher.head)) for teacher in teachers) > than


class _First(nn.Module):
    """Gives the first of several maps, or the only one."""

    def forward(self, maps: Any) -> Tensor:
        """The map."""
        return maps if isinstance(maps, Tensor) else maps[0]


def _without_prototypes(head: Any) -> contextlib.AbstractContextManager[None]:
    """Inside, a head for masks makes no prototypes of them: no term reads them, and they are a third of the cost."""
    return compat.swapped(head, "proto", _First()) if hasattr(head, "proto") else contextlib.nullcontext()


LUMINANCE = 0.299, 0.587, 0.114
"""Weights of red, green and blue: those by which OpenCV reads an image in grey."""


def in_channels(images: Tensor, wanted: int) -> Tensor:
    """Images ``(N, C, H, W)`` in the channels that a network takes: grey ones three times, RGB ones as luminance.

    Raises:
        ValueError: If they are neither.
    """
    if (given := images.shape[1]) == wanted:
        return images
    if (given, wanted) == (1, 3):
        return images.expand(-1, 3, -1, -1)
    if (given, wanted) == (3, 1):
        return sum(images[:, i : i + 1] * weight for i, weight in enumerate(LUMINANCE))  # type: ignore[return-value]
    raise ValueError(f"images of {given} channels cannot be brought to {wanted}.")


def _input_strides(model: Any) -> list[int]:
    """Strides of the maps that come into the head, in pixels, from a pass of the model."""
    with torch.no_grad():
        outputs = probe(model)
    side = 2 * int(max(model.stride))
    return [side // outputs[number][0].shape[2] for number in model.model[-1].f]


def _forget_anchors(head: Any) -> None:
    """Has a decoder make its anchors anew: it keeps those of the last pass, in the dtype of that pass."""
    if isinstance(head, RTDETRDecoder):
        head.shapes = []


def _in_pixels(model: Any, inputs: Any, outputs: Any) -> Tensor:
    """An RT-DETR's detections ``(N, Q, 6)`` with corners in pixels instead of centre and size as parts of the image."""
    height, width = inputs[0].shape[2:]
    boxes, rest = outputs[0].split((4, 2), dim=2)
    return torch.cat((xywh2xyxy(boxes) * boxes.new_tensor((width, height, width, height)), rest), dim=2)
