"""Where a term meets the student: one term's NaN must not reach the weights nor stop the others, nor its graph last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

HOST = ("cpu",)
"""Kinds of device that can be asked for a value without waiting."""

MOST = 0.1
"""The share of an epoch's steps without a finite value above which a term is switched off for the rest of the run."""


class NonFinite(NamedTuple):
    """How often a term was not finite in an epoch: steps left out, steps taken, and whether it is switched off now."""

    left_out: int
    steps: int
    off: bool


class Guard:
    """Lets a term's gradient through to the student in steps where value and gradient are finite, and none otherwise.

    Multiplying a NaN by zero leaves a NaN, and so does choosing another value in its place: the backward pass still
    goes through what made it. So everything that the term reads of the student, and its own parameters, come through
    :meth:`enter`, and on the way back the guard puts zeros in the gradient's place. Decided and counted on the device,
    without waiting. What overflows when a gradient becomes float16 is not looked at: the loss scaler skips that step.
    """

    def __init__(self) -> None:
        self.counting = True
        """Off while gradients are only measured: what is seen then is not counted."""
        self.steps = 0
        self._finite: Any = True
        self._left_out: Tensor | None = None

    def enter(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The same tensors, with their gradients under control."""
        return _Entrance.apply(self, *tensors)

    def leave(self, term: Tensor) -> Tensor:
        """The term, or 0 where it is not finite; to be called once per step, after :func:`guarded`."""
        self.steps += 1
        self._finite = term.detach().isfinite()
        return torch.where(self._finite, term, torch.zeros_like(term))

    def collect(self) -> tuple[int, int]:
        """Steps left out and steps taken since the last call; waits for the device, so once per epoch."""
        counts = int(self._left_out) if self._left_out is not None else 0, self.steps
        self.steps, self._left_out = 0, None
        return counts

    def back(self, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The gradients of what entered, or zeros."""
        present = [g for g in gradients if g is not None]
        finite = self._finite & torch.ones((), dtype=torch.bool, device=present[0].device)
        if self.counting:
            left_out = (~finite).long()
            self._left_out = left_out if self._left_out is None else self._left_out + left_out
        return _zeroed_unless(finite, gradients)


def _zeroed_unless(finite: Tensor, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The gradients, or zeros."""
    if finite.device.type in HOST and bool(finite):  # known already: nothing has to be gone through
        return list(gradients)
    return [None if g is None else torch.where(finite, g, g.new_zeros(())) for g in gradients]


class _Entrance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, guard: Guard, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.guard = guard
        ctx.set_materialize_grads(False)
        return tuple(t.view_as(t) for t in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        return (None, *ctx.guard.back(gradients))


class Part(NamedTuple):
    """A part of a term: a function of tensors of the student that gives a scalar, and its own parameters."""

    function: Callable[..., Tensor]
    tensors: Sequence[Tensor]
    parameters: Sequence[nn.Parameter] = ()


def guarded(parts: Sequence[Part], guard: Guard) -> list[Tensor]:
    """The value of every part of one term: the only way from a term back to the student.

    The gradients of a part are taken when its value is (:func:`at_once`); what of them reaches the student passes the
    guard, for all parts together.
    """
    entered = list(guard.enter([tensor for part in parts for tensor in (*part.tensors, *part.parameters)]))
    values = []
    for part in parts:
        count = len(part.tensors) + len(part.parameters)
        values.append(at_once(part, entered[:count]))
        entered = entered[count:]
    return values


def at_once(part: Part, entered: Sequence[Tensor]) -> Tensor:
    """The value of a part with its gradients taken now: nothing of its graph waits in memory for the backward pass.

    Until then one gradient per tensor is kept, in float32: float16 ones would underflow before the scaler's factor
    reaches them. Where one of them is not finite the value is NaN, as a value is that is not finite itself.

    Args:
        part: What is computed.
        entered: The part's tensors and parameters, as the gradients are to reach them.
    """
    if not torch.is_grad_enabled():
        return part.function(*part.tensors)
    own = [x.detach().float().requires_grad_(x.requires_grad) for x in part.tensors]
    value = part.function(*own)
    if not value.requires_grad:
        return value
    pairs = [(x, y) for x, y in zip(entered, (*own, *part.parameters), strict=True) if y.requires_grad]
    gradients = torch.autograd.grad(value, [y for _, y in pairs], allow_unused=True)
    sums = [gradient.sum() for gradient in gradients if gradient is not None]  # finite only where all of it is
    value = value.detach()
    if sums:  # filled in: a number that torch.where chooses is copied to the device, which waits
        value = value.masked_fill(~torch.stack(sums).isfinite().all(), float("nan"))
    return known(value, gradients, [x for x, _ in pairs])


def known(value: Tensor, gradients: Sequence[Tensor | None], tensors: Sequence[Tensor]) -> Tensor:
    """A value whose gradients at tensors are known; on the way back they come in the tensors' types."""
    return _KnownGradients.apply(value, gradients, *tensors)


class _KnownGradients(torch.autograd.Function):
    """A value whose gradients are known."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Sequence[Tensor | None], *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [x.dtype for x in tensors]
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> Any:
        known = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return None, None, *(None if x is None else (x * factor).to(dtype) for x, dtype in known)
