"""Teacher, terms and their weights, for one run. It loops over the terms and knows none by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tskd_yolo.config import TERMS, Config, ConfigError
from tskd_yolo.distill.agreement import Agreement
from tskd_yolo.distill.balance import Fixed, Meter, Share
from tskd_yolo.distill.features import HeadReader, StudentOutputs, TeacherOutputs, channels
from tskd_yolo.distill.lead import Lead
from tskd_yolo.distill.matching import Pair
from tskd_yolo.distill.monitor import Monitor
from tskd_yolo.distill.panel import Panel
from tskd_yolo.distill.recording import Recorder, evaluate
from tskd_yolo.distill.regions import Seer
from tskd_yolo.distill.sources import MapSource
from tskd_yolo.distill.step import Losses, Readers, Step
from tskd_yolo.distill.teacher import Teacher
from tskd_yolo.distill.terms import VARIANTS, HeadTerm, ResponseTerm, Term, Terms
from tskd_yolo.rng import undisturbed

Cache = Callable[[Tensor, Mapping[str, Any], Callable[[Tensor], TeacherOutputs]], TeacherOutputs]
"""Images, the batch they are from and the teacher, to the teacher's outputs: see :mod:`tskd_yolo.distill.cache`."""


class Distiller:
    """Compares a student with its teacher, by every term that is on, on every level that both have.

    :meth:`attach` comes before the student's forward pass (the teacher runs then, while no student graph holds
    memory) and puts a :class:`Step` in the place of the student's criterion for this one pass; at any other time the
    student is a plain model. Everything that learns is in :attr:`learned`, and nothing of it in the student.

    Args:
        student: The plain detector that is trained.
        teacher: The frozen teacher.
        config: The checked settings.
        seed: Seed of the adapters' first weights.
        scale: Size of the teacher's image over that of the student's.
        others: Teachers whose responses are heard beside the first one's.

    Raises:
        ValueError: If a weight is given to a term that the variant does not have.
        ConfigError: If the teachers cannot be asked together.
    """

    seer: Seer | None = None
    """Tells where the teacher sees objects in images without labels, in a run that has some."""
    lead: Lead | None = None
    """How far the teacher is ahead, where that is watched."""
    past_lead: Mapping[str, Any] | None = None  # of a run that goes on, which is watched later
    cache: Cache | None = None
    """Stands between the teacher and batches of views, where the run keeps the teacher's outputs."""
    off: frozenset[str] = frozenset()
    """Terms that were switched off on the way: their values were not finite."""
    asked: Sequence[ResponseTerm] = ()
    """What reads responses for it, where no term does."""

    def __init__(
        self,
        *,
        student: Any,
        teacher: Teacher,
        config: Config,
        seed: int,
        scale: float = 1.0,
        others: Sequence[Teacher] = (),
    ) -> None:
        self.teacher, self.config, self.channels = teacher, config, channels(student)
        self.on = {key: weight for key, weight in config.weights.items() if weight > 0}
        """Weight of every term that is on, by key."""
        self.balance = Share(self.on, config.floor, config.cap) if config.balance == "share" else Fixed(self.on)
        self.meter, self.factor = Meter(), 1.0
        """Common factor of all terms, by the schedule."""
        self.recorder = Recorder() if config.cuda_graphs else None
        """Computes the terms in less time, on CUDA."""
        variant = VARIANTS[config.variant]
        self.panel = Panel([teacher, *others], student=student, entry_stage=variant.entry_stage, scale=scale)
        self.match, self.teachers = self.panel.first.match, [teacher, *others]
        if problems := self.panel.problems():
            raise ConfigError(problems)
        self.left_out: dict[str, str] = {}
        """Of terms that have a weight, but that this student and this teacher have none of, why."""
        self.terms = self._available(variant.terms(self.panel))
        self._responses = any(isinstance(term, HeadTerm) for term in self.terms)
        self.agreement = Agreement() if config.give_way and self._responses else None
        """Whether the teacher's answers still ask for what the labels ask for, where terms may give way."""
        self.untaught = self.match.untaught if self._responses else []
        """Branches of the student's head whose responses nobody teaches."""
        self.panel.listen(self._responses)
        self.readers = self.readers_of(student)
        with undisturbed():
            torch.manual_seed(seed)
            self.learned = self._build().to(next(student.parameters()).device)
        self.monitor = Monitor(self)
        self.step: Step | None = None
        """The pass that is under way."""

    def _available(self, available: Terms) -> list[Term]:
        """Those of a variant's terms that have a weight."""
        if unknown := [key for key in self.on if key not in available]:
            raise ValueError(f"variant={self.config.variant} has no term {unknown[0]}; it has {', '.join(available)}.")
        found: list[Term] = []
        for key in list(self.on):
            if isinstance(terms := available[key], str):
                self.left_out[key] = terms
                del self.on[key]
            else:
                found += terms
        return found

    def readers_of(self, student: Any) -> Readers:
        """How passes of a student of this build are read."""
        head = HeadReader(student.model[-1], self._responses, self.match.entry_stage)
        return Readers(head, self.match.stages.of(student), self.match.strides, self.match.answering)

    def _build(self) -> Any:
        """Adapters by source and map, then what each term has of its own."""
        modules: Any = nn.ModuleDict()
        for source in self.sources:
            if (adapters := source.build()) is not None:
                modules[source.name] = adapters
        for term in self.terms:
            key, _, branch = term.name.partition(":")
            if not branch:
                modules[key] = term.build()
                continue
            if key not in modules:
                modules[key] = nn.ModuleDict()
            modules[key][branch] = term.build()
        return modules

    @property
    def active(self) -> list[Term]:
        """The terms that are on."""
        return [term for term in self.terms if term.key in self.on]

    @property
    def sources(self) -> list[MapSource]:
        """The feature maps that terms which are on compare."""
        return _sources(self.active)

    def pairs(self, name: str) -> Sequence[Pair]:
        """The maps of a source that terms compare; none where no term that is on reads it."""
        return source.pairs if (source := self.source(name)) is not None else ()

    def source(self, name: str) -> MapSource | None:
        """The source of this name, if a term that is on reads it."""
        return next((source for source in self.sources if source.name == name), None)

    def switch_off(self, keys: Collection[str]) -> None:
        """Leaves terms out for the rest of the run."""
        self.off = self.off.union(self.on.keys() & set(keys))
        for key in self.off:
            self.on.pop(key, None)

    # One step ---------------------------------------------------------------------------------------------------------

    def attach(
        self,
        student: Any,
        images: Tensor,
        batch: Mapping[str, Any] | None = None,
        teacher_images: Tensor | None = None,
    ) -> Step:
        """Runs the teacher on a batch and stands ready for the student's pass on the same images ``(N, 3, H, W)``.

        With a cache it runs for those views only that it has not seen yet; while all terms have given way it rests.

        Args:
            student: The student.
            images: What the student will see.
            batch: What the images are from.
            teacher_images: The same at the teacher's size, where that is another.
        """
        self.detach()
        teacher, outputs = None, partial(self.teacher_outputs, size=(images.shape[2], images.shape[3]))
        shown = images if teacher_images is None else teacher_images
        terms = [] if resting(self) and not (self.seer and self.seer.pseudo) else self.active
        if (asked := terms or (self.seer and self.seer.pseudo)) and self.cache is not None and batch is not None:
            teacher = self.cache(shown, batch, outputs)
        elif asked:
            teacher = outputs(shown)
        self.step = Step(
            readers=self.readers,
            terms=terms,
            teacher=teacher,
            add=self.add,
            seer=self.seer,
            begin=partial(_fit, self, new) if (new := [s for s in _sources(terms) if not s.fitted]) else None,
            evaluate=self.recorder or evaluate,
        )
        self.step.stand_in(student)
        return self.step

    def detach(self) -> None:
        """Undoes :meth:`attach`, whether the pass came or not."""
        if self.step is not None:
            self.step.close()
            self.step = None

    def teacher_outputs(self, images: Tensor, size: tuple[int, int] | None = None) -> TeacherOutputs:
        """What the terms read of the teacher for images ``(N, 3, H, W)``.

        Args:
            images: What the teacher sees.
            size: (height, width) of the student's images in pixels; the teacher's where it is missing.
        """
        size = size or (images.shape[2], images.shape[3])
        asked = [term for term in self.terms if isinstance(term, HeadTerm)]
        return self.panel.outputs(images, size, _sources(self.terms), asked or self.asked)

    def add(
        self, vector: Tensor, items: dict[str, Tensor], losses: Losses, images: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The detection loss of a batch with the weighted terms added: to its vector and to its items."""
        terms = [term for term in self.terms if term.name in losses.values]
        finite = {term.name: term.guard.leave(losses.values[term.name]) for term in terms}
        if terms and self.meter.due(term.name for term in terms):
            self._measure(vector.sum() / images, losses)
        zero = vector.new_zeros(())
        weighted = {term.name: self.factor_of(term.name, count=True) * finite[term.name] for term in terms}
        parts = torch.stack([sum((weighted[t.name] for t in terms if t.key == key), zero) for key in TERMS])
        self.monitor.see(terms, finite)
        # Ultralytics multiplies its means by the batch size and shows the means.
        vector = torch.cat((vector, parts.to(vector) * images))
        return vector, {**items, **{f"{key}_loss": part for key, part in zip(TERMS, parts.detach(), strict=True)}}

    def factor_of(self, name: str, count: bool = False) -> float | Tensor:
        """What a term is multiplied by; ``count`` where it is, and not only asked for."""
        return self.common_factor * self.balance(name, self.meter.gradients.get(name), count)

    @property
    def common_factor(self) -> float | Tensor:
        """What all terms are multiplied by: by the schedule, the teacher's lead and what its answers are worth."""
        return math.prod((each.factor for each in _watched(self)), start=self.factor)

    def _measure(self, detection: Tensor, losses: Losses) -> None:
        for term in self.terms:
            term.guard.counting = False
        self.meter.measure(detection=detection, terms=losses.values, features=losses.measured)
        for term in self.terms:
            term.guard.counting = True
        if self.agreement is not None and (answers := _answers(self.terms)) in losses.values:
            self.agreement.see(self.meter.gradients[answers].cosine)

    # Across runs ------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What a resumed run needs of the past: a copy on the CPU, tensors and plain values only."""
        learned = {k: v.detach().cpu().clone() for k, v in self.learned.state_dict().items()}
        past = {name: each and each.state() for name, each in (("lead", self.lead), ("agreement", self.agreement))}
        known = {"off": sorted(self.off), "fitted": [source.name for source in self.sources if source.fitted]}
        return {"learned": learned, "meter": self.meter.state(), **known, **past}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from :meth:`state`.

        Raises:
            RuntimeError: If it was made for another teacher or student.
        """
        self.learned.load_state_dict(state["learned"])
        self.switch_off(state["off"] if "off" in state else self.on.keys() - set(state["on"]))
        for source in self.sources:
            source.fitted = source.name in state.get("fitted", [source.name])
        self.meter.restore(state["meter"], next(iter(self.teacher.model.parameters())).device)
        if self.agreement is not None and state.get("agreement"):  # not of runs of earlier versions
            self.agreement.restore(state["agreement"])
        self.past_lead = state["lead"]
        if self.lead is not None and self.past_lead is not None:
            self.lead.restore(self.past_lead)


def _sources(terms: Sequence[Term]) -> list[MapSource]:
    return list({term.source.name: term.source for term in terms if term.source is not None}.values())


def resting(distiller: Distiller) -> bool:
    """Whether all terms have given way."""
    return any(each.gone for each in _watched(distiller))


def _watched(distiller: Distiller) -> list[Lead | Agreement]:
    """By what its terms give way."""
    return [each for each in (distiller.lead, distiller.agreement) if each is not None]


def _answers(terms: Sequence[Term]) -> str:
    """The name of the responses that teach the neck; empty where there are none."""
    return next((term.name for term in terms if isinstance(term, HeadTerm) and term.shown), "")


def _fit(distiller: Distiller, sources: Sequence[MapSource], student: StudentOutputs, teacher: TeacherOutputs) -> None:
    """Starts the adapters of sources, in the first step that reads them."""
    for source in sources:
        source.fit(student.maps[source.name], teacher.maps[source.name])
        source.fitted = True
    distiller.monitor.begin()


class Trial(nn.Module):
    """A student with its teacher and terms behind it, for measuring what memory a step takes.

    Its output is every tensor of the student's, and the terms. It can be copied: the teacher is shared, not copied.
    """

    def __init__(self, student: Any, distiller: Distiller) -> None:
        super().__init__()
        self.student = student
        self.stride, self.names, self.yaml = student.stride, student.names, student.yaml
        self._distiller = [distiller]  # in a list: not a part of this module

    def __deepcopy__(self, memo: dict[int, Any]) -> Trial:
        return Trial(deepcopy(self.student, memo), self._distiller[0])

    def forward(self, images: Tensor) -> tuple[Any, ...]:
        """``(N, 3, H, W)`` images -> predictions and terms, without boxes."""
        distiller, (height, width) = self._distiller[0], images.shape[2:]
        scaled = [round(side * distiller.match.scale) for side in (height, width)]
        shown = images.detach() if distiller.match.scale == 1 else nn.functional.interpolate(images.detach(), scaled)
        teacher = distiller.teacher_outputs(shown, size=(height, width))
        readers = distiller.readers_of(self.student)
        step = Step(readers=readers, terms=distiller.active, teacher=teacher, add=distiller.add)
        try:
            predictions = self.student(images)
            none = images.new_zeros(0)
            batch = {"img": images, "bboxes": none.view(0, 4), "batch_idx": none}
            values = step.losses(step.read(predictions), batch).values
            return predictions, [term.guard.leave(values[term.name]) for term in distiller.active]
        finally:
            step.close()
            for term in distiller.terms:
                term.guard.collect()
            distiller.balance.collect()
