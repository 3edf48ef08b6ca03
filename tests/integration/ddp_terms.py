"""One process's share of a batch: its terms and the gradients of its adapters, for tests.

Without a process group, the whole batch. The student's batch norms keep their statistics, as the engine's do not go
over processes either.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG

from tests.helpers import NAMES
from tskd_yolo import config
from tskd_yolo.distill import teacher
from tskd_yolo.distill.distiller import Distiller

IMAGES = 6


def whole_batch() -> dict[str, torch.Tensor]:
    """Images and boxes, unevenly spread: the last image has none."""
    generator = torch.Generator().manual_seed(5)
    owner = torch.tensor([0, 0, 0, 1, 2, 3, 3, 4])
    count = len(owner)
    return {
        "img": torch.rand(IMAGES, 3, 64, 64, generator=generator),
        "cls": torch.randint(0, len(NAMES), (count, 1), generator=generator).float(),
        "bboxes": torch.cat((0.5 + 0.2 * torch.rand(count, 2, generator=generator),
                             0.1 + 0.4 * torch.rand(count, 2, generator=generator)), dim=1),
        "batch_idx": owner.float(),
    }  # fmt: skip


def part(batch: dict[str, torch.Tensor], rank: int, size: int) -> dict[str, torch.Tensor]:
    """Images ``rank * n`` to ``(rank + 1) * n`` with their boxes."""
    n = IMAGES // size
    own = (batch["batch_idx"] // n).long() == rank
    return {
        "img": batch["img"][rank * n : (rank + 1) * n],
        **{key: batch[key][own] for key in ("cls", "bboxes")},
        "batch_idx": batch["batch_idx"][own] - rank * n,
    }


def found(checkpoint: str, model: str, batch: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Terms and the gradients of their sum."""
    torch.manual_seed(3)
    student: Any = DetectionModel(model, nc=len(NAMES), verbose=False).train()
    student.args, student.names = DEFAULT_CFG, dict(enumerate(NAMES))
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    settings = config.build({**config.DEFAULTS, "teacher": checkpoint})
    frozen = teacher.Teacher(teacher.load(checkpoint), like=student, names=student.names, responses=True)
    distiller = Distiller(student=student, teacher=frozen, config=settings, seed=0)
    step = distiller.attach(student, batch["img"])
    terms = step.losses(step.read(student(batch["img"])), batch).values
    torch.stack(list(terms.values())).sum().backward()
    gradients = {name: p.grad for name, p in [*distiller.learned.named_parameters(), *student.named_parameters()]}
    return {"terms": {name: float(term.detach()) for name, term in terms.items()}, "gradients": gradients}


def measure(folder: Path, *arguments: str) -> None:
    """What :func:`found` finds over all processes, into ``terms<K>.pt``."""
    rank, size = dist.get_rank(), dist.get_world_size()
    result = found(*arguments, part(whole_batch(), rank, size))
    for gradient in result["gradients"].values():
        if gradient is not None:
            dist.all_reduce(gradient)
            gradient /= size
    torch.save(result, folder / f"terms{rank}.pt")
