"""Teacher outputs on the student's grid: by position, whatever sizes of images and strides the two work at.

A teacher that sees a larger image has finer or deeper levels at the same place. Its maps are interpolated to the
student's grid; its responses are brought there box by box: at each location of the student, of the teacher's locations
that lie there, the most confident one speaks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tskd_yolo.distill.features import Level
from tskd_yolo.losses import Response
from tskd_yolo.losses.crd import expected_distances


class Grid(NamedTuple):
    """A level of the student: its stride in pixels and its size in cells."""

    stride: int
    height: int
    width: int


def to_grid(features: Tensor, height: int, width: int) -> Tensor:
    """A map ``(N, C, H, W)`` interpolated to ``(N, C, height, width)``, by position; itself where it fits."""
    if features.shape[2:] == (height, width):
        return features
    return F.interpolate(features.float(), (height, width), mode="bilinear", align_corners=False)


@torch.no_grad()
def response(branch: str, levels: Mapping[int, Level], paired: int, grid: Grid, scale: float) -> Response:
    """The response of a branch of the teacher's head on one level of the student, boxes as distances in its strides.

    Args:
        branch: Of the head.
        levels: The teacher's levels that are heard there, by stride in pixels of its own image.
        paired: The stride of the level whose tower activations are given.
        grid: The student's level.
        scale: Size of the teacher's image over that of the student's.
    """
    candidates = [_brought(levels[stride].responses[branch], stride / scale, grid) for stride in levels]
    scores, corners = candidates[0]
    for other_scores, other_corners in candidates[1:]:
        surer = (other_scores.amax(dim=1) > scores.amax(dim=1)).unsqueeze(1)
        scores, corners = torch.where(surer, other_scores, scores), torch.where(surer, other_corners, corners)
    middle = _middles(grid.height, grid.width, grid.stride, scores)
    sides = torch.cat((middle - corners[:, :2], corners[:, 2:] - middle), dim=1) / grid.stride
    towers = levels[paired].responses[branch]
    return Response(sides, scores, towers.box_features, towers.class_features)


def _brought(said: Response, stride: float, grid: Grid) -> tuple[Tensor, Tensor]:
    """Class logits ``(N, classes, h, w)`` and box corners ``(N, 4, h, w)`` in the student's pixels at its cells."""
    scores, (height, width) = said.scores.float(), said.scores.shape[2:]
    sides = expected_distances(said.boxes.float().flatten(2)).unflatten(2, (height, width)) * stride
    middle = _middles(height, width, stride, scores)
    corners = torch.cat((middle - sides[:, :2], middle + sides[:, 2:]), dim=1)
    place = _places(scores.amax(dim=1, keepdim=True), grid.height, grid.width)
    return _at(scores, place), _at(corners, place)


def _places(confidence: Tensor, height: int, width: int) -> Tensor:
    """For each cell of a grid the number of the most confident cell ``(N, 1, H, W)`` in it, or of the nearest."""
    size = min(confidence.shape[2], height), min(confidence.shape[3], width)
    place = F.adaptive_max_pool2d(confidence, size, return_indices=True)[1]
    return F.interpolate(place.float(), (height, width), mode="nearest-exact").long()  # exact up to 4096 x 4096 cells


def _at(values: Tensor, place: Tensor) -> Tensor:
    """``(N, C, H, W)`` at the cells that ``place`` ``(N, 1, h, w)`` numbers: ``(N, C, h, w)``."""
    flat = place.flatten(2).expand(-1, values.shape[1], -1)
    return values.flatten(2).gather(2, flat).unflatten(2, place.shape[2:])


def _middles(height: int, width: int, stride: float, like: Tensor) -> Tensor:
    """The middle of each cell in pixels, ``(1, 2, H, W)``: x, y."""
    y, x = (torch.arange(n, device=like.device, dtype=like.dtype) + 0.5 for n in (height, width))
    return torch.stack((x.expand(height, width), y.unsqueeze(1).expand(height, width))).unsqueeze(0) * stride


def average(responses: Sequence[Response], weights: Tensor | None = None) -> Response:
    """What several teachers say together: class probabilities as their mean, boxes as their mean by confidence.

    Args:
        responses: Of each; boxes have to be distances, ``(N, 4, H, W)``. Tower activations are the first one's.
        weights: How much each counts in each class, ``(teachers, classes)``, adding up to 1 where somebody knows it.
    """
    if len(responses) == 1:
        return responses[0]
    probabilities = torch.stack([r.scores.float().sigmoid() for r in responses])
    if weights is None:
        weights = probabilities.new_full(probabilities.shape[:3:2], 1 / len(responses))
    probabilities = probabilities * weights.to(probabilities)[:, None, :, None, None]
    confidence = probabilities.amax(dim=2, keepdim=True).clamp(min=1e-6)
    boxes = (torch.stack([r.boxes.float() for r in responses]) * confidence).sum(dim=0) / confidence.sum(dim=0)
    scores = torch.logit(probabilities.sum(dim=0), eps=1e-6)
    return Response(boxes, scores, responses[0].box_features, responses[0].class_features)
