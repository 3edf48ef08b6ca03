"""Attention, masks and crops against slow references that go box by box and cell by cell."""

from __future__ import annotations

import math

import pytest
import torch

from tskd_yolo.losses import boxes as module
from tskd_yolo.losses.boxes import (
    Boxes,
    channel_attention,
    covered,
    crops,
    masks,
    slots,
    spatial_attention,
    standardise,
    windows,
)

SIZE = 96, 128  # (height, width) of the network's input in pixels


def make(xyxy: list, image: list, images: int, size: tuple[int, int] = SIZE) -> Boxes:
    return Boxes(torch.tensor(xyxy, dtype=torch.float32).reshape(-1, 4), torch.tensor(image).float(), images, size)


def random_boxes(count: int, images: int, seed: int) -> Boxes:
    """Boxes anywhere, a good part of them beyond the image; the last image has none."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(count, 2, generator=generator) * torch.tensor([SIZE[1], SIZE[0]]) * 1.2 - 10
    half = torch.rand(count, 2, generator=generator) * 30
    image = torch.randint(0, images - 1, (count,), generator=generator).float()
    return Boxes(torch.cat((centre - half, centre + half), dim=1), image, images, SIZE)


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


def test_the_smallest_of_overlapping_boxes_gives_the_weight_whatever_their_order():
    rows = [[0, 0, 120, 88], [40, 40, 52, 44], [32, 32, 80, 60]]
    weights = [masks(make([rows[i] for i in order], [0] * 3, 1), 12, 16) for order in ([0, 1, 2], [2, 1, 0])]
    assert torch.equal(*(w.foreground for w in weights))
    assert weights[0].foreground[0, 5, 5] == pytest.approx(1 / 6)  # columns 5 .. 7, rows 5 .. 6


def test_a_box_beyond_the_grid_covers_nothing_and_one_across_its_edge_what_is_inside():
    outside = masks(make([[500, 500, 600, 600], [-90, -90, -50, -50]], [0, 0], 1), 12, 16)
    assert not outside.foreground.any()
    across = masks(make([[-16, -16, 15, 15]], [0], 1), 12, 16).foreground[0]
    assert across[:3, :3].gt(0).all() and across.gt(0).sum() == 9
    assert across[0, 0] == pytest.approx(1 / 25)  # the weight of the whole box


def test_background_sums_to_one_per_image_and_to_zero_where_boxes_cover_everything():
    found = masks(make([[-10, -10, 200, 200], [8, 8, 20, 20]], [0, 1], 3), 12, 16)
    torch.testing.assert_close(found.background.sum(dim=(1, 2)), torch.tensor([0.0, 1.0, 1.0]))
    assert not found.foreground[2].any() and (found.background[2] == 1 / 192).all()


@pytest.mark.parametrize("grid", [(12, 16), (6, 4), (1, 1)])
def test_what_boxes_cover_of_each_cell_is_what_counting_pixels_gives(grid):
    boxes = random_boxes(9, 4, seed=1)
    boxes = boxes._replace(xyxy=boxes.xyxy.round())
    expected = torch.zeros(4, *grid)
    for corners, image in zip(boxes.xyxy.int().tolist(), boxes.image.int().tolist()):
        pixels = torch.zeros(1, 1, *SIZE)
        pixels[..., max(corners[1], 0) : max(corners[3], 0), max(corners[0], 0) : max(corners[2], 0)] = 1
        part = torch.nn.functional.adaptive_avg_pool2d(pixels, grid)[0, 0]
        expected[image] = torch.maximum(expected[image], part)
    found = covered(boxes, *grid)
    torch.testing.assert_close(found.foreground, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.background, 1 - expected, rtol=1e-4, atol=1e-5)


def test_a_defect_smaller_than_a_cell_is_felt_by_the_part_it_covers():
    found = covered(make([[64, 48, 68, 52]], [0], 1), 3, 4).foreground  # cells of 32 x 32 pixels
    assert found.count_nonzero() == 1 and float(found[0, 1, 2]) == pytest.approx(16 / 32**2)


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


def test_attention_of_a_constant_map_is_one_everywhere_and_an_active_cell_or_channel_gets_more():
    features = torch.ones(1, 4, 3, 3)
    torch.testing.assert_close(spatial_attention(features), torch.ones(1, 3, 3))
    torch.testing.assert_close(channel_attention(features), torch.ones(1, 4))
    features[0, 2, 1, 1] = -9  # activity is absolute
    spatial, channel = spatial_attention(features), channel_attention(features)
    assert spatial.argmax() == 4 and channel.argmax() == 2
    # mean |F| is 1 and 3 over channels; 1 and 17 / 9 over cells; temperature 0.5
    assert spatial[0, 1, 1] / spatial[0, 0, 0] == pytest.approx(math.exp(4), rel=1e-5)
    assert channel[0, 2] / channel[0, 0] == pytest.approx(math.exp(16 / 9), rel=1e-5)


@pytest.mark.parametrize("shape", [(4, 6, 5, 7), (5, 6, 9)])
def test_standardise_is_blind_to_the_offset_of_each_channel_and_to_the_scale_of_the_whole(shape):
    x = torch.randn(shape)
    offset = torch.randn(6).view(1, 6, *[1] * (len(shape) - 2)) * 10
    torch.testing.assert_close(standardise(x * 37 + offset), standardise(x), rtol=1e-4, atol=1e-4)
    assert standardise(x).mean(dim=[d for d in range(len(shape)) if d != 1]).abs().max() < 1e-5
    assert standardise(x).var(correction=0).item() == pytest.approx(0.99, abs=0.01)


def test_standardise_brings_channels_of_unlike_scale_to_about_one_variance():
    x = torch.randn(8, 3, 10, 10) * torch.tensor([1.0, 2.0, 4.0]).view(1, 3, 1, 1)
    variance = standardise(x).var(dim=(0, 2, 3), correction=0)
    assert (variance > 0.9).all() and (variance < 1).all()


def test_a_dead_channel_stays_zero_with_a_finite_gradient_and_a_nearly_dead_one_small():
    x = torch.randn(2, 3, 4, 4)
    x[:, 1] = 5.0
    x[:, 2] *= 1e-4
    x.requires_grad_()
    y = standardise(x)
    y.square().sum().backward()
    assert not y[:, 1].any() and y[:, 2].abs().max() < 0.01
    assert x.grad.isfinite().all()
    assert not standardise(torch.zeros(2, 3, 4, 4)).any()


def test_a_single_value_per_channel_standardises_to_zero():
    assert torch.equal(standardise(torch.randn(1, 4, 1, 1)), torch.zeros(1, 4, 1, 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_boxes_in_half_precision_give_float32_masks_of_the_same_cells(dtype):
    boxes = make([[8, 16, 40, 48], [64, 0, 128, 96]], [0, 1], 2)
    half = boxes._replace(xyxy=boxes.xyxy.to(dtype), image=boxes.image.to(dtype))
    for a, b in zip(masks(half, 12, 16), masks(boxes, 12, 16)):
        assert a.dtype == torch.float32 and torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_attention_and_standardise_of_half_precision_maps_are_finite(dtype):
    x = (torch.randn(2, 4, 5, 5) * 100).to(dtype)
    for answer in (spatial_attention(x), channel_attention(x), standardise(x.float())):
        assert answer.isfinite().all()


def test_crops_of_a_constant_map_are_constant_and_belong_to_their_image():
    features = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 2, 12, 16).contiguous()
    cut = crops(features, make([[8, 8, 40, 40], [60, 20, 90, 80], [0, 0, 30, 90]], [2, 0, 1], 3), 3)
    assert cut.shape == (3, 2, 3, 3)
    torch.testing.assert_close(cut, torch.tensor([2.0, 0.0, 1.0]).view(3, 1, 1, 1).expand(3, 2, 3, 3))


def test_crops_of_a_ramp_read_the_place_of_the_box():
    ramp = torch.arange(16.0).expand(1, 1, 12, 16).contiguous()
    cut = crops(ramp, make([[32, 16, 56, 40]], [0], 1), 2)  # columns 4 .. 8 (to 7 + 1, inclusive): x from 4 to 8
    torch.testing.assert_close(cut[0, 0, 0], torch.tensor([5.0, 7.0]))


@pytest.mark.parametrize("grid", [(12, 16), (3, 4), (1, 1)])
def test_windows_are_roi_align_as_a_matrix(grid):
    boxes = random_boxes(17, 4, seed=1)
    features = torch.randn(4, 5, *grid)
    weights = windows(boxes, *grid, 3)
    found = torch.einsum("kcp,kop->kco", features[boxes.image.long()].flatten(2), weights)
    torch.testing.assert_close(found.unflatten(2, (3, 3)), crops(features, boxes, 3), rtol=1e-4, atol=1e-5)


def test_slots_hold_every_box_of_an_image_that_has_no_more():
    boxes = make([[i, 0, i + 9, 9] for i in range(5)], [2, 0, 2, 2, 0], 4)  # in any order, and images without a box
    found, taken = slots(boxes, 3)
    assert taken.tolist() == [[1, 1, 0], [0, 0, 0], [1, 1, 1], [0, 0, 0]]
    assert found.image.tolist() == [i for i in range(4) for _ in range(3)] and found.size == boxes.size
    x1 = found.xyxy.view(4, 3, 4)[..., 0]
    assert x1[0, :2].tolist() == [1, 4] and x1[2].tolist() == [0, 2, 3]
    assert not found.xyxy.view(4, 3, 4)[taken == 0].any()


@pytest.mark.parametrize("count", [4, 9, 100, 1300])
def test_of_more_boxes_an_even_share_is_kept_and_no_random_number_is_used(count):
    before = torch.get_rng_state()
    boxes = make([[i, 0, i + 1, 1] for i in range(count)] + [[7, 7, 8, 8]], [0] * count + [1], 2, (9999, 9999))
    found, taken = slots(boxes, 4)
    assert torch.equal(before, torch.get_rng_state())
    assert taken.tolist() == [[1, 1, 1, 1], [1, 0, 0, 0]]
    kept = found.xyxy[:4, 0].tolist()
    assert kept == [-(-i * count // 4) for i in range(4)]
    assert found.xyxy[4].tolist() == [7, 7, 8, 8]


def test_without_any_box_all_slots_are_free():
    found, taken = slots(make([], [], 2), 3)
    assert found.xyxy.shape == (6, 4) and not taken.any()
