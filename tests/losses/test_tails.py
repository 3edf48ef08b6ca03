"""The rest of the teacher's head: in one matrix and layer by layer, everywhere and at some locations."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tskd_yolo.losses import tails
from tskd_yolo.losses.tails import Entrance, adapter, boxes_at, moments, renormalize, through, through_at


def test_an_adapter_is_only_between_unlike_widths_without_bias():
    assert isinstance(adapter(8, 8), nn.Identity)
    assert adapter(8, 16).weight.shape == (16, 8, 1, 1) and adapter(8, 16).bias is None
    assert adapter(8, 16, bias=True).bias is not None


@pytest.mark.parametrize("c_student", [5, 8])
@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 1, 1)])
def test_a_linear_tail_in_one_matrix_is_its_layers_in_turn(c_student, shape):
    n, *size = shape
    tail = nn.Sequential(nn.Conv2d(8, 6, 1)).requires_grad_(False)
    change, teacher = adapter(c_student, 8), torch.randn(n, 8, *size) * 3 + 2
    student = (torch.randn(n, c_student, *size) * 2 - 4).requires_grad_()
    inputs = [student, *change.parameters()]
    weight = torch.randn(n, 6, *size)
    found = []
    for value in (through(tail, change, student, teacher), tail(renormalize(change(student), teacher))):
        found.append([value, *torch.autograd.grad((value * weight).sum(), inputs, allow_unused=True)])
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)


def test_of_the_teacher_a_linear_tail_reads_statistics_only():
    tail = nn.Sequential(nn.Conv2d(12, 5, 1))
    student, teacher = torch.randn(2, 12, 5, 4), torch.randn(2, 12, 5, 4) * 3 + 1
    same = nn.Identity()
    assert torch.equal(through(tail, same, student, teacher), through(tail, same, student, moments(teacher)))


@pytest.mark.parametrize("width", [9, 16])
def test_a_tail_of_several_layers_is_its_layers_in_turn(width):
    theirs = torch.randn(2, 16, 20, 20)
    tail = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 8, 1)).requires_grad_(False)
    change, student = adapter(width, 16), (torch.randn(len(theirs), width, *theirs.shape[2:]) * 2 - 1).requires_grad_()
    weight, found = torch.randn_like(tail(theirs)), []
    for value in (through(tail, change, student, moments(theirs)), tail(renormalize(change(student), theirs))):
        found.append([value, *torch.autograd.grad((value * weight).sum(), [student, *change.parameters()])])
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[0][0], through(tail[-1:], change, student, theirs))


@pytest.mark.parametrize("grid", [(6, 7), (11, 12), (3, 4)], ids=["same cells", "more cells", "fewer cells"])
def test_renormalized_activations_have_the_teachers_statistics(grid):
    student, teacher = (
        torch.randn(3, 5, 6, 7) * 4 + 1,
        torch.randn(3, 5, *grid) * torch.arange(1.0, 6).view(5, 1, 1) - 9,
    )
    out = renormalize(student, teacher)
    for moment in (lambda x: x.mean(dim=(0, 2, 3)), lambda x: x.std(dim=(0, 2, 3))):
        torch.testing.assert_close(moment(out), moment(teacher), rtol=1e-4 if grid == (6, 7) else 0.02, atol=1e-4)
    centred = [x - x.mean(dim=(0, 2, 3), keepdim=True) for x in (student, out)]
    assert torch.equal(*(x.sign() for x in centred))  # only rescaled


def test_renormalize_of_dead_channels_or_single_values_is_finite():
    for shape in ((2, 3, 4, 4), (1, 3, 1, 1)):
        student = torch.full(shape, 2.0, requires_grad=True)
        out = renormalize(student, torch.randn(shape))
        out.sum().backward()
        assert out.isfinite().all() and student.grad.isfinite().all()


def test_processes_may_have_images_of_different_sizes(monkeypatch):
    ranks = [torch.randn(2, 3, side, side) for side in (16, 48)]
    said: list[list[torch.Tensor]] = [[], []]
    for images, heard in zip(ranks, said):
        monkeypatch.setattr(tails, "all_reduce_mean", lambda x, heard=heard: heard.append(x) or x)
        tails._deviation_and_mean(images, images[:, 0].numel())
    for images in ranks:
        together = iter([(a + b) / 2 for a, b in zip(*said)])
        monkeypatch.setattr(tails, "all_reduce_mean", lambda x, together=together: next(together))
        deviation, _ = tails._deviation_and_mean(images, images[:, 0].numel())
        torch.testing.assert_close(deviation, torch.ones(3), rtol=0, atol=0.1)


@pytest.mark.parametrize("widths", [(8, 8), (5, 8)], ids=["same width", "adapted"])
@pytest.mark.parametrize("hidden", [True, False])
def test_at_some_places_it_is_what_it_is_everywhere(widths, hidden):
    levels = []
    for side in (4, 3, 1):
        layers = [nn.Conv2d(8, 8, 1), nn.SiLU()] if hidden else []
        student = torch.randn(3, widths[0], side, side + 1, requires_grad=True)
        teacher = moments(torch.randn(3, 8, side, side) + 1)
        levels.append(Entrance(nn.Sequential(*layers, nn.Conv2d(8, 6, 1)), adapter(*widths), student, teacher))
    place = torch.stack([torch.randperm(20 + 12 + 2)[:9] for _ in range(3)])
    place[0, :3] = torch.tensor([19, 20, 33])  # the last of a level, the first of the next, the last of all
    inputs = [x for level in levels for x in (level.student, *level.adapter.parameters(), *level.tail.parameters())]
    found, weight = [], torch.randn(3, 6, 9)
    for value in (
        through_at(place, levels),
        boxes_at(place, [through(*level) for level in levels]),
    ):
        found.append([value, *torch.autograd.grad((value * weight).sum(), inputs)])
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)
