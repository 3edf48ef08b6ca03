"""A timm model without a detection head as a teacher: ``teacher=timm:NAME``, or ``teacher=timm:NAME:FILE``.

It has the shape of a detector, layers with a head at their end, so that what looks for maps finds its maps.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tskd_yolo.backbones import TimmModel, load_weights
from tskd_yolo.config import TIMM, ConfigError
from tskd_yolo.distill.features import MapHead
from tskd_yolo.rounding import ceil_div


class FeatureModel(nn.Module):
    """A timm model whose maps have the strides of a detector's.

    Images are brought to a size at which a patch covers as much of them as a cell of a detector: for patches of 14 px
    an image of 640 px is seen at 560 px, and 40 patches stand where the student has 40 cells of 16 px. An image that is
    no multiple of the coarsest cell is enlarged to the next multiple. Mean and deviation are those that timm has for
    these weights.

    Args:
        name: timm's name of the model, also with a tag of its weights.

    Shapes:
        images ``(N, 3, H, W)`` in 0 to 1; output a list of maps, as :class:`TimmModel`.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        backbone = TimmModel(name)
        if len(set(backbone.strides)) == 1:  # a plain transformer: its last block's map, not that of four blocks
            backbone = TimmModel(name, maps=1)
        strides = [2 ** round(math.log2(stride)) for stride in backbone.strides]
        self.patch, self.cell = backbone.strides[-1], strides[-1]
        self.model: Any = nn.Sequential(backbone, MapHead(strides, backbone.widths))
        self.stride = torch.tensor(strides)
        self.yaml = {"backbone": [[-1, 1, "TimmModel", [name]]], "head": [[-1, 1, "MapHead", []]]}
        self.names: dict[int, str] = {}
        self.args: dict[str, Any] = {}
        self.pt_path = TIMM + name

    def forward(self, images: Tensor) -> list[Tensor]:
        """The maps, the finest first."""
        size = [ceil_div(side, self.cell) * self.patch for side in images.shape[2:]]
        if list(images.shape[2:]) != size:
            resized = F.interpolate(images.float(), size, mode="bicubic", antialias=True)
            images = resized.clamp(0, 1).to(images.dtype)
        return self.model(images)


def named(teacher: Any) -> bool:
    """Whether a value of ``teacher=`` names a timm model."""
    return isinstance(teacher, str) and teacher.startswith(TIMM)


def _parts(teacher: str) -> tuple[str, Path | None]:
    name, _, file = teacher.removeprefix(TIMM).partition(":")
    return name, Path(file) if file else None


def whole_path(teacher: str | Path) -> str:
    """A value of ``teacher=`` with the path in it made absolute, so that a run goes on from anywhere."""
    if not named(teacher):
        return str(Path(teacher).resolve())
    name, file = _parts(str(teacher))
    return f"{TIMM}{name}:{file.resolve()}" if file else str(teacher)


def load(teacher: str) -> FeatureModel:
    """A timm model with its weights, those of the file where there is one.

    Raises:
        ConfigError: If timm has no such model, or its weights cannot be had: random ones would teach nothing.
    """
    name, file = _parts(teacher)
    try:
        model = FeatureModel(name)
    except ConfigError as error:
        raise ConfigError([f"teacher: {teacher} cannot be built ({error.problems[0].rstrip('.')})."]) from error
    try:
        load_weights(model.model[0], key="teacher", file=file)
    except ConfigError as error:
        if file:
            raise
        remedy = f"random ones teach nothing, so give them as teacher={TIMM}{name}:FILE."
        raise ConfigError([error.problems[0].rpartition("give a file")[0] + remedy]) from error
    model.pt_path = whole_path(teacher)
    return model.eval()
