"""Statistics over the whole batch of a distributed run, and not over the part of it that one process sees.

So a term means the same on any number of devices: its mean over the processes is what one process would find for all
their images together. With ``multi_scale=`` they may have images of different sizes; there each process counts alike,
however many cells it has.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function


def processes() -> int:
    """Number of processes of the run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_reduce_mean(statistic: Tensor) -> Tensor:
    """The mean of a statistic over all processes, with its gradient; itself where there is one.

    Every process has to ask, in the same order.
    """
    return statistic if processes() == 1 else _AllReduceMean.apply(statistic)


def rank() -> int:
    """Number of this process, from 0 on."""
    return dist.get_rank() if processes() > 1 else 0


def all_gather(rows: Tensor) -> Tensor:
    """Rows of all processes in their order, ``(K, ...)`` -> ``(processes K, ...)``, with their gradient.

    Every process has to ask, in the same order and with as many rows.
    """
    if processes() == 1:
        return rows
    before, after = rank(), processes() - rank() - 1
    nothing = torch.zeros_like(rows)
    return all_reduce_mean(torch.cat([*[nothing] * before, rows, *[nothing] * after])) * processes()


class _AllReduceMean(Function):
    @staticmethod
    def forward(ctx: Any, statistic: Tensor) -> Tensor:
        return _reduced(statistic)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # Gradients of parameters are averaged later, so what all processes give here is averaged too, not summed.
        return _reduced(gradient)


def _reduced(x: Tensor) -> Tensor:
    x = x.detach().clone().contiguous()
    dist.all_reduce(x)
    return x / processes()
