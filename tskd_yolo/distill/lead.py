"""How far the teacher is ahead of its student, class by class, and how much the terms count for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

LAST = 3
"""So many validations of the student are averaged: a single one of a few hundred images swings by points of AP."""
LEAST = 0.01
"""AP that a teacher is taken to have at least."""
TOLD = 0.1
"""By how much the factor has changed when that is said again."""


class Lead:
    """What the terms count while the student comes up with its teacher, and overtakes it.

        w_c = 1 - (s_c - t_c) / (margin max(t_c, t)), between 0 and 1

    ``t_c`` is the teacher's AP50-95 of class c on the validation set, ``t`` its mean over the classes, ``s_c`` the
    student's, mean of its last three validations. Below the mean a class's AP is no measure of its own noise. All terms
    are multiplied by the mean of ``w_c`` over the classes; in a class response class c counts ``w_c`` over that mean. A
    class that the teacher does not know, or of which the set has no box, counts in full as long as any other counts.

    Args:
        teacher: Its AP50-95 of each class of the data, None where it has none; of several the best one's.
        margin: The lead of the student, as a part of that, at which nothing is left.
    """

    def __init__(self, teacher: Sequence[float | None], margin: float) -> None:
        self.margin = margin
        self.teacher = _tensor(teacher)
        self.seen: list[Tensor] = []
        self.values = torch.ones(1 + len(teacher))
        """The factor of all terms, then the relative weight of each class."""
        self._told, self._silent = 1.0, frozenset[int]()

    @property
    def factor(self) -> float:
        """Of all terms, from 0 to 1."""
        return float(self.values[0])

    @property
    def gone(self) -> bool:
        """Whether all terms have given way, until the student falls behind again."""
        return self.factor == 0

    @property
    def classes(self) -> Tensor | None:
        """How much each class counts beside the others, ``(classes,)``; None where all count alike."""
        relative = self.values[1:]
        return relative if bool((relative != 1).any()) else None

    def see(self, student: Sequence[float | None]) -> None:
        """Takes the student's AP50-95 of each class, from its validation after an epoch."""
        self.seen = [*self.seen, _tensor(student)][-LAST:]
        known = self._known()
        if not bool(known.any()):
            return
        measure = self.teacher.clamp(min=max(float(self.teacher[known].mean()), LEAST))
        ahead = (self._student() - self.teacher) / (self.margin * measure)
        weights = torch.where(known, (1 - ahead).clamp(0, 1), 1.0)
        factor = weights[known].mean()
        relative = weights / factor if factor > 0 else torch.ones_like(weights)
        self.values = torch.cat((factor.view(1), relative))

    def news(self, names: Sequence[str]) -> str | None:
        """A sentence on what has changed since the last one; None where next to nothing has.

        Args:
            names: Of the classes.
        """
        silent = frozenset(int(c) for c in (self.values[0] * self.values[1:] == 0).nonzero())
        if abs(self.factor - self._told) < TOLD and silent == self._silent:
            return None
        self._told, self._silent = self.factor, silent
        ours, theirs = (float(scores[self._known()].mean()) for scores in (self._student(), self.teacher))
        said = f"the student has reached an mAP50-95 of {ours:.3f} where its teacher has {theirs:.3f}: "
        if self.gone:
            return said + "the terms have given way"
        if self.factor > 1 - TOLD and not silent:
            return said + "the terms count in full"
        none = f", and not in {', '.join(names[c] for c in sorted(silent))}" if silent else ""
        return said + f"the terms give way, and count {self.factor:.2f} of what they were set to{none}"

    def _known(self) -> Tensor:
        return self.teacher.isfinite() & self._student().isfinite()

    def _student(self) -> Tensor:
        return torch.stack(self.seen).mean(dim=0)

    def state(self) -> dict[str, Any]:
        """For a checkpoint: plain numbers."""
        return {
            "seen": [row.tolist() for row in self.seen],
            "values": self.values.tolist(),
            "told": self._told,
            "silent": sorted(self._silent),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from :meth:`state`."""
        self.seen, self.values = [torch.tensor(row) for row in state["seen"]], torch.tensor(state["values"])
        self._told, self._silent = state["told"], frozenset(state["silent"])


def _tensor(scores: Sequence[float | None]) -> Tensor:
    return torch.tensor([float("nan") if score is None else score for score in scores])


def best(taught: Sequence[Mapping[str, Any]], known: Sequence[Sequence[int]], count: int) -> list[float | None]:
    """The best AP50-95 that a teacher has of each class.

    Args:
        taught: The teachers' scores, see :data:`tskd_yolo.hashing.METRICS`; empty where there is none.
        known: The classes that each of them knows, by number.
        count: How many classes there are.
    """
    found: list[float | None] = [None] * count
    for score, classes in zip(taught, known, strict=True):
        rows = score.get("classes") or [None] * count
        for c in classes:
            if (row := rows[c]) is not None:
                found[c] = max(row["AP50-95"], found[c] or 0.0)
    return found
