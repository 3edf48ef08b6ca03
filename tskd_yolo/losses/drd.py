"""DRD: dual-relation distillation.

A defect is recognised by its surroundings. Two graphs describe them: one over the pixels of a feature map, one over
the annotated instances of an image. The student learns to give the same relations as the teacher.

Source: Wen et al., "A triple semantic-aware knowledge distillation network for industrial defect detection",
Computers in Industry 166 (2025) 104252; graph reasoning after Chen et al. (GloRe), CVPR 2019.
"""

from __future__ import annotations

from torch import Tensor, nn

from tskd_yolo.losses.boxes import Boxes, slots, windows
from tskd_yolo.losses.distributed import all_reduce_mean
from tskd_yolo.losses.glore import GraphUnit, neighbours
from tskd_yolo.losses.standardize import Map, inverse_deviation, standardize, standardize_pair

NODES, STATES, CROP, INSTANCES = 16, 32, 2, 8
"""Graph nodes, node width, cells per side of an instance, and most instances of an image that are compared."""


class DRD(nn.Module):
    """Pixel and instance relation of one level.

        loss = mean (s(Y_pixel(S)) - s(Y_pixel(T)))^2 + mean (s(Y_instance(S)) - s(Y_instance(T)))^2

    with ``s`` the standardisation of every state channel and ``Y`` the output of one graph unit, shared by both
    networks. Instances are RoIAlign crops of the unit's states (all channels take part), the nodes of a graph per
    image; of an image with more than eight, eight evenly spaced ones are compared. In an image without labels the
    instances are the boxes that the teacher is surest of, each with its weight. No instance in the batch: that part is
    0, with a gradient of 0.

    Args:
        channels: Width C of the maps (the teacher's; the student comes through its adapter).
        trained: Whether the graph unit learns to reconstruct the teacher's map (:meth:`objective`), or stays as it was
            drawn.

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
        """Returns the sum of :meth:`terms`."""
        terms = self.terms(student=student, teacher=teacher, boxes=boxes)
        return terms["pixel"] + terms["instance"]

    def objective(self, teacher: Tensor | Map) -> Tensor:
        """What a trained unit minimises: :meth:`GraphUnit.reconstruction` of the teacher's map, a scalar."""
        if isinstance(teacher, Tensor):
            teacher = standardize(teacher.detach())
        return self.unit.reconstruction(teacher.image(teacher.full()))

    def terms(self, *, student: Tensor | Map, teacher: Tensor | Map, boxes: Boxes) -> dict[str, Tensor]:
        """Returns the parts ``pixel`` and ``instance``."""
        student, teacher = standardize_pair(student, teacher)
        pixel = relation_error(student=self.unit.factors(student), teacher=self.unit.factors(teacher))
        return {"pixel": pixel, "instance": self._instance(student, teacher, boxes)}

    def _instance(self, student: Map, teacher: Map, boxes: Boxes) -> Tensor:
        boxes, valid = slots(boxes, INSTANCES)
        cut = windows(boxes, *teacher.size, CROP).unflatten(0, valid.shape).flatten(1, 2)  # (N, I cells, P)
        weight = valid.unsqueeze(2).expand(-1, -1, CROP**2).flatten(1).unsqueeze(1)  # (N, 1, I cells)
        ours, theirs = (_standardize_valid(self._relation(m, cut, valid), weight) for m in (student, teacher))
        count = all_reduce_mean(weight.sum()) * ours.shape[1]
        return ((ours - theirs).square() * weight).sum() / count.clamp(min=1e-6)

    def _relation(self, features: Map, cut: Tensor, valid: Tensor) -> Tensor:
        """The graph's output for the instances, ``(N, S, I cells)``; ``cut`` holds their RoIAlign weights."""
        nodes = self.unit.gather(features, cut)
        apart = nodes.unflatten(2, (valid.shape[1], -1)).transpose(1, 2)  # (N, I, S, cells)
        return self.unit.reason(nodes + neighbours(apart, valid).transpose(1, 2).flatten(2))


def _standardize_valid(x: Tensor, weight: Tensor) -> Tensor:
    """Channels (dimension 1) of ``(N, S, K)`` to mean 0 and variance 1 where ``weight`` ``(N, 1, K)`` is 1."""
    count = all_reduce_mean(weight.sum()).clamp(min=1e-6)
    x = x - all_reduce_mean((x * weight).sum(dim=(0, 2), keepdim=True)) / count
    return x * inverse_deviation(all_reduce_mean((x.square() * weight).sum(dim=(0, 2), keepdim=True)) / count)


def relation_error(*, student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    """``mean (s(Y_S) - s(Y_T))^2`` of two relations ``Y = V B`` given as ``(V, B)``, without forming either Y.

    Moments of Y are moments of B, seen through V:  ``sum_p Y Z^T = V (B D^T) W^T``  for another relation ``Z = W D``.
    """
    means = [
        all_reduce_mean((nodes @ project.mean(dim=2, keepdim=True)).mean(dim=(0, 2)))
        for nodes, project in (student, teacher)
    ]

    def covariance(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], mean: Tensor) -> Tensor:
        gram = a[1] @ b[1].transpose(1, 2) / a[1].shape[2]
        return all_reduce_mean((a[0] @ gram * b[0]).sum(dim=2).mean(dim=0)) - mean

    ours = covariance(student, student, means[0].square())
    theirs = covariance(teacher, teacher, means[1].square())
    shared = covariance(student, teacher, means[0] * means[1])
    a, b = inverse_deviation(ours), inverse_deviation(theirs)
    return (ours * a * a + theirs * b * b - 2 * shared * a * b).mean().clamp(min=0)  # rounding may fall below
