"""Random numbers of Python, NumPy and torch: as they were before, whatever a block of code draws."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Whatever is drawn inside, the run's random numbers go on as if nothing had happened, on CUDA devices too."""
    with _restored(), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        yield


@contextlib.contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Inside, random numbers depend on ``numbers`` only; afterwards they go on as if nothing had happened.

    Of torch it concerns the CPU alone: a process that reads images must not touch a device.
    """
    with _restored():
        seeds = [int(n) for n in np.random.SeedSequence(numbers).generate_state(3)]
        random.seed(seeds[0])
        np.random.seed(seeds[1])
        torch.default_generator.manual_seed(seeds[2])  # torch.manual_seed would change those of every device, too
        yield


@contextlib.contextmanager
def _restored() -> Iterator[None]:
    """Saves the states of Python, NumPy and torch on the CPU, and puts them back."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
