"""DRD: dual-relation distillation.

A defect is known by what stands around it. Two graphs say how: one over the pixels of a feature map, one over the
annotated instances of an image. The student learns to give the same answers as the teacher.

Source: Wen et al., "A triple semantic-aware knowledge distillation network for industrial defect detection",
Computers in Industry 166 (2025) 104252; graph reasoning after Chen et al. (GloRe), CVPR 2019.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tskd_yolo.losses.boxes import Boxes, channel_attention, crops, slots, spatial_attention, windows
from tskd_yolo.losses.distributed import everywhere
from tskd_yolo.losses.glore import GraphUnit, neighbours
from tskd_yolo.losses.standardize import Map, inverse_deviation, pair

NODES, STATES, CROP, INSTANCES = 16, 32, 2, 8
"""Graph nodes, node width, cells per side of an instance, and most instances of an image that are compared."""


class DRD(nn.Module):
    """Pixel and instance relation of one level.

        loss = mean (s(Y_pixel(S)) - s(Y_pixel(T)))^2 + mean (s(Y_instance(S)) - s(Y_instance(T)))^2

    with ``s`` the standardisation of every state channel and ``Y`` the answers of one graph unit, shared by both
    networks. Instances are RoIAlign crops of the unit's states (all channels take part), the nodes of a graph per
    image; of an image with more than eight an even share is compared. No instance in the batch: that part is 0,
    with a gradient of 0.

    Args:
        channels: Width C of the maps (the teacher's; the student comes through its adapter).
        trained: Whether the graph unit learns to redraw the teacher's map, or stays as it was drawn.

    Shapes:
        student, teacher: ``(N, C, H, W)``; output ``()``, float32.
    Units:
        2 (1 - correlation) per part: 0 for identical maps, about 2 for unrelated ones, at any width, size or batch.
    """

    def __init__(self, channels: int, trained: bool = False) -> None:
        super().__init__()
        self.unit = GraphUnit(channels, nodes=min(NODES, channels), states=min(STATES, channels), trained=trained)
        self.trained = trained

    def forward(self, *, student: Tensor | Map, teacher: Tensor | Map, boxes: Boxes) -> Tensor:
        """Returns the sum of :meth:`terms`; a trained unit gets its own gradient besides, the value is unchanged."""
        student, teacher = pair(student, teacher)
        terms = self.terms(student=student, teacher=teacher, boxes=boxes)
        total = terms["pixel"] + terms["instance"]
        if self.trained:
            own = self.unit.reconstruction(teacher.image(teacher.full()))
            total = total + (own - own.detach())
        return total

    def terms(self, *, student: Tensor | Map, teacher: Tensor | Map, boxes: Boxes) -> dict[str, Tensor]:
        """Returns the parts ``pixel`` and ``instance``."""
        student, teacher = pair(student, teacher)
        pixel = relation_error(self.unit.answer(student), self.unit.answer(teacher))
        return {"pixel": pixel, "instance": self._instance(student, teacher, boxes)}

    def _instance(self, student: Map, teacher: Map, boxes: Boxes) -> Tensor:
        boxes, taken = slots(boxes, INSTANCES)
        cut = windows(boxes, *teacher.size, CROP).unflatten(0, taken.shape).flatten(1, 2)  # (N, I cells, P)
        weight = taken.unsqueeze(2).expand(-1, -1, CROP**2).flatten(1).unsqueeze(1)  # (N, 1, I cells)
        ours, theirs = (_weighted_standardise(self._answers(m, cut, taken), weight) for m in (student, teacher))
        return ((ours - theirs).square() * weight).sum() / (everywhere(weight.sum()) * ours.shape[1]).clamp(min=1e-6)

    def _answers(self, features: Map, cut: Tensor, taken: Tensor) -> Tensor:
        """What the graph says of the instances, ``(N, S, I cells)``, of which ``cut`` holds the RoIAlign weights."""
        nodes = self.unit.gather(features, cut)
        apart = nodes.unflatten(2, (taken.shape[1], -1)).transpose(1, 2)  # (N, I, S, cells)
        return self.unit.reason(nodes + neighbours(apart, taken).transpose(1, 2).flatten(2))


def _weighted_standardise(x: Tensor, weight: Tensor) -> Tensor:
    """Channels (dimension 1) of ``(N, S, K)`` to mean 0 and variance 1 where ``weight`` ``(N, 1, K)`` is 1."""
    count = everywhere(weight.sum()).clamp(min=1e-6)
    x = x - everywhere((x * weight).sum(dim=(0, 2), keepdim=True)) / count
    return x * inverse_deviation(everywhere((x.square() * weight).sum(dim=(0, 2), keepdim=True)) / count)


def relation_error(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    """``mean (s(Y_S) - s(Y_T))^2`` of two answers ``Y = V B`` given as ``(V, B)``, without forming either Y.

    Moments of Y are moments of B, seen through V:  ``sum_p Y Z^T = V (B D^T) W^T``  for another answer ``Z = W D``.
    """
    means = [
        everywhere((nodes @ project.mean(dim=2, keepdim=True)).mean(dim=(0, 2)))
        for nodes, project in (student, teacher)
    ]

    def covariance(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], mean: Tensor) -> Tensor:
        gram = a[1] @ b[1].transpose(1, 2) / a[1].shape[2]
        return everywhere((a[0] @ gram * b[0]).sum(dim=2).mean(dim=0)) - mean

    ours = covariance(student, student, means[0].square())
    theirs = covariance(teacher, teacher, means[1].square())
    shared = covariance(student, teacher, means[0] * means[1])
    a, b = inverse_deviation(ours), inverse_deviation(theirs)
    return (ours * a * a + theirs * b * b - 2 * shared * a * b).mean().clamp(min=0)  # rounding may fall below


# The paper's form -----------------------------------------------------------------------------------------------------


def paper_unit(channels: int) -> GraphUnit:
    """The release's unit for maps of C channels: ``C // 2`` nodes of ``2 (C // 2)`` states, weights as drawn."""
    nodes = channels // 2
    return GraphUnit(channels, nodes=nodes, states=2 * nodes)


def paper_instances(features: Tensor, boxes: Boxes) -> Tensor:
    """The release's instances: the channel mean of the attended map, cut to 6x6 per box, ``(K, 6, 6)``."""
    attended = features * spatial_attention(features).unsqueeze(1) * channel_attention(features)[..., None, None]
    return crops(attended.mean(dim=1, keepdim=True), boxes, 6).squeeze(1)


def paper_pixel_relation(*, student: Tensor, teacher: Tensor, unit: GraphUnit) -> Tensor:
    """``L_pix``: mean squared difference of the unit's outputs, each with its own batch statistics."""
    return F.mse_loss(unit(student), unit(teacher))


def paper_instance_relation(*, student: Tensor, teacher: Tensor, unit: GraphUnit) -> Tensor:
    """``L_ins``: the K crops ``(K, 6, 6)`` as the K channels of one map, through a unit of that width."""
    return F.mse_loss(unit(student.unsqueeze(0)), unit(teacher.unsqueeze(0)))


class PaperDRD(nn.Module):
    """DRD as the release defines it, for comparison: ``alpha (L_pix + L_ins)`` with alpha = 5e-4.

    The pixel unit is drawn once and fixed. The instance unit is as wide as the batch has boxes, so it is drawn anew for
    every batch, as in the release; with fewer than two boxes in the batch the instance term is 0.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.unit = paper_unit(channels)

    def forward(self, *, student: Tensor, teacher: Tensor, boxes: Boxes) -> Tensor:
        """``(N, C, H, W)`` maps -> scalar."""
        student, teacher = student.float(), teacher.detach().float()
        total = paper_pixel_relation(student=student, teacher=teacher, unit=self.unit)
        if len(boxes.xyxy) >= 2:
            with torch.random.fork_rng(devices=[]):
                unit = paper_unit(len(boxes.xyxy)).to(student.device)
            total = total + paper_instance_relation(
                student=paper_instances(student, boxes), teacher=paper_instances(teacher, boxes), unit=unit
            )
        return 5e-4 * total
