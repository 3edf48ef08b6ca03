"""What a teacher with queries says, compared where the detection loss has assigned an annotated box.

A DETR-like teacher has no response per location. Of its queries the one that lies on an annotated box teaches all
locations to which the student's own detection loss has assigned that box.

Source: the query is chosen by the alignment of Feng et al., "TOOD: task-aligned one-stage object detection", ICCV 2021,
which the assigner of the student uses too; the losses are those of :mod:`tskd_yolo.losses.crd`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tskd_yolo.losses.crd import OVERLAP, Response, box_distance, chosen
from tskd_yolo.losses.distributed import all_reduce_mean, processes

ALPHA, BETA = 0.5, 6.0
"""Powers of confidence and overlap by which a query is chosen: those of the student's assigner."""

LEAST_OVERLAP = 0.5
"""Below this overlap the best query has another object in mind, and teaches nothing about this one."""


class Queries(NamedTuple):
    """What a teacher's queries say.

    Shapes:
        boxes: ``(N, Q, 4)`` corners as parts of the image's width and height.
        scores: ``(N, Q, classes)`` logits.
    """

    boxes: Tensor
    scores: Tensor


class Assigned(NamedTuple):
    """What the detection loss has assigned to the A locations of all levels.

    Shapes:
        boxes: ``(N, M, 4)`` the annotated boxes of each image, corners in pixels; those that fill up are not assigned.
        place: ``(N, A)`` which of them.
        scale: ``(N, A)`` how much of a target the location has, from 0 to 1; 0 in the background.
    """

    boxes: Tensor
    place: Tensor
    scale: Tensor


class AssignedResponse(nn.Module):
    """Class and box responses of one head branch against a teacher's queries, at the locations of annotated boxes.

    For every annotated box the query of the largest ``c^0.5 iou^6`` is taken, ``c`` its best class probability. With
    its probabilities ``q`` and box ``b``, at each location i of that box, to which the assigner gives the scale ``a``,

        class = sum_i c_i sum_k |sig(p) - a_i q_k| BCE(p, a_i q_k) / max(sum_i c_i a_i, 1)
        box   = sum_i c_i a_i 6 (1 - GIoU(p, b)) / max(sum_i c_i a_i, 1)

    where ``c_i`` is 0 if the query overlaps the box by less than half. No loop over boxes or images.

    Args:
        known: The classes that are compared, by number; all of them where it is missing.

    Units:
        Loss per location of full scale; free of image size and batch.
    """

    known: Tensor | None

    def __init__(self, known: Sequence[int] | None = None) -> None:
        super().__init__()
        self.register_buffer("known", None if known is None else torch.tensor(known), persistent=False)

    def forward(
        self,
        *,
        student: Sequence[Response],
        strides: Sequence[int],
        teacher: Queries,
        assigned: Assigned,
        size: tuple[int, int],
        weights: Tensor | None = None,
    ) -> Tensor:
        """Returns the loss, ``()`` in float32; 0 with a gradient of 0 where nothing is assigned.

        Args:
            student: The response of every level of the student.
            strides: Of these levels, in pixels.
            teacher: Of the same images.
            assigned: By the detection loss.
            size: (height, width) of the student's images in pixels.
            weights: How much each class counts, ``(classes,)``; a box counts as the query's best class.
        """
        scores = torch.cat([level.scores.flatten(2).float() for level in student], dim=2)
        boxes = torch.cat([level.boxes.flatten(2).float() for level in student], dim=2)
        sizes = [(level.scores.shape[2], level.scores.shape[3]) for level in student]
        points, steps = anchors(sizes, strides, scores.device)
        place = assigned.place.unsqueeze(2)
        said = spoken(teacher, assigned.boxes, size)
        probability, corners, sure = (x.gather(1, place.expand(-1, -1, x.shape[2])) for x in said)
        scale = assigned.scale.float()
        confidence = sure.squeeze(2) * (scale > 0)
        scores, target = chosen(self.known, scores, (probability * scale.unsqueeze(2)).transpose(1, 2))
        disagreement = (scores.sigmoid() - target).abs()
        entropy = F.binary_cross_entropy_with_logits(scores, target, reduction="none")
        sides = torch.cat((points - corners[..., :2], corners[..., 2:] - points), dim=2) / steps
        distance = box_distance(boxes, sides.transpose(1, 2), OVERLAP)
        weight = confidence * scale
        divisor = (all_reduce_mean(weight.sum()) * processes()).clamp(min=1) / processes()
        if weights is not None:
            weight = weight * weights[probability.argmax(dim=2)]
            entropy = entropy * (weights if self.known is None else weights[self.known]).unsqueeze(1)
        return ((disagreement * entropy).sum(dim=1) * confidence + distance * weight).sum() / divisor


@torch.no_grad()
def spoken(teacher: Queries, boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """What is said of each annotated box ``(N, M, 4)``: class probabilities ``(N, M, classes)``, corners in pixels
    ``(N, M, 4)`` and confidence ``(N, M, 1)``, which is 0 where no query overlaps it by half.
    """
    height, width = size
    probability = teacher.scores.float().sigmoid()
    x, y = teacher.boxes[..., 0::2].float() * width, teacher.boxes[..., 1::2].float() * height
    corners = torch.stack((x, y), dim=3).flatten(2)
    confidence = probability.amax(dim=2)
    overlap = overlaps(boxes.float(), corners)
    best = (confidence.pow(ALPHA).unsqueeze(1) * overlap.pow(BETA)).argmax(dim=2, keepdim=True)
    near = overlap.gather(2, best) >= LEAST_OVERLAP
    sure = confidence.gather(1, best.squeeze(2)).unsqueeze(2) * near
    probability, corners = (x.gather(1, best.expand(-1, -1, x.shape[2])) for x in (probability, corners))
    return probability, corners, sure


def overlaps(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes of the same image: ``(N, M, 4)`` and ``(N, Q, 4)`` -> ``(N, M, Q)``."""
    low = torch.maximum(a[:, :, None, :2], b[:, None, :, :2])
    high = torch.minimum(a[:, :, None, 2:], b[:, None, :, 2:])
    inner = (high - low).clamp(min=0).prod(dim=3)
    area, other = ((x[..., 2:] - x[..., :2]).clamp(min=0).prod(dim=2) for x in (a, b))
    return inner / (area.unsqueeze(2) + other.unsqueeze(1) - inner).clamp(min=1e-9)


def anchors(sizes: Sequence[tuple[int, int]], strides: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """The middle of each cell of all levels in pixels, x, y ``(A, 2)``, and its stride ``(A, 1)``.

    Args:
        sizes: (height, width) of each level in cells.
        strides: Of the levels, in pixels.
        device: Where they are made.
    """
    points, steps = [], []
    for size, stride in zip(sizes, strides, strict=True):
        y, x = (torch.arange(n, device=device, dtype=torch.float32) + 0.5 for n in size)
        grid = torch.stack((x.expand(len(y), -1), y.unsqueeze(1).expand(-1, len(x))), dim=2).flatten(0, 1)
        points.append(grid * stride)
        steps.append(torch.full_like(grid[:, :1], stride))
    return torch.cat(points), torch.cat(steps)


def nothing_assigned(levels: Sequence[Tensor]) -> Assigned:
    """What is assigned in images without an annotated box."""
    first, locations = levels[0], sum(level.shape[2] * level.shape[3] for level in levels)
    none = first.new_zeros(len(first), locations)
    return Assigned(first.new_zeros(len(first), 1, 4), none.long(), none)


def as_assigned(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Assigned:
    """From what Ultralytics' assigner is given and gives; without any box in the batch it has room for one."""
    boxes = inputs[4] if inputs[4].shape[1] else F.pad(inputs[4], (0, 0, 0, 1))
    return Assigned(boxes, outputs[4].long(), outputs[2].amax(dim=2))
