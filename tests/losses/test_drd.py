"""DRD: what its two parts feel, what they do not feel, and what happens where there is nothing to compare."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tests.losses import reference
from tskd_yolo.losses.boxes import Boxes, slots
from tskd_yolo.losses.drd import CROP, DRD, INSTANCES
from tskd_yolo.losses.glore import neighbours
from tskd_yolo.losses.paper import crops

SIZE = 160, 160


class NoHostSync(TorchDispatchMode):
    """Fails where the host would wait for the device: a value read, a size that depends on values."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in {
            "_local_scalar_dense",
            "nonzero",
            "masked_select",
            "is_nonzero",
            "unique_dim",
            "_unique2",
        }, name
        if name in {"index", "index_put", "index_put_", "_index_put_impl_"}:
            assert not any(i is not None and i.dtype in {torch.bool, torch.uint8} for i in args[1]), name
        return function(*args, **(kwargs or {}))


def random_boxes(count: int, images: int, size: tuple[int, int] = SIZE, seed: int = 0) -> Boxes:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 0.6
    corners = torch.cat((corner, corner + 0.1 + 0.3 * torch.rand(count, 2, generator=generator)), dim=1)
    height, width = size
    return Boxes(corners * torch.tensor([width, height, width, height]), torch.arange(count) % images, images, size)


def pair(n: int = 2, c: int = 16, h: int = 20, w: int = 20, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(n, c, h, w, generator=generator) for name in ("student", "teacher")}


def test_the_loss_is_the_sum_of_its_unequal_parts():
    loss, maps, boxes = DRD(16), pair(), random_boxes(5, 2)
    terms = loss.terms(**maps, boxes=boxes)
    assert terms.keys() == {"pixel", "instance"}
    assert terms["pixel"] > 0 and terms["instance"] > 0 and terms["pixel"] != terms["instance"]
    torch.testing.assert_close(loss(**maps, boxes=boxes), terms["pixel"] + terms["instance"])


@pytest.mark.parametrize("part", ["pixel", "instance"])
def test_each_part_pulls_at_the_student_through_the_total(part):
    loss, maps, boxes = DRD(16), pair(), random_boxes(5, 2)
    gradients = {}
    for name in ("total", "pixel", "instance"):
        student = maps["student"].clone().requires_grad_()
        terms = loss.terms(student=student, teacher=maps["teacher"], boxes=boxes)
        value = loss(student=student, teacher=maps["teacher"], boxes=boxes) if name == "total" else terms[name]
        value.backward()
        gradients[name] = student.grad
    assert gradients[part].abs().sum() > 0
    torch.testing.assert_close(gradients["total"], gradients["pixel"] + gradients["instance"])


@pytest.mark.parametrize("trained", [False, True])
def test_every_part_falls_to_zero_on_the_way_to_the_teacher(trained):
    loss, maps, boxes = DRD(16, trained=trained), pair(), random_boxes(6, 2)
    values = []
    for alpha in (0, 0.5, 0.9, 1):
        student = torch.lerp(maps["student"], maps["teacher"], alpha)
        values.append(loss.terms(student=student, teacher=maps["teacher"], boxes=boxes))
    for part in ("pixel", "instance"):
        a, b, c, d = (float(v[part]) for v in values)
        assert a > b > c > d
        assert d == pytest.approx(0, abs=1e-6)


def test_gradient_reaches_student_and_adapter_but_no_teacher():
    adapter = torch.nn.Conv2d(8, 16, 1, bias=False)
    student, teacher = torch.randn(2, 8, 10, 10, requires_grad=True), torch.randn(2, 16, 10, 10, requires_grad=True)
    DRD(16)(student=adapter(student), teacher=teacher, boxes=random_boxes(4, 2)).backward()
    assert student.grad.abs().sum() > 0 and adapter.weight.grad.abs().sum() > 0
    assert teacher.grad is None


def mean_loss(part: str, repeats: int = 4, count: int = 12, **shape: int) -> float:
    values = []
    for seed in range(repeats):
        torch.manual_seed(seed)
        loss, maps = DRD(shape.get("c", 16)), pair(**shape, seed=seed)
        values.append(loss.terms(**maps, boxes=random_boxes(count, len(maps["student"]), seed=seed))[part])
    return float(torch.stack(values).mean())


@pytest.mark.parametrize("part", ["pixel", "instance"])
@pytest.mark.parametrize("shape", [dict(c=64), dict(h=40, w=40), dict(n=8), dict(count=60)], ids=str)
def test_unrelated_features_give_one_value_at_any_size(part, shape):
    base, other = mean_loss(part), mean_loss(part, **shape)
    assert other == pytest.approx(base, rel=0.2)
    assert 1 < base < 2.1  # 2 (1 - correlation), and the reasoning shares some of what both say of any map


@pytest.mark.parametrize("who", ["student", "teacher"])
@pytest.mark.parametrize("factor", [1e-2, 300.0])
def test_scaling_or_shifting_features_changes_nothing(who, factor):
    loss, maps, boxes = DRD(16), pair(), random_boxes(5, 2)
    moved = {**maps, who: maps[who] * factor + factor * torch.randn(16).view(1, 16, 1, 1)}
    for part, value in loss.terms(**maps, boxes=boxes).items():
        assert float(loss.terms(**moved, boxes=boxes)[part]) == pytest.approx(float(value), rel=1e-3)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_half_precision_features_in_autocast_stay_finite(dtype, trained):
    maps = {name: (value * 300).to(dtype) for name, value in pair(h=40, w=40).items()}
    student = maps["student"].requires_grad_()
    with torch.autocast("cpu", dtype):
        value = DRD(16, trained=trained)(student=student, teacher=maps["teacher"], boxes=random_boxes(4, 2))
    value.backward()
    assert value.dtype == torch.float32 and value.isfinite() and student.grad.isfinite().all()


def test_without_a_box_instance_part_and_gradient_are_zero():
    loss, maps = DRD(16), pair()
    student = maps["student"].requires_grad_()
    terms = loss.terms(student=student, teacher=maps["teacher"], boxes=random_boxes(0, 2))
    assert terms["instance"] == 0 and terms["pixel"] > 0
    terms["instance"].backward(retain_graph=True)
    assert torch.equal(student.grad, torch.zeros_like(student))
    terms["pixel"].backward()
    assert student.grad.isfinite().all() and student.grad.any()


@pytest.mark.parametrize("trained", [False, True])
def test_a_level_of_two_pixels_without_a_box_stays_finite(trained):
    value = DRD(16, trained=trained)(**pair(n=1, h=1, w=2), boxes=random_boxes(0, 1))
    assert value.isfinite()


@pytest.mark.parametrize("trained", [False, True])
def test_a_single_pixel_in_a_batch_of_one_stays_finite(trained):
    """The last batch of an epoch may hold one image, and 32 pixels at stride 32 are one cell."""
    maps = pair(n=1, h=1, w=1)
    student = maps["student"].requires_grad_()
    DRD(16, trained=trained)(student=student, teacher=maps["teacher"], boxes=random_boxes(1, 1)).backward()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("count", [1, 2])
def test_one_instance_per_image_is_compared_by_what_it_is(count):
    loss, maps = DRD(16), pair()
    student = maps["student"].requires_grad_()
    value = loss.terms(student=student, teacher=maps["teacher"], boxes=random_boxes(count, 2))["instance"]
    value.backward()
    assert 0 < value < 4 and student.grad.isfinite().all() and student.grad.any()


def test_the_instance_part_feels_the_others_of_its_image():
    """Moving one instance's box changes what its neighbour relations, so relations take part and not only contents."""
    loss, maps, boxes = DRD(16), pair(), random_boxes(3, 1)
    apart = boxes._replace(image=torch.tensor([0, 0, 1]), images=2)
    together = boxes._replace(image=torch.tensor([0, 0, 0]), images=2)
    same = {name: value[:1].expand(2, -1, -1, -1) for name, value in maps.items()}  # the crops are equal either way
    values = [loss.terms(**same, boxes=b)["instance"] for b in (apart, together)]
    assert not torch.isclose(*values)


def reference_instance(loss: DRD, maps: dict[str, torch.Tensor], boxes: Boxes) -> torch.Tensor:
    """The formula with RoIAlign and one image at a time."""
    relations = []
    for features in maps.values():
        nodes = crops(loss.unit.states(reference.standardize(features)), boxes, CROP).flatten(2)
        for i in range(boxes.images):
            own = nodes[boxes.image == i]
            mixed = neighbours(own.unsqueeze(0), torch.ones(1, len(own)))[0]
            nodes = nodes.clone()
            nodes[boxes.image == i] = own + mixed
        relations.append(reference.standardize(loss.unit.reason(nodes)))
    return F.mse_loss(*relations)


def test_the_instance_part_is_its_formula_with_roi_align():
    loss, maps, boxes = DRD(16), pair(n=3), random_boxes(10, 3)
    with torch.no_grad():
        loss.unit.state_bias.normal_()
    maps["student"].requires_grad_()
    found = loss.terms(**maps, boxes=boxes)["instance"]
    expected = reference_instance(loss, maps, boxes)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    gradients = (torch.autograd.grad(value, maps["student"])[0] for value in (found, expected))
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-7)


def test_of_a_crowded_image_as_many_as_slots_are_compared():
    loss, maps, boxes = DRD(16), pair(n=4), random_boxes(1300, 4)
    kept = boxes._replace(xyxy=slots(boxes, INSTANCES)[0].xyxy, image=torch.arange(4).repeat_interleave(INSTANCES))
    values = [loss.terms(**maps, boxes=b)["instance"] for b in (boxes, kept)]
    assert torch.equal(*values) and values[0] > 0


def test_no_part_of_it_waits_for_the_device():
    loss, maps, boxes = DRD(16, trained=True), pair(), random_boxes(600, 2)
    student = maps["student"].requires_grad_()
    with NoHostSync():
        loss(student=student, teacher=maps["teacher"], boxes=boxes).backward()
    with pytest.raises(AssertionError), NoHostSync():
        student.grad[student.grad > 0].sum()  # the test can fail


def test_a_trained_unit_learns_by_its_objective_not_by_the_loss():
    loss, maps, boxes = DRD(16, trained=True), pair(), random_boxes(4, 2)
    student = maps["student"].requires_grad_()
    value = loss(student=student, teacher=maps["teacher"], boxes=boxes)
    torch.testing.assert_close(value, sum(loss.terms(**maps, boxes=boxes).values()))
    assert not list(DRD(16).parameters())
    value.backward()
    assert all(p.grad is None for p in loss.parameters()) and student.grad.any()
    loss.objective(maps["teacher"]).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loss.parameters())
