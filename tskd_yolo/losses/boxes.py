"""Boxes on a grid: the cells they cover, foreground and background, instances cut out.

Rotated boxes are cut out as they stand; what does not know of them sees the upright boxes that enclose them.

Source: Wen et al., "A triple semantic-aware knowledge distillation network for industrial defect detection",
Computers in Industry 166 (2025) 104252.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tskd_yolo.rounding import ceil_div

_CHUNK = 1 << 24
"""Largest boxes x cells table held at once, in elements."""


class Boxes(NamedTuple):
    """The annotated boxes of a batch, and of images without labels those that the teacher sees.

    Shapes:
        xyxy: ``(K, 4)`` corners in pixels of the tensor the network sees; of rotated boxes those of the upright boxes
            that enclose them.
        image: ``(K,)`` which image of the batch a box belongs to; ``images`` where it fills up (:func:`padded`).
        rotated: ``(K, 5)`` of rotated boxes centre x, y, width and height in pixels, and the angle of the width to the
            x axis in radians; None where boxes are upright.
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
    rotated: Tensor | None = None
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
    size = ceil_div(height, spatial_step), ceil_div(width, spatial_step)
    parts = _parts if boxes.rotated is None else _rotated_parts
    weights = parts(boxes, height, width, spatial_step)
    foreground = largest_weight(boxes, weights, size[0] * size[1]).view(boxes.images, *size)
    return Masks(foreground, 1 - foreground)


def _parts(boxes: Boxes, height: int, width: int, step: int) -> Callable[[slice], Tensor]:
    """Of a slice of upright boxes the part of every ``step``-th cell that each covers, ``(K', cells)``."""
    x1, y1, x2, y2 = boxes.xyxy.float().unbind(1)
    rows = _overlap(y1, y2, height, boxes.size[0])[:, ::step]  # (K, H)
    columns = _overlap(x1, x2, width, boxes.size[1])[:, ::step]  # (K, W)
    if boxes.weight is not None:
        rows = rows * boxes.weight.unsqueeze(1)
    return lambda part: (rows[part].unsqueeze(2) * columns[part].unsqueeze(1)).flatten(1)


def _rotated_parts(boxes: Boxes, height: int, width: int, step: int) -> Callable[[slice], Tensor]:
    """The same of rotated boxes.

    In the box's own axes a cell is taken for the upright rectangle that encloses it. So a cell inside a box weighs 1,
    none that a box touches weighs 0, and at right angles the part is exact.
    """
    assert boxes.rotated is not None
    cell_y, cell_x = boxes.size[0] / height, boxes.size[1] / width
    down = _middles(height, boxes.rotated)[::step].unsqueeze(1) * cell_y
    across = _middles(width, boxes.rotated)[::step] * cell_x

    def weights(part: slice) -> Tensor:
        assert boxes.rotated is not None
        x, y, w, h, angle = boxes.rotated[part].float().view(-1, 5, 1, 1).unbind(1)  # each (K', 1, 1)
        cos, sin = angle.cos(), angle.sin()
        along, aside = cos * (across - x) + sin * (down - y), cos * (down - y) - sin * (across - x)
        cos, sin = cos.abs(), sin.abs()
        covered_along = _common(along, w, cos * cell_x + sin * cell_y)
        return (covered_along * _common(aside, h, sin * cell_x + cos * cell_y)).flatten(1)

    return weights


def _middles(count: int, like: Tensor) -> Tensor:
    """The middles of so many cells, in cells."""
    return torch.arange(count, device=like.device, dtype=torch.float32) + 0.5


def _common(distance: Tensor, length: Tensor, cell: Tensor) -> Tensor:
    """The part of a cell at a distance from the middle of a box that lies in the box, along one axis."""
    low, high = torch.maximum(-length, 2 * distance - cell), torch.minimum(length, 2 * distance + cell)
    return (high - low).clamp(min=0) / (2 * cell)


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
        image = boxes.image[part].long().clamp(max=boxes.images - 1).unsqueeze(1).expand_as(values)
        flat = flat.scatter_reduce(0, image, values, reduce="amax")
    return flat


def padded(boxes: Boxes, least: int) -> Boxes:
    """The same with boxes of no size, of no image, behind the annotated ones: a power of two of them, at least so many.

    They cover nothing and take no slot. So batches of different numbers of boxes are of one shape.
    """
    annotated = len(boxes.xyxy) if boxes.weight is None else boxes.annotated
    missing = max(least, 1 << (annotated - 1).bit_length() if annotated else 0) - annotated

    def filled(values: Tensor | None, value: float) -> Tensor | None:
        if values is None:
            return None
        more = values.new_full((missing, *values.shape[1:]), value)
        return torch.cat((values[:annotated], more, values[annotated:]))

    fillings = {"xyxy": 0.0, "image": boxes.images, "rotated": 0.0, "weight": 0.0}
    filled_up: dict[str, Any] = {name: filled(getattr(boxes, name), value) for name, value in fillings.items()}
    return boxes._replace(**filled_up, annotated=annotated + missing if boxes.weight is not None else 0)


def slots(boxes: Boxes, most: int) -> tuple[Boxes, Tensor]:
    """At most ``most`` boxes of each image, evenly spaced in their order, in as many slots per image.

    Of boxes that are not annotated the first ones are taken, which are the most confident. A fixed number of slots
    makes products over a batch out of what would be sums over boxes. No random number is used, no device is asked.

    Returns:
        ``images * most`` boxes, empty where a slot stays free, and which slots are valid, ``(images, most)``: a box
        that counts in part is valid in part.
    """
    image = boxes.image.long()
    own = (image.unsqueeze(1) == torch.arange(boxes.images, device=image.device)).long()  # (K, N), none that fills up
    rank = (own.cumsum(dim=0) * own).sum(dim=1) - 1
    count = (own * own.sum(dim=0)).sum(dim=1).clamp(min=most)
    slot = rank * most // count
    first = (slot != (rank - 1) * most // count) & (rank >= 0)
    if boxes.weight is not None:
        slot[boxes.annotated :] = rank[boxes.annotated :]
        first[boxes.annotated :] = rank[boxes.annotated :] < most  # none of these fills up
    place = (image * most + slot).masked_fill(~first, boxes.images * most)  # the last place is nobody's

    def placed(values: Tensor) -> Tensor:
        free = values.new_zeros(boxes.images * most + 1, values.shape[1], dtype=torch.float32)
        return free.index_copy(0, place, values.float())[:-1]

    owner = torch.arange(boxes.images, device=image.device).repeat_interleave(most)
    rotated = None if boxes.rotated is None else placed(boxes.rotated)
    weight = torch.ones_like(boxes.xyxy[:, :1]) if boxes.weight is None else boxes.weight.unsqueeze(1)
    valid = placed(weight).view(boxes.images, most)
    return boxes._replace(xyxy=placed(boxes.xyxy), image=owner, rotated=rotated), valid


def windows(boxes: Boxes, height: int, width: int, output: int) -> Tensor:
    """RoIAlign as a matrix: the weight of every cell of a level in each of a box's ``output x output`` values.

    The same as :func:`tskd_yolo.losses.paper.crops`, for products instead of gathers: ``(K, output^2, H W)``. Rotated
    boxes are sampled along their own axes, between the middles of the cells.
    """
    if boxes.rotated is not None:
        return _rotated_windows(boxes, height, width, output)
    x1, y1, x2, y2 = cells(boxes, height, width)
    down, across = _samples(y1, y2 + 1, height, output), _samples(x1, x2 + 1, width, output)
    return (down[:, :, None, :, None] * across[:, None, :, None, :]).flatten(3).flatten(1, 2)


def _samples(start: Tensor, end: Tensor, size: int, output: int) -> Tensor:
    """Weights of one axis, ``(K, output, size)``: two samples per value, each between its two nearest cells."""
    part = (end - start).clamp(min=1).unsqueeze(1) / output
    sample = torch.arange(2 * output, device=start.device)
    value, half = sample // 2, 0.25 + 0.5 * (sample % 2)
    at = start.unsqueeze(1) + value * part + half * part  # (K, 2 output), summed as RoIAlign does
    return _nearest(at, size).unflatten(1, (output, 2)).mean(dim=2)


def _nearest(at: Tensor, size: int) -> Tensor:
    """Weights ``(..., size)`` of the two cells nearest to each place along an axis; none beyond its ends."""
    inside = ((at >= -1) & (at <= size)).to(at)
    distance = at.clamp(0, size - 1).unsqueeze(-1) - torch.arange(size, device=at.device)
    return (1 - distance.abs()).clamp(min=0) * inside.unsqueeze(-1)


def _rotated_windows(boxes: Boxes, height: int, width: int, output: int) -> Tensor:
    """:func:`windows` of rotated boxes: of each value four samples; no side is shorter than a cell."""
    assert boxes.rotated is not None
    cell_y, cell_x = boxes.size[0] / height, boxes.size[1] / width
    x, y, w, h, angle = boxes.rotated.float().view(-1, 5, 1, 1).unbind(1)  # each (K, 1, 1)
    part = _middles(2 * output, boxes.rotated) / (2 * output) - 0.5
    along, aside = part * w.clamp(min=cell_x), part.unsqueeze(1) * h.clamp(min=cell_y)  # (K, 1, S), (K, S, 1)
    cos, sin = angle.cos(), angle.sin()
    across = _nearest((x + cos * along - sin * aside) / cell_x - 0.5, width)  # (K, S, S, W)
    down = _nearest((y + sin * along + cos * aside) / cell_y - 0.5, height)
    across, down = (axis.unflatten(2, (output, 2)).unflatten(1, (output, 2)) for axis in (across, down))
    return torch.einsum("kisjth,kisjtw->kijhw", down, across).flatten(3).flatten(1, 2) / 4
