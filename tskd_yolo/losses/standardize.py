"""Standardised feature maps as matrices, so that what the losses read of them are a few matrix products.

Cells of all images are rows, channels are columns, as they lie in memory where a network runs in channels_last. A
narrow student comes to its teacher's width by one product, and all that follows is one pass over the cells at a time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tskd_yolo.losses.distributed import all_reduce_mean
from tskd_yolo.rounding import ceil_div

FLOOR = 0.01
"""Least variance of a channel, as part of the mean of all."""


class Map(NamedTuple):
    """A map of C channels, each with mean 0 and variance 1 (see :func:`standardize`).

    Shapes:
        cells: ``(N, P, C)``, N images of P cells.
    Units:
        size: height and width in cells, whose product is P; grid: those of the map that the cells are from, of which
        one in ``spatial_step`` is there in either direction. A grid of None is the size.
    """

    cells: Tensor
    size: tuple[int, int]
    grid: tuple[int, int] | None = None
    spatial_step: int = 1

    def image(self, cells: Tensor) -> Tensor:
        """``(N, P, C)`` as ``(N, C, H, W)``, not copied."""
        return cells.transpose(1, 2).unflatten(2, self.size)


def standardize(features: Tensor | Map, adapter: Tensor | None = None, spatial_step: int = 1) -> Map:
    """Brings every channel of ``adapter @ features`` to mean 0 and variance 1 over batch and cells.

    After it a squared difference is ``2 (1 - correlation)`` on average: free of the width, scale and offset of a
    network's features (as in PKD: Cao et al., "PKD: general distillation framework for object detectors via Pearson
    correlation coefficient", NeurIPS 2022). A channel that hardly varies stays small, instead of being scaled up to
    noise.

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
    if adapter is not None:
        cells = F.linear(cells, adapter)
    return Map(_Scaled.apply(cells), size, grid, spatial_step)


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
    return (variance + FLOOR * variance.mean() + 1e-12).rsqrt()


def centred(features: Tensor, spatial_step: int = 1) -> Tensor:
    """Every ``spatial_step``-th cell of ``(N, C, H, W)`` -> ``(N, P, C)`` with mean 0 per channel, in one pass."""
    return _Centred.apply(features, spatial_step)


class _Scaled(torch.autograd.Function):
    """Centred ``(N, P, C)`` times :func:`inverse_deviation` of their variance, in their own memory.

    With the scale s and z = s y the gradient of y is ``s g + z (2 / P s) dL/dv``, where ``dL/dv = -(u + 0.01 mean(u)) /
    2`` with ``u = s^3 sum(g y)``: fewer passes than autograd takes, and y is not kept beside z.
    """

    @staticmethod
    def forward(ctx: Any, cells: Tensor) -> Tensor:
        variance = all_reduce_mean(cells.square().sum(dim=(0, 1)) / (cells.shape[0] * cells.shape[1]))
        scale = inverse_deviation(variance)
        ctx.mark_dirty(cells)
        cells.mul_(scale)
        ctx.save_for_backward(cells, scale)
        return cells

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        cells, scale = ctx.saved_tensors
        part = (gradient * cells).sum(dim=(0, 1)) * scale.square()
        variance = all_reduce_mean(-(part + FLOOR * part.mean()) / 2)
        return (gradient * scale).addcmul_(cells, 2 * variance / (cells.shape[0] * cells.shape[1] * scale))


def with_squares(cells: Tensor) -> tuple[Tensor, Tensor]:
    """Cells ``(N, P, C)``, and each channel's sum of squares ``(C,)``, whose gradient joins theirs in one pass."""
    return _WithSquares.apply(cells)


class _WithSquares(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, cells: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cells)
        return cells.view_as(cells), cells.square().sum(dim=(0, 1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, squares: Tensor) -> Tensor:
        return torch.addcmul(gradient, ctx.saved_tensors[0], 2 * squares)


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
        cells = features.new_empty(part.shape[0], part.shape[1] * part.shape[2], part.shape[3])
        torch.sub(part, mean, out=cells.view_as(part))
        return cells

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
