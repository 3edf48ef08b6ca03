"""The terms that a run adds to the detection loss: what each reads of the two networks, and its loss.

A term is an object. It reads one source, feature maps (:mod:`tskd_yolo.distill.sources`) or a branch of the head, has a
loss with parameters of its own, and a guard against values that are not finite. :data:`VARIANTS` lists the terms; a
loss of one's own is one more entry there, with its key in ``cfg/default.yaml``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

from torch import Tensor, nn

from tskd_yolo.distill.features import ENTRY_STAGE, STAGE_STRIDES, Capture, Levels, StudentOutputs, TeacherOutputs
from tskd_yolo.distill.matching import Match
from tskd_yolo.distill.nonfinite import Guard, Part, guarded
from tskd_yolo.distill.panel import Panel
from tskd_yolo.distill.resample import Grid, average, response
from tskd_yolo.distill.sources import EarlyStages, MapSource, Neck, PaperNeck
from tskd_yolo.losses import CRD, DED, DRD, Response
from tskd_yolo.losses.assigned import AssignedResponse, as_assigned, nothing_assigned
from tskd_yolo.losses.boxes import Boxes
from tskd_yolo.losses.hint import Hint
from tskd_yolo.losses.paper import PaperCRD, PaperDED, PaperDRD
from tskd_yolo.losses.standardize import Map
from tskd_yolo.losses.tails import Tails
from tskd_yolo.rounding import ceil_div

# Terms ----------------------------------------------------------------------------------------------------------------


class Term:
    """One loss between student and teacher.

    Args:
        key: Its key in ``cfg/default.yaml``, and its column.
        name: The key, and where a term of that key exists several times, which one: ``crd:one2many``.
    """

    source: MapSource | None = None
    """The feature maps that it compares, if it does."""
    after_detection = False
    """Whether it reads what the detection loss has assigned, and so comes after it."""
    at_boxes = False
    """Whether it is 0 in a batch without annotated boxes that the teacher has found."""
    shown = True
    """Whether its gradient share is a column."""
    recordable = False
    """Whether batches of one form take the same kernels in it, and none waits for the device."""

    def __init__(self, key: str, name: str | None = None) -> None:
        self.key, self.name = key, name or key
        self.guard = Guard()
        self.module: Any = None
        self.measured_at = "neck"
        """Where its gradient share is measured, as its columns name it."""

    def build(self) -> nn.Module:
        """Draws what it has of parameters and buffers, but for the adapters of its source."""
        raise NotImplementedError

    def attach(self, capture: Capture, criterion: Any) -> None:
        """Adds hooks for one pass, where it reads more than the networks' outputs."""

    def __call__(self, *, student: StudentOutputs, teacher: TeacherOutputs, boxes: Boxes) -> Tensor:
        """The term of one batch, a float32 scalar, which reaches the student through the guard only."""
        return self.total(guarded(self.parts(student=student, teacher=teacher, boxes=boxes), self.guard), teacher)

    def parts(self, *, student: StudentOutputs, teacher: TeacherOutputs, boxes: Boxes) -> list[Part]:
        """What it is made of, one part per map or a single one."""
        raise NotImplementedError

    def total(self, values: Sequence[Tensor], teacher: TeacherOutputs) -> Tensor:
        """The term from the values of its parts."""
        return values[0]

    def reached(self, student: StudentOutputs) -> Sequence[Tensor]:
        """The student's tensors that the term's gradient goes into first."""
        raise NotImplementedError

    def measured(self, student: StudentOutputs) -> Sequence[Tensor]:
        """The student's tensors on which its gradient share is measured."""
        raise NotImplementedError


class MapTerm(Term):
    """A loss between feature maps, one per map of its source.

    Args:
        key: As in :class:`Term`.
        source: The maps.
        loss: Makes the loss of a map from its width; called with ``student``, ``teacher`` and ``boxes``.
    """

    source: MapSource

    def __init__(self, key: str, source: MapSource, loss: Callable[[int], nn.Module]) -> None:
        super().__init__(key)
        self.source, self.loss, self.measured_at = source, loss, source.measured_at

    def build(self) -> nn.Module:
        """One loss per map."""
        self.module = nn.ModuleList(self.loss(pair.compared) for pair in self.source.pairs)
        self.recordable = all(getattr(loss, "recordable", False) for loss in self.module)
        return self.module

    def parts(self, *, student: StudentOutputs, teacher: TeacherOutputs, boxes: Boxes) -> list[Part]:
        """One per map."""
        maps = zip(self.module, student.adapted(self.source), teacher.maps[self.source.name], strict=True)
        return [self._part(*each, boxes) for each in maps]

    def _part(self, loss: nn.Module, student: Any, teacher: Any, boxes: Boxes) -> Part:
        def value(*tensors: Tensor) -> Tensor:
            # The teacher's map is standardised here and forgotten here: one at a time is in memory.
            return loss(student=_with(student, *tensors), teacher=self.source.teacher_map(teacher), boxes=boxes)

        return Part(value, _tensors(student), list(loss.parameters()))

    def total(self, values: Sequence[Tensor], teacher: TeacherOutputs) -> Tensor:
        """As the source has it."""
        return self.source.total(values, teacher)

    def reached(self, student: StudentOutputs) -> Sequence[Tensor]:
        """The maps."""
        return student.maps[self.source.name]

    def measured(self, student: StudentOutputs) -> Sequence[Tensor]:
        """As the source has it."""
        return self.source.measured(student.maps[self.source.name])


class HeadTerm(Term):
    """A loss between responses, of one branch of the student's head.

    Args:
        key: As in :class:`Term`.
        branch: Of the head.
        match: Student and teacher.
    """

    weights: Tensor | None = None
    """How much each class counts beside the others, ``(classes,)``; None where all count alike."""

    def __init__(self, key: str, branch: str, match: Match) -> None:
        super().__init__(key, f"{key}:{branch}")
        self.branch, self.match = branch, match
        self.shown = branch != "one2one"  # of two branches the one that teaches the neck

    def target(self, levels: Sequence[Levels], size: tuple[int, int]) -> Any:
        """What it reads of the teachers' levels.

        Args:
            levels: As each teacher gives them.
            size: (height, width) of the student's image in pixels.
        """
        raise NotImplementedError

    def parts(self, *, student: StudentOutputs, teacher: TeacherOutputs, boxes: Boxes) -> list[Part]:
        """One over all levels."""
        responses, width = student.responses[self.branch], len(Response._fields)

        def value(*tensors: Tensor) -> Tensor:
            levels = [Response(*tensors[i : i + width]) for i in range(0, len(tensors), width)]
            assigned = student.assigned.get(self.branch)
            return self.value(levels, teacher.responses[self.branch], assigned, boxes.size)

        return [Part(value, [t for response in responses for t in response], list(self.module.parameters()))]

    def value(self, student: Sequence[Response], teacher: Any, assigned: Any, size: tuple[int, int]) -> Tensor:
        """The loss of a batch.

        Args:
            student: A response per level.
            teacher: What :meth:`target` has made.
            assigned: What a hook of the term has caught; None where the detection loss was not asked.
            size: (height, width) of the student's image in pixels.
        """
        raise NotImplementedError

    def reached(self, student: StudentOutputs) -> Sequence[Tensor]:
        """Tower activations and outputs of the branch."""
        return [tensor for response in student.responses[self.branch] for tensor in response]

    def measured(self, student: StudentOutputs) -> Sequence[Tensor]:
        """The neck; the towers' activations where the neck is frozen, and of the second branch, which sees the neck cut
        off from its graph; the outputs where the towers are frozen too.
        """
        responses = student.responses[self.branch]
        places = {
            "neck": student.maps["neck"] if self.branch != "one2one" else [],
            "towers": [t for r in responses for t in (r.box_features, r.class_features)],
            "outputs": [t for r in responses for t in (r.boxes, r.scores)],
        }
        reachable = [name for name, tensors in places.items() if any(t.requires_grad for t in tensors)]
        self.measured_at = (reachable or ["outputs"])[0]
        return places[self.measured_at]


def assigner(criterion: Any, branch: str) -> Any:
    """What assigns locations to annotated boxes for a branch; a dual head's criterion holds one per branch."""
    return getattr(criterion, branch, criterion).assigner


class ResponseTerm(HeadTerm):
    """CRD of one branch of the head. Towers of a dual head share no weight, so no branch dilutes the other.

    Of several teachers that have the branch, the first one's head is what the student's activations enter.

    Args:
        key, branch: As in :class:`HeadTerm`.
        panel: The teachers.
        loss: Makes the loss from the widths of the towers, and from the classes that are known.
    """

    def __init__(self, key: str, branch: str, panel: Panel, loss: type[CRD] = CRD) -> None:
        match, teacher = panel.first
        super().__init__(key, branch, match)
        self.panel, self.loss, self.widths = panel, loss, match.towers(branch)
        # Copies in float32: the teacher itself may come to be held in half precision.
        self.tails = [
            Tails(deepcopy(tail.box).float(), deepcopy(tail.score).float(), theirs / match.scale / ours)
            for ours, theirs in match.levels.items()
            for tail in [teacher.tails(theirs, branch, match.entry_stage)]
        ]

    def build(self) -> nn.Module:
        """Adapters of the towers."""
        classes = self.panel.first.teacher.classes
        entered = None if len(classes.known) == len(classes.members) else classes.known
        self.module = self.loss(self.widths, self.panel.known(self.branch), entered)
        self.recordable = self.loss.recordable
        return self.module

    def target(self, levels: Sequence[Levels], size: tuple[int, int]) -> Any:
        """Responses on the student's levels."""
        return self.loss.target([self._response(levels, stride, size) for stride in self.match.strides])

    def _response(self, levels: Sequence[Levels], stride: int, size: tuple[int, int]) -> Response:
        speaking = self.panel.speaking(self.branch)
        if self.match.scale == 1 and len(speaking) == 1:
            return levels[0][self.match.levels[stride]].responses[self.branch]
        grid, said = Grid(stride, *(ceil_div(side, stride) for side in size)), []
        for number in speaking:
            match, theirs = self.panel.voices[number].match, levels[number]
            heard = {stride: theirs[stride] for stride in match.heard[grid.stride]}
            said.append(response(self.branch, heard, match.levels[stride], grid, match.scale))
        return average(said, self.panel.weights(self.branch))

    def value(self, student: Sequence[Response], teacher: Any, assigned: Any, size: tuple[int, int]) -> Tensor:
        """CRD over all levels."""
        return self.module(student=student, teacher=teacher, tails=self.tails, positives=assigned, weights=self.weights)


class PaperResponseTerm(ResponseTerm):
    """The release's CRD, which divides by the locations that the detection loss has assigned to a defect."""

    after_detection = True

    def __init__(self, key: str, branch: str, panel: Panel) -> None:
        super().__init__(key, branch, panel, loss=PaperCRD)

    def attach(self, capture: Capture, criterion: Any) -> None:
        """Counts the locations that the criterion assigns."""
        capture.output_of(assigner(criterion, self.branch), ("assigned", self.branch), lambda output: output[3].sum())


class QueryTerm(HeadTerm):
    """What a teacher's queries say, to one branch of the head, where the detection loss has assigned an annotated box.

    There is no cross response, because such a teacher has no head towers that the student's activations could enter.
    """

    after_detection = at_boxes = True

    def __init__(self, key: str, branch: str, panel: Panel) -> None:
        super().__init__(key, branch, panel.first.match)
        self.known = panel.known(branch)

    def build(self) -> nn.Module:
        """A loss without parameters."""
        self.module = AssignedResponse(self.known)
        return self.module

    def attach(self, capture: Capture, criterion: Any) -> None:
        """Notes what the criterion assigns."""
        capture.call_of(assigner(criterion, self.branch), ("assigned", self.branch), as_assigned)

    def target(self, levels: Sequence[Levels], size: tuple[int, int]) -> Any:
        """The queries."""
        return levels[0].queries

    def value(self, student: Sequence[Response], teacher: Any, assigned: Any, size: tuple[int, int]) -> Tensor:
        """The loss over all of the student's levels."""
        given = assigned or nothing_assigned([level.scores for level in student])
        levels = self.match.answering
        return self.module(
            student=student, strides=levels, teacher=teacher, assigned=given, size=size, weights=self.weights
        )


def _tensors(features: Tensor | Map) -> list[Tensor]:
    """What of a map, standardised or plain, carries gradient."""
    return [features if isinstance(features, Tensor) else features.cells]


def _with(features: Tensor | Map, cells: Tensor) -> Tensor | Map:
    """The map with another tensor in the place of :func:`_tensors`."""
    return cells if isinstance(features, Tensor) else features._replace(cells=cells)


# The lists ------------------------------------------------------------------------------------------------------------

Terms = dict[str, list[Term] | str]
"""By their key the terms, or the sentence that says why student and teacher have none."""


class Variant(NamedTuple):
    """A value of ``variant=``: its terms, and the stage after which activations enter the teacher's head."""

    terms: Callable[[Panel], Terms]
    entry_stage: int


def default_terms(panel: Panel) -> Terms:
    """DRD on the neck, DED on the backbone's early stages, CRD through the last layer of the teacher's head."""
    match = panel.first.match
    neck = (MapSource if match.headless else Neck)("neck", match.neck())
    return {
        "drd": [MapTerm("drd", neck, lambda channels: DRD())],
        "ded": on_stages("ded", match, lambda channels: DED()),
        "crd": responses(panel),
    }


def paper_terms(panel: Panel) -> Terms:
    """The release's: DRD and DED on all channels of the neck, CRD through two stages of the teacher's head."""
    match = panel.first.match
    neck = PaperNeck("neck", match.neck(all_channels=True))
    return {
        "drd": [MapTerm("drd", neck, PaperDRD)],
        "ded": [MapTerm("ded", neck, lambda channels: PaperDED())],
        "crd": NO_TOWERS if match.queries else responses(panel, PaperResponseTerm),
    }


def hint_terms(panel: Panel) -> Terms:
    """The default's, with plain hints in the place of DED: the same maps, and a squared difference of them."""
    hints = on_stages("ded", panel.first.match, lambda channels: Hint())
    return {**default_terms(panel), "ded": hints}


NO_TOWERS = "variant=paper has a cross response only, and the teacher has no head that activations could enter"


def on_stages(key: str, match: Match, loss: Callable[[int], nn.Module]) -> list[Term] | str:
    """A loss on the early stages that both backbones have."""
    if not (pairs := match.early_stages()):
        return f"no stage of stride {', '.join(map(str, STAGE_STRIDES))} is in both backbones"
    return [MapTerm(key, EarlyStages("stages", pairs), loss)]


def responses(panel: Panel, kind: Callable[..., ResponseTerm] = ResponseTerm) -> list[Term] | str:
    """CRD of every branch that both heads have; of a teacher with queries of every branch of the student's."""
    match = panel.first.match
    if match.headless:
        return "the teacher has no detection head; its maps teach DRD and DED"
    if not any(voice.teacher.classes.known for voice in panel.voices):
        return "teacher and student have no class in common; classes_map= can name them"
    if not match.branches:
        return "the heads have no branch in common: the teacher has lost the one that the student has, by fusing"
    return [(QueryTerm if match.queries else kind)("crd", branch, panel) for branch in match.branches]


VARIANTS = {
    "default": Variant(default_terms, ENTRY_STAGE),
    "hints": Variant(hint_terms, ENTRY_STAGE),
    "paper": Variant(paper_terms, 0),
}
