"""The guard between a term and the student: what is not finite stays behind it."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn

from tskd_yolo.distill.nonfinite import Guard, Part, at_once, guarded


def behind(guard: Guard, term, *tensors: torch.Tensor) -> torch.Tensor:
    return guard.leave(torch.stack(guarded([Part(term, tensors)], guard)).sum())


def step(term, x, guard=None):
    guard = guard or Guard()
    value = behind(guard, term, x)
    value.backward()
    return value, guard


def test_a_finite_term_and_its_gradient_pass_unchanged():
    x = torch.randn(4, 3, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    value, guard = step(lambda t: t.pow(3).sum(), x)
    y.pow(3).sum().backward()
    assert value == y.pow(3).sum() and torch.equal(x.grad, y.grad)
    assert guard.collect() == (0, 1)


@pytest.mark.parametrize(
    "term",
    [
        lambda t: (t * float("nan")).sum(),
        lambda t: (t / 0).sum(),
        lambda t: (t - t).sqrt().sum(),  # finite, but with an infinite gradient
        lambda t: torch.where(t > 0, t.log(), torch.zeros(())).sum() * 0 + (t * 0).rsqrt().sum() * 0,
    ],
    ids=["nan", "infinity", "infinite gradient", "infinity times zero"],
)
def test_what_is_not_finite_gives_zero_and_a_gradient_of_zero(term):
    x = torch.tensor([1.0, 2.0, -3.0], requires_grad=True)
    control = torch.tensor([1.0, 2.0, -3.0], requires_grad=True)
    torch.where(term(control).isfinite(), term(control), torch.zeros(())).backward()
    assert not control.grad.isfinite().all()  # choosing another value alone does not help
    value, guard = step(term, x)
    assert value.isfinite() and torch.equal(x.grad, torch.zeros(3))
    assert guard.collect() == (1, 1) and guard.collect() == (0, 0)


def test_all_that_a_term_reads_is_left_out_together():
    x, y = (torch.ones(2, requires_grad=True) for _ in "xy")
    behind(Guard(), lambda a, b: a.sum() + (b - 1).sqrt().sum(), x, y).backward()
    assert torch.equal(x.grad, torch.zeros(2)) and torch.equal(y.grad, torch.zeros(2))


def test_two_terms_on_the_same_features_are_independent():
    x = torch.ones(3, requires_grad=True)
    broken, sound = Guard(), Guard()
    (behind(broken, lambda a: (a * float("inf")).sum(), x) + behind(sound, lambda b: 2 * b.sum(), x)).backward()
    assert torch.equal(x.grad, torch.full((3,), 2.0))
    assert broken.collect() == (1, 1) and sound.collect() == (0, 1)


def guarded_step(guard: Guard, layer: nn.Module, x: torch.Tensor, factor: float) -> None:
    """One training step of a term with parameters of its own."""
    x.grad = None
    layer.zero_grad()
    part = Part(lambda t: layer(t).sum() * factor, [x], list(layer.parameters()))
    guard.leave(torch.stack(guarded([part], guard)).sum()).backward()


def test_good_bad_good_steps_give_gradient_none_and_gradient():
    layer, guard, x = nn.Linear(3, 2), Guard(), torch.ones(1, 3, requires_grad=True)
    for factor, bias in ((1.0, 1.0), (float("nan"), 0.0), (2.0, 2.0), (float("inf"), 0.0), (1.0, 1.0)):
        guarded_step(guard, layer, x, factor)
        assert layer.bias.grad.tolist() == [bias, bias]
        assert x.grad.abs().sum() > 0 if bias else not x.grad.any()
    assert guard.collect() == (2, 5)


def test_an_overflow_in_float16_is_left_to_the_loss_scaler():
    x, guard = torch.ones(2, dtype=torch.float16, requires_grad=True), Guard()
    (behind(guard, lambda t: 10 * t.sum(), x) * 2.0**16).backward()
    assert not x.grad.isfinite().any() and guard.collect() == (0, 1)
    for broken in (lambda t: (t - 1).sqrt().sum(), lambda t: t.sum() * float("nan")):
        x.grad = None
        (behind(guard, broken, x) * 2.0**16).backward()
        assert torch.equal(x.grad, torch.zeros(2, dtype=torch.float16)) and guard.collect() == (1, 1)


def test_nothing_is_asked_of_the_device_within_a_step(monkeypatch):
    from torch.utils._python_dispatch import TorchDispatchMode

    class NoSync(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert func not in {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}, func
            return func(*args, **(kwargs or {}))

    monkeypatch.setattr("tskd_yolo.distill.nonfinite.HOST", ())  # the CPU plays a device
    with NoSync():
        step(lambda t: t.sum(), torch.ones(2, requires_grad=True))


@pytest.mark.parametrize("factor", [1.0, float("nan"), float("inf")])
def test_a_device_that_is_not_asked_gives_the_same_gradients(factor, monkeypatch):
    found = []
    for host in (("cpu",), ()):
        monkeypatch.setattr("tskd_yolo.distill.nonfinite.HOST", host)
        x = torch.tensor([1.0, -2.0], requires_grad=True)
        value, guard = step(lambda t: (t * t).sum() * factor, x)
        found.append((value.item(), x.grad.tolist(), guard.collect()))
    assert found[0] == found[1]
    assert found[0] == ((5, [2, -4], (0, 1)) if factor == 1 else (0, [0, 0], (1, 1)))


def taken(function, tensors, parameters=()) -> torch.Tensor:
    return at_once(Part(function, tensors, parameters), [*tensors, *parameters])


def test_gradients_taken_at_once_are_those_of_the_backward_pass():
    layer, x = nn.Linear(3, 2), torch.randn(4, 3, requires_grad=True)
    found = []
    for value in (
        layer(x.tanh()).pow(2).sum(),
        taken(lambda t: layer(t).pow(2).sum(), [x.tanh()], list(layer.parameters())),
    ):
        found.append((value.detach(), *torch.autograd.grad(5 * value, [x, *layer.parameters()])))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_of_a_term_taken_at_once_only_gradients_stay_in_memory():
    kept = []
    x = torch.randn(4, 3, requires_grad=True)

    def term(t):
        inner = t.exp()
        kept.append(weakref.ref(inner))
        return inner.sin().sum()

    value = taken(term, [x])
    assert kept[0]() is None
    for _ in range(2):  # the meter walks back before the pass that trains does
        (gradient,) = torch.autograd.grad(value, x, retain_graph=True)
        torch.testing.assert_close(gradient, x.exp().cos().detach() * x.exp().detach())


def test_a_half_precision_gradient_is_kept_in_float32():
    x = torch.ones(3, dtype=torch.float16, requires_grad=True)
    (gradient,) = torch.autograd.grad(taken(lambda t: 1e-9 * t.sum(), [x]) * 2.0**16, x)
    assert gradient.dtype == torch.float16 and gradient.float() == pytest.approx(1e-9 * 2**16, rel=1e-2)


def test_what_is_frozen_stays_without_gradient():
    frozen, x = torch.ones(3), torch.ones(3, requires_grad=True)
    assert not taken(lambda t: t.sum(), [frozen]).requires_grad
    taken(lambda a, b: (a * b).sum(), [frozen, x]).backward()
    assert frozen.grad is None and torch.equal(x.grad, torch.ones(3))
    with torch.no_grad():
        assert not taken(lambda t: t.sum(), [x]).requires_grad
