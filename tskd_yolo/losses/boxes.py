"""Boxes on a grid: the cells they cover, foreground and background, instances cut out.

Source: Wen et al., "A triple semantic-aware knowledge distillation network for industrial defect detection",
Computers in Industry 166 (2025) 104252.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_CHUNK = 1 << 24
"""Largest boxes x cells table held at once, in elements."""


class Boxes(NamedTuple):
    """The annotated boxes of a batch, and of images without labels those that the teacher sees.

    Shapes:
        xyxy: ``(K, 4)`` corners in pixels of the tensor the network sees.
        image: ``(K,)`` which image of the batch a box belongs to.
        weight: ``(K,)`` how much a box counts, from 0 (not at all) to 1; None where all are annotated and count fully.
    Units:
        images: number of images in the batch; size: (height, width) of the network's input in pixels;
        annotated: how many boxes, the first ones, are annotated; those after them lie in other images, the most
        confident of each image first.
    """

    xyxy: Tensor
    image: Tensor
    images: int
    size: tuple[int, int]
    weight: Tensor | None = None
    annotated: int = 0


class Masks(NamedTuple):
    """Foreground and background weights of every cell, both ``(N, H, W)``."""

    foreground: Tensor
    background: Tensor


def cells(boxes: Boxes, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """First and last cell (inclusive) a box covers on a grid: x1, y1, x2, y2, each ``(K,)`` float, not yet cut to the
    grid.

    ``x1 = floor(x_min W / w_img)``, ``x2 = ceil(x_max W / w_img)``, the same in y.
    """
    x1, y1, x2, y2 = boxes.xyxy.float().unbind(1)
    sx, sy = width / boxes.size[1], height / boxes.size[0]
    return (x1 * sx).floor(), (y1 * sy).floor(), (x2 * sx).ceil(), (y2 * sy).ceil()


def covered(boxes: Boxes, height: int, width: int, spatial_step: int = 1) -> Masks:
    """Foreground, the part of every cell that boxes cover (of several the largest), and background, the rest of it.

    All of a region weighs alike, and no box on a cell is too small to be felt: weights are from 0 to 1, one for a whole
    cell. A box that counts in part covers its cells in part.

    Args:
        boxes: The boxes.
        height, width: Of the grid, in cells.
        spatial_step: Distance of the cells that are wanted, in cells, in either direction: the first and every so
            many after it, as :func:`tskd_yolo.losses.standardize.standardize` reads a map.
    """
    x1, y1, x2, y2 = boxes.xyxy.float().unbind(1)
    rows = _overlap(y1, y2, height, boxes.size[0])[:, ::spatial_step]  # (K, H)
    columns = _overlap(x1, x2, width, boxes.size[1])[:, ::spatial_step]  # (K, W)

    if boxes.weight is not None:
        rows = rows * boxes.weight.unsqueeze(1)

    def weights(part: slice) -> Tensor:
        return (rows[part].unsqueeze(2) * columns[part].unsqueeze(1)).flatten(1)

    count = rows.shape[1] * columns.shape[1]
    foreground = largest_weight(boxes, weights, count).view(boxes.images, rows.shape[1], columns.shape[1])
    return Masks(foreground, 1 - foreground)


def _overlap(start: Tensor, end: Tensor, count: int, size: int) -> Tensor:
    """The part of each of ``count`` cells along ``size`` pixels that lies between start and end ``(K,)``."""
    edge = torch.arange(count, device=start.device, dtype=start.dtype)
    start, end = (x.unsqueeze(1) * (count / size) for x in (start, end))
    return (torch.minimum(end, edge + 1) - torch.maximum(start, edge)).clamp(min=0)


def largest_weight(boxes: Boxes, weights: Callable[[slice], Tensor], count: int) -> Tensor:
    """Per image the largest weight that a box gives each cell, ``(N, cells)``, 0 without a box.

    Boxes are handled in slices of a fixed size: there is no loop over boxes, and no host synchronisation.

    Args:
        boxes: The boxes.
        weights: Of a slice of the boxes, ``(K', cells)``.
        count: Of the cells.
    """
    flat = boxes.xyxy.new_zeros(boxes.images, count, dtype=torch.float32)
    step = max(_CHUNK // count, 1)
    for start in range(0, len(boxes.xyxy), step):
        part = slice(start, start + step)
        values = weights(part)
        image = boxes.image[part].long().unsqueeze(1).expand_as(values)
        flat = flat.scatter_reduce(0, image, values, reduce="amax")
    return flat


def slots(boxes: Boxes, most: int) -> tuple[Boxes, Tensor]:
    """At most ``most`` boxes of each image, evenly spaced in their order, in as many slots per image.

    Of boxes that are not annotated the first ones are taken, which are the most confident. A fixed number of slots
    makes products over a batch out of what would be sums over boxes. No random number is used, no device is asked.

    Returns:
        ``images * most`` boxes, empty where a slot stays free, and which slots are valid, ``(images, most)``: a box
        that counts in part is valid in part.
    """
    image = boxes.image.long()
    own = (image.unsqueeze(1) == torch.arange(boxes.images, device=image.device)).long()  # (K, N)
    rank = (own.cumsum(dim=0) * own).sum(dim=1) - 1
    count = own.sum(dim=0)[image].clamp(min=most)
    slot = rank * most // count
    first = slot != (rank - 1) * most // count
    if boxes.weight is not None:
        slot[boxes.annotated :] = rank[boxes.annotated :]
        first[boxes.annotated :] = rank[boxes.annotated :] < most
    place = torch.where(first, image * most + slot, boxes.images * most)  # the last place is nobody's
    corners = boxes.xyxy.new_zeros(boxes.images * most + 1, 4, dtype=torch.float32)
    weight = corners.new_ones(len(place)) if boxes.weight is None else boxes.weight.float()
    valid = corners.new_zeros(len(corners)).index_copy(0, place, weight)[:-1]
    corners = corners.index_copy(0, place, boxes.xyxy.float())[:-1]
    owner = torch.arange(boxes.images, device=image.device).repeat_interleave(most)
    return boxes._replace(xyxy=corners, image=owner), valid.view(boxes.images, most)


def windows(boxes: Boxes, height: int, width: int, output: int) -> Tensor:
    """RoIAlign as a matrix: the weight of every cell of a level in each of a box's ``output x output`` values.

    The same as :func:`tskd_yolo.losses.paper.crops`, for products instead of gathers: ``(K, output^2, H W)``.
    """
    x1, y1, x2, y2 = cells(boxes, height, width)
    down, across = _samples(y1, y2 + 1, height, output), _samples(x1, x2 + 1, width, output)
    return (down[:, :, None, :, None] * across[:, None, :, None, :]).flatten(3).flatten(1, 2)


def _samples(start: Tensor, end: Tensor, size: int, output: int) -> Tensor:
    """Weights of one axis, ``(K, output, size)``: two samples per value, each between its two nearest cells."""
    part = (end - start).clamp(min=1).unsqueeze(1) / output
    sample = torch.arange(2 * output, device=start.device)
    value, half = sample // 2, 0.25 + 0.5 * (sample % 2)
    at = start.unsqueeze(1) + value * part + half * part  # (K, 2 output), summed as RoIAlign does
    inside = ((at >= -1) & (at <= size)).to(at)
    distance = at.clamp(0, size - 1).unsqueeze(2) - torch.arange(size, device=at.device)
    near = (1 - distance.abs()).clamp(min=0) * inside.unsqueeze(2)
    return near.unflatten(1, (output, 2)).mean(dim=2)
