"""How much each term weighs, and what its pull on the student is beside that of the detection loss.

The pull is the gradient on the features that a term teaches: the neck features, for DED the map of the
backbone's stage at stride 16, or a head tower's activations where nothing else is reached. It is measured every
:data:`EVERY` steps by walking back from the losses to these features only, without any weight's gradient, and before
the pass that trains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

EVERY, KEEP = 48, 0.7
"""Steps between two measurements after the first few, and the weight of the past in their running mean."""


class Pull(NamedTuple):
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
        """Between the two gradients: 1 where they agree, -1 where they work against each other."""
        return self.product / (self.term * self.detection).sqrt().clamp(min=1e-30)


class Meter:
    """Measures the pull of every term; equal on all processes, nothing waits for the device.

    Args:
        total: Sums a tensor over all processes, in place.
        scale: Factor against underflow in float16 gradients; it cancels.
    """

    def __init__(self, total: Callable[[Tensor], Any] | None = None, scale: float = 1.0) -> None:
        self.total, self.scale = total, scale
        self.pulls: dict[str, Pull] = {}
        self._step = 0

    def due(self) -> bool:
        """Whether this step is to be measured: often at the start, when gradients change fast, then every 48th."""
        step, self._step = self._step, self._step + 1
        return step in {0, 4, 12, 24} or step % EVERY == 0

    def measure(
        self, *, detection: Tensor, terms: Mapping[str, Tensor], places: Mapping[str, Sequence[Tensor]]
    ) -> None:
        """Takes the gradients of the detection loss and of each unweighted term at the term's features.

        A measurement that is not finite is passed over. The graphs stay as they are.
        """
        walked: dict[tuple[int, ...], list[Tensor]] = {}  # of the detection loss: most terms are at the same features
        found = torch.stack([self._squares(detection, terms[name], places[name], walked) for name in terms])
        if self.total is not None:
            self.total(found)
        for name, new in zip(terms, found, strict=True):
            old = torch.stack(self.pulls[name]) if name in self.pulls else new
            mean = torch.where(new.isfinite().all(), KEEP * old + (1 - KEEP) * new, old)
            self.pulls[name] = Pull(*mean.nan_to_num(0.0, 0.0, 0.0))

    def _squares(
        self, detection: Tensor, term: Tensor, place: Sequence[Tensor], walked: dict[tuple[int, ...], list[Tensor]]
    ) -> Tensor:
        inputs = [x for x in place if x.requires_grad]
        if not inputs:  # all that comes before is frozen
            return term.detach().new_zeros(3).float()
        here = tuple(map(id, inputs))
        if here not in walked:
            walked[here] = self._gradients(detection, inputs)
        pairs = list(zip(self._gradients(term, inputs), walked[here], strict=True))
        products = [torch.stack((x.dot(x), y.dot(y), x.dot(y))) for x, y in pairs]
        return torch.stack(products).sum(dim=0)

    def _gradients(self, loss: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
        found = torch.autograd.grad(
            loss * self.scale, inputs, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return [x.float().flatten() for x in found]

    def state(self) -> dict[str, Any]:
        """For a checkpoint: plain numbers."""
        return {"step": self._step, "pulls": {name: torch.stack(pull).tolist() for name, pull in self.pulls.items()}}

    def restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Goes on from :meth:`state`."""
        self._step = state["step"]
        self.pulls = {name: Pull(*torch.tensor(p, device=device)) for name, p in state["pulls"].items()}


class Fixed:
    """``balance=fixed``: every term times its own weight.

    Args:
        weights: Weight per term name; a term of weight 0 is not computed, so it does not come here.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.weights = dict(weights)

    def __call__(self, name: str, pull: Pull | None) -> float | Tensor:
        """The factor of a term."""
        return self.weights[name.split(":")[0]]


class Share(Fixed):
    """``balance=share``: a term's gradient on the features it teaches is its weight times the detection loss's.

        factor = share * |g_detection| / |g_term|,    between ``floor`` and ``cap``

    Args:
        weights: Share per term name, i.e. 0.1 for 10 %.
        floor, cap: Least and most of the factor: a dead term is not blown up, a wild one not lost.
    """

    def __init__(self, weights: Mapping[str, float], floor: float, cap: float) -> None:
        super().__init__(weights)
        self.floor, self.cap = floor, cap

    def __call__(self, name: str, pull: Pull | None) -> float | Tensor:
        """The factor of a term, from what was measured last; none without a measurement."""
        if pull is None:
            return 0.0
        return (super().__call__(name, pull) * pull.ratio).clamp(self.floor, self.cap)


def schedule(progress: float, *, epochs: float, ramp: float, fade: float) -> float:
    """Factor of all terms: rises from 0 over the first ``ramp`` epochs, falls to 0 over the last share ``fade`` of all.

    Args:
        progress: Epochs done, with fractions.
        epochs: Epochs of the run.
    """
    up = progress / ramp if progress < ramp else 1.0
    left = (epochs - progress) / (fade * epochs) if fade > 0 else 1.0
    return max(min(up, left, 1.0), 0.0)
