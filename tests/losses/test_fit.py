"""Adapters from least squares."""

from __future__ import annotations

import pytest
import torch

from tskd_yolo.losses.fit import least_squares
from tskd_yolo.losses.standardize import standardize


def cells(count=4000, width=6, seed=0):
    torch.manual_seed(seed)
    drawn = torch.randn(count, width) @ torch.randn(width, width)
    return drawn - drawn.mean(dim=0)


def standardized(rows):
    return standardize(rows.T[None, :, :, None]).cells[0]


def taught(student, solved):
    """The student's map through its adapter, as losses read it."""
    return standardize(student.T[None, :, :, None], solved).cells[0]


@pytest.mark.parametrize("wide", [4, 6, 9])
def test_a_linear_map_is_found(wide):
    student = cells()
    teacher = standardized(student @ torch.randn(6, wide))
    assert (taught(student, least_squares(student, teacher, same_width=False)) - teacher).square().mean() < 0.01


@pytest.mark.parametrize("count", [3, 4000])
def test_equal_networks_have_equal_maps(count):
    student = cells(count) * torch.tensor([1, 100, 0.01, 1, 1, 0])  # one hardly varies, one is dead
    teacher = standardized(student)
    solved = least_squares(student, teacher, same_width=True)
    torch.testing.assert_close(taught(student, solved), teacher, atol=1e-3, rtol=1e-3)


def test_shuffled_channels_are_put_back():
    student, order = cells(), torch.tensor([3, 0, 5, 1, 4, 2])
    solved = least_squares(student, standardized(student)[:, order], same_width=True)
    assert torch.equal(solved.abs().argmax(dim=1), order)


def test_the_prior_is_for_equal_networks_only():
    """As many channels of a wider network as the student has are no namesakes of its own."""
    student, unrelated = cells(40, seed=1), standardized(cells(40, seed=2))
    drawn = [least_squares(student, unrelated, same_width=same) for same in (True, False)]
    deviation = student.std(dim=0)
    on, off = (float(((solved * deviation).diagonal()).mean()) for solved in drawn)
    assert on > off + 0.05


def test_of_few_cells_little_is_learned():
    """Of 32 cells in 64 channels a fit without a ridge would know each by heart."""
    student, teacher = cells(32, 64, seed=1), standardized(cells(32, 8, seed=2))
    assert (taught(student, least_squares(student, teacher, same_width=False)) - teacher).square().mean() > 0.1


def test_what_is_not_finite_is_seen_in_the_result():
    student = cells()
    student[3, 2] = float("nan")
    assert not least_squares(student, standardized(cells()), same_width=True).isfinite().all()
