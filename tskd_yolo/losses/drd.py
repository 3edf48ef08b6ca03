"""DRD: dual-relation distillation.

A defect is recognised by its surroundings. Two graphs say how: one over the cells of a feature map, one over the
annotated instances of a batch. An edge is how alike its two ends are, and the student learns to give the same edges as
the teacher. Edges need no common channels: two networks that say the same of any two places agree.

Source: Wen et al., "A triple semantic-aware knowledge distillation network for industrial defect detection",
Computers in Industry 166 (2025) 104252: relations of pixels and of instances; cosines as relations after Tung and Mori,
"Similarity-preserving knowledge distillation", ICCV 2019. :class:`tskd_yolo.losses.paper.PaperDRD` has the paper's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tskd_yolo.losses.boxes import Boxes, slots, windows
from tskd_yolo.losses.distributed import all_gather, all_reduce_mean, rank
from tskd_yolo.losses.standardize import Map, standardize_pair
from tskd_yolo.rounding import ceil_div

SIDE, INSTANCES = 8, 8
"""Regions of a map that are nodes, along either axis; most instances of an image that are."""


class DRD(nn.Module):
    """Pixel and instance relation of one level.

        a_ij = cos(x_i, x_j)                                               for any two nodes i and j
        loss = mean (n(a(S)) - n(a(T)))^2 of the pixel graph + the same of the instance graph

    with ``n`` the standardisation of a graph's edges, over the whole batch. Nodes hold the standardised channels of a
    network's own map. Those of the pixel graph are the map's regions, at most 8 x 8 means of cells, and its edges join
    regions of one image. Those of the instance graph are the means of what RoIAlign cuts out of the map at annotated
    boxes, and its edges join any two instances of the batch, also of different images; of an image with more than
    eight, eight evenly spaced ones are nodes. In an image without labels the instances are the boxes that the teacher
    is surest of, and an edge has the product of its ends' weights. A graph without an edge gives 0, with a gradient
    of 0.

    Shapes:
        student: ``(N, B, H, W)``; teacher: ``(N, C, H, W)``; output ``()``, float32.
    Units:
        2 (1 - correlation) per graph: 0 for identical maps, about 2 for unrelated ones, at any width, size or batch.
    """

    recordable = True
    """Batches of one form take the same kernels, and none waits for the device."""

    def forward(self, *, student: Tensor | Map, teacher: Tensor | Map, boxes: Boxes) -> Tensor:
        """Returns the sum of :meth:`terms`."""
        terms = self.terms(student=student, teacher=teacher, boxes=boxes)
        return terms["pixel"] + terms["instance"]

    def terms(self, *, student: Tensor | Map, teacher: Tensor | Map, boxes: Boxes) -> dict[str, Tensor]:
        """Returns the parts ``pixel`` and ``instance``."""
        maps = standardize_pair(student, teacher)
        return {"pixel": _pixel(*maps), "instance": _instance(*maps, boxes)}


def _pixel(student: Map, teacher: Map) -> Tensor:
    ours, theirs = (nodes @ nodes.transpose(1, 2) for nodes in (regions(student), regions(teacher)))
    others = 1 - torch.eye(ours.shape[1], device=ours.device)
    return edge_error(student=ours, teacher=theirs, weight=others.expand_as(ours))


def regions(features: Map) -> Tensor:
    """Means of a map's regions, at most 8 x 8, as unit vectors ``(N, regions, C)``."""
    region = [ceil_div(side, SIDE) for side in features.size]
    return _unit(F.avg_pool2d(features.image(features.cells), region, ceil_mode=True).flatten(2).transpose(1, 2))


def _instance(student: Map, teacher: Map, boxes: Boxes) -> Tensor:
    boxes, valid = slots(boxes, INSTANCES)
    cut = windows(boxes, *teacher.size, 1).unflatten(0, valid.shape).squeeze(2)  # RoIAlign weights (N, I, P)
    weight = valid.flatten()
    edges = []
    for features in (student, teacher):
        nodes = _unit(cut @ features.cells).flatten(0, 1)
        edges.append(nodes @ all_gather(nodes).T)
    everyone = all_gather(weight)
    number = torch.arange(len(everyone), device=weight.device)
    own = number[rank() * len(weight) :][: len(weight)]
    weight = weight.unsqueeze(1) * everyone * (own.unsqueeze(1) != number)
    return edge_error(student=edges[0], teacher=edges[1], weight=weight)


def _unit(nodes: Tensor) -> Tensor:
    """Nodes ``(*, C)`` of length 1, whose products are cosines; a node of zeros stays, and is unlike all."""
    return F.normalize(nodes, dim=-1, eps=1e-6)


def edge_error(*, student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    """``mean (n(a(S)) - n(a(T)))^2`` of weighted edges of one shape; 0 where nothing has weight.

    Edges that hardly differ, less than cosines of 0.01, are not scaled up.
    """
    total = all_reduce_mean(weight.sum()).clamp(min=1e-6)

    def standard(edges: Tensor) -> Tensor:
        edges = edges - all_reduce_mean((edges * weight).sum()) / total
        return edges * (all_reduce_mean((edges.square() * weight).sum()) / total + 1e-4).rsqrt()

    return ((standard(student) - standard(teacher)).square() * weight).sum() / total
