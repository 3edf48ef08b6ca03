"""Standardised feature maps as matrices, so that what the losses ask of them are a few matrix products.

Cells of all images are rows, channels are columns, as they lie in memory where a network runs in channels_last.
Everything that DRD and DED read is linear in the standardised map, so a narrow student is not brought to its teacher's
width and standardised there, map by map: its adapter and the scale of every adapted channel become one matrix, which
is multiplied with what a loss reads before the map comes in.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tskd_yolo.losses.distributed import everywhere


class Map(NamedTuple):
    """A map of C channels, each with mean 0 and variance 1 (see :func:`standardised`): ``cells @ lift^T``.

    Shapes:
        cells: ``(N, P, B)``, N images of P cells; lift: ``(C, B)``, or None where it is the identity.
    Units:
        size: height and width in cells, whose product is P.
    """

    cells: Tensor
    lift: Tensor | None
    size: tuple[int, int]

    def read(self, weight: Tensor) -> Tensor:
        """``map @ weight^T``: ``(R, C)`` weights give ``(N, P, R)``."""
        return F.linear(self.cells, self.through(weight))

    def through(self, weight: Tensor) -> Tensor:
        """The weights ``(R, C)`` of the map as weights ``(R, B)`` of its cells."""
        return weight if self.lift is None else weight @ self.lift

    def full(self) -> Tensor:
        """The map itself, ``(N, P, C)``."""
        return self.cells if self.lift is None else F.linear(self.cells, self.lift)

    def some(self, most: int) -> Tensor:
        """An even share of at most ``most`` channels, as maps ``(N, channels, H, W)``."""
        step = -(-(self.cells.shape[2] if self.lift is None else len(self.lift)) // most)
        part = self.cells[..., ::step] if self.lift is None else F.linear(self.cells, self.lift[::step])
        return self.image(part).contiguous()

    def image(self, cells: Tensor) -> Tensor:
        """``(N, P, C)`` as ``(N, C, H, W)``, not copied."""
        return cells.transpose(1, 2).unflatten(2, self.size)


def standardised(features: Tensor | Map, adapter: Tensor | None = None, step: int = 1) -> Map:
    """Brings every channel of ``adapter @ features`` to mean 0 and variance 1 over batch and cells.

    After it a squared difference is ``2 (1 - correlation)`` on average: free of the width, scale and offset of a
    network's features (as in PKD: Cao et al., "PKD: general distillation framework for object detectors via Pearson
    correlation coefficient", NeurIPS 2022). A channel that hardly varies stays small, instead of being blown up to
    noise. The variance of adapted channels comes from the covariance K of the narrow ones: ``diag(A K A^T)``.

    Args:
        features: ``(N, B, H, W)``; a map that is standardised already comes back as it is.
        adapter: ``(C, B)``, the identity where it is missing.
        step: Every how manieth cell is read, in either direction.
    """
    if isinstance(features, Map):
        return features
    cells, size = centred(features.float(), step), (-(-features.shape[2] // step), -(-features.shape[3] // step))
    count = cells.shape[0] * cells.shape[1]
    if adapter is None:
        scale = inverse_deviation(everywhere(cells.square().sum(dim=(0, 1)) / count))
        return Map(cells * scale if cells.requires_grad else cells.mul_(scale), None, size)
    variance = everywhere(adapted_variance(cells.flatten(0, 1), adapter, count))
    return Map(cells, adapter * inverse_deviation(variance).unsqueeze(1), size)


def adapted_variance(cells: Tensor, adapter: Tensor, count: float) -> Tensor:
    """Variance of each channel of ``cells @ adapter^T``, ``(C,)``, for centred ``(cells, B)``: ``diag(A K A^T)``."""
    covariance = _Gram.apply(cells) / count
    return ((adapter @ covariance) * adapter).sum(dim=1).clamp(min=0)  # rounding may fall below


def pair(student: Tensor | Map, teacher: Tensor | Map) -> tuple[Map, Map]:
    """Both maps standardised, the teacher's without gradient."""
    if isinstance(teacher, Tensor):
        teacher = standardised(teacher.detach())
    return standardised(student), teacher


def inverse_deviation(variance: Tensor) -> Tensor:
    """``1 / sqrt(v + 0.01 mean(v))``: the floor is relative, so that scaling a whole map changes nothing."""
    return (variance + 0.01 * variance.mean() + 1e-12).rsqrt()


def centred(features: Tensor, step: int = 1) -> Tensor:
    """Every ``step``-th cell of ``(N, C, H, W)`` -> ``(N, P, C)`` with mean 0 per channel, in one pass either way."""
    return _Centred.apply(features, step)


class _Gram(torch.autograd.Function):
    """``R^T R``, whose gradient is one product where autograd, blind to the symmetry, takes two."""

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
        mean = everywhere(part.mean(dim=(0, 1, 2)))
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
        mean = everywhere(gradient.mean(dim=(0, 1)))
        torch.sub(gradient.unflatten(1, part.shape[1:3]), mean, out=part)
        return back, None
