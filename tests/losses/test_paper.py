"""The release's forms: attention, masks and crops against slow references, and how the losses are put together."""

from __future__ import annotations

import math

import pytest
import torch

from tests.losses.test_boxes import make, random_boxes
from tests.losses.test_crd import Scene
from tests.losses.test_drd import pair
from tests.losses.test_drd import random_boxes as boxes_on
from tskd_yolo.losses import boxes as module
from tskd_yolo.losses import paper
from tskd_yolo.losses.boxes import Boxes, Masks
from tskd_yolo.losses.crd import overlap
from tskd_yolo.losses.paper import (
    PaperCRD,
    PaperDED,
    PaperDRD,
    channel_attention,
    crops,
    ded_terms,
    graph_unit,
    masks,
    spatial_attention,
)


def reference_masks(boxes: Boxes, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One box and one cell at a time."""
    foreground = torch.zeros(boxes.images, height, width)
    for corners, image in zip(boxes.xyxy.tolist(), boxes.image.tolist()):
        x1, x2 = math.floor(corners[0] * width / boxes.size[1]), math.ceil(corners[2] * width / boxes.size[1])
        y1, y2 = math.floor(corners[1] * height / boxes.size[0]), math.ceil(corners[3] * height / boxes.size[0])
        weight = 1 / ((x2 + 1 - x1) * (y2 + 1 - y1))
        for y in range(max(y1, 0), min(y2 + 1, height)):
            for x in range(max(x1, 0), min(x2 + 1, width)):
                foreground[int(image), y, x] = max(foreground[int(image), y, x].item(), weight)
    background = torch.zeros_like(foreground)
    for image in range(boxes.images):
        empty = foreground[image] == 0
        if empty.any():
            background[image][empty] = 1 / empty.sum()
    return foreground, background


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("grid", [(12, 16), (3, 4), (1, 1)])
def test_masks_are_what_a_loop_over_boxes_gives(grid, seed):
    boxes = random_boxes(17, 4, seed)
    foreground, background = reference_masks(boxes, *grid)
    found = masks(boxes, *grid)
    torch.testing.assert_close(found.foreground, foreground)
    torch.testing.assert_close(found.background, background)


def test_more_boxes_than_one_slice_give_the_same_masks(monkeypatch):
    boxes = random_boxes(23, 3, seed=9)
    whole = masks(boxes, 6, 8)
    for chunk in (1, 5 * 48, 22 * 48):  # one box at a time, slices that do not divide the boxes, one box left over
        monkeypatch.setattr(module, "_CHUNK", chunk)
        for a, b in zip(masks(boxes, 6, 8), whole):
            assert torch.equal(a, b)


def test_the_smallest_of_overlapping_boxes_gives_the_weight():
    rows = [[0, 0, 120, 88], [40, 40, 52, 44], [32, 32, 80, 60]]
    weights = [masks(make([rows[i] for i in order], [0] * 3, 1), 12, 16) for order in ([0, 1, 2], [2, 1, 0])]
    assert torch.equal(*(w.foreground for w in weights))
    assert weights[0].foreground[0, 5, 5] == pytest.approx(1 / 6)  # columns 5 .. 7, rows 5 .. 6


def test_a_box_covers_only_what_is_inside_the_grid():
    outside = masks(make([[500, 500, 600, 600], [-90, -90, -50, -50]], [0, 0], 1), 12, 16)
    assert not outside.foreground.any()
    across = masks(make([[-16, -16, 15, 15]], [0], 1), 12, 16).foreground[0]
    assert across[:3, :3].gt(0).all() and across.gt(0).sum() == 9
    assert across[0, 0] == pytest.approx(1 / 25)  # the weight of the whole box


def test_background_sums_to_one_or_zero_where_all_is_covered():
    found = masks(make([[-10, -10, 200, 200], [8, 8, 20, 20]], [0, 1], 3), 12, 16)
    torch.testing.assert_close(found.background.sum(dim=(1, 2)), torch.tensor([0.0, 1.0, 1.0]))
    assert not found.foreground[2].any() and (found.background[2] == 1 / 192).all()


def test_without_any_box_all_is_background_and_nothing_is_cut():
    boxes = make([], [], 2)
    found = masks(boxes, 3, 4)
    assert not found.foreground.any() and (found.background == 1 / 12).all()
    features = torch.randn(2, 5, 3, 4, requires_grad=True)
    cut = crops(features, boxes, 3)
    assert cut.shape == (0, 5, 3, 3)
    cut.sum().backward()
    assert not features.grad.any()


@pytest.mark.parametrize("scale", [0.01, 1.0, 300.0])
def test_both_attentions_have_mean_one_per_image(scale):
    features = torch.randn(3, 7, 5, 6) * scale
    torch.testing.assert_close(spatial_attention(features).mean(dim=(1, 2)), torch.ones(3))
    torch.testing.assert_close(channel_attention(features).mean(dim=1), torch.ones(3))


def test_attention_of_a_constant_map_is_one_more_where_active():
    features = torch.ones(1, 4, 3, 3)
    torch.testing.assert_close(spatial_attention(features), torch.ones(1, 3, 3))
    torch.testing.assert_close(channel_attention(features), torch.ones(1, 4))
    features[0, 2, 1, 1] = -9  # activity is absolute
    spatial, channel = spatial_attention(features), channel_attention(features)
    assert spatial.argmax() == 4 and channel.argmax() == 2
    # mean |F| is 1 and 3 over channels; 1 and 17 / 9 over cells; temperature 0.5
    assert spatial[0, 1, 1] / spatial[0, 0, 0] == pytest.approx(math.exp(4), rel=1e-5)
    assert channel[0, 2] / channel[0, 0] == pytest.approx(math.exp(16 / 9), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_boxes_in_half_precision_give_the_same_float32_masks(dtype):
    boxes = make([[8, 16, 40, 48], [64, 0, 128, 96]], [0, 1], 2)
    half = boxes._replace(xyxy=boxes.xyxy.to(dtype), image=boxes.image.to(dtype))
    for a, b in zip(masks(half, 12, 16), masks(boxes, 12, 16)):
        assert a.dtype == torch.float32 and torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_attention_of_half_precision_maps_is_finite(dtype):
    x = (torch.randn(2, 4, 5, 5) * 100).to(dtype)
    for attention in (spatial_attention(x), channel_attention(x)):
        assert attention.isfinite().all()


def test_crops_of_a_constant_map_are_those_of_their_image():
    features = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 2, 12, 16).contiguous()
    cut = crops(features, make([[8, 8, 40, 40], [60, 20, 90, 80], [0, 0, 30, 90]], [2, 0, 1], 3), 3)
    assert cut.shape == (3, 2, 3, 3)
    torch.testing.assert_close(cut, torch.tensor([2.0, 0.0, 1.0]).view(3, 1, 1, 1).expand(3, 2, 3, 3))


def test_crops_of_a_ramp_read_the_place_of_the_box():
    ramp = torch.arange(16.0).expand(1, 1, 12, 16).contiguous()
    cut = crops(ramp, make([[32, 16, 56, 40]], [0], 1), 2)  # columns 4 .. 8 (to 7 + 1, inclusive): x from 4 to 8
    torch.testing.assert_close(cut[0, 0, 0], torch.tensor([5.0, 7.0]))


def test_ded_is_its_sums_with_alpha():
    maps, boxes = pair(), boxes_on(5, 2)
    where = masks(boxes, 20, 20)
    terms = ded_terms(**maps, masks=where)
    assert float(PaperDED()(**maps, boxes=boxes)) == pytest.approx(5e-4 * float(sum(terms.values())), rel=1e-5)
    twice = ded_terms(
        **{k: torch.cat((v, v)) for k, v in maps.items()}, masks=Masks(*(torch.cat((m, m)) for m in where))
    )
    assert float(twice["background"]) == pytest.approx(float(terms["background"]), rel=1e-4)  # a mean over the batch


@pytest.mark.parametrize("count", [0, 1, 2])
def test_drd_has_no_instance_part_below_two_boxes(count):
    loss, maps = PaperDRD(16), pair()
    alone = float(loss(**maps, boxes=boxes_on(0, 2)))
    before = torch.get_rng_state()
    student = maps["student"].requires_grad_()
    value = loss(student=student, teacher=maps["teacher"], boxes=boxes_on(count, 2))
    assert torch.equal(before, torch.get_rng_state())
    value.backward()
    assert student.grad.isfinite().all() and student.grad.any()
    assert (value.item() > alone) if count >= 2 else (value.item() == alone)


@pytest.mark.parametrize("hidden", [True, False])
def test_crd_is_the_cross_response_over_the_number_of_positives(hidden):
    scene = Scene(hidden=hidden)
    loss = PaperCRD(scene.widths)
    terms = loss.terms(**scene.outputs(positives=torch.tensor(4)))
    assert tuple(terms) == ("cross_class", "cross_box")
    half = loss.terms(**scene.outputs(positives=torch.tensor(8)))
    assert all(float(terms[k]) == pytest.approx(2 * float(half[k])) for k in terms)
    none, one = (loss(**scene.outputs(positives=torch.tensor(k))) for k in (0, 1))
    assert torch.equal(none, one) and none.isfinite()


def test_instance_units_are_drawn_anew_for_every_batch_by_a_seed():
    maps, boxes = pair(), boxes_on(6, 2)
    values = []
    for seed in (1, 1, 2):
        loss = PaperDRD(16, seed)
        loss.unit = graph_unit(16, torch.Generator().manual_seed(0))
        before = torch.get_rng_state()
        values.append([float(loss(**maps, boxes=boxes)) for _ in range(3)])
        assert torch.equal(before, torch.get_rng_state())  # the run's random numbers are not touched
    assert len(set(values[0])) == 3 and values[0] == values[1] != values[2]


@pytest.mark.parametrize("bins", [1, 8])
def test_the_box_part_of_crd_is_the_overlap_on_every_head(bins):
    scene = Scene(bins=bins)
    loss = PaperCRD(scene.widths)
    teacher = loss.target(scene.teacher)
    confidence = teacher.scores.amax(dim=1).sigmoid().gather(1, teacher.place)
    _, boxes = loss.cross_response(scene.student, teacher, scene.tails)
    expected = ((1 - overlap(boxes, teacher.boxes)) * confidence).sum() / 4
    terms = loss.terms(**scene.outputs(positives=torch.tensor(4)))
    torch.testing.assert_close(terms["cross_box"], expected)


def test_the_divisor_of_crd_is_that_of_all_processes(monkeypatch):
    """Two processes with 3 and 5 positives: each divides by 4, so that their mean divides the sum by 8."""
    monkeypatch.setattr(paper, "processes", lambda: 2)
    monkeypatch.setattr(paper, "all_reduce_mean", lambda x: (x + 5) / 2)
    loss = PaperCRD([((4, 4), (4, 4))])
    assert loss.divisor(torch.ones(1, 2), torch.tensor(3)) == 4
