"""Statistics over several processes, which a stand-in for the process group plays here.

Processes of their own are in ``tests/integration/test_distributed.py``.
"""

from __future__ import annotations

import pytest
import torch

from tskd_yolo.losses import distributed
from tskd_yolo.losses.distributed import all_reduce_mean, processes


@pytest.fixture
def four(monkeypatch) -> None:
    """Four processes, of which the other three hold zeros."""
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed.dist, "get_world_size", lambda: 4)
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda x: x)


def test_alone_a_statistic_is_its_own_mean():
    statistic = torch.randn(3, requires_grad=True)
    assert processes() == 1 and all_reduce_mean(statistic) is statistic


def test_value_and_gradient_are_means_over_processes(four):
    statistic = torch.randn(3, requires_grad=True)
    before = statistic.detach().clone()
    mean = all_reduce_mean(2 * statistic)
    assert processes() == 4
    torch.testing.assert_close(mean, before / 2)
    mean.sum().backward()
    torch.testing.assert_close(statistic.grad, torch.full((3,), 0.5))
    assert torch.equal(statistic, before), "what is reduced is a copy"
