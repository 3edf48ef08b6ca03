"""Where the teacher sees objects in images without labels: boxes with weights, in the place of annotated ones.

A location whose class probability reaches the threshold of its class is confident and counts fully; below it a location
counts by its probability, it is not cut. Thresholds come from the validation set
(:mod:`tskd_yolo.confidence`). Everything has a fixed size, so nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tskd_yolo.distill.features import TeacherOutputs
from tskd_yolo.distill.terms import HeadTerm, ResponseTerm
from tskd_yolo.losses.assigned import anchors, overlaps
from tskd_yolo.losses.boxes import Boxes
from tskd_yolo.losses.crd import expected_distances
from tskd_yolo.rounding import ceil_div

CANDIDATES, MOST = 100, 30
"""So many of the most confident locations of an image are looked at, and so many boxes of it are kept at most."""
OVERLAP = 0.6
"""Of two boxes of one class with this IoU or more the less confident one is the same object."""
FAINT = 0.05
"""Probability below which the teacher says that there is nothing."""
NOTHING = -30.0
"""A logit that says so: in the class loss it costs nothing and has no gradient to speak of."""


class Regions(NamedTuple):
    """Boxes that the teacher sees in U images, the most confident first.

    Shapes:
        xyxy: ``(U, M, 4)`` corners in pixels of the student's image.
        label: ``(U, M)`` their classes; probability, sure: ``(U, M)`` how probable that is, and whether it reaches the
        threshold of the class. Of a place that stays free the probability is 0.
    """

    xyxy: Tensor
    label: Tensor
    probability: Tensor
    sure: Tensor

    @property
    def weight(self) -> Tensor:
        """How much each counts, ``(U, M)``: 1 where it is sure, else its probability."""
        return torch.where(self.sure, torch.ones_like(self.probability), self.probability)


class Seer:
    """Reads regions from the teacher's outputs.

    Args:
        thresholds: Per class the probability from which a box counts fully, ``(classes,)``; above 1 none does.
        branch: Of the head, whose responses are read.
        strides: Of the levels of these responses, in pixels of the student's image.
        pseudo: Whether confident boxes also have the detection loss (:meth:`detection`).
        known: The classes that a teacher knows; None for all.
    """

    def __init__(
        self,
        thresholds: Tensor,
        *,
        branch: str,
        strides: Sequence[int],
        pseudo: bool = False,
        known: Sequence[int] | None = None,
    ) -> None:
        self.thresholds, self.branch, self.strides, self.pseudo = thresholds, branch, list(strides), pseudo
        self._strange = torch.full_like(thresholds, known is not None, dtype=torch.bool)
        if known is not None:
            self._strange[list(known)] = False
        self._seen: Tensor | None = None

    @torch.no_grad()
    def __call__(self, teacher: TeacherOutputs, labelled: int, size: tuple[int, int]) -> Regions:
        """What it sees in the images after the first ``labelled`` ones.

        Args:
            teacher: Of the batch.
            labelled: How many of its images have labels.
            size: (height, width) of the student's images in pixels.
        """
        target: Any = teacher.responses[self.branch]
        points, steps = self.points(size, target.scores.device)
        place = target.place[labelled:]
        best, label = target.scores[labelled:].float().max(dim=1)
        first = best.gather(1, place).topk(min(CANDIDATES, place.shape[1]), dim=1).indices
        place = place.gather(1, first)
        probability, label = best.gather(1, place).sigmoid(), label.gather(1, place)
        boxes = target.boxes[labelled:].float().gather(2, first.unsqueeze(1).expand(-1, target.boxes.shape[1], -1))
        xyxy = _within(_corners(boxes, points[place], steps[place]), size)
        probability = probability * _leading(xyxy, label) * (probability >= FAINT)
        probability, order = probability.topk(min(MOST, probability.shape[1]), dim=1)
        label = label.gather(1, order)
        xyxy = xyxy.gather(1, order.unsqueeze(2).expand(-1, -1, 4))
        found = Regions(xyxy, label, probability, probability >= self.thresholds[label])
        self._count(found)
        return found

    def points(self, size: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
        """The middle of each location in pixels, x, y ``(A, 2)``, and its stride ``(A, 1)``."""
        cells = [(ceil_div(size[0], stride), ceil_div(size[1], stride)) for stride in self.strides]
        return anchors(cells, self.strides, device)

    def _count(self, found: Regions) -> None:
        """Adds up images, boxes and confident boxes, on the device."""
        images = found.probability.new_full((), len(found.probability))
        counts = torch.stack((images, (found.probability > 0).sum().float(), found.sure.sum().float()))
        self._seen = counts if self._seen is None else self._seen + counts

    def detection(
        self, criterion: Any, predictions: Any, batch: Mapping[str, Any], teacher: TeacherOutputs, seen: Regions
    ) -> Tensor:
        """The detection loss on the confident boxes of images without labels, Ultralytics' vector.

        Of a class that no teacher knows nothing is said: it may be anywhere.

        Args:
            criterion: The student's own.
            predictions: Of the student's head, for these images.
            batch: The whole batch, labelled images first.
            teacher: Of the whole batch.
            seen: What it sees in them.
        """
        size, labelled = (batch["img"].shape[2], batch["img"].shape[3]), len(batch["img"]) - len(seen.label)
        target: Any = teacher.responses[self.branch]
        points, _ = self.points(size, target.scores.device)
        least = self.strides[min(1, len(self.strides) - 1)]
        with torch.autocast(points.device.type, enabled=False):
            place = ignored(target.scores[labelled:].float(), seen, points, least) | self._strange.view(1, -1, 1)
        vector, _ = criterion(without(predictions, place), pseudo_batch(batch, seen, labelled, size))
        return vector

    def collect(self) -> tuple[float, float, float]:
        """Images, boxes and confident boxes since the last call; waits for the device."""
        images, boxes, sure = (0.0, 0.0, 0.0) if self._seen is None else self._seen.tolist()
        self._seen = None
        return images, boxes, sure


class Together:
    """Teachers as one detector: what the terms hear of them, in the form of an Ultralytics head. So it can be measured
    what the scores are worth that count here.

    Args:
        distiller: Of the teachers, with its seer.

    Shapes:
        input ``(N, C, H, W)``, the teachers' images; output ``(N, 4 + classes, K)``: centre, width and height in their
        pixels, and probabilities, at the locations whose boxes are compared.
    """

    end2end = False

    def __init__(self, distiller: Any) -> None:
        self.distiller = distiller

    def __call__(self, images: Tensor) -> Tensor:
        seer, scale = self.distiller.seer, self.distiller.match.scale
        height, width = (round(side / scale) for side in images.shape[2:])
        target: Any = self.distiller.teacher_outputs(images, size=(height, width)).responses[seer.branch]
        points, steps = seer.points((height, width), images.device)
        corners = _corners(target.boxes.float(), points[target.place], steps[target.place]) * scale
        low, high = corners.transpose(1, 2).split(2, dim=1)
        scores = target.scores.float().gather(2, target.place.unsqueeze(1).expand(-1, target.scores.shape[1], -1))
        return torch.cat(((low + high) / 2, high - low, scores.sigmoid()), dim=1)


def detector(distiller: Any) -> Any:
    """What the seer of a distiller sees with, as a detector: one teacher on the branch that counts here, which need not
    be the one that it was last validated with, or several :class:`Together`.
    """
    if len(distiller.teachers) > 1:
        return Together(distiller)
    one = distiller.teacher.detector()
    one.end2end = distiller.seer.branch == "one2one"
    return one


def see(distiller: Any, thresholds: Tensor, *, pseudo: bool) -> Seer:
    """From now on the batches of a distiller may hold images without labels, after those that have some.

    Args:
        distiller: Of a teacher that has a branch of the student's head.
        thresholds, pseudo: As of :class:`Seer`.

    Returns:
        Who sees in them.
    """
    branch = distiller.match.branches[0]
    if not any(isinstance(term, HeadTerm) for term in distiller.terms):  # no term reads responses
        distiller.asked = [ResponseTerm("crd", branch, distiller.panel)]
        distiller.panel.listen(True)
    device = next(distiller.teacher.model.parameters()).device
    distiller.seer = Seer(
        thresholds.to(device),
        branch=branch,
        strides=distiller.match.strides,
        pseudo=pseudo,
        known=distiller.panel.known(branch),
    )
    return distiller.seer


def _corners(boxes: Tensor, middle: Tensor, steps: Tensor) -> Tensor:
    """Box responses ``(U, 4 R, C)`` at locations ``(U, C, 2)`` of strides ``(U, C, 1)`` as corners ``(U, C, 4)``."""
    sides = expected_distances(boxes).transpose(1, 2) * steps
    return torch.cat((middle - sides[..., :2], middle + sides[..., 2:]), dim=2)


def _within(xyxy: Tensor, size: tuple[int, int]) -> Tensor:
    """Corners cut to the image."""
    x, y = xyxy[..., 0::2].clamp(0, size[1]), xyxy[..., 1::2].clamp(0, size[0])
    return torch.stack((x, y), dim=3).flatten(2)


def _leading(xyxy: Tensor, label: Tensor) -> Tensor:
    """1 for boxes, the most confident first, that no box before them of their class overlaps, ``(U, C)``.

    All at once, as of Bolya et al., "YOLACT: real-time instance segmentation", ICCV 2019: also a box that is itself
    suppressed suppresses others.
    """
    before = torch.ones(2 * xyxy.shape[1:2], device=xyxy.device).triu(diagonal=1)  # (C, C): row before column
    same = (label.unsqueeze(2) == label.unsqueeze(1)) * before
    return ((overlaps(xyxy, xyxy) * same).amax(dim=1) < OVERLAP).to(xyxy)


def together(annotated: Boxes, seen: Regions, labelled: int) -> Boxes:
    """The boxes of a whole batch: annotated ones of the first images, and what the teacher sees in the others."""
    count, most = seen.probability.shape
    image = torch.arange(labelled, labelled + count, device=annotated.xyxy.device).repeat_interleave(most)
    ones = annotated.xyxy.new_ones(len(annotated.xyxy))
    return annotated._replace(
        xyxy=torch.cat((annotated.xyxy.float(), seen.xyxy.flatten(0, 1))),
        image=torch.cat((annotated.image.long(), image)),
        weight=torch.cat((ones.float(), seen.weight.flatten())),
        annotated=len(annotated.xyxy),
    )


# The detection loss ---------------------------------------------------------------------------------------------------


def rows(predictions: Any, part: slice) -> Any:
    """A head's predictions for some of the images."""
    if isinstance(predictions, Mapping):
        return {key: rows(value, part) for key, value in predictions.items()}
    if isinstance(predictions, (list, tuple)):
        return type(predictions)(rows(value, part) for value in predictions)
    return predictions[part] if isinstance(predictions, Tensor) else predictions


def pseudo_batch(batch: Mapping[str, Any], seen: Regions, labelled: int, size: tuple[int, int]) -> dict[str, Any]:
    """An Ultralytics batch of the images without labels, with the confident boxes as their labels.

    Boxes that are not confident are there as boxes of no size, which Ultralytics takes for padding.
    """
    count, most = seen.probability.shape
    low, high = seen.xyxy.split(2, dim=2)
    box = torch.cat(((low + high) / 2, high - low), dim=2)
    width = torch.full_like(box[..., :1], size[1])
    height = torch.full_like(box[..., :1], size[0])
    box = box / torch.cat((width, height, width, height), dim=2) * seen.sure.unsqueeze(2)
    return {
        **batch,
        "img": batch["img"][labelled:],
        "batch_idx": torch.arange(count, device=box.device).repeat_interleave(most).to(box),
        "cls": seen.label.view(-1, 1).to(box),
        "bboxes": box.flatten(0, 1),
    }


def ignored(teacher_scores: Tensor, seen: Regions, points: Tensor, least: float = 0) -> Tensor:
    """For which class each location is neither object nor background, ``(U, classes, A)``.

    Where the teacher is not sure nothing is known: at a location that has a probability of :data:`FAINT` or more, or
    that lies in a box which is not confident. In a confident box of that class everything is known.

    Args:
        teacher_scores: Its logits, ``(U, classes, A)``.
        seen: What it sees.
        points: Locations in pixels, ``(A, 2)``.
        least: Side of a box at least, in pixels.
    """
    low, high = seen.xyxy.split(2, dim=2)  # (U, M, 2)
    half = ((high - low) / 2).clamp(min=least / 2)  # as the student's assigner enlarges them
    inside = ((points - ((low + high) / 2).unsqueeze(2)).abs() < half.unsqueeze(2)).all(dim=3).float()  # (U, M, A)
    classes = torch.arange(teacher_scores.shape[1], device=points.device).view(1, -1, 1)
    of_class = (seen.label.unsqueeze(1) == classes).float() * (seen.probability > 0).unsqueeze(1)  # (U, classes, M)
    sure = (of_class * seen.sure.unsqueeze(1)) @ inside > 0
    unsure = (of_class * ~seen.sure.unsqueeze(1)) @ inside > 0
    return (unsure | (teacher_scores.sigmoid() >= FAINT)) & ~sure


def without(predictions: Any, place: Tensor) -> Any:
    """A head's predictions, with nothing said where it is to be ignored: ``place`` ``(U, classes, A)``."""
    if "scores" not in predictions:
        return {branch: without(part, place) for branch, part in predictions.items()}
    return {**predictions, "scores": predictions["scores"].masked_fill(place, NOTHING)}
