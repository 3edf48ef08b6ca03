"""Sizes of the detectors in cfg/models and of YOLO11 beside them, read off the networks themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import LOGGER

from tskd_yolo import backbones
from tskd_yolo.compat import swapped
from tskd_yolo.config import folder
from tskd_yolo.distill.features import StageReader

MODELS = [*sorted((folder("cfg") / "models").glob("*.yaml")), Path("yolo11n.yaml"), Path("yolo11s.yaml")]
SIDE = 640
HEAD = "model=", "parameters", f"GFLOPs at {SIDE} px", "of them in the backbone", "DED: stages", "timm's weights"


def text() -> str:
    """A table of Markdown."""
    with swapped(LOGGER, "disabled", True):  # it would tell of every network that is built
        rows = [HEAD, ["---", "---:", "---:", "---:", "---", "---"], *map(_row, MODELS)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(file: Path) -> list[str]:
    detector: Any = DetectionModel(str(file), nc=80, verbose=False)
    stages = ", ".join(map(str, StageReader(detector).strides))
    backbone = backbones.of(detector)
    count = sum(p.numel() for p in detector.parameters())
    weights = timm.get_pretrained_cfg(backbone.name) if backbone else None
    whole, part = _gflops(detector), _gflops(backbone) if backbone else None
    told = f"{weights.hf_hub_id} ({weights.license})" if weights else ""
    return [file.name, f"{count / 1e6:.1f} M", f"{whole:.1f}", f"{part:.1f}" if part else "", stages, told]


def _gflops(network: Any) -> float:
    """Floating point operations of one image, in billions, attention included; nothing is computed for it."""
    network = network.train().to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, SIDE, SIDE, device="meta"))
    return counter.get_total_flops() / 1e9
