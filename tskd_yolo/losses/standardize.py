"""Standardised feature maps as matrices, so that what the losses read of them are a few matrix products.

Cells of all images are rows, channels are columns, as they lie in memory where a network runs in channels_last.
Everything that DRD and DED read is linear in the standardised map. So a narrow student is not brought to its teacher's
width and standardised there, map by map: its adapter and the scale of every adapted channel become one matrix, the
projection, which is multiplied with what a loss reads before the map comes in.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tskd_yolo.losses.distributed import all_reduce_mean
from tskd_yolo.rounding import ceil_div


class Map(NamedTuple):
    """A map of C channels, each with mean 0 and variance 1 (see :func:`standardize`): ``cells @ projection^T``.

    Shapes:
        cells: ``(N, P, B)``, N images of P cells; projection: ``(C, B)``, or None where it is the identity.
    Units:
        size: height and width in cells, whose product is P; grid: those of the map that the cells are from, of which
        one in ``spatial_step`` is there in either direction. A grid of None is the size.
    """

    cells: Tensor
    projection: Tensor | None
    size: tuple[int, int]
    grid: tuple[int, int] | None = None
    spatial_step: int = 1

    def full(self) -> Tensor:
        """The map itself, ``(N, P, C)``."""
        return self.cells if self.projection is None else F.linear(self.cells, self.projection)

    def some(self, most: int) -> Tensor:
        """Evenly spaced channels, at most ``most`` of them, as maps ``(N, channels, H, W)``."""
        width = self.cells.shape[2] if self.projection is None else len(self.projection)
        step = ceil_div(width, most)
        if self.projection is None:
            return self.image(self.cells[..., ::step]).contiguous()
        return self.image(F.linear(self.cells, self.projection[::step])).contiguous()

    def image(self, cells: Tensor) -> Tensor:
        """``(N, P, C)`` as ``(N, C, H, W)``, not copied."""
        return cells.transpose(1, 2).unflatten(2, self.size)


def standardize(features: Tensor | Map, adapter: Tensor | None = None, spatial_step: int = 1) -> Map:
    """Brings every channel of ``adapter @ features`` to mean 0 and variance 1 over batch and cells.

    After it a squared difference is ``2 (1 - correlation)`` on average: free of the width, scale and offset of a
    network's features (as in PKD: Cao et al., "PKD: general distillation framework for object detectors via Pearson
    correlation coefficient", NeurIPS 2022). A channel that hardly varies stays small, instead of being scaled up to
    noise. The variance of adapted channels comes from the covariance K of the narrow ones: ``diag(A K A^T)``.

    Args:
        features: ``(N, B, H, W)``; a map that is standardised already comes back as it is.
        adapter: ``(C, B)``, the identity where it is missing.
        spatial_step: Distance of the cells that are read, in cells, in either direction.
    """
    if isinstance(features, Map):
        return features
    grid = features.shape[2], features.shape[3]
    size = ceil_div(grid[0], spatial_step), ceil_div(grid[1], spatial_step)
    cells = centred(features.float(), spatial_step)
    count = cells.shape[0] * cells.shape[1]
    if adapter is None:
        scale = inverse_deviation(all_reduce_mean(cells.square().sum(dim=(0, 1)) / count))
        return Map(cells * scale if cells.requires_grad else cells.mul_(scale), None, size, grid, spatial_step)
    variance = all_reduce_mean(adapted_variance(cells.flatten(0, 1), adapter, count))
    return Map(cells, adapter * inverse_deviation(variance).unsqueeze(1), size, grid, spatial_step)


def adapted_variance(cells: Tensor, adapter: Tensor, count: float) -> Tensor:
    """Variance of each channel of ``cells @ adapter^T``, ``(C,)``, for centred ``(cells, B)``: ``diag(A K A^T)``."""
    covariance = _Gram.apply(cells) / count
    return ((adapter @ covariance) * adapter).sum(dim=1).clamp(min=0)  # rounding may fall below


def standardize_pair(student: Tensor | Map, teacher: Tensor | Map) -> tuple[Map, Map]:
    """Both maps standardised, the teacher's without gradient."""
    if isinstance(teacher, Tensor):
        teacher = standardize(teacher.detach())
    return standardize(student), teacher


def inverse_deviation(variance: Tensor) -> Tensor:
    """``1 / sqrt(v + 0.01 mean(v))``: the floor is relative, so that scaling a whole map changes nothing."""
    return (variance + 0.01 * variance.mean() + 1e-12).rsqrt()


def centred(features: Tensor, spatial_step: int = 1) -> Tensor:
    """Every ``spatial_step``-th cell of ``(N, C, H, W)`` -> ``(N, P, C)`` with mean 0 per channel, in one pass."""
    return _Centred.apply(features, spatial_step)


class _Gram(torch.autograd.Function):
    """``R^T R``, whose gradient is one product where autograd, which does not use the symmetry, takes two."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return rows.T @ rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return ctx.saved_tensors[0] @ (gradient + gradient.T)


class _Centred(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, step: int) -> Tensor:
        layout = torch.contiguous_format if features.is_contiguous() else torch.channels_last
        ctx.whole = features.shape, dict(dtype=features.dtype, device=features.device, memory_format=layout)
        ctx.step = step
        part = features[:, :, ::step, ::step].permute(0, 2, 3, 1)
        if step > 1:
            part = part.contiguous()  # read twice
        mean = all_reduce_mean(part.mean(dim=(0, 1, 2)))
        cells = torch.sub(part, mean, out=features.new_empty(part.shape))
        return cells.flatten(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        shape, kind = ctx.whole
        back = torch.empty(shape, **kind)
        if ctx.step > 1:
            back.zero_()
        part = back[:, :, :: ctx.step, :: ctx.step].permute(0, 2, 3, 1)
        cells = gradient.shape[0] * gradient.shape[1]  # of this process: with multi_scale= another may have more
        mean = all_reduce_mean(gradient.sum(dim=(0, 1))) / cells
        torch.sub(gradient.unflatten(1, part.shape[1:3]), mean, out=part)
        return back, None
