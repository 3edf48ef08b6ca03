"""DRD: what its two parts feel, what they do not feel, and what happens where there is nothing to compare."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tests.losses import reference
from tskd_yolo.losses.boxes import Boxes, slots
from tskd_yolo.losses.drd import DRD, INSTANCES, edge_error
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
    loss, maps, boxes = DRD(), pair(), random_boxes(5, 2)
    terms = loss.terms(**maps, boxes=boxes)
    assert terms.keys() == {"pixel", "instance"}
    assert terms["pixel"] > 0 and terms["instance"] > 0 and terms["pixel"] != terms["instance"]
    torch.testing.assert_close(loss(**maps, boxes=boxes), terms["pixel"] + terms["instance"])


@pytest.mark.parametrize("part", ["pixel", "instance"])
def test_each_part_pulls_at_the_student_through_the_total(part):
    loss, maps, boxes = DRD(), pair(), random_boxes(5, 2)
    gradients = {}
    for name in ("total", "pixel", "instance"):
        student = maps["student"].clone().requires_grad_()
        terms = loss.terms(student=student, teacher=maps["teacher"], boxes=boxes)
        value = loss(student=student, teacher=maps["teacher"], boxes=boxes) if name == "total" else terms[name]
        value.backward()
        gradients[name] = student.grad
    assert gradients[part].abs().sum() > 0
    torch.testing.assert_close(gradients["total"], gradients["pixel"] + gradients["instance"])


def test_every_part_falls_to_zero_on_the_way_to_the_teacher():
    loss, maps, boxes = DRD(), pair(), random_boxes(6, 2)
    values = []
    for alpha in (0, 0.5, 0.9, 1):
        student = torch.lerp(maps["student"], maps["teacher"], alpha)
        values.append(loss.terms(student=student, teacher=maps["teacher"], boxes=boxes))
    for part in ("pixel", "instance"):
        a, b, c, d = (float(v[part]) for v in values)
        assert a > b > c > d
        assert d == pytest.approx(0, abs=1e-6)


def test_reordered_or_turned_channels_are_the_same_relation():
    maps, boxes = pair(c=8, n=6), random_boxes(9, 6)
    cells = reference.standardize(maps["teacher"])
    turned = torch.einsum("dc,nchw->ndhw", torch.linalg.qr(torch.randn(12, 12))[0][:, :8], cells)
    for student in (maps["teacher"].flip(1), turned * 1.0):
        terms = DRD().terms(student=student, teacher=maps["teacher"], boxes=boxes)
        assert all(float(value) < 0.1 for value in terms.values()), terms  # channels of a turned map are scaled anew


def test_gradient_reaches_a_student_of_any_width_and_no_teacher():
    student, teacher = torch.randn(2, 8, 10, 10, requires_grad=True), torch.randn(2, 16, 10, 10, requires_grad=True)
    DRD()(student=student, teacher=teacher, boxes=random_boxes(4, 2)).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


def mean_loss(part: str, repeats: int = 4, count: int = 24, **shape: int) -> float:
    values = []
    for seed in range(repeats):
        maps = pair(**shape, seed=seed)
        values.append(DRD().terms(**maps, boxes=random_boxes(count, len(maps["student"]), seed=seed))[part])
    return float(torch.stack(values).mean())


@pytest.mark.parametrize("shape", [{}, dict(c=64), dict(h=40, w=24), dict(n=8)], ids=str)
def test_unrelated_features_give_two_at_any_size(shape):
    assert mean_loss("pixel", **shape) == pytest.approx(2, rel=0.1)
    torch.manual_seed(0)
    own = [torch.randn(40, 12) for _ in range(2)]
    edges = [F.cosine_similarity(x[:, None], x[None], dim=2) for x in own]
    value = edge_error(student=edges[0], teacher=edges[1], weight=1 - torch.eye(40))
    assert float(value) == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("who", ["student", "teacher"])
@pytest.mark.parametrize("factor", [1e-2, 300.0])
def test_scaling_or_shifting_features_changes_nothing(who, factor):
    loss, maps, boxes = DRD(), pair(), random_boxes(5, 2)
    moved = {**maps, who: maps[who] * factor + factor * torch.randn(16).view(1, 16, 1, 1)}
    for part, value in loss.terms(**maps, boxes=boxes).items():
        assert float(loss.terms(**moved, boxes=boxes)[part]) == pytest.approx(float(value), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_half_precision_features_in_autocast_stay_finite(dtype):
    maps = {name: (value * 300).to(dtype) for name, value in pair(h=40, w=40).items()}
    student = maps["student"].requires_grad_()
    with torch.autocast("cpu", dtype):
        value = DRD()(student=student, teacher=maps["teacher"], boxes=random_boxes(4, 2))
    value.backward()
    assert value.dtype == torch.float32 and value.isfinite() and student.grad.isfinite().all()


@pytest.mark.parametrize("count", [0, 1])
def test_without_two_boxes_instance_part_and_gradient_are_zero(count):
    loss, maps = DRD(), pair()
    student = maps["student"].requires_grad_()
    terms = loss.terms(student=student, teacher=maps["teacher"], boxes=random_boxes(count, 2))
    assert terms["instance"] == 0 and terms["pixel"] > 0
    terms["instance"].backward(retain_graph=True)
    assert torch.equal(student.grad, torch.zeros_like(student))
    terms["pixel"].backward()
    assert student.grad.isfinite().all() and student.grad.any()


@pytest.mark.parametrize("shape", [dict(h=1, w=2), dict(h=1, w=1)], ids=str)
def test_a_level_of_a_cell_or_two_stays_finite(shape):
    """The last batch of an epoch may hold one image, and 32 pixels at stride 32 are one cell."""
    maps = pair(n=1, **shape)
    student = maps["student"].requires_grad_()
    value = DRD()(student=student, teacher=maps["teacher"], boxes=random_boxes(1, 1))
    value.backward()
    assert value.isfinite() and student.grad.isfinite().all()


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_a_map_that_says_nothing_stays_finite(who):
    maps = pair()
    maps[who] = torch.full_like(maps[who], 3.0)
    student = maps["student"].requires_grad_()
    value = DRD()(student=student, teacher=maps["teacher"], boxes=random_boxes(4, 2))
    value.backward()
    assert value.isfinite() and student.grad.isfinite().all()


def test_instances_of_different_images_are_related_too():
    maps, boxes = pair(n=4), random_boxes(4, 4)  # one of each image
    student = maps["student"].requires_grad_()
    value = DRD().terms(student=student, teacher=maps["teacher"], boxes=boxes)["instance"]
    value.backward()
    assert 0 < value < 4 and student.grad.flatten(1).any(dim=1).all()


def reference_error(edges: list[torch.Tensor]) -> torch.Tensor:
    """The formula over a list of edges."""
    normed = [(e - e.mean()) * (e.var(correction=0) + 1e-4).rsqrt() for e in edges]
    return F.mse_loss(*normed)


def reference_terms(maps: dict[str, torch.Tensor], boxes: Boxes) -> dict[str, torch.Tensor]:
    """The formula, one edge at a time."""
    pixel, instance = [], []
    for features in map(reference.standardize, maps.values()):
        rows = [features[:, :, y : y + 3, x : x + 3].mean(dim=(2, 3)) for y in range(0, 20, 3) for x in range(0, 20, 3)]
        regions, count = torch.stack(rows, dim=2), range(len(rows))  # (N, C, R): 3 x 3 cells, fewer at two edges
        pairs = [(image, i, j) for image in regions for i in count for j in count if i != j]
        pixel.append(torch.stack([F.cosine_similarity(x[:, i], x[:, j], dim=0) for x, i, j in pairs]))
        nodes = crops(features, boxes, 1).flatten(1)
        count = range(len(nodes))
        edges = [F.cosine_similarity(nodes[i], nodes[j], dim=0) for i in count for j in count if i != j]
        instance.append(torch.stack(edges))
    return {"pixel": reference_error(pixel), "instance": reference_error(instance)}


@pytest.mark.parametrize("part", ["pixel", "instance"])
def test_each_part_is_its_formula(part):
    maps, boxes = pair(n=3, c=6), random_boxes(10, 3)
    maps["student"].requires_grad_()
    found, expected = DRD().terms(**maps, boxes=boxes)[part], reference_terms(maps, boxes)[part]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    gradients = (torch.autograd.grad(value, maps["student"])[0] for value in (found, expected))
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-7)


def test_an_edge_has_the_product_of_its_ends_weights():
    maps, boxes = pair(n=4), random_boxes(8, 4)
    weight = torch.tensor([1.0, 1, 1, 1, 0.5, 0.25, 0, 1])
    found = DRD().terms(**maps, boxes=boxes._replace(weight=weight, annotated=4))["instance"]
    owner = boxes.image.argsort(stable=True)
    edges = []
    for features in map(reference.standardize, maps.values()):
        nodes = crops(features, boxes, 1).flatten(1)[owner]
        edges.append(F.cosine_similarity(nodes[:, None], nodes[None], dim=2))
    ends = weight[owner].outer(weight[owner]) * (1 - torch.eye(8))
    torch.testing.assert_close(found, edge_error(student=edges[0], teacher=edges[1], weight=ends), rtol=1e-4, atol=1e-6)


def test_of_a_crowded_image_as_many_as_slots_are_compared():
    loss, maps, boxes = DRD(), pair(n=4), random_boxes(1300, 4)
    kept = boxes._replace(xyxy=slots(boxes, INSTANCES)[0].xyxy, image=torch.arange(4).repeat_interleave(INSTANCES))
    values = [loss.terms(**maps, boxes=b)["instance"] for b in (boxes, kept)]
    assert torch.equal(*values) and values[0] > 0


def test_no_part_of_it_waits_for_the_device():
    loss, maps, boxes = DRD(), pair(), random_boxes(600, 2)
    student = maps["student"].requires_grad_()
    with NoHostSync():
        loss(student=student, teacher=maps["teacher"], boxes=boxes).backward()
    with pytest.raises(AssertionError), NoHostSync():
        student.grad[student.grad > 0].sum()  # the test can fail
