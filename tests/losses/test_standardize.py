"""Standardised maps: against the plain formula, values and gradients."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F

from tests.losses import reference
from tskd_yolo.losses.standardize import _Gram, _Scaled, centred, standardize, standardize_pair, with_squares


def cells_of(features: torch.Tensor) -> torch.Tensor:
    return features.flatten(2).transpose(1, 2)


def with_gradients(value: torch.Tensor, *inputs: torch.Tensor) -> list[torch.Tensor]:
    weight = torch.randn(value.shape, generator=torch.Generator().manual_seed(1), dtype=value.dtype)
    return [value, *torch.autograd.grad((value * weight).sum(), inputs)]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_centring_has_the_gradient_that_differences_give(layout):
    features = torch.randn(3, 4, 2, 5, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    assert torch.autograd.gradcheck(centred, features)
    torch.testing.assert_close(centred(features), cells_of(features - features.mean(dim=(0, 2, 3), keepdim=True)))
    centred(features).square().sum().backward()
    assert features.grad.is_contiguous(memory_format=layout)


def test_the_gram_matrix_has_the_gradient_that_differences_give():
    assert torch.autograd.gradcheck(_Gram.apply, torch.randn(3, 5, dtype=torch.float64, requires_grad=True))


def test_squares_have_the_gradient_that_differences_give():
    cells = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(with_squares, cells)
    torch.testing.assert_close(with_squares(cells)[1], cells.square().sum(dim=(0, 1)))
    assert torch.autograd.gradcheck(lambda x: with_squares(x)[1], cells)


def test_scaling_has_the_gradient_that_differences_give():
    cells = torch.randn(2, 3, 4, dtype=torch.float64) * torch.tensor([1.0, 3.0, 0.1, 0.0])
    assert torch.autograd.gradcheck(lambda x: _Scaled.apply(x.clone()), cells.requires_grad_())


@pytest.mark.parametrize("adapted", [True, False])
def test_a_map_is_the_adapted_map_standardised(adapted):
    features = (torch.randn(2, 6, 4, 5) * 3 + 2).requires_grad_()
    adapter = torch.randn(9, 6, requires_grad=True) if adapted else None
    inputs = [features, adapter] if adapted else [features]
    plain = F.conv2d(features, adapter[..., None, None]) if adapted else features
    for ours, theirs in zip(
        with_gradients(standardize(features, adapter).cells, *inputs),
        with_gradients(cells_of(reference.standardize(plain)), *inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_standardised_map_comes_back_as_it_is():
    found = standardize(torch.randn(2, 6, 4, 5), torch.randn(9, 6))
    assert standardize(found) is found


def test_a_large_offset_costs_no_accuracy():
    features, adapter = torch.randn(2, 6, 8, 8), torch.randn(9, 6)
    moved = standardize(features + 1000, adapter).cells
    torch.testing.assert_close(moved, standardize(features, adapter).cells, rtol=1e-2, atol=1e-3)


def test_the_teachers_map_carries_no_gradient():
    teacher = torch.randn(2, 4, 3, 3, requires_grad=True)
    student, frozen = standardize_pair(torch.randn(2, 4, 3, 3, requires_grad=True), teacher)
    assert student.cells.requires_grad and not frozen.cells.requires_grad


def standardized(x: torch.Tensor) -> torch.Tensor:
    found = standardize(x)
    return found.image(found.cells)


def test_offset_of_a_channel_and_scale_of_the_map_change_nothing():
    x = torch.randn(4, 6, 5, 7)
    offset = torch.randn(1, 6, 1, 1) * 10
    torch.testing.assert_close(standardized(x * 37 + offset), standardized(x), rtol=1e-4, atol=1e-4)
    assert standardized(x).mean(dim=(0, 2, 3)).abs().max() < 1e-5
    assert standardized(x).var(correction=0).item() == pytest.approx(0.99, abs=0.01)


def test_channels_of_unlike_scale_get_about_one_variance():
    x = torch.randn(8, 3, 10, 10) * torch.tensor([1.0, 2.0, 4.0]).view(1, 3, 1, 1)
    variance = standardized(x).var(dim=(0, 2, 3), correction=0)
    assert (variance > 0.9).all() and (variance < 1).all()


def test_a_constant_channel_stays_zero_with_a_finite_gradient():
    x = torch.randn(2, 3, 4, 4)
    x[:, 1] = 5.0
    x[:, 2] *= 1e-4
    x.requires_grad_()
    y = standardized(x)
    y.square().sum().backward()
    assert not y[:, 1].any() and y[:, 2].abs().max() < 0.01
    assert x.grad.isfinite().all()
    assert not standardized(torch.zeros(2, 3, 4, 4)).any()


def test_a_single_value_per_channel_becomes_zero():
    assert torch.equal(standardized(torch.randn(1, 4, 1, 1)), torch.zeros(1, 4, 1, 1))


def played(monkeypatch, process, *arguments):
    """What two threads give that play two processes: each gives its part of a statistic, and has the mean of both."""
    parts, meet = {}, threading.Barrier(2, timeout=30)

    def mean_of_both(statistic):
        parts[threading.get_ident()] = statistic
        meet.wait()
        mean = sum(parts.values()) / 2
        meet.wait()
        return mean

    monkeypatch.setattr("tskd_yolo.losses.standardize.all_reduce_mean", mean_of_both)
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(process, *arguments))


@pytest.fixture
def of_other_sizes():
    """Images of two processes, and weights of their cells."""
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(2, 3, side, side, generator=generator, dtype=torch.float64) for side in (4, 6)]
    weights = [torch.randn(2, side * side, 3, generator=generator, dtype=torch.float64) for side in (4, 6)]
    return features, weights


def test_processes_with_images_of_other_sizes_have_one_gradient(monkeypatch, of_other_sizes):
    features, weights = of_other_sizes
    alone = [x.clone().requires_grad_() for x in features]
    mean = sum(x.mean(dim=(0, 2, 3)) for x in alone) / 2
    total = sum(((cells_of(x) - mean) * w).sum() for x, w in zip(alone, weights, strict=True))
    expected = torch.autograd.grad(total, alone)

    def process(x, weight):
        x.requires_grad_()
        return torch.autograd.grad((centred(x) * weight).sum(), x)[0]

    for one, other in zip(played(monkeypatch, process, *of_other_sizes), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_processes_have_one_scale_and_its_gradient(monkeypatch, of_other_sizes):
    features, weights = of_other_sizes
    alone = [cells_of(x * torch.tensor([1.0, 0.1, 3.0]).view(3, 1, 1)).clone().requires_grad_() for x in features]
    variance = sum(x.square().mean(dim=(0, 1)) for x in alone) / 2
    scale = (variance + 0.01 * variance.mean()).rsqrt()
    total = sum((x * scale * w).sum() for x, w in zip(alone, weights, strict=True))
    expected = torch.autograd.grad(total, alone)

    def process(x, weight):
        scaled = _Scaled.apply(x.clone())
        return scaled.detach(), torch.autograd.grad((scaled * weight).sum(), x)[0]

    found = played(monkeypatch, process, alone, weights)
    for (scaled, gradient), x, other in zip(found, alone, expected, strict=True):
        torch.testing.assert_close(scaled, x.detach() * scale.detach())
        torch.testing.assert_close(gradient, other)
