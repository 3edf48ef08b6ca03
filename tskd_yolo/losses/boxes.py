"""Where a loss looks: attention of a feature map, foreground and background of annotated boxes, regions cut out.

Source: Wen et al., "A triple semantic-aware knowledge distillation network for industrial defect detection",
Computers in Industry 166 (2025) 104252, hybrid attention and decoupled masks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torchvision  # noqa: F401, registers torch.ops.torchvision
from torch import Tensor

from tskd_yolo.losses.standardize import inverse_deviation

TEMPERATURE = 0.5
"""Temperature of both attentions in the paper, for feature maps as they are."""

_CHUNK = 1 << 24
"""Largest boxes x cells table held at once, in elements."""


class Boxes(NamedTuple):
    """The annotated boxes of a batch.

    Shapes:
        xyxy: ``(K, 4)`` corners in pixels of the tensor the network sees.
        image: ``(K,)`` which image of the batch a box belongs to.
    Units:
        images: number of images in the batch; size: (height, width) of the network's input in pixels.
    """

    xyxy: Tensor
    image: Tensor
    images: int
    size: tuple[int, int]


class Masks(NamedTuple):
    """Foreground and background weights of every cell, both ``(N, H, W)``."""

    foreground: Tensor
    background: Tensor


def spatial_attention(features: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Where a map is active: ``HW * softmax_HW(mean_C |F| / t)``; ``(N, C, H, W)`` -> ``(N, H, W)`` with mean 1."""
    n, _, h, w = features.shape
    energy = features.abs().mean(dim=1).flatten(1) / temperature
    return (h * w * energy.softmax(dim=1)).view(n, h, w)


def channel_attention(features: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Which channels are active: ``C * softmax_C(mean_HW |F| / t)``; ``(N, C, H, W)`` -> ``(N, C)`` with mean 1."""
    energy = features.abs().mean(dim=(2, 3)) / temperature
    return features.shape[1] * energy.softmax(dim=1)


def standardise(x: Tensor) -> Tensor:
    """Brings every channel (dimension 1) of a small map to mean 0 and variance 1 over all other dimensions.

    The same as :func:`tskd_yolo.losses.standardize.standardised`, which says why, for a tensor of any shape.
    """
    dims = [d for d in range(x.dim()) if d != 1]
    variance, mean = torch.var_mean(x, dim=dims, correction=0, keepdim=True)
    return (x - mean) * inverse_deviation(variance)


def cells(boxes: Boxes, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """First and last cell (inclusive) a box covers on a grid: x1, y1, x2, y2, each ``(K,)`` float, not yet cut to the
    grid.

    ``x1 = floor(x_min W / w_img)``, ``x2 = ceil(x_max W / w_img)``, the same in y.
    """
    x1, y1, x2, y2 = boxes.xyxy.float().unbind(1)
    sx, sy = width / boxes.size[1], height / boxes.size[0]
    return (x1 * sx).floor(), (y1 * sy).floor(), (x2 * sx).ceil(), (y2 * sy).ceil()


def masks(boxes: Boxes, height: int, width: int) -> Masks:
    """Foreground and background weights on a grid, so that small and large defects weigh the same.

    A box gives each cell it covers ``1 / ((x2 + 1 - x1)(y2 + 1 - y1))``; where boxes overlap the largest weight, that
    of the smallest box, stands. Background is every cell without foreground, divided by their number per image (0
    where there is none).
    """
    x1, y1, x2, y2 = (edge.unsqueeze(1) for edge in cells(boxes, height, width))
    weight = ((x2 + 1 - x1) * (y2 + 1 - y1)).clamp(min=1).reciprocal()  # (K, 1)
    ys = torch.arange(height, device=weight.device)
    xs = torch.arange(width, device=weight.device)
    rows = (ys >= y1) & (ys <= y2)  # (K, H)
    columns = (xs >= x1) & (xs <= x2)  # (K, W)

    def given(part: slice) -> Tensor:
        return (rows[part].unsqueeze(2) & columns[part].unsqueeze(1)).flatten(1) * weight[part]

    foreground = _largest(boxes, given, height * width).view(boxes.images, height, width)
    background = (foreground == 0).float()
    return Masks(foreground, background / background.sum(dim=(1, 2), keepdim=True).clamp(min=1))


def covered(boxes: Boxes, height: int, width: int) -> Masks:
    """Foreground, the part of every cell that boxes cover (of several the largest), and background, the rest of it.

    All of a region weighs alike, and no box is too small to be felt: weights are from 0 to 1, one for a whole cell.
    """
    x1, y1, x2, y2 = boxes.xyxy.float().unbind(1)
    rows = _overlap(y1, y2, height, boxes.size[0])  # (K, H)
    columns = _overlap(x1, x2, width, boxes.size[1])  # (K, W)

    def given(part: slice) -> Tensor:
        return (rows[part].unsqueeze(2) * columns[part].unsqueeze(1)).flatten(1)

    foreground = _largest(boxes, given, height * width).view(boxes.images, height, width)
    return Masks(foreground, 1 - foreground)


def _overlap(start: Tensor, end: Tensor, count: int, size: int) -> Tensor:
    """The part of each of ``count`` cells along ``size`` pixels that lies between start and end ``(K,)``."""
    edge = torch.arange(count, device=start.device, dtype=start.dtype)
    start, end = (x.unsqueeze(1) * (count / size) for x in (start, end))
    return (torch.minimum(end, edge + 1) - torch.maximum(start, edge)).clamp(min=0)


def _largest(boxes: Boxes, weights: Callable[[slice], Tensor], count: int) -> Tensor:
    """Per image the largest weight that a box gives each cell, ``(N, cells)``, 0 without a box.

    Boxes are handled in slices of a fixed size: there is no loop over boxes, and no host synchronisation.

    Args:
        weights: Of a slice of the boxes, ``(K', cells)``.
        count: Of the cells.
    """
    flat = boxes.xyxy.new_zeros(boxes.images, count, dtype=torch.float32)
    step = max(_CHUNK // count, 1)
    for start in range(0, len(boxes.xyxy), step):
        part = slice(start, start + step)
        found = weights(part)
        image = boxes.image[part].long().unsqueeze(1).expand_as(found)
        flat = flat.scatter_reduce(0, image, found, reduce="amax")
    return flat


def slots(boxes: Boxes, most: int) -> tuple[Boxes, Tensor]:
    """At most ``most`` boxes of each image, an even share of them by their order, in as many slots per image.

    A fixed number of slots makes products over a batch out of what would be sums over boxes. No random number is used,
    no device is asked.

    Returns:
        ``images * most`` boxes, empty where a slot stays free, and which slots are taken, ``(images, most)``.
    """
    image = boxes.image.long()
    own = (image.unsqueeze(1) == torch.arange(boxes.images, device=image.device)).long()  # (K, N)
    rank = (own.cumsum(dim=0) * own).sum(dim=1) - 1
    count = own.sum(dim=0)[image].clamp(min=most)
    slot = rank * most // count
    first = slot != (rank - 1) * most // count
    place = torch.where(first, image * most + slot, boxes.images * most)  # the last place is nobody's
    corners = boxes.xyxy.new_zeros(boxes.images * most + 1, 4, dtype=torch.float32)
    taken = corners.new_zeros(len(corners)).index_fill(0, place, 1)[:-1]
    corners = corners.index_copy(0, place, boxes.xyxy.float())[:-1]
    everyone = torch.arange(boxes.images, device=image.device).repeat_interleave(most)
    return boxes._replace(xyxy=corners, image=everyone), taken.view(boxes.images, most)


def windows(boxes: Boxes, height: int, width: int, output: int) -> Tensor:
    """RoIAlign as a matrix: the weight of every cell of a level in each of a box's ``output x output`` values.

    The same as :func:`crops`, for products instead of gathers: ``(K, output^2, H W)``.
    """
    x1, y1, x2, y2 = cells(boxes, height, width)
    down, across = _samples(y1, y2 + 1, height, output), _samples(x1, x2 + 1, width, output)
    return (down[:, :, None, :, None] * across[:, None, :, None, :]).flatten(3).flatten(1, 2)


def _samples(start: Tensor, end: Tensor, size: int, output: int) -> Tensor:
    """Weights of one axis, ``(K, output, size)``: two samples per value, each between its two nearest cells."""
    share = (end - start).clamp(min=1).unsqueeze(1) / output
    sample = torch.arange(2 * output, device=start.device)
    value, half = sample // 2, 0.25 + 0.5 * (sample % 2)
    at = start.unsqueeze(1) + value * share + half * share  # (K, 2 output), summed as RoIAlign does
    inside = ((at >= -1) & (at <= size)).to(at)
    distance = at.clamp(0, size - 1).unsqueeze(2) - torch.arange(size, device=at.device)
    near = (1 - distance.abs()).clamp(min=0) * inside.unsqueeze(2)
    return near.unflatten(1, (output, 2)).mean(dim=2)


def crops(features: Tensor, boxes: Boxes, output: int) -> Tensor:
    """Cuts every box out of a level by RoIAlign, all boxes in one call: ``(N, C, H, W)`` -> ``(K, C, output, output)``.

    Corners are the cells a box covers, ``(x1, y1, x2 + 1, y2 + 1)``, also where they reach beyond the grid; sampling
    ratio 2, not aligned.
    """
    height, width = features.shape[2:]
    x1, y1, x2, y2 = cells(boxes, height, width)
    rois = torch.stack((boxes.image.to(x1), x1, y1, x2 + 1, y2 + 1), dim=1)
    # The operator itself: torchvision's wrapper leaves its CUDA kernel for compiled Python under Ultralytics' default
    # deterministic=True, where only a warning was asked for.
    return torch.ops.torchvision.roi_align(features, rois, 1.0, output, output, 2, False)
