"""How much each term weighs, and its gradient share: its gradient on the student beside the detection loss's.

The gradient is that on the features that a term teaches: the neck features, for DED the map of the backbone's stage at
stride 16, or a head tower's activations where nothing else is reached. It is measured every :data:`EVERY` steps by
walking back from the losses to these features only, without any weight's gradient, and before the pass that trains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

EVERY, KEEP = 48, 0.7
"""Steps between two measurements after the first few, and the weight of the past in their running mean."""


class Gradients(NamedTuple):
    """Running means at a term's features: squared norms of its and of the detection loss's gradient, their product."""

    term: Tensor
    detection: Tensor
    product: Tensor

    @property
    def ratio(self) -> Tensor:
        """Norm of the detection loss's gradient over that of the unweighted term, ``()``."""
        return (self.detection / self.term.clamp(min=1e-30)).sqrt()

    @property
    def cosine(self) -> Tensor:
        """Between the two gradients: 1 where they agree, -1 where they are opposed."""
        return self.product / (self.term * self.detection).sqrt().clamp(min=1e-30)


class Meter:
    """Measures the gradients of every term; equal on all processes, nothing waits for the device.

    Args:
        total: Sums a tensor over all processes, in place.
        scale: Factor against underflow in float16 gradients; it cancels.
    """

    def __init__(self, total: Callable[[Tensor], Any] | None = None, scale: float = 1.0) -> None:
        self.total, self.scale = total, scale
        self.gradients: dict[str, Gradients] = {}
        self.steps = 0
        """Steps so far, which decide whether the next is measured."""

    def due(self, names: Iterable[str] = ()) -> bool:
        """Whether this step is to be measured: often at the start, when gradients change fast, then every 48th, and
        where one of the terms of these names never was.
        """
        step, self.steps = self.steps, self.steps + 1
        return step in {0, 4, 12, 24} or step % EVERY == 0 or any(name not in self.gradients for name in names)

    def measure(
        self, *, detection: Tensor, terms: Mapping[str, Tensor], features: Mapping[str, Sequence[Tensor]]
    ) -> None:
        """Takes the gradients of the detection loss and of each unweighted term at the term's features.

        A measurement that is not finite is passed over. The graphs stay as they are.
        """
        reached = {name: [x for x in features[name] if x.requires_grad] for name in terms}
        inputs = list({id(x): x for each in reached.values() for x in each}.values())
        # One walk to all places: another one for each would go the same way as far as the neck.
        walked = dict(zip(map(id, inputs), self._gradients(detection, inputs), strict=True))
        measured = torch.stack([self._squares(terms[name], reached[name], walked) for name in terms])
        if self.total is not None:
            self.total(measured)
        for name, new in zip(terms, measured, strict=True):
            old = torch.stack(self.gradients[name]) if name in self.gradients else new
            mean = torch.where(new.isfinite().all(), KEEP * old + (1 - KEEP) * new, old)
            self.gradients[name] = Gradients(*mean.nan_to_num(0.0, 0.0, 0.0))

    def _squares(self, term: Tensor, inputs: Sequence[Tensor], detection: Mapping[int, Tensor]) -> Tensor:
        if not inputs:  # all that comes before is frozen
            return term.detach().new_zeros(3).float()
        pairs = [(x, detection[id(place)]) for x, place in zip(self._gradients(term, inputs), inputs, strict=True)]
        products = [torch.stack((x.dot(x), y.dot(y), x.dot(y))) for x, y in pairs]
        return torch.stack(products).sum(dim=0)

    def _gradients(self, loss: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
        if not inputs:
            return []
        gradients = torch.autograd.grad(
            loss * self.scale, inputs, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return [x.float().flatten() for x in gradients]

    def state(self) -> dict[str, Any]:
        """For a checkpoint: plain numbers."""
        return {"step": self.steps, "gradients": {name: torch.stack(g).tolist() for name, g in self.gradients.items()}}

    def restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Goes on from :meth:`state`."""
        self.steps = state["step"]
        self.gradients = {name: Gradients(*torch.tensor(g, device=device)) for name, g in state["gradients"].items()}


class Fixed:
    """``balance=fixed``: every term times its own weight.

    Args:
        weights: Weight per term name; a term of weight 0 is not computed, so it does not come here.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.weights = dict(weights)

    def __call__(self, name: str, gradients: Gradients | None, count: bool = False) -> float | Tensor:
        """The factor of a term."""
        return self.weights[name.split(":")[0]]

    def collect(self) -> dict[str, float]:
        """By term, in which part of the steps since the last call its factor was cut; waits for the device."""
        return {}


class Share(Fixed):
    """``balance=share``: a term's gradient on the features it teaches is its weight times the detection loss's.

        factor = share * |g_detection| / |g_term|,    between ``floor`` and ``cap``

    Args:
        weights: Share per term name, i.e. 0.1 for 10 %.
        floor, cap: Least and most of the factor: a vanishing term is not scaled up, an exploding one not lost.
    """

    def __init__(self, weights: Mapping[str, float], floor: float, cap: float) -> None:
        super().__init__(weights)
        self.floor, self.cap = floor, cap
        self._cut: dict[str, Tensor] = {}
        self._steps: dict[str, int] = {}

    def __call__(self, name: str, gradients: Gradients | None, count: bool = False) -> float | Tensor:
        """The factor of a term, from what was measured last; 0 without a measurement.

        Args:
            name: Of the term.
            gradients: What was measured.
            count: Whether this is a step, in which a factor that is cut counts.
        """
        if gradients is None:
            return 0.0
        wanted = super().__call__(name, gradients) * gradients.ratio
        factor = wanted.clamp(self.floor, self.cap)
        if count:
            cut = (factor != wanted).long()
            self._cut[name] = self._cut[name] + cut if name in self._cut else cut
            self._steps[name] = self._steps.get(name, 0) + 1
        return factor

    def collect(self) -> dict[str, float]:
        """As :meth:`Fixed.collect`."""
        parts = {name: int(cut) / self._steps[name] for name, cut in self._cut.items()}
        self._cut, self._steps = {}, {}
        return parts


def schedule(progress: float, *, epochs: float, ramp: float, fade: float) -> float:
    """Factor of all terms: rises from 0 over the first ``ramp`` epochs, falls to 0 over the last share ``fade`` of all.

    Args:
        progress: Epochs done, with fractions.
        epochs: Epochs of the run.
    """
    up = progress / ramp if progress < ramp else 1.0
    left = (epochs - progress) / (fade * epochs) if fade > 0 else 1.0
    return max(min(up, left, 1.0), 0.0)
