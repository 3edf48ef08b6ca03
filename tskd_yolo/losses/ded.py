"""DED: decoupled expert distillation.

A scratch that covers 1 % of an image drowns in the error of the other 99 %. So foreground and background are compared
apart, each pulls at the student about as much as the other, and a structural term keeps the texture of the maps.

Source: Wen et al., "A triple semantic-aware knowledge distillation network for industrial defect detection",
Computers in Industry 166 (2025) 104252; SSIM after Wang et al., IEEE Transactions on Image Processing 13(4), 2004.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tskd_yolo.losses.boxes import Boxes, Masks, covered
from tskd_yolo.losses.distributed import all_reduce_mean
from tskd_yolo.losses.standardize import Map, standardize, standardize_pair

CHANNELS, WINDOW_STEP = 16, 2
"""Most channels that the structural prior compares, and how far apart its windows stand, in cells."""

_WINDOW, _SIGMA, _C1, _C2 = 11, 1.5, 0.01**2, 0.03**2


class DED(nn.Module):
    """Feature error on foreground and on background, and the structural prior, of one map.

        e     = mean_C (s(S) - s(T))^2                                     (N, H, W)
        A     = sum(M),    w = 2 sqrt(A) / (sqrt(A_fg) + sqrt(A_bg))       of a region
        loss  = w_fg sum(M_fg e) / A_fg + w_bg sum(M_bg e) / A_bg + (1 - SSIM(s(S), s(T))) / 2

    with ``s`` the standardisation of every channel and SSIM without its luminance factor, on at most 16 evenly spaced
    channels (the adapter leads every student channel into each of them) and with windows two cells apart. A region
    without cells gives 0, with a gradient of 0.

    The gradient of a mean over A whole cells has a norm of about 1 / sqrt(A). So by ``w`` both regions have about the
    same norm, and boxes smaller than a cell less. In a plain sum of the two means small defects would have most of it,
    on few cells, and a step's length would be spent on them; in one mean over all cells they would have next to
    nothing. For the same reason the paper's attention is left out (:class:`tskd_yolo.losses.paper.PaperDED` has it).

    Shapes:
        student, teacher: ``(N, C, H, W)``, or standardised already (the student through its adapter); output ``()``,
        float32.
    Units:
        Weighted means of 2 (1 - correlation); nothing grows with width, size, batch or number of boxes.
    """

    recordable = True
    """Batches of one form take the same kernels, and none waits for the device."""

    def forward(self, *, student: Tensor | Map, teacher: Tensor | Map, boxes: Boxes) -> Tensor:
        """Returns the sum of :meth:`terms`, with the regions that :func:`covered` finds on the cells of the student's
        map.
        """
        student = standardize(student)
        masks = covered(boxes, *(student.grid or student.size), student.spatial_step)
        return torch.stack(list(self.terms(student=student, teacher=teacher, masks=masks).values())).sum()

    def terms(self, *, student: Tensor | Map, teacher: Tensor | Map, masks: Masks) -> dict[str, Tensor]:
        """Returns the parts ``foreground``, ``background`` and ``structure``, with masks ``(N, H, W)``."""
        student, teacher = standardize_pair(student, teacher)
        error = difference_error(student=student, teacher=teacher)
        sums = torch.stack([(error * mask).sum() for mask in masks])
        foreground, background = (sums * region_weights(masks)).unbind()
        similarity = ssim(student.some(CHANNELS), teacher.some(CHANNELS), luminance=False, step=WINDOW_STEP)
        return {"foreground": foreground, "background": background, "structure": (1 - similarity) / 2}


def difference_error(*, student: Map, teacher: Map) -> Tensor:
    """``mean_C (S - T)^2`` of two standardised maps, ``(N, H, W)``."""
    return _CellError.apply(student.cells, student.projection, teacher.full()).unflatten(1, teacher.size)


class _CellError(torch.autograd.Function):
    """``mean_C (R A^T - T)^2`` per cell, A the projection; for its gradient it keeps the difference, once."""

    @staticmethod
    def forward(ctx: Any, cells: Tensor, projection: Tensor | None, teacher: Tensor) -> Tensor:
        if projection is None:
            difference = cells - teacher
        else:
            difference = torch.addmm(teacher.flatten(0, 1), cells.flatten(0, 1), projection.T, beta=-1).view_as(teacher)
        ctx.save_for_backward(cells, projection, difference)
        return torch.linalg.vector_norm(difference, dim=2).square() / difference.shape[2]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        cells, projection, difference = ctx.saved_tensors
        back = difference * (gradient * (2 / difference.shape[2])).unsqueeze(2)
        if projection is None:
            return back, None, None
        back = back.flatten(0, 1)
        return (back @ projection).view_as(cells), back.T @ cells.flatten(0, 1), None


def ssim(a: Tensor, b: Tensor, luminance: bool = True, step: int = 1) -> Tensor:
    """Structural similarity of two maps ``(N, C, H, W)``: mean over everything, 1 for identical maps.

    Gaussian window 11x11 with sigma 1.5 and zero padding, one at every ``step``-th cell; C1 = 0.01^2, C2 = 0.03^2. On
    maps that have negative values the luminance factor has to be left out: for opposite maps it is negative, like the
    structure, and their product would call them alike.
    """
    mean_b, bb = _blur(torch.cat((b, b * b)), step).chunk(2)  # apart: a teacher needs no gradient
    mean_a, aa, ab = _blur(torch.cat((a, a * a, a * b)), step).chunk(3)
    var_a, var_b, cov = aa - mean_a.square(), bb - mean_b.square(), ab - mean_a * mean_b
    similarity = (2 * cov + _C2) / (var_a + var_b + _C2)
    if luminance:
        similarity = similarity * (2 * mean_a * mean_b + _C1) / (mean_a.square() + mean_b.square() + _C1)
    return similarity.sum() / max(similarity.numel(), 1)


def _blur(x: Tensor, step: int) -> Tensor:
    """The Gaussian window as a banded matrix per axis: on small maps far cheaper than a depthwise convolution.

    Both products stand on the right, where they are one large product instead of one small one per channel. The maps
    come out transposed and in one row per line, which makes no difference to a mean over them.
    """
    rows, columns = (_band(size, x)[:, ::step].contiguous() for size in x.shape[2:])
    lines = x.reshape(-1, x.shape[3]) @ columns
    return lines.view(*x.shape[:3], -1).transpose(2, 3).reshape(-1, x.shape[2]) @ rows


def _band(size: int, like: Tensor) -> Tensor:
    """Symmetric ``(size, size)`` matrix of one axis of the window; zero padding is what lies beyond its edges."""
    position = torch.arange(size, device=like.device, dtype=like.dtype)
    distance = (position[:, None] - position[None, :]).abs()
    offsets = torch.arange(_WINDOW, device=like.device, dtype=like.dtype) - _WINDOW // 2
    norm = (-offsets.square() / (2 * _SIGMA**2)).exp().sum()
    return (-distance.square() / (2 * _SIGMA**2)).exp() * (distance <= _WINDOW // 2) / norm


def region_weights(masks: Masks) -> Tensor:
    """What a cell of the foreground and one of the background weighs, ``w / A`` of :class:`DED`, ``(2,)``; 0 where a
    region has no cells.
    """
    areas = all_reduce_mean(torch.stack([mask.sum() for mask in masks]))
    roots = areas.sqrt()
    return 2 * roots / (roots.sum() * areas).clamp(min=1e-9)
