"""Whether the teacher's answers still ask for what the labels ask for, and how much the terms count for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

FAINT = 0.2
"""Cosine below which nothing is concluded: a network that knows nothing agrees with nobody at first."""
FULL, POWER = 0.6, 5
"""Part of the largest cosine up to which the terms count in full, and how fast they count less below it."""
HALF, EPOCHS, IMAGES = 0.5, 10, 15_000
"""Part of the epochs, epochs, and training images seen after which the factor stays as it is, see :func:`watched`."""
NOTHING = 0.01
"""Factor below which, from then on, the terms do not count at all."""
TOLD = 0.25
"""By how much the factor has changed when that is said again."""


class Agreement:
    """What the terms count, by what the teacher's answers are worth beside the labels at the beginning of a run.

        factor = min(1, (r / 0.6)^5),    r = cos(g_CRD, g_detection) / its largest value in this run

    ``g_CRD`` and ``g_detection`` are the gradients of CRD and of the detection loss where CRD's share is measured. A
    teacher that knows more than its student asks for what the labels ask for. When the student has learned what this
    teacher knows the two part, and what is left of the terms holds it there. That shows on the training images, before
    the validation set shows a lead, and at every share. Late in a run it shows of every teacher, while the terms still
    are of use: so after the beginning of a run (:func:`watched`) the factor stays as it is, or is 0 where it is next to
    nothing. Du et al., Adapting Auxiliary Losses Using Gradient Similarity (arXiv 1812.02224, 2018), weigh any
    auxiliary loss by such a cosine; the rest is ours.
    """

    def __init__(self) -> None:
        self.cosine: Tensor | None = None
        self.most: Tensor | None = None
        self.factor: Tensor | float = 1.0
        """From 0 to 1; a tensor where it was measured, for which nothing waits."""
        self.settled = False
        """Whether the run is past its beginning, see :meth:`settle`."""
        self._told = 1.0

    def see(self, cosine: Tensor) -> None:
        """Takes a running mean of the cosine, ``()``, after each measurement."""
        if self.settled:
            return
        before = cosine if self.most is None else self.most.to(cosine.device)  # of a resumed run on the CPU at first
        self.cosine, self.most = cosine, torch.maximum(before, cosine)
        part = (cosine / self.most.clamp(min=FAINT) / FULL).clamp(0, 1) ** POWER
        self.factor = torch.where(self.most < FAINT, torch.ones_like(part), part)

    def settle(self) -> None:
        """Leaves the factor as it is, once the beginning is over. Waits for the device, at the first call."""
        if not self.settled:
            factor = float(self.factor)
            self.settled, self.factor = True, factor if factor >= NOTHING else 0.0

    @property
    def gone(self) -> bool:
        """Whether all terms have given way for good."""
        return self.settled and not self.factor

    def news(self) -> str | None:
        """A sentence on what has changed since the last one; None where next to nothing has. Waits for the device."""
        factor = float(self.factor)
        changed = abs(factor - self._told) >= TOLD or (self.gone and self._told > 0)
        if not changed or self.cosine is None or self.most is None:
            return None
        self._told = factor
        said = f"the gradient of the teacher's answers has a cosine of {float(self.cosine):.2f} with that of the labels"
        said += f", and had {float(self.most):.2f}: the terms "
        return said + ("have given way" if self.gone else f"count {factor:.2f} of what they were set to")

    def state(self) -> dict[str, Any]:
        """For a checkpoint: plain numbers."""
        seen = None if self.cosine is None or self.most is None else [float(self.cosine), float(self.most)]
        return {"seen": seen, "factor": float(self.factor), "told": self._told}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from :meth:`state`."""
        if state["seen"] is not None:
            self.cosine, self.most = torch.tensor(state["seen"])
        self.factor, self._told = state["factor"], state["told"]


def watched(epochs: int, images: int) -> float:
    """So many epochs are the beginning of a run, in which a cosine that falls says something about the teacher.

    Half of the run, ten epochs or 15,000 images, whichever is over first. Later the cosine falls as far under a teacher
    that is ahead, see ``benchmarks/LOG.md``.

    Args:
        epochs: Of the run.
        images: Of an epoch.
    """
    return min(HALF * epochs, EPOCHS, IMAGES / max(images, 1))
