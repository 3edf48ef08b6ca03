"""CRD: cross-response distillation.

The student's own head gets contradicting gradients where labels and teacher disagree. So its activations also run
through the rest of the frozen teacher's head (its last layer, by default), and the output is compared with the
teacher's.

Source: Wang et al., "CrossKD: cross-head knowledge distillation for object detection", CVPR 2024, as used by Wen et
al., Computers in Industry 166 (2025) 104252; class loss after Li et al. (quality focal loss), NeurIPS 2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tskd_yolo.losses.distributed import all_reduce_mean, processes
from tskd_yolo.losses.tails import Entrance, Moments, Tails, adapter, boxes_at, moments, through, through_at
from tskd_yolo.rounding import ceil_div

LOCATION_STEP = 8
"""One in so many locations of an image has its box compared: those where the teacher is most confident."""

OVERLAP = 5
"""Weight of the boxes' overlap beside their distributions: Ultralytics' own ratio of the two (box 7.5, dfl 1.5)."""


class Response(NamedTuple):
    """The outputs of one branch of a head on one level, and the tower activations they come from.

    Shapes:
        boxes: ``(N, 4 R, H, W)``, R logits of a distance per side, or the distance itself in strides where R = 1.
        scores: ``(N, classes, H, W)`` logits.
        box_features, class_features: ``(N, C, H, W)`` where the student's activations enter the teacher's tower.
    """

    boxes: Tensor
    scores: Tensor
    box_features: Tensor
    class_features: Tensor


class Target(NamedTuple):
    """All that CRD reads of the teacher's branch, over the A locations of all levels.

    Shapes:
        scores: ``(N, classes, A)`` logits.
        place: ``(N, K)`` the locations whose boxes are compared; boxes: ``(N, 4 R, K)`` the teacher's boxes there.
        towers: Per level, box and class tower activations.
    """

    scores: Tensor
    place: Tensor
    boxes: Tensor
    towers: Sequence[tuple[Moments, Moments]]


class CRD(nn.Module):
    """Class and box responses of one head branch against the teacher's, over all levels.

    Two student responses are compared: the cross response, through the teacher's head, and the student's own.

        class  = sum |sig(p) - sig(t)| BCE(p, sig(t)) / max(sum_i w_i, 1)
        box    = sum_top w_i D_i / max(sum_i w_i, 1),       w_i = the teacher's best class probability at location i
        loss   = class(cross) + box(cross) + class(own) + box(own)

    ``D`` is the KL divergence of the distance distributions (mean over the four sides) and five times 1 - GIoU of the
    boxes that they mean (Rezatofighi et al., CVPR 2019); for heads without DFL all of it is of the GIoU. Of each image
    the eighth of its locations is compared where ``w`` is largest; the others have next to no weight. The own response
    teaches the layers of the student's head that the cross response leaves out.

    Args:
        widths: Per level, (student, teacher) width of the box tower and of the class tower.
        known: The classes that are compared, by number; all of them where it is missing.
        entered: Those of them that the head knows which the student's activations enter; ``known`` where it is missing.

    Shapes:
        output ``()``, float32.
    Units:
        Loss per confident location; free of image size, batch and number of levels.
    """

    recordable = True
    """Batches of one form take the same kernels, and none waits for the device."""

    own: Tensor | None
    cross: Tensor | None

    def __init__(
        self,
        widths: Sequence[tuple[tuple[int, int], tuple[int, int]]],
        known: Sequence[int] | None = None,
        entered: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        classes = {"own": known, "cross": known if entered is None else entered}
        for name, numbers in classes.items():  # of each response those that are compared
            self.register_buffer(
                name, None if numbers is None else torch.tensor(numbers, dtype=torch.long), persistent=False
            )
        self.box_adapters = nn.ModuleList(adapter(*box) for box, _ in widths)
        self.class_adapters = nn.ModuleList(adapter(*score) for _, score in widths)

    def forward(
        self,
        *,
        student: Sequence[Response],
        teacher: Sequence[Response] | Target,
        tails: Sequence[Tails],
        positives: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Returns the sum of :meth:`terms`.

        Args:
            student, teacher: One response per level, in the same order; of the teacher also what :meth:`target` makes
                of them.
            tails: The rest of the teacher's head, per level.
            positives: Number of locations assigned to a defect on this process, ``()``, which the paper's form divides
                by.
            weights: How much each class counts, ``(classes,)``; a box counts as the teacher's best class there.
        """
        terms = self.terms(student=student, teacher=teacher, tails=tails, positives=positives, weights=weights)
        return torch.stack(list(terms.values())).sum()

    def terms(
        self,
        *,
        student: Sequence[Response],
        teacher: Sequence[Response] | Target,
        tails: Sequence[Tails],
        positives: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Returns ``cross_class``, ``cross_box``, ``own_class`` and ``own_box``."""
        if not isinstance(teacher, Target):
            teacher = self.target(teacher)
        target_scores = teacher.scores.float()
        confidence = target_scores.amax(dim=1).sigmoid()  # (N, A)
        divisor = self.divisor(confidence, positives)
        confident = confidence.gather(1, teacher.place)
        if weights is not None:
            confident = confident * weights[target_scores.argmax(dim=1).gather(1, teacher.place)]
        responses = self.responses(student, teacher, tails)
        distances = self._distances([boxes for _, boxes in responses.values()], teacher.boxes)
        terms = {}
        for (name, (scores, _)), distance in zip(responses.items(), distances, strict=True):
            classes = getattr(self, name)
            counted = weights if weights is None or classes is None else weights[classes]
            ours, theirs = chosen(classes, scores, target_scores)
            terms[f"{name}_class"] = quality_focal(ours, theirs, counted) / divisor
            terms[f"{name}_box"] = (distance * confident).sum() / divisor
        return terms

    def responses(
        self, student: Sequence[Response], teacher: Target, tails: Sequence[Tails]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """The responses that are compared, ``cross`` and ``own``: class logits ``(N, classes, A)``, and boxes at the
        teacher's places ``(N, 4 R, K)``.
        """
        scores = torch.cat([_flat(level.scores) for level in student], dim=2)
        own = scores, boxes_at(teacher.place, [level.boxes for level in student])
        return {"cross": self.cross_response(student, teacher, tails), "own": own}

    def cross_response(
        self, student: Sequence[Response], teacher: Target, tails: Sequence[Tails]
    ) -> tuple[Tensor, Tensor]:
        """What the teacher's head makes of the student's tower activations, in the form of :meth:`responses`."""
        scores, boxes = [], []
        for level, (s, (box, score), tail) in enumerate(zip(student, teacher.towers, tails, strict=True)):
            scores.append(_flat(through(tail.score, self.class_adapters[level], s.class_features, score)))
            boxes.append(Entrance(tail.box, self.box_adapters[level], s.box_features, box))
        found = through_at(teacher.place, boxes)
        if any(tail.unit != 1 for tail in tails):  # distances in the student's cells
            units = [level.new_full(level.shape[2:], tail.unit) for level, tail in zip(scores, tails, strict=True)]
            found = expected_distances(found) * torch.cat(units).take(teacher.place).unsqueeze(1)
        return torch.cat(scores, dim=2), found

    def _distances(self, responses: Sequence[Tensor], teacher: Tensor) -> Sequence[Tensor]:
        """Of each response ``(N, 4 R, K)`` its distance, ``(N, K)``: of all at once where they have one form."""
        if len({boxes.shape for boxes in responses}) == 1:
            return self.box_distance(torch.stack(list(responses)), teacher).unbind()
        return [self.box_distance(boxes, teacher) for boxes in responses]

    def divisor(self, confidence: Tensor, positives: Tensor | None) -> Tensor:
        """What the sums are divided by on this process, from ``w`` ``(N, A)``."""
        total = all_reduce_mean(confidence.sum()) * processes()
        return total.clamp(min=1) / processes()

    def box_distance(self, boxes: Tensor, teacher: Tensor) -> Tensor:
        """``D`` of box responses, ``(..., 4 R, K)`` -> ``(..., K)``."""
        return box_distance(boxes, teacher, OVERLAP)

    @staticmethod
    def target(teacher: Sequence[Response]) -> Target:
        """What CRD reads of the teacher's responses, one per level."""
        return target(teacher, LOCATION_STEP)


@torch.no_grad()
def target(teacher: Sequence[Response], location_step: int) -> Target:
    """What CRD reads of the teacher's responses, one per level: boxes at one in ``location_step`` locations."""
    scores = torch.cat([_flat(t.scores) for t in teacher], dim=2)
    best = scores.amax(dim=1)
    place = best.topk(ceil_div(best.shape[1], location_step), dim=1, sorted=False).indices
    boxes = boxes_at(place, [t.boxes for t in teacher])
    return Target(scores, place, boxes, [(moments(t.box_features), moments(t.class_features)) for t in teacher])


def chosen(classes: Tensor | None, *scores: Tensor) -> list[Tensor]:
    """Scores ``(N, classes, A)`` of some classes, or of all."""
    return list(scores) if classes is None else [s.index_select(1, classes) for s in scores]


def quality_focal(logits: Tensor, teacher_logits: Tensor, weights: Tensor | None = None) -> Tensor:
    """``sum w |sig(p) - sig(t)| BCE(p, sig(t))``: a score counts by its disagreement; 0 where the two agree.

    Args:
        logits, teacher_logits: ``(N, classes, A)``.
        weights: ``w`` of each class, ``(classes,)``; 1 where it is missing.
    """
    target = teacher_logits.detach().float().sigmoid()
    logits = logits.float()
    disagreement = (logits.sigmoid() - target).abs()
    loss = disagreement * F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (loss if weights is None else loss * weights.unsqueeze(1)).sum()


def box_distance(boxes: Tensor, teacher: Tensor, overlap_weight: float = 0) -> Tensor:
    """Distance of two box responses per location, ``(..., 4 R, A)`` -> ``(..., A)``, 0 where they are equal.

    R > 1: mean over the sides of KL(softmax(teacher) || softmax(student)), and ``overlap_weight`` times 1 -
    :func:`overlap`. R = 1, and where the two have not the same bins: 1 - overlap in both places.
    """
    boxes, teacher = boxes.float(), teacher.detach().float()
    if boxes.shape[-2] == 4 or boxes.shape[-2] != teacher.shape[-2]:
        return (1 + overlap_weight) * (1 - overlap(boxes, teacher))
    log_p, log_t = _sides(boxes).log_softmax(dim=-2), _sides(teacher).log_softmax(dim=-2)
    t = log_t.exp()
    divergence = (t * (log_t - log_p)).sum(dim=-2).mean(dim=-2)
    if not overlap_weight:
        return divergence
    return divergence + overlap_weight * (1 - _giou(_mean(log_p.exp()), _mean(t)))


def overlap(boxes: Tensor, teacher: Tensor) -> Tensor:
    """GIoU of the boxes that two box responses mean, per location, ``(..., 4 R, A)`` -> ``(..., A)``, from -1 to 1.

    A distribution of distances means its expected distance (R > 1); R = 1 are the distances.
    """
    return _giou(expected_distances(boxes.float()), expected_distances(teacher.detach().float()))


def expected_distances(boxes: Tensor) -> Tensor:
    """The distances ``(..., 4, A)`` in strides that a box response ``(..., 4 R, A)`` means: means of distributions."""
    return boxes if boxes.shape[-2] == 4 else _mean(_sides(boxes).softmax(dim=-2))


def _sides(boxes: Tensor) -> Tensor:
    """``(..., 4 R, A)`` -> ``(..., 4, R, A)``."""
    return boxes.unflatten(-2, (4, -1))


def _mean(probabilities: Tensor) -> Tensor:
    """Of distributions over bins, ``(..., R, A)`` -> ``(..., A)``."""
    bins = torch.arange(probabilities.shape[-2], device=probabilities.device, dtype=probabilities.dtype)
    return torch.einsum("...ra,r->...a", probabilities, bins)


def _giou(a: Tensor, b: Tensor) -> Tensor:
    """GIoU of boxes around the same point, given as left, top, right, bottom distances ``(..., 4, A)`` -> ``(..., A)``.

    torchvision's loss picks overlapping boxes by a boolean index, which waits for the device; this one does not.
    """
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    inner_w, inner_h = _box(low).clamp(min=0).unbind(-2)
    outer_w, outer_h = _box(high).clamp(min=0).unbind(-2)
    overlap = inner_w * inner_h
    union = _area(a) + _area(b) - overlap
    hull = outer_w * outer_h
    return (overlap + 1e-7) / (union + 1e-7) - (hull - union) / (hull + 1e-7)


def _box(sides: Tensor) -> Tensor:
    """Distances ``(..., 4, A)`` to width and height, ``(..., 2, A)``."""
    return sides[..., :2, :] + sides[..., 2:, :]


def _area(sides: Tensor) -> Tensor:
    width, height = _box(sides).clamp(min=0).unbind(-2)
    return width * height  # the gradient of prod() asks the device for zeros


def _flat(x: Tensor) -> Tensor:
    return x.flatten(2).float()
