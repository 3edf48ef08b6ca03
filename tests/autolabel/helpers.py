"""What the tests of labels by a teacher share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.helpers import DEVICE
from tskd_yolo.autolabel.record import Detection, Labelled

NAMES = ["a", "b", "<c>"]
THRESHOLDS = [0.8, 0.6, 1.01]
IMAGES = [
    Labelled("x.png", (100, 50), [Detection(0, 0.9, (10.0, 5.0, 60.0, 45.0), True),
                                  Detection(1, 0.45, (0.0, 0.0, 9.5, 9.25), False)]),
    Labelled("sub/y & z.png", (64, 64), [Detection(2, 0.5, (1.0, 1.0, 9.0, 9.0), False),
                                         Detection(0, 0.6, (1.0, 2.0, 9.0, 9.0), False)]),
    Labelled("z.png", (64, 64), []),
]  # fmt: skip
"""Of the first a near miss counts 1/2; of the second one counts 1, since its class has no threshold, the other 1/2."""


def certain(file: Path, copy: Path, bias: float = 1.0, seed: int = 5) -> Path:
    """A detector with random weights that finds something in every image: with scores all over the scale."""
    content = torch.load(file, weights_only=False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for layers in content["model"].model[-1].cv3:
            layers[-1].weight.data.normal_(0, 1.2)
            layers[-1].bias.data.fill_(-bias)
    torch.save(content, copy)
    return copy


def asked(folder: Path, teacher: Any, source: Path, **more: Any) -> dict[str, Any]:
    """Arguments of a call that writes ``folder/out``."""
    return {"teacher": str(teacher), "source": str(source), "out": str(folder / "out"), "imgsz": 64, "batch": 4,
            "device": DEVICE, **more}  # fmt: skip
