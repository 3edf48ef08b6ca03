"""Standardised feature maps as matrices, so that what the losses ask of them are a few matrix products.

Channels are rows, cells of all images are columns. Everything that DRD and DED read is linear in the standardised map,
so a narrow student is not brought to its teacher's width and standardised there, map by map: its adapter and the scale
of every adapted channel become one matrix, which is multiplied with what a loss reads before the map comes in.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tskd_yolo.losses.across import everywhere


class Map(NamedTuple):
    """A map of C channels, each with mean 0 and variance 1 (see :func:`standardised`): ``lift @ rows``.

    Shapes:
        rows: ``(B, N, P)``, N images of P cells; lift: ``(C, B)``, or None where it is the identity.
        source: ``(N, B, H, W)``, the features as they were, or whatever has their shape.
    """

    rows: Tensor
    lift: Tensor | None
    source: Tensor

    def read(self, weight: Tensor) -> Tensor:
        """``weight @ map``: ``(R, C)`` weights give ``(R, N, P)``."""
        return self._product(self.through(weight))

    def through(self, weight: Tensor) -> Tensor:
        """The weights ``(R, C)`` of the map as weights ``(R, B)`` of its rows."""
        return weight if self.lift is None else weight @ self.lift

    def full(self) -> Tensor:
        """The map itself, ``(C, N, P)``."""
        return self.rows if self.lift is None else self._product(self.lift)

    def some(self, most: int) -> Tensor:
        """An even share of at most ``most`` channels, as maps ``(channels, N, H, W)``."""
        step = -(-len(self.rows if self.lift is None else self.lift) // most)
        part = self.rows[::step] if self.lift is None else self._product(self.lift[::step])
        return part.unflatten(2, self.source.shape[2:])

    def _product(self, weight: Tensor) -> Tensor:
        return (weight @ self.rows.flatten(1)).unflatten(1, self.rows.shape[1:])

    @property
    def images(self) -> Tensor:
        """The rows image by image, ``(N, B, P)``, not copied."""
        return self.rows.transpose(0, 1)


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
    rows = centred(features.float(), step)
    features = features[:, :, ::step, ::step]
    count = rows.shape[1] * rows.shape[2]
    if adapter is None:
        variance = everywhere(torch.linalg.vector_norm(rows.flatten(1), dim=1).square() / count)
        scale = inverse_deviation(variance).view(-1, 1, 1)
        return Map(rows * scale if rows.requires_grad else rows.mul_(scale), None, features)
    variance = everywhere(adapted_variance(rows.flatten(1), adapter, count))
    return Map(rows, adapter * inverse_deviation(variance).unsqueeze(1), features)


def adapted_variance(rows: Tensor, adapter: Tensor, count: float) -> Tensor:
    """Variance of each row of ``adapter @ rows``, ``(C,)``, for centred rows ``(B, cells)``: ``diag(A K A^T)``."""
    covariance = _Gram.apply(rows) / count
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
    """Every ``step``-th cell of ``(N, C, H, W)`` -> ``(C, N, P)`` with mean 0 per channel, in one pass either way."""
    return _Centred.apply(features, step)


class _Gram(torch.autograd.Function):
    """``R R^T``, whose gradient is one product where autograd, blind to the symmetry, takes two."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return rows @ rows.T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return (gradient + gradient.T) @ ctx.saved_tensors[0]


class _Centred(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, step: int) -> Tensor:
        layout = torch.contiguous_format if features.is_contiguous() else torch.channels_last
        ctx.whole = features.shape, dict(dtype=features.dtype, device=features.device, memory_format=layout)
        ctx.step = step
        features = features[:, :, ::step, ::step]
        rows = features.new_empty(features.shape[1], features.shape[0], *features.shape[2:])
        mean = everywhere(features.mean(dim=(0, 2, 3)))
        torch.sub(features.transpose(0, 1), mean.view(-1, 1, 1, 1), out=rows)
        return rows.flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        shape, kind = ctx.whole
        back = torch.empty(shape, **kind)
        if ctx.step > 1:
            back.zero_()
        part = back[:, :, :: ctx.step, :: ctx.step]
        mean = everywhere(gradient.mean(dim=(1, 2)))
        torch.sub(gradient.unflatten(2, part.shape[2:]), mean.view(-1, 1, 1, 1), out=part.transpose(0, 1))
        return back, None
