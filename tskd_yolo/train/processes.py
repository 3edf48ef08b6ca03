"""The processes of a distributed run. Of a single process every operation leaves things as they are."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from ultralytics.utils import LOCAL_RANK, RANK

FIRST = RANK in {-1, 0}
"""Whether this process is the one that writes and logs: the first, or the only one."""


@dataclass(frozen=True)
class Processes:
    """How many processes a run has, and the device of this one."""

    count: int
    device: torch.device

    def total(self, numbers: list[float]) -> list[float]:
        """Sums over all processes, number by number."""
        if self.count == 1:
            return numbers
        tensor = torch.tensor(numbers, device=self.device)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def together(self, words: list[str]) -> list[str]:
        """Words of all processes, one process after the other."""
        if self.count == 1:
            return words
        found: list[list[str]] = [[]] * self.count
        dist.all_gather_object(found, words)
        return [word for each in found for word in each]

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Gives the tensors of every process the values of the first one's, in place."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """The all-reduce mean of gradients, in place, as DDP computes the student's."""
        if self.count == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:  # a process whose batch did not reach it must still answer the others
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
            parameter.grad /= self.count


def from_first(word: str) -> str:
    """The first process's word, on all of them."""
    words = [word]
    dist.broadcast_object_list(words, src=0)
    return words[0]


def name_devices(overrides: dict[str, Any]) -> None:
    """Under torchrun, one device per process of this machine, in place, unless they are named."""
    if LOCAL_RANK != -1 and not overrides.get("device") and torch.cuda.is_available():
        overrides["device"] = ",".join(str(i) for i in range(int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
