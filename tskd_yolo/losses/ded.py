"""DED: decoupled expert distillation.

A scratch that covers 1 % of an image drowns in the error of the other 99 %. So foreground and background are compared
apart, each pulls at the student about as much as the other, and a structural term keeps the texture of the maps.

Source: Wen et al., "A triple semantic-aware knowledge distillation network for industrial defect detection",
Computers in Industry 166 (2025) 104252; SSIM after Wang et al., IEEE Transactions on Image Processing 13(4), 2004.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tskd_yolo.losses.boxes import Boxes, Masks, covered
from tskd_yolo.losses.distributed import all_reduce_mean
from tskd_yolo.losses.standardize import Map, standardize, standardize_pair
from tskd_yolo.rounding import ceil_div

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
        error, ours = compared(student=student, teacher=teacher)
        sums = torch.stack([(error * mask).sum() for mask in masks])
        foreground, background = (sums * region_weights(masks)).unbind()
        similarity = ssim(ours, _chosen(teacher), luminance=False, step=WINDOW_STEP)
        return {"foreground": foreground, "background": background, "structure": (1 - similarity) / 2}


def compared(*, student: Map, teacher: Map) -> tuple[Tensor, Tensor]:
    """``mean_C (S - T)^2`` of two standardised maps, ``(N, H, W)``, and of S the channels that the structural prior
    reads, ``(N, channels, H, W)``.
    """
    error, chosen = _Compared.apply(student.cells, teacher.cells)
    return error.unflatten(1, student.size), student.image(chosen).contiguous()


def _chosen(features: Map) -> Tensor:
    """The channels that the structural prior reads, ``(N, channels, H, W)``."""
    return features.image(features.cells[..., :: _apart(features.cells)]).contiguous()


def _apart(cells: Tensor) -> int:
    """How far apart these channels are."""
    return ceil_div(cells.shape[2], CHANNELS)


class _Compared(torch.autograd.Function):
    """Error per cell and some of the channels; both gradients are one tensor, which is made once."""

    @staticmethod
    def forward(ctx: Any, cells: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        difference = cells - teacher
        ctx.save_for_backward(difference)
        error = torch.linalg.vector_norm(difference, dim=2).square() / difference.shape[2]
        return error, cells[..., :: _apart(cells)].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, chosen: Tensor) -> tuple[Tensor, None]:
        (difference,) = ctx.saved_tensors
        back = difference * (gradient * (2 / difference.shape[2])).unsqueeze(2)
        back[..., :: _apart(difference)] += chosen
        return back, None


def ssim(a: Tensor, b: Tensor, luminance: bool = True, step: int = 1) -> Tensor:
    """Structural similarity of two maps ``(N, C, H, W)``: mean over everything, 1 for identical maps.

    Gaussian window 11x11 with sigma 1.5 and zero padding, one at every ``step``-th cell; C1 = 0.01^2, C2 = 0.03^2. On
    maps that have negative values the luminance factor has to be left out: for opposite maps it is negative, like the
    structure, and their product would call them alike.
    """
    by_size = {size: _band(size, a)[:, ::step].contiguous() for size in set(a.shape[2:])}
    bands = [by_size[size] for size in a.shape[2:]]
    mean_b = _blur(b, bands)  # apart: a teacher needs no gradient
    mean_a, squares, product = _blur(torch.cat((a, a * a + b * b, a * b)), bands).chunk(3)
    cov, variances = product - mean_a * mean_b, squares - mean_a.square() - mean_b.square()
    similarity = (2 * cov + _C2) / (variances + _C2)
    if luminance:
        similarity = similarity * (2 * mean_a * mean_b + _C1) / (mean_a.square() + mean_b.square() + _C1)
    return similarity.sum() / max(similarity.numel(), 1)


def _blur(x: Tensor, bands: Sequence[Tensor]) -> Tensor:
    """The Gaussian window as a banded matrix per axis: on small maps far cheaper than a depthwise convolution.

    Both products stand on the right, where they are one large product instead of one small one per channel. The maps
    come out transposed and in one row per line, which makes no difference to a mean over them.
    """
    rows, columns = bands
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
