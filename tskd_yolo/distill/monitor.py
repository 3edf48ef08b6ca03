"""What is seen of the terms while a run goes on: its columns, and whether every term reaches the student."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tskd_yolo.config import TERMS
from tskd_yolo.distill.nonfinite import MOST, NonFinite
from tskd_yolo.distill.terms import Term


class Monitor:
    """Watches a distiller: asked once per epoch, when waiting for the device costs nothing.

    Args:
        distiller: Before its first step.
    """

    def __init__(self, distiller: Any) -> None:
        self.distiller = distiller
        self.begin()
        self._seen: dict[str, Any] = {}
        self._clipped: dict[str, float] = {}
        self._left_out: dict[str, float] = {}

    def begin(self) -> None:
        """Notes where the adapters start."""
        self._first = {name: p.detach().clone() for name, p in self.distiller.learned.named_parameters()}

    def see(self, terms: Sequence[Term], values: Mapping[str, Tensor]) -> None:
        """Notes the terms of a step, without waiting for the device."""
        for term in terms:
            self._seen[term.key] = self._seen.get(term.key, 0) + values[term.name].detach().abs()

    def nonfinite(self, total: Callable[[list[float]], list[float]]) -> dict[str, NonFinite]:
        """Terms that were not finite in some steps since the last call, by key.

        A term that was left out of more than a tenth of the steps is switched off.

        Args:
            total: Sums a list of numbers over all processes.
        """
        sums = total([float(count) for term in self.distiller.terms for count in term.guard.collect()])
        counts: dict[str, NonFinite] = {}
        for term, left_out, steps in zip(self.distiller.terms, sums[::2], sums[1::2], strict=True):
            count = NonFinite(int(left_out), int(steps), left_out > MOST * steps)
            counts[term.key] = max(counts.get(term.key, count), count)
        for key, count in counts.items():
            self._left_out[key] = count.left_out / max(count.steps, 1) if key in self.distiller.on else 1.0
            if count.off:
                self.distiller.switch_off([key])
                self._left_out[key] = 1.0
        self._clipped = self.distiller.balance.collect()
        return {key: count for key, count in counts.items() if count.left_out}

    def columns(self) -> dict[str, float]:
        """What the run's record holds of every term beside its loss.

        ``share/drd(neck)`` and ``cosine/drd(neck)``: its gradient beside the detection loss's, and the cosine of the
        two, where it is measured; ``clipped/drd``: in which part of the epoch's steps its factor was cut at ``cap`` or
        ``floor``; ``left_out/drd``: of which part of the steps it was left out, 1 once it is switched off.
        """
        columns = {}
        for term in self.distiller.terms:
            gradients = self.distiller.meter.gradients.get(term.name)
            if gradients is not None and term.shown:
                where = f"{term.key}({term.measured_at})"
                columns[f"share/{where}"] = self.share(term) if term.key in self.distiller.on else 0.0
                columns[f"cosine/{where}"] = float(gradients.cosine)
                columns[f"clipped/{term.key}"] = self._clipped.get(term.name, 0.0)
                on = term.key in self.distiller.on
                columns[f"left_out/{term.key}"] = self._left_out.get(term.key, 0.0) if on else 1.0
        return {key: round(value, 5) for key, value in columns.items()}

    def share(self, term: Term) -> float:
        """The term's share of the detection loss's gradient, by what was measured last."""
        gradients = self.distiller.meter.gradients[term.name]
        return float(self.distiller.factor_of(term.name) / gradients.ratio.clamp(min=1e-30))

    def short_shares(self) -> dict[str, tuple[float, float]]:
        """Terms whose share is below a tenth of what was asked for: the share that was reached, and that asked for."""
        if self.distiller.config.balance != "share":
            return {}
        shown = [t for t in self.distiller.active if t.shown and t.name in self.distiller.meter.gradients]
        asked = {term: float(self.distiller.common_factor) * self.distiller.on[term.key] for term in shown}
        return {t.key: (self.share(t), share) for t, share in asked.items() if self.share(t) < share / 10}

    def clipped(self) -> dict[str, float]:
        """Terms whose factor was cut at ``cap`` or ``floor`` in the last epoch: in which part of its steps."""
        return {term.key: part for term in self.distiller.active if (part := self._clipped.get(term.name, 0.0)) > 0}

    def first_epoch_problems(self, total: Callable[[list[float]], list[float]], processes: int) -> list[str]:
        """After the first epoch: what shows that nothing is being taught, one sentence each.

        Args:
            total: Sums a list of numbers over all processes.
            processes: Their number.
        """
        reached = total([float(self._seen.get(key, 0) != 0) for key in TERMS])
        at_boxes = {term.key for term in self.distiller.terms if term.at_boxes}
        problems = []
        for key, count in zip(TERMS, reached, strict=True):
            if key in self.distiller.on and count < (1 if key in at_boxes else processes):
                problems.append(f"{key} is zero on {processes - int(count)} of {processes} processes")
            if key in self.distiller.on and key not in at_boxes and not self._gradient_seen(key):
                problems.append(f"{key} does not reach the student: what it teaches is frozen")
        if self._adapters_stand_still():
            problems.append("the adapters have not moved: the learning rate is 0, or no step was taken")
        if not all(teacher.unmoved() for teacher in self.distiller.teachers):
            problems.append("the teacher's weights have changed")
        return problems

    def _gradient_seen(self, key: str) -> bool:
        names = [term.name for term in self.distiller.terms if term.key == key]
        gradients = [self.distiller.meter.gradients.get(name) for name in names]
        return any(float(g.term) for g in gradients if g is not None)

    @property
    def adapters(self) -> dict[str, Tensor]:
        """Where the adapters of terms that are on started, by name."""
        on = {*self.distiller.on, *(source.name for source in self.distiller.sources)}
        return {name: value for name, value in self._first.items() if name.split(".")[0] in on}

    def _adapters_stand_still(self) -> bool:
        """Whether there are some, and none of them has moved."""
        parameters, first = dict(self.distiller.learned.named_parameters()), self.adapters
        return bool(first) and all(torch.equal(value, parameters[name]) for name, value in first.items())
