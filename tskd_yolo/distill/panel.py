"""The teachers of a run: features and head are the first one's, responses are what all of them say together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tskd_yolo.distill.features import Level, TeacherOutputs, reader
from tskd_yolo.distill.matching import Match
from tskd_yolo.distill.sources import MapSource
from tskd_yolo.distill.teacher import Teacher

LEAST = 0.01
"""AP that a teacher has at least of a class that it knows: none is silent because a few images show it at its worst."""


class Voice(NamedTuple):
    """A teacher, and what of it corresponds to what of the student."""

    match: Match
    teacher: Teacher


class Panel:
    """One teacher or several, asked together.

    Args:
        teachers: The teachers.
        student: The student.
        entry_stage: The head stage after which activations enter the first one's head.
        scale: Size of the teachers' images over that of the student's.
    """

    def __init__(self, teachers: Sequence[Teacher], *, student: Any, entry_stage: int, scale: float) -> None:
        self.voices = [
            Voice(Match(student=student, teacher=each.model, entry_stage=entry_stage, scale=scale), each)
            for each in teachers
        ]
        self.entry_stage = entry_stage
        self._weights: dict[str, Tensor | None] = {}
        self.weigh(torch.ones(len(self.voices), len(self.first.teacher.classes.members)))

    @property
    def first(self) -> Voice:
        """Whose features are compared, and whose head the student's activations enter."""
        return self.voices[0]

    def speaking(self, branch: str) -> list[int]:
        """The numbers of the teachers that have a branch of the student's head."""
        return [number for number, voice in enumerate(self.voices) if branch in voice.match.branches]

    def known(self, branch: str) -> list[int] | None:
        """The student's classes that one of these teachers knows; None where they know all."""
        speaking = [self.voices[number].teacher.classes for number in self.speaking(branch)]
        known = sorted({place for classes in speaking for place in classes.known})
        return None if not speaking or len(known) == len(speaking[0].members) else known

    def weigh(self, aps: Tensor) -> None:
        """Has each teacher count by its AP in each class, ``(teachers, classes)``, and not in one it does not know."""
        self._weights = {}
        known = torch.zeros_like(aps)
        for row, voice in zip(known, self.voices, strict=True):
            row[voice.teacher.classes.known] = 1
        self.votes = aps.clamp(min=LEAST) * known

    def weights(self, branch: str) -> Tensor | None:
        """How much each teacher that has a branch counts in each class, ``(teachers, classes)``; None where it is one.

        In every class that one of them knows they add up to 1.
        """
        if branch not in self._weights:
            votes = self.votes[self.speaking(branch)]
            device = next(self.first.teacher.model.parameters()).device
            weights = (votes / votes.sum(dim=0).clamp(min=1e-9)).to(device)
            self._weights[branch] = weights if len(votes) > 1 else None
        return self._weights[branch]

    def problems(self) -> list[str]:
        """Why these teachers cannot be asked together, one sentence each."""
        first, names = self.first, ", ".join(voice.teacher.name for voice in self.voices)
        if len(self.voices) > 1 and any(voice.match.queries for voice in self.voices):
            return [f"teacher: of {names} an RT-DETR answers by queries, which are not averaged; give it alone."]
        headless = [voice.teacher.name for voice in self.voices if voice.match.headless]
        if len(self.voices) > 1 and headless:
            return [f"teacher: {', '.join(headless)} has no detection head and no response to average; give it alone."]
        strangers = [voice.teacher.name for voice in self.voices if not voice.teacher.classes.known]
        if len(self.voices) > 1 and strangers:
            return [f"teacher: {', '.join(strangers)} has no class in common with the data; leave it out, or map them."]
        return [
            f"teacher: {voice.teacher.name} has no level for the student's strides {missing}, which "
            f"{first.teacher.name} has; give teachers of the same levels."
            for voice in self.voices[1:]
            if (missing := sorted({*first.match.levels} - {*voice.match.levels}))
        ]

    def listen(self, responses: bool) -> None:
        """Reads the teachers' responses from now on, or the first one's features only."""
        for voice in self.voices:
            voice.teacher.reader = reader(voice.teacher.head, responses, self.entry_stage)

    def outputs(
        self, images: Tensor, size: tuple[int, int], sources: Sequence[MapSource], terms: Sequence[Any]
    ) -> TeacherOutputs:
        """What terms read of the teachers for images ``(N, C, H, W)``; the student needs the memory of the rest.

        Args:
            images: What the teachers see.
            size: (height, width) of the student's images in pixels.
            sources: The maps that are compared.
            terms: Those that read responses.
        """
        wanted = {source.name: source.pairs for source in sources}
        maps: dict[str, Sequence[Tensor]] = {}
        match, teacher = self.first
        if "stages" in wanted:
            pairs = wanted["stages"]

            def keep(i: int, features: Tensor) -> Tensor:
                return pairs[i].cut(features, size)

            levels, maps["stages"] = teacher.with_stages(images, match.teacher_stages, keep)
        else:
            levels = teacher(images)
        if "neck" in wanted:
            maps["neck"] = [pair.cut(levels[pair.teacher_stride].features, size) for pair in wanted["neck"]]
        said = [levels, *(voice.teacher(images) for voice in self.voices[1:] if terms)]
        paired = [levels[stride] for stride in match.levels.values()]
        weighed = any(source.weighed for source in sources)
        with torch.autocast(images.device.type, enabled=False):  # the passes above are the last in half precision
            responses = {term.branch: term.target(said, size) for term in terms}
            return TeacherOutputs(maps, responses, level_scores(paired) if weighed else None)


def level_scores(levels: Sequence[Level]) -> Tensor:
    """Best class probabilities summed over the cells of each level, ``(N, levels)``."""
    return torch.stack([level.scores.float().amax(dim=1).sigmoid().sum(dim=(1, 2)) for level in levels], dim=1)
