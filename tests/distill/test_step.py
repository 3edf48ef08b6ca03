"""One pass: what it leaves behind, the boxes it reads, and that our part of it never makes the host wait.

The last is counted on a CPU, op by op. The detection loss is the host's own and asks a lot (it picks by boolean
indices, forward and backward). So a smooth function of the predictions stands in for it there: what is left is the
teacher, the terms, the guards, the meter and their way back. On a GPU, benchmarks/gpu_checks.py holds the same with the
real loss.
"""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from ultralytics.utils.ops import xywhr2xyxyxyxy

from tests.distill.helpers import hooks, make, make_batch, make_student
from tskd_yolo.distill.step import boxes_of


@pytest.mark.parametrize("settings", [{}, dict(variant="paper")], ids=["default", "paper"])
def test_a_step_gives_the_criterion_back_and_leaves_no_hook(settings, files):
    student, batch = make_student(), make_batch()
    student.criterion = student.init_criterion()
    own = student.criterion
    distiller = make(student, files["11s"], **settings)
    step = distiller.attach(student, batch["img"])
    assert student.criterion is step
    student.loss(batch)
    assert student.criterion is own
    assert hooks(student, distiller.teacher.model, own.assigner) == 0
    assert step.teacher is None and not step.capture.caught


def test_a_step_that_never_came_is_undone(files):
    student, batch = make_student(), make_batch()
    distiller = make(student, files["11s"])
    for _ in range(2):
        distiller.attach(student, batch["img"])
    distiller.detach()
    assert type(student.criterion).__name__ == "v8DetectionLoss" and hooks(student, distiller.teacher.model) == 0
    vector, items = student.loss(batch)
    assert "drd_loss" not in items


def test_boxes_of_gives_pixel_corners_on_an_oblong_image():
    batch = {
        "bboxes": torch.tensor([[0.5, 0.5, 0.5, 0.25], [0.25, 0.75, 0.1, 0.5]]),
        "batch_idx": torch.tensor([1.0, 0.0]),
    }
    boxes = boxes_of(batch, images=2, size=(64, 128))
    torch.testing.assert_close(boxes.xyxy, torch.tensor([[32.0, 24, 96, 40], [25.6, 32, 38.4, 64]]))
    assert boxes.image.tolist() == [1, 0] and (boxes.images, boxes.size) == (2, (64, 128))
    none = boxes_of({"bboxes": torch.zeros(0, 4), "batch_idx": torch.zeros(0)}, images=2, size=(64, 64))
    assert none.xyxy.shape == (0, 4) and none.image.shape == (0,)


def test_rotated_boxes_keep_their_angles_and_are_enclosed():
    rows = [[0.5, 0.5, 0.5, 0.25, 0.3], [0.25, 0.75, 0.1, 0.5, -1.2]]
    batch = {"bboxes": torch.tensor(rows), "batch_idx": torch.zeros(2)}
    boxes = boxes_of(batch, images=1, size=(64, 128))
    pixels = torch.tensor([[64.0, 32, 64, 16, 0.3], [32, 48, 12.8, 32, -1.2]])
    torch.testing.assert_close(boxes.rotated, pixels)
    corners = xywhr2xyxyxyxy(pixels)  # as Ultralytics draws them
    torch.testing.assert_close(boxes.xyxy, torch.cat((corners.amin(dim=1), corners.amax(dim=1)), dim=1))
    none = boxes_of({"bboxes": torch.zeros(0, 5), "batch_idx": torch.zeros(0)}, images=2, size=(64, 64))
    assert none.rotated.shape == (0, 5) and none.xyxy.shape == (0, 4)


def test_boxes_of_image_numbers_in_half_precision_are_read():
    batch = {"bboxes": torch.tensor([[0.5, 0.5, 1.0, 1.0]]).half(), "batch_idx": torch.tensor([[1.0]])}
    boxes = boxes_of(batch, images=2, size=(64, 96))
    assert boxes.xyxy.dtype == torch.float32 and boxes.xyxy.tolist() == [[0, 0, 96, 64]] and boxes.image.shape == (1,)


# Waiting for the device -----------------------------------------------------------------------------------------------

ASKS = {
    "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_dim",
    "unique_consecutive", "bincount", "lift_fresh",
}  # fmt: skip
"""Ops that read a value, whose result's size depends on values, or (the last) that bring a Python value in."""


class Waits(TorchDispatchMode):
    """Counts where a host would wait for its device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        by_mask = name in {"index", "index_put", "index_put_", "_index_put_impl_"} and any(
            i is not None and i.dtype in {torch.bool, torch.uint8} for i in args[1]
        )
        moved = name == "_to_copy" and kwargs.get("device") not in {None, args[0].device}
        sized = name == "repeat_interleave" and kwargs.get("output_size") is None
        if name in ASKS or by_mask or moved or sized:
            self.found.append(name)
        return function(*args, **kwargs)


class Chosen(TorchFunctionMode):
    """Counts Python numbers that ``where`` chooses: they are copied to the device, which a CPU does not show."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") == "where" and not all(isinstance(x, torch.Tensor) for x in args):
            self.found.append("where")
        return function(*args, **(kwargs or {}))


def smooth_loss(predictions, batch):
    """Stands in for the detection loss: reaches every prediction of every branch, and asks nothing."""
    branches = [predictions] if "boxes" in predictions else list(predictions.values())
    parts = torch.stack([b[key].float().square().mean() for b in branches for key in ("boxes", "scores")])
    return parts.sum().expand(3) * len(batch["img"]), {}


def waits(distiller, student, batch) -> list[str]:
    """What one whole step of ours asks, from the teacher's pass to the last gradient; the CPU plays a device."""
    with patch("tskd_yolo.distill.nonfinite.HOST", ()), Waits() as mode, Chosen(mode.found):
        distiller.attach(student, batch["img"]).criterion = smooth_loss
        vector, _ = student.loss(batch)
        vector.sum().backward()
    return mode.found


@pytest.mark.slow
@pytest.mark.parametrize("balance", ["fixed", "share"])
@pytest.mark.parametrize("boxes", [0, 1, 500])
@pytest.mark.parametrize(("model", "kind"), [("yolo11n.yaml", "11s"), ("yolo26n.yaml", "26s")])
def test_our_part_of_a_step_never_waits_for_the_device(model, kind, boxes, balance, files):
    student, batch = make_student(model), make_batch(boxes=boxes)
    distiller = make(student, files[kind], balance=balance)
    assert waits(distiller, student, batch) == []  # the first step, which the meter measures
    assert distiller.meter.gradients
    assert waits(distiller, student, batch) == []  # and one that it does not


def test_the_count_sees_what_it_looks_for():
    x = torch.arange(4.0, requires_grad=True)
    with Waits() as mode, Chosen(mode.found):
        (x[x > 1].sum() * x.sum().item()).backward()
        x.detach().nonzero()
        torch.tensor(1.0)
        x.detach().where(x > 1, 0.0)
    assert {"index", "_local_scalar_dense", "nonzero", "lift_fresh", "where"} <= set(mode.found)
    assert any(name.startswith(("index_put", "_index_put")) for name in mode.found)
