"""The rest of the teacher's head: what it makes of the student's tower activations.

They come to it centred, brought to its width by an adapter and to the statistics of the teacher's own activations.

Source: Wang et al., "CrossKD: cross-head knowledge distillation for object detection", CVPR 2024.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tskd_yolo.losses.distributed import all_reduce_mean, processes
from tskd_yolo.losses.standardize import adapted_variance, centred, with_squares


class Moments(NamedTuple):
    """Statistics of a tower activation ``(N, C, H, W)``: per image and channel its mean and its mean square.

    Means, not sums: a teacher that sees another size of image has another number of cells than the student.

    Shapes:
        mean, squares: ``(N, C)``.
    """

    mean: Tensor
    squares: Tensor


class Tails(NamedTuple):
    """The rest of the frozen teacher's head on one level: activations in, box distances and class logits out.

    ``unit`` is the size of its cells over that of the student's, where the two do not see images of one size.
    """

    box: nn.Sequential
    score: nn.Sequential
    unit: float = 1.0


def adapter(student: int, teacher: int, bias: bool = False, channel_step: int = 1) -> nn.Module:
    """1x1 convolution from the student's width to the teacher's; nothing where they are equal.

    Without a bias where what follows removes the mean of every channel. With a ``channel_step``, one in so many of the
    teacher's channels is compared: these are never taken for the student's own, however many they are.
    """
    return nn.Identity() if student == teacher and channel_step == 1 else nn.Conv2d(student, teacher, 1, bias=bias)


def through(tail: nn.Sequential, adapter: nn.Module, student: Tensor, teacher: Tensor | Moments) -> Tensor:
    """The output of the teacher's layers ``tail`` for the student's activations, brought to the teacher's width and
    statistics: ``tail(renormalize(student, teacher, adapter))``.

    Where the tail is a single 1x1 convolution all of this is one matrix, and nothing is formed at the teacher's width.
    """
    if len(tail) > 1:
        return tail(renormalize(student, teacher, adapter))
    with torch.autocast(student.device.type, enabled=False):
        return _laid_out(F.linear(*_one_matrix(tail, adapter, student, teacher)), student)


class Entrance(NamedTuple):
    """What :func:`through` is given on one level."""

    tail: nn.Sequential
    adapter: nn.Module
    student: Tensor
    teacher: Tensor | Moments


def through_at(place: Tensor, levels: Sequence[Entrance]) -> Tensor:
    """The outputs of :func:`through` on all levels, at ``place`` ``(N, K)`` only: ``(N, channels, K)``.

    Where the tails are single convolutions, they are given these locations alone.

    Args:
        place: Locations, counted over the cells of all levels.
        levels: What goes through.
    """
    if any(len(level.tail) > 1 for level in levels):
        return boxes_at(place, [through(*level) for level in levels])
    found, start = None, 0
    for level in levels:
        with torch.autocast(place.device.type, enabled=False):
            cells, weight, bias = _one_matrix(*level)
            here, count = place - start, cells.shape[1]
            first = torch.arange(0, len(cells) * count, count, device=place.device).unsqueeze(1)
            rows = (here.clamp(0, count - 1) + first).flatten()
            said = F.linear(cells.flatten(0, 1).index_select(0, rows), weight, bias)
            said = said.view(*place.shape, -1).transpose(1, 2)
        inside = ((here >= 0) & (here < count)).unsqueeze(1)
        found = said if found is None else torch.where(inside, said, found)
        start += count
    assert found is not None
    return found


def boxes_at(place: Tensor, levels: Sequence[Tensor]) -> Tensor:
    """The boxes of all levels at ``place`` ``(N, K)``, counted over the cells of all levels: ``(N, 4 R, K)``."""
    joined = torch.cat([x.flatten(2) for x in levels], dim=2)
    return joined.gather(2, place.unsqueeze(1).expand(-1, joined.shape[1], -1)).float()


def _one_matrix(
    tail: nn.Sequential, adapter: nn.Module, student: Tensor, teacher: Tensor | Moments
) -> tuple[Tensor, Tensor, Tensor]:
    """Centred cells ``(N, P, B)`` of the student, and the matrix and bias that lead from them to what a tail of a
    single convolution gives.
    """
    cells, projection, gain, mean = _matched(student, teacher, adapter)
    last: Any = tail[0]
    weight = last.weight.flatten(1).float()
    bias, weight = last.bias.float() + weight @ mean, weight * gain
    return cells, weight if projection is None else weight @ projection, bias


def renormalize(student: Tensor, teacher: Tensor | Moments, adapter: nn.Module | None = None) -> Tensor:
    """Brings each channel of ``adapter(student)`` to the teacher's mean and deviation, over batch and space.

    ``(s - mean(s)) / (std(s) + 1e-6) * std(t) + mean(t)``, unbiased deviations, ``(N, C, H, W)``, float32.
    """
    with torch.autocast(student.device.type, enabled=False):
        cells, projection, gain, mean = _matched(student, teacher, adapter or nn.Identity())
        if projection is None:
            return _laid_out(cells * gain + mean, student)
        return _laid_out(F.linear(cells, projection * gain.unsqueeze(1), mean), student)


def _matched(student: Tensor, teacher: Tensor | Moments, adapter: Any) -> tuple[Tensor, Any, Tensor, Tensor]:
    """Centred cells ``(N, P, B)`` of the student, its adapter as a matrix ``(C, B)``, and per adapted channel ``(C,)``
    the factor to the teacher's deviation and the teacher's mean.
    """
    cells, projection = centred(student.float()), None
    total = cells.shape[0] * cells.shape[1]
    count = _unbiased(total)
    if isinstance(adapter, nn.Identity):
        cells, squares = with_squares(cells)
        variance = squares / count
    else:
        projection = adapter.weight.flatten(1)
        variance = adapted_variance(cells.flatten(0, 1), projection, count)
    to_deviation, mean = _deviation_and_mean(teacher, total)
    return cells, projection, to_deviation / ((all_reduce_mean(variance) + 1e-12).sqrt() + 1e-6), mean


def _laid_out(cells: Tensor, like: Tensor) -> Tensor:
    """``(N, P, C)`` -> ``(N, C, H, W)``."""
    return cells.transpose(1, 2).unflatten(2, like.shape[2:])


def _unbiased(count: int) -> float:
    """Divisor of a sum of squares over ``count`` cells: its mean over the processes is then the unbiased variance."""
    return max(count - 1 / processes(), 1)


@torch.no_grad()
def moments(features: Tensor) -> Moments:
    """Of tower activations ``(N, C, H, W)``."""
    features = features.float()
    return Moments(features.mean(dim=(2, 3)), features.square().mean(dim=(2, 3)))


@torch.no_grad()
def _deviation_and_mean(teacher: Tensor | Moments, count: int) -> tuple[Tensor, Tensor]:
    """Deviation and mean per channel over the batch, the deviation unbiased as over the student's ``count`` cells."""
    if isinstance(teacher, Tensor):
        teacher = moments(teacher)
    # Means, not sums: with multi_scale= the processes have images of different sizes.
    mean, squares = all_reduce_mean(teacher.mean.mean(dim=0)), all_reduce_mean(teacher.squares.mean(dim=0))
    variance = (squares - mean.square()).clamp(min=0) * (count / _unbiased(count))
    return (variance + 1e-12).sqrt(), mean
