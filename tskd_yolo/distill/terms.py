"""The terms that a run adds to the detection loss: what each reads of the two networks, and its loss.

A term is an object. It reads one source, feature maps (:class:`MapSource`) or a branch of the head, has a loss with
parameters of its own, and a guard against values that are not finite. :data:`VARIANTS` lists the terms; a loss of
one's own is one more entry there, with its key in ``cfg/default.yaml``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tskd_yolo.config import Config
from tskd_yolo.distill.features import ENTRY_STAGE, STAGE_STRIDES, Capture, Level, StudentOutputs, TeacherOutputs
from tskd_yolo.distill.matching import Match, Pair
from tskd_yolo.distill.nonfinite import Guard, Part, guarded
from tskd_yolo.distill.teacher import Teacher
from tskd_yolo.losses import CRD, DED, DRD, Response
from tskd_yolo.losses.boxes import Boxes
from tskd_yolo.losses.crd import Tails, adapter
from tskd_yolo.losses.distributed import all_reduce_mean
from tskd_yolo.losses.hint import Hint
from tskd_yolo.losses.paper import PaperCRD, PaperDED, PaperDRD
from tskd_yolo.losses.standardize import Map, standardize

# Sources of maps ------------------------------------------------------------------------------------------------------


class MapSource:
    """Feature maps at strides that both networks have, which any number of terms compare.

    The student's maps come to the teacher's width through adapters and are standardised, once for all terms.

    Args:
        name: Where the maps are, as :class:`StudentOutputs` and :class:`TeacherOutputs` have them.
        pairs: The maps.
    """

    bias = False
    weighed = False
    """Whether levels weigh by the teacher's class scores on them."""

    def __init__(self, name: str, pairs: Sequence[Pair]) -> None:
        self.name, self.pairs = name, pairs
        self.adapters: Any = None

    def build(self) -> nn.ModuleList:
        """Draws the adapters."""
        self.adapters = nn.ModuleList(
            adapter(p.student, p.compared, bias=self.bias, channel_step=p.channel_step) for p in self.pairs
        )
        return self.adapters

    def adapt(self, maps: Sequence[Tensor]) -> list[Any]:
        """The student's maps ``(N, C, H, W)`` at the teacher's width, as the losses take them."""
        return [self._adapted(*each) for each in zip(self.pairs, self.adapters, maps, strict=True)]

    def _adapted(self, pair: Pair, adapter: Any, features: Tensor) -> Tensor | Map:
        weight = None if isinstance(adapter, nn.Identity) else adapter.weight.flatten(1)
        return standardize(features, weight, spatial_step=pair.spatial_step)

    def teacher_map(self, features: Tensor | Callable[[], Map]) -> Tensor | Map:
        """A map of the teacher's as the losses take it."""
        return standardize(features) if isinstance(features, Tensor) else features()

    def total(self, values: Sequence[Tensor], teacher: TeacherOutputs) -> Tensor:
        """A term from its values on every map."""
        return torch.stack(list(values)).mean()

    measured_at = "neck"
    """Where gradient shares are measured, as columns name it."""

    def measured(self, maps: Sequence[Tensor]) -> Sequence[Tensor]:
        """The student's maps on which gradient shares are measured."""
        return maps


class Neck(MapSource):
    """Levels of the neck, which weigh by the teacher's class scores.

    Where the teacher finds nothing, nothing was ever asked of its features: for a student they are noise.
    """

    weighed = True

    def total(self, values: Sequence[Tensor], teacher: TeacherOutputs) -> Tensor:
        """The weighted mean."""
        assert teacher.level_scores is not None
        return (level_weights(teacher.level_scores) * torch.stack(list(values))).sum()


class EarlyStages(MapSource):
    """Early stages of the backbone.

    Gradient shares are measured at the last of them: a walk back from the loss to earlier ones takes more time, and
    memory while all of the graph is there.
    """

    measured_at = f"stride{STAGE_STRIDES[-1]}"

    def measured(self, maps: Sequence[Tensor]) -> Sequence[Tensor]:
        """The map of the last stage."""
        return maps[-1:]


class PaperNeck(MapSource):
    """Levels of the neck as the release takes them: as they are, adapters with a bias, and summed."""

    bias = True

    def _adapted(self, pair: Pair, adapter: Any, features: Tensor) -> Tensor | Map:
        return adapter(features.float())

    def teacher_map(self, features: Tensor | Callable[[], Map]) -> Tensor | Map:
        """The features themselves."""
        return features if isinstance(features, Tensor) else features()

    def total(self, values: Sequence[Tensor], teacher: TeacherOutputs) -> Tensor:
        """The sum."""
        return torch.stack(list(values)).sum()


def level_weights(scores: Tensor) -> Tensor:
    """The part of the teacher's class scores on each level, ``(N, levels)`` -> ``(levels,)``; they add up to 1."""
    total = all_reduce_mean(scores.sum(dim=0))
    return total / total.sum().clamp(min=1e-12)


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
    shown = True
    """Whether its gradient share is a column."""

    def __init__(self, key: str, name: str | None = None) -> None:
        self.key, self.name = key, name or key
        self.guard, self.objective_guard = Guard(), Guard()
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

    def objective(self, teacher: TeacherOutputs) -> Tensor | None:
        """What its own parameters minimise beside the term, whatever the term weighs; None where there is nothing."""
        return None

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

    def objective(self, teacher: TeacherOutputs) -> Tensor | None:
        """The sum over the maps of what a loss calls its ``objective``, where it has parameters."""
        maps = zip(self.module, teacher.maps[self.source.name], strict=True)
        parts = [self._objective(loss, features) for loss, features in maps if any(True for _ in loss.parameters())]
        if not parts:
            return None
        return self.objective_guard.leave(torch.stack(guarded(parts, self.objective_guard)).sum())

    def _objective(self, loss: Any, features: Any) -> Part:
        return Part(lambda: loss.objective(self.source.teacher_map(features)), [], list(loss.parameters()))

    def reached(self, student: StudentOutputs) -> Sequence[Tensor]:
        """The maps."""
        return student.maps[self.source.name]

    def measured(self, student: StudentOutputs) -> Sequence[Tensor]:
        """As the source has it."""
        return self.source.measured(student.maps[self.source.name])


class ResponseTerm(Term):
    """CRD of one branch of the head. Towers of a dual head share no weight, so no branch dilutes the other.

    Args:
        key: As in :class:`Term`.
        branch: Of the head.
        match: Student and teacher.
        teacher: The teacher, whose head the student's activations enter.
        loss: Makes the loss from the widths of the towers.
    """

    def __init__(self, key: str, branch: str, *, match: Match, teacher: Teacher, loss: type[CRD] = CRD) -> None:
        super().__init__(key, f"{key}:{branch}")
        self.branch, self.loss = branch, loss
        self.widths = match.towers(branch)
        # Copies in float32: the teacher itself may come to be held in half precision.
        tails = [teacher.tails(stride, branch, match.entry_stage) for stride in match.strides]
        self.tails = [Tails(*(deepcopy(part).float() for part in tail)) for tail in tails]
        self.shown = branch != "one2one"  # of two branches the one that teaches the neck

    def build(self) -> nn.Module:
        """Adapters of the towers."""
        self.module = self.loss(self.widths)
        return self.module

    def target(self, levels: Sequence[Level]) -> Any:
        """What it reads of the teacher's levels."""
        return self.loss.target([level.responses[self.branch] for level in levels])

    def parts(self, *, student: StudentOutputs, teacher: TeacherOutputs, boxes: Boxes) -> list[Part]:
        """One over all levels."""
        responses, width = student.responses[self.branch], len(Response._fields)

        def value(*tensors: Tensor) -> Tensor:
            return self.module(
                student=[Response(*tensors[i : i + width]) for i in range(0, len(tensors), width)],
                teacher=teacher.responses[self.branch],
                tails=self.tails,
                positives=student.positives.get(self.branch),
            )

        return [Part(value, [t for response in responses for t in response], list(self.module.parameters()))]

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


class PaperResponseTerm(ResponseTerm):
    """The release's CRD, which divides by the locations that the detection loss has assigned to a defect."""

    after_detection = True

    def __init__(self, key: str, branch: str, *, match: Match, teacher: Teacher) -> None:
        super().__init__(key, branch, match=match, teacher=teacher, loss=PaperCRD)

    def attach(self, capture: Capture, criterion: Any) -> None:
        """Counts the locations that the criterion assigns; a dual head's criterion holds one per branch."""
        assigner = getattr(criterion, self.branch, criterion).assigner
        capture.output_of(assigner, ("positives", self.branch), lambda output: output[3].sum())


def _tensors(features: Tensor | Map) -> list[Tensor]:
    """What of a map, standardised or plain, carries gradient."""
    if isinstance(features, Tensor):
        return [features]
    return [features.cells] if features.projection is None else [features.cells, features.projection]


def _with(features: Tensor | Map, first: Tensor, projection: Tensor | None = None) -> Tensor | Map:
    """The map with other tensors in the place of :func:`_tensors`."""
    return first if isinstance(features, Tensor) else features._replace(cells=first, projection=projection)


# The lists ------------------------------------------------------------------------------------------------------------

Terms = dict[str, list[Term]]
"""Terms by their key."""


class Variant(NamedTuple):
    """A value of ``variant=``: its terms, and the stage after which activations enter the teacher's head."""

    terms: Callable[[Match, Teacher, Config], Terms]
    entry_stage: int


def default_terms(match: Match, teacher: Teacher, config: Config) -> Terms:
    """DRD on the neck, DED on the backbone's early stages, CRD through the last layer of the teacher's head."""
    return {
        "drd": [MapTerm("drd", Neck("neck", match.neck()), partial(DRD, trained=config.graph == "trained"))],
        "ded": [MapTerm("ded", EarlyStages("stages", match.early_stages()), lambda channels: DED())],
        "crd": [ResponseTerm("crd", branch, match=match, teacher=teacher) for branch in match.branches],
    }


def paper_terms(match: Match, teacher: Teacher, config: Config) -> Terms:
    """The release's: DRD and DED on all channels of the neck, CRD through two stages of the teacher's head."""
    neck = PaperNeck("neck", match.neck(all_channels=True))
    return {
        "drd": [MapTerm("drd", neck, PaperDRD)],
        "ded": [MapTerm("ded", neck, lambda channels: PaperDED())],
        "crd": [PaperResponseTerm("crd", branch, match=match, teacher=teacher) for branch in match.branches],
    }


def hint_terms(match: Match, teacher: Teacher, config: Config) -> Terms:
    """The default's, with plain hints in the place of DED: the same maps, and a squared difference of them."""
    hints = MapTerm("ded", EarlyStages("stages", match.early_stages()), lambda channels: Hint())
    return {**default_terms(match, teacher, config), "ded": [hints]}


VARIANTS = {
    "default": Variant(default_terms, ENTRY_STAGE),
    "hints": Variant(hint_terms, ENTRY_STAGE),
    "paper": Variant(paper_terms, 0),
}
