"""A teacher without a detection head: its maps teach, and there is no response."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from ultralytics.utils.torch_utils import get_num_params

from tskd_yolo.distill.classes import Classes
from tskd_yolo.distill.feature_model import FeatureModel
from tskd_yolo.distill.features import channels, reader
from tskd_yolo.distill.teacher import Teacher
from tskd_yolo.hashing import hash_tensors


class FeatureTeacher(Teacher):
    """A frozen timm model that gives its maps as levels.

    Args:
        model: The loaded model.
        like: The student, for its device.
        classes: Those of the student, of which it knows none.
    """

    def __init__(self, model: FeatureModel, *, like: nn.Module, classes: Classes) -> None:
        network: Any = model
        self.name = model.pt_path
        self.params, self.gflops = get_num_params(model), 0.0
        self.digest = hash_tensors(model.state_dict().values()).hexdigest()
        self.classes, self.channels = classes, channels(model)
        device = next(like.parameters()).device
        self.layout = torch.contiguous_format if device.type == "mps" else torch.channels_last
        self.model = network.to(device, memory_format=self.layout).requires_grad_(False).eval()
        self.head = model.model[-1]
        self.reader = reader(self.head, responses=False)
        self._checksum = self._sums()

    def detector(self) -> Any:
        """There is none.

        Raises:
            TypeError: Always.
        """
        raise TypeError(f"{self.name} has no detection head.")

    def measure(self, imgsz: int) -> None:
        """Counts the floating point operations of one image, in billions, those of attention too."""
        weight = next(self.model.parameters())
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.model(weight.new_zeros(1, 3, imgsz, imgsz))
        self.gflops = counter.get_total_flops() / 1e9
