"""Operations over processes: nothing where there is one, sums and means where a stand-in plays several.

Processes of their own are in ``tests/integration/test_distributed.py``.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tskd_yolo.train import processes
from tskd_yolo.train.processes import Processes

CPU = torch.device("cpu")


@pytest.fixture
def twins(monkeypatch) -> Processes:
    """Two processes that hold the same; the first one's values are 7."""
    monkeypatch.setattr(processes.dist, "all_reduce", lambda x: x.mul_(2))
    monkeypatch.setattr(processes.dist, "broadcast", lambda x, src: x.fill_(7))
    return Processes(2, CPU)


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("a process group was asked for")


def test_a_single_process_asks_nobody(monkeypatch):
    for name in ("all_reduce", "broadcast"):
        monkeypatch.setattr(processes.dist, name, refuse)
    alone, parameter = Processes(1, CPU), nn.Parameter(torch.ones(2))
    parameter.grad = torch.full((2,), 3.0)
    assert alone.total([1.0, 2.0]) == [1.0, 2.0]
    alone.broadcast([parameter]), alone.average_gradients([parameter])
    assert parameter.tolist() == [1, 1] and parameter.grad.tolist() == [3, 3]


def test_numbers_are_summed_and_tensors_are_the_first_ones(twins):
    tensor = torch.zeros(2)
    assert twins.total([1.0, 2.5]) == [2.0, 5.0]
    twins.broadcast([tensor])
    assert tensor.tolist() == [7, 7]


def test_words_of_all_processes_come_together(twins, monkeypatch):
    monkeypatch.setattr(
        processes.dist, "all_gather_object", lambda found, own: found.__setitem__(slice(None), [own, ["b"]])
    )
    assert twins.together(["a", "c"]) == ["a", "c", "b"]


def test_gradients_are_means_and_zero_where_there_was_none(twins):
    reached, missed = (nn.Parameter(torch.ones(2)) for _ in range(2))
    reached.grad = torch.full((2,), 3.0)
    twins.average_gradients([reached, missed])
    assert reached.grad.tolist() == [3, 3] and missed.grad.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("rank", "cuda", "given", "named"),
    [(-1, True, None, None), (0, False, None, None), (0, True, "cpu", "cpu"), (1, True, None, "0,1,2")],
)
def test_under_torchrun_every_process_gets_a_device(rank, cuda, given, named, monkeypatch):
    monkeypatch.setattr(processes, "LOCAL_RANK", rank)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    overrides = {"device": given}
    processes.name_devices(overrides)
    assert overrides == {"device": named}
