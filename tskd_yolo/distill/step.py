"""One forward pass of the student beside its teacher: hooks, teacher outputs, criterion. Nothing of it outlives it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tskd_yolo.distill.features import Capture, HeadReader, StageReader, StudentOutputs, TeacherOutputs
from tskd_yolo.distill.recording import evaluate
from tskd_yolo.distill.regions import Regions, Seer, rows, together
from tskd_yolo.distill.terms import Term
from tskd_yolo.losses.boxes import Boxes


class Readers(NamedTuple):
    """How a student's passes are read.

    ``strides`` are the levels that the teacher has too; ``answering`` those whose responses are compared.
    """

    head: HeadReader
    stages: StageReader
    strides: Sequence[int]
    answering: Sequence[int]

    def attach(self, capture: Capture, terms: Sequence[Term]) -> None:
        """Adds the hooks that these terms need for the next pass."""
        self.head.attach(capture)
        if any(term.source is not None and term.source.name == "stages" for term in terms):
            self.stages.attach(capture)

    def read(self, predictions: Any, caught: Mapping[Any, Tensor]) -> StudentOutputs:
        """What the terms read of a pass."""
        levels = self.head.read(predictions, caught)
        maps = {"neck": [levels[stride].features for stride in self.strides]}
        if ("stage", 0) in caught:
            maps["stages"] = self.stages.read(caught)
        answering = [levels[stride] for stride in self.answering]
        responses = {branch: [level.responses[branch] for level in answering] for branch in self.head.towers}
        assigned = {key[1]: value for key, value in caught.items() if key[0] == "assigned"}
        return StudentOutputs(maps, responses, assigned)


class Losses(NamedTuple):
    """The unweighted terms of one pass by name, and the tensors of the student where each one's share is measured."""

    values: dict[str, Tensor]
    measured: dict[str, Sequence[Tensor]]


class Step:
    """Made before the student's pass, asked once for the losses, closed after it.

    Between :meth:`stand_in` and :meth:`close` it is the student's criterion. It copies and pickles to nothing, so a
    student that is copied during the pass is a plain model.

    Args:
        readers: Of the student.
        terms: Those that are on.
        teacher: The teacher's outputs for the images; None without a term.
        add: Adds the terms to the detection loss: its vector and items, the terms, the number of labelled images.
        seer: Tells where the teacher sees objects in images without labels.
        begin: Sees what both have given before the terms read it.
        evaluate: Computes the terms.
    """

    def __init__(
        self,
        *,
        readers: Readers,
        terms: Sequence[Term],
        teacher: TeacherOutputs | None,
        add: Callable[..., Any],
        seer: Seer | None = None,
        begin: Callable[[StudentOutputs, TeacherOutputs], None] | None = None,
        evaluate: Callable[..., dict[str, Tensor]] = evaluate,
    ) -> None:
        self.readers, self.terms, self.teacher, self.add, self.seer = readers, terms, teacher, add, seer
        self.begin, self.evaluate = begin, evaluate
        self.capture = Capture()
        self.criterion: Any = None
        """The student's own, while this one stands in for it."""
        self._student: Any = None
        readers.attach(self.capture, terms)

    def stand_in(self, student: Any) -> None:
        """Takes the place of the student's criterion."""
        self.criterion = getattr(student, "criterion", None) or student.init_criterion()
        for term in self.terms:
            term.attach(self.capture, self.criterion)
        student.criterion, self._student = self, student

    def close(self) -> None:
        """Gives the student its own criterion back and lets go of everything that belongs to the pass."""
        if self._student is not None and self._student.criterion is self:
            self._student.criterion = self.criterion
        self.capture.detach()
        self.capture.caught.clear()
        self.teacher = self._student = None

    def __call__(self, predictions: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The detection loss with the weighted terms added: to its vector, and under ``drd_loss`` ... to its items.

        Of a batch whose last images have no labels (``labelled`` counts the others) the detection loss sees the first
        ones alone, as if there were no others.
        """
        labelled, pseudo = labelled_of(batch), None
        seen = self._seen(batch, labelled)
        if any(term.after_detection for term in self.terms):
            vector, items = self._detection(predictions, batch, labelled)
            losses = self.losses(self.read(predictions), batch, seen)
        else:  # the teacher's outputs are forgotten before the detection loss takes its memory
            losses = self.losses(self.read(predictions), batch, seen)
            pseudo = self._pseudo(predictions, batch, seen)
            self.teacher = None
            vector, items = self._detection(predictions, batch, labelled)
        vector, items = self.add(vector, items, losses, labelled)
        if pseudo is not None:
            vector = vector + F.pad(pseudo, (0, len(vector) - len(pseudo))).to(vector)
        self.close()
        return vector, items

    def _detection(self, predictions: Any, batch: dict[str, Tensor], labelled: int) -> tuple[Tensor, dict[str, Tensor]]:
        if labelled == len(batch["img"]):
            return self.criterion(predictions, batch)
        return self.criterion(rows(predictions, slice(labelled)), {**batch, "img": batch["img"][:labelled]})

    def _seen(self, batch: dict[str, Tensor], labelled: int) -> Regions | None:
        """What the teacher sees in the images without labels; None where there are none."""
        if self.seer is None or self.teacher is None or labelled == len(batch["img"]):
            return None
        with torch.autocast(batch["img"].device.type, enabled=False):
            return self.seer(self.teacher, labelled, (batch["img"].shape[2], batch["img"].shape[3]))

    def _pseudo(self, predictions: Any, batch: dict[str, Tensor], seen: Regions | None) -> Tensor | None:
        """The detection loss on what it is sure of there, where that is wanted."""
        if seen is None or self.seer is None or not self.seer.pseudo or self.teacher is None:
            return None
        others = rows(predictions, slice(labelled_of(batch), None))
        return self.seer.detection(self.criterion, others, batch, self.teacher, seen)

    def read(self, predictions: Any) -> StudentOutputs:
        """What the terms read of the student's pass, from the head's output."""
        return self.readers.read(predictions, self.capture.caught)

    def losses(self, student: StudentOutputs, batch: dict[str, Tensor], seen: Regions | None = None) -> Losses:
        """The unweighted terms, each a float32 scalar: all of ours is computed in float32, also inside autocast.

        Args:
            student: Of the whole batch.
            batch: Labelled images first.
            seen: What the teacher sees in the others.
        """
        if not self.terms or self.teacher is None:
            return Losses({}, {})
        teacher, (height, width) = self.teacher, batch["img"].shape[2:]
        boxes = boxes_of(batch, images=len(batch["img"]), size=(height, width))
        if seen is not None:
            boxes = together(boxes, seen, labelled_of(batch))
        with torch.autocast(batch["img"].device.type, enabled=False):
            if self.begin is not None:
                self.begin(student, teacher)
            values = self.evaluate(self.terms, student=student, teacher=teacher, boxes=boxes)
        return Losses(values, {term.name: term.measured(student) for term in self.terms})

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None

    def __reduce__(self) -> Any:
        return type(None), ()


def labelled_of(batch: Mapping[str, Any]) -> int:
    """How many images of a batch have labels; they are the first ones."""
    return int(batch.get("labelled", len(batch["img"])))


def boxes_of(batch: dict[str, Tensor], *, images: int, size: tuple[int, int]) -> Boxes:
    """Annotated boxes of an Ultralytics batch as corners in pixels, rotated ones with their angles.

    Args:
        batch: Its ``bboxes`` are ``(K, 4)`` centre, width, height as parts of the image; ``(K, 5)`` with an angle in
            radians after them where they are rotated.
        images: In the batch.
        size: (height, width) of the network's input in pixels.
    """
    x, y, w, h, *angle = batch["bboxes"].float().unbind(dim=1)
    x, y, w, h = x * size[1], y * size[0], w * size[1], h * size[0]  # no scale tensor that the device waits for
    rotated = torch.stack((x, y, w, h, *angle), dim=1) if angle else None
    for turn in angle:
        cos, sin = turn.cos().abs(), turn.sin().abs()
        w, h = w * cos + h * sin, w * sin + h * cos
    corners = torch.stack((x - w / 2, y - h / 2, x + w / 2, y + h / 2), dim=1)
    return Boxes(corners, batch["batch_idx"].view(-1), images, size, rotated)
