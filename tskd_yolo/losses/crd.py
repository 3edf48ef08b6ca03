"""CRD: cross-response distillation.

The student's own head gets contradicting gradients where labels and teacher disagree. So its activations also run
through the rest of the frozen teacher's head (its last layer, by default), and the output is compared with the
teacher's.

Source: Wang et al., "CrossKD: cross-head knowledge distillation for object detection", CVPR 2024, as used by Wen et
al., Computers in Industry 166 (2025) 104252; class loss after Li et al. (quality focal loss), NeurIPS 2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tskd_yolo.losses.distributed import all_reduce_mean, processes
from tskd_yolo.losses.standardize import adapted_variance, centred
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


class Moments(NamedTuple):
    """Statistics of a tower activation ``(N, C, H, W)``: per image and channel its mean and its mean square.

    Means, not sums: a teacher that sees another size of image has another number of cells than the student.

    Shapes:
        mean, squares: ``(N, C)``.
    """

    mean: Tensor
    squares: Tensor


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


class Tails(NamedTuple):
    """The rest of the frozen teacher's head on one level: activations in, box distances and class logits out.

    ``unit`` is the size of its cells over that of the student's, where the two do not see images of one size.
    """

    box: nn.Sequential
    score: nn.Sequential
    unit: float = 1.0


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
        terms = {}
        for name, levels in self.responses(student, teacher, tails).items():
            scores = torch.cat([_flat(score) for score, _ in levels], dim=2)
            boxes = boxes_at(teacher.place, [box for _, box in levels])
            classes = getattr(self, name)
            counted = weights if weights is None or classes is None else weights[classes]
            ours, theirs = chosen(classes, scores, target_scores)
            terms[f"{name}_class"] = quality_focal(ours, theirs, counted) / divisor
            terms[f"{name}_box"] = (self.box_distance(boxes, teacher.boxes) * confident).sum() / divisor
        return terms

    def responses(
        self, student: Sequence[Response], teacher: Target, tails: Sequence[Tails]
    ) -> dict[str, list[tuple[Tensor, Tensor]]]:
        """The responses that are compared, per level class logits and boxes: ``cross`` and ``own``."""
        own = [(level.scores, level.boxes) for level in student]
        return {"cross": self.cross_responses(student, teacher, tails), "own": own}

    def cross_responses(
        self, student: Sequence[Response], teacher: Target, tails: Sequence[Tails]
    ) -> list[tuple[Tensor, Tensor]]:
        """What the teacher's head makes of the student's tower activations, per level class logits and boxes."""
        cross, scaled = [], any(tail.unit != 1 for tail in tails)  # all levels in one form
        for level, (s, towers, tail) in enumerate(zip(student, teacher.towers, tails, strict=True)):
            score = through(tail.score, self.class_adapters[level], s.class_features, towers[1])
            box = through(tail.box, self.box_adapters[level], s.box_features, towers[0])
            cross.append((score, _in_students_cells(box, tail.unit) if scaled else box))
        return cross

    def divisor(self, confidence: Tensor, positives: Tensor | None) -> Tensor:
        """What the sums are divided by on this process, from ``w`` ``(N, A)``."""
        total = all_reduce_mean(confidence.sum()) * processes()
        return total.clamp(min=1) / processes()

    def box_distance(self, boxes: Tensor, teacher: Tensor) -> Tensor:
        """``D`` of two box responses, ``(N, 4 R, K)`` -> ``(N, K)``."""
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
        cells, projection, gain, mean = _matched(student, teacher, adapter)
        last: Any = tail[0]
        weight = last.weight.flatten(1).float()
        bias, weight = last.bias.float() + weight @ mean, weight * gain
        return _laid_out(F.linear(cells, weight if projection is None else weight @ projection, bias), student)


def renormalize(student: Tensor, teacher: Tensor | Moments, adapter: nn.Module | None = None) -> Tensor:
    """Brings each channel of ``adapter(student)`` to the teacher's mean and deviation, over batch and space.

    ``(s - mean(s)) / (std(s) + 1e-6) * std(t) + mean(t)``, unbiased deviations, ``(N, C, H, W)``, float32.
    """
    with torch.autocast(student.device.type, enabled=False):
        cells, projection, gain, mean = _matched(student, teacher, adapter or nn.Identity())
        if projection is None:
            return _laid_out(cells * gain + mean, student)
        return _laid_out(F.linear(cells, projection * gain.unsqueeze(1), mean), student)


def _matched(student: Tensor, teacher: Tensor | Moments, adapter: nn.Module) -> tuple[Tensor, Any, Tensor, Tensor]:
    """Centred cells ``(N, P, B)`` of the student, its adapter as a matrix, and per adapted channel the factor to the
    teacher's deviation and the teacher's mean, ``(C,)``.
    """
    cells = centred(student.float())
    to_deviation, mean = _deviation_and_mean(teacher, cells.shape[0] * cells.shape[1])
    deviation, projection = _adapted_deviation(cells.flatten(0, 1), adapter)
    return cells, projection, to_deviation / (deviation + 1e-6), mean


def _laid_out(cells: Tensor, like: Tensor) -> Tensor:
    """``(N, P, C)`` -> ``(N, C, H, W)``."""
    return cells.transpose(1, 2).unflatten(2, like.shape[2:])


def _adapted_deviation(cells: Tensor, adapter: Any) -> tuple[Tensor, Tensor | None]:
    """Unbiased deviation per adapted channel of centred cells ``(N P, B)``, and the adapter as a matrix ``(C, B)``."""
    count = _unbiased(len(cells))
    if isinstance(adapter, nn.Identity):
        return (all_reduce_mean(cells.square().sum(dim=0) / count) + 1e-12).sqrt(), None
    projection = adapter.weight.flatten(1)
    return (all_reduce_mean(adapted_variance(cells, projection, count)) + 1e-12).sqrt(), projection


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
    """Distance of two box responses per location, ``(N, 4 R, A)`` -> ``(N, A)``, 0 where they are equal.

    R > 1: mean over the sides of KL(softmax(teacher) || softmax(student)), and ``overlap_weight`` times 1 -
    :func:`overlap`. R = 1, and where the two have not the same bins: 1 - overlap in both places.
    """
    boxes, teacher = boxes.float(), teacher.detach().float()
    if boxes.shape[1] == 4 or boxes.shape[1] != teacher.shape[1]:
        return (1 + overlap_weight) * (1 - overlap(boxes, teacher))
    log_p = boxes.unflatten(1, (4, -1)).log_softmax(dim=2)
    log_t = teacher.unflatten(1, (4, -1)).log_softmax(dim=2)
    divergence = (log_t.exp() * (log_t - log_p)).sum(dim=2).mean(dim=1)
    return divergence + overlap_weight * (1 - overlap(boxes, teacher)) if overlap_weight else divergence


def _in_students_cells(boxes: Tensor, unit: float) -> Tensor:
    """Distances ``(N, 4, H, W)`` in the student's strides from a box response ``(N, 4 R, H, W)`` in the teacher's."""
    return expected_distances(boxes.flatten(2)).unflatten(2, boxes.shape[2:]) * unit


def overlap(boxes: Tensor, teacher: Tensor) -> Tensor:
    """GIoU of the boxes that two box responses mean, per location, ``(N, 4 R, A)`` -> ``(N, A)``, from -1 to 1.

    A distribution of distances means its expected distance (R > 1); R = 1 are the distances.
    """
    return _giou(expected_distances(boxes.float()), expected_distances(teacher.detach().float()))


def expected_distances(boxes: Tensor) -> Tensor:
    """The distances ``(N, 4, A)`` in strides that a box response ``(N, 4 R, A)`` means: the mean of a distribution."""
    if boxes.shape[1] == 4:
        return boxes
    bins = torch.arange(boxes.shape[1] // 4, device=boxes.device, dtype=boxes.dtype)
    return torch.einsum("nsra,r->nsa", boxes.unflatten(1, (4, -1)).softmax(dim=2), bins)


def _giou(a: Tensor, b: Tensor) -> Tensor:
    """GIoU of boxes around the same point, given as left, top, right, bottom distances ``(N, 4, A)`` -> ``(N, A)``.

    torchvision's loss picks overlapping boxes by a boolean index, which waits for the device; this one does not.
    """
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    inner_w, inner_h = (low[:, :2] + low[:, 2:]).clamp(min=0).unbind(1)
    outer_w, outer_h = (high[:, :2] + high[:, 2:]).clamp(min=0).unbind(1)
    overlap = inner_w * inner_h
    union = _area(a) + _area(b) - overlap
    hull = outer_w * outer_h
    return (overlap + 1e-7) / (union + 1e-7) - (hull - union) / (hull + 1e-7)


def _area(sides: Tensor) -> Tensor:
    width, height = (sides[:, :2] + sides[:, 2:]).clamp(min=0).unbind(1)
    return width * height  # the gradient of prod() asks the device for zeros


def boxes_at(place: Tensor, levels: Sequence[Tensor]) -> Tensor:
    """The boxes of all levels at ``place`` ``(N, K)``, counted over the cells of all levels: ``(N, 4 R, K)``."""
    joined = torch.cat([x.flatten(2) for x in levels], dim=2)
    return joined.gather(2, place.unsqueeze(1).expand(-1, joined.shape[1], -1)).float()


def _flat(x: Tensor) -> Tensor:
    return x.flatten(2).float()
