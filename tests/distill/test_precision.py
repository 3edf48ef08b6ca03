"""All of ours is computed in float32, also inside autocast."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.distill.helpers import make, make_batch, make_student
from tskd_yolo.distill.features import StudentOutputs
from tskd_yolo.losses import Response

PASSED_ON = {"view", "detach", "alias", "_to_copy", "clone", "where", "new_zeros", "zeros", "empty_like", "full"}
"""Ops that hand a tensor on, or bring one from or to the student's precision."""


class LowPrecision(TorchDispatchMode):
    """Lists the ops whose result is less precise than float32."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        outputs = result if isinstance(result, (tuple, list)) else [result]
        low = [x for x in outputs if isinstance(x, torch.Tensor) and x.dtype in {torch.float16, torch.bfloat16}]
        name = function.overloadpacket.__name__
        if low and name not in PASSED_ON:
            self.ops.append(name)
        return result


def apart(outputs: StudentOutputs, dtype: torch.dtype | None = None) -> StudentOutputs:
    """What was read of the student, cut off from its graph, in another precision if one is given."""

    def leaf(x: torch.Tensor) -> torch.Tensor:
        return x.detach().to(dtype or x.dtype).requires_grad_()

    responses = {b: [Response(*map(leaf, r)) for r in levels] for b, levels in outputs.responses.items()}
    maps = {name: [leaf(x) for x in features] for name, features in outputs.maps.items()}
    return StudentOutputs(maps, responses, outputs.assigned)


def tensors(outputs: StudentOutputs) -> list[torch.Tensor]:
    maps = [x for features in outputs.maps.values() for x in features]
    return maps + [x for levels in outputs.responses.values() for r in levels for x in r]


@pytest.mark.parametrize("settings", [{}, dict(variant="paper")], ids=str)
@pytest.mark.parametrize(("model", "kind"), [("yolo11n.yaml", "11s"), ("yolo26n.yaml", "26s")])
def test_no_op_of_ours_runs_in_lower_precision(model, kind, settings, files):
    student, batch = make_student(model), make_batch()
    distiller = make(student, files[kind], **settings)
    distiller.teacher.cast(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        step = distiller.attach(student, batch["img"])
        predictions = student(batch["img"])
        if settings.get("variant") == "paper":
            step.criterion(predictions, batch)  # assigns, which the paper's form counts
        outputs = apart(step.read(predictions))
        assert {x.dtype for x in tensors(outputs)} >= {torch.bfloat16}
        with LowPrecision() as mode:
            losses = step.losses(outputs, batch)
            total = torch.stack(list(losses.values.values())).sum()
    with mode:
        total.backward()
    assert mode.ops == []
    assert all(value.dtype == torch.float32 for value in losses.values.values())


def test_the_list_sees_what_it_looks_for():
    x = torch.ones(3, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16), LowPrecision() as mode:
        torch.einsum("ab,b->a", x, x[0])
    assert mode.ops


@pytest.mark.parametrize("settings", [{}, dict(variant="paper")], ids=str)
@pytest.mark.parametrize(("model", "kind"), [("yolo11n.yaml", "11s"), ("yolo26n.yaml", "26s")])
def test_gradients_inside_autocast_are_those_of_the_float32_run(model, kind, settings, files):
    """The student's tensors are bfloat16 values cast up: what differs is what happens inside."""
    student, batch = make_student(model), make_batch()
    distiller = make(student, files[kind], **settings)
    step = distiller.attach(student, batch["img"])
    predictions = student(batch["img"])
    if settings.get("variant") == "paper":
        step.criterion(predictions, batch)
    read = apart(apart(step.read(predictions), torch.bfloat16), torch.float32)
    found = []
    for enabled in (True, False):
        outputs = apart(read)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            values = step.losses(outputs, batch).values
            total = torch.stack([1e-5 * value for value in values.values()]).sum()
        found.append(torch.autograd.grad(total, tensors(outputs), allow_unused=True))
    for inside, plain in zip(*found, strict=True):
        if plain is not None:
            assert (inside - plain).norm() <= 1e-3 * plain.norm()
