"""What boxes cover, slots and windows against slow references that go box by box and cell by cell."""

from __future__ import annotations

import math

import pytest
import torch

from tskd_yolo.losses.boxes import Boxes, covered, slots, windows
from tskd_yolo.losses.paper import crops
from tskd_yolo.rounding import ceil_div

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


@pytest.mark.parametrize("grid", [(12, 16), (6, 4), (1, 1)])
def test_what_boxes_cover_of_a_cell_is_its_count_of_pixels(grid):
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


@pytest.mark.parametrize("grid", [(12, 16), (3, 5), (1, 1)])
def test_what_is_covered_of_sampled_cells_is_that_of_these_cells(grid):
    boxes = random_boxes(17, 4, seed=3)
    for step in (1, 2, 3):
        for sampled, whole in zip(covered(boxes, *grid, step), covered(boxes, *grid)):
            assert torch.equal(sampled, whole[:, ::step, ::step])


def test_a_defect_smaller_than_a_cell_counts_by_its_part():
    found = covered(make([[64, 48, 68, 52]], [0], 1), 3, 4).foreground  # cells of 32 x 32 pixels
    assert found.count_nonzero() == 1 and float(found[0, 1, 2]) == pytest.approx(16 / 32**2)


@pytest.mark.parametrize("grid", [(12, 16), (3, 4), (1, 1)])
def test_windows_are_roi_align_as_a_matrix(grid):
    boxes = random_boxes(17, 4, seed=1)
    features = torch.randn(4, 5, *grid)
    weights = windows(boxes, *grid, 3)
    found = torch.einsum("kcp,kop->kco", features[boxes.image.long()].flatten(2), weights)
    torch.testing.assert_close(found.unflatten(2, (3, 3)), crops(features, boxes, 3), rtol=1e-4, atol=1e-5)


def test_slots_hold_every_box_of_an_image_that_has_no_more():
    boxes = make([[i, 0, i + 9, 9] for i in range(5)], [2, 0, 2, 2, 0], 4)  # in any order, and images without a box
    found, valid = slots(boxes, 3)
    assert valid.tolist() == [[1, 1, 0], [0, 0, 0], [1, 1, 1], [0, 0, 0]]
    assert found.image.tolist() == [i for i in range(4) for _ in range(3)] and found.size == boxes.size
    x1 = found.xyxy.view(4, 3, 4)[..., 0]
    assert x1[0, :2].tolist() == [1, 4] and x1[2].tolist() == [0, 2, 3]
    assert not found.xyxy.view(4, 3, 4)[valid == 0].any()


@pytest.mark.parametrize("count", [4, 9, 100, 1300])
def test_of_more_boxes_an_even_share_is_kept_without_chance(count):
    before = torch.get_rng_state()
    boxes = make([[i, 0, i + 1, 1] for i in range(count)] + [[7, 7, 8, 8]], [0] * count + [1], 2, (9999, 9999))
    found, valid = slots(boxes, 4)
    assert torch.equal(before, torch.get_rng_state())
    assert valid.tolist() == [[1, 1, 1, 1], [1, 0, 0, 0]]
    kept = found.xyxy[:4, 0].tolist()
    assert kept == [ceil_div(i * count, 4) for i in range(4)]
    assert found.xyxy[4].tolist() == [7, 7, 8, 8]


def test_without_any_box_all_slots_are_free():
    found, valid = slots(make([], [], 2), 3)
    assert found.xyxy.shape == (6, 4) and not valid.any()


# Rotated boxes --------------------------------------------------------------------------------------------------------


def rotated(boxes: Boxes, rows: list[list[float]]) -> Boxes:
    """The same boxes as rotated ones: centre, width, height, angle in radians."""
    return boxes._replace(rotated=torch.tensor(rows))


@pytest.mark.parametrize("grid", [(12, 16), (3, 5)])
@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_at_right_angles_a_rotated_box_covers_as_an_upright(grid, quarters):
    upright, turns = random_boxes(17, 4, seed=3), torch.full((17, 1), quarters * math.pi / 2)
    low, high = upright.xyxy.split(2, dim=1)
    sides = (high - low).flip(1) if quarters % 2 else high - low
    boxes = upright._replace(rotated=torch.cat(((low + high) / 2, sides, turns), dim=1))
    for step in (1, 2):
        expected, found = covered(upright, *grid, step), covered(boxes, *grid, step)
        torch.testing.assert_close(found.foreground, expected.foreground, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found.background, expected.background, rtol=1e-3, atol=1e-4)


def inside(x: torch.Tensor, y: torch.Tensor, row: list[float]) -> torch.Tensor:
    """Whether points lie in a rotated box."""
    dx, dy, cos, sin = x - row[0], y - row[1], math.cos(row[4]), math.sin(row[4])
    return ((dx * cos + dy * sin).abs() <= row[2] / 2) & ((dy * cos - dx * sin).abs() <= row[3] / 2)


@pytest.mark.parametrize("angle", [0.3, math.pi / 4, 2.0])
def test_a_rotated_box_covers_the_cells_that_it_lies_on(angle):
    row = [60.0, 50.0, 70.0, 20.0, angle]
    found = covered(rotated(make([[0, 0, 1, 1]], [0], 1), [row]), 24, 32).foreground[0]  # cells of 4 x 4 pixels
    y, x = torch.meshgrid(torch.arange(0, 96.1, 0.25), torch.arange(0, 128.1, 0.25), indexing="ij")
    points = inside(x, y, row).float()
    corners = points[::16, ::16]
    whole = corners[1:, 1:] * corners[:-1, 1:] * corners[1:, :-1] * corners[:-1, :-1] == 1
    part = torch.nn.functional.avg_pool2d(points[None, None, :-1, :-1], 16)[0, 0]
    assert whole.sum() > 20 and (found[whole] > 1 - 1e-5).all() and (found[part > 0] > 0).all()
    assert (found - part).abs().max() < 0.3 and abs(float(found.sum() / part.sum()) - 1) < 0.1
    assert found[part == 0].max() < 0.2, "the upright box that encloses it is mostly background"


def test_a_thin_scratch_between_the_middles_of_cells_is_felt():
    for shift in torch.linspace(0, 8, 33).tolist():
        row = [40 + shift, 40.0, 0.5, 0.5, math.pi / 4]
        assert covered(rotated(make([[0, 0, 1, 1]], [0], 1), [row]), 12, 16).foreground.max() > 0


@pytest.mark.parametrize("angle", [0.0, 0.3, -1.0, 2.5])
def test_windows_of_a_rotated_box_are_taken_along_its_own_axes(angle):
    centre, sides = torch.tensor([64.0, 48.0]), torch.tensor([40.0, 16.0])
    boxes = rotated(make([[0, 0, 1, 1]], [0], 1), [[*centre.tolist(), *sides.tolist(), angle]])
    y, x = torch.meshgrid((torch.arange(24) + 0.5) * 4, (torch.arange(32) + 0.5) * 4, indexing="ij")
    found = windows(boxes, 24, 32, 2)[0] @ torch.stack((x, y), dim=2).flatten(0, 1)  # where each value is from
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    parts = torch.tensor([[-1.0, -1], [1, -1], [-1, 1], [1, 1]]) / 4  # of the sides, row by row
    torch.testing.assert_close(found, centre + (parts * sides) @ turn, rtol=1e-4, atol=1e-3)


def test_a_slot_holds_a_rotated_box_with_its_angle():
    boxes = make([[i, 0, i + 9, 9] for i in range(3)], [1, 0, 1], 2)
    found, valid = slots(rotated(boxes, [[i, 0, 9, 9, i / 10] for i in range(3)]), 2)
    assert valid.tolist() == [[1, 0], [1, 1]]
    torch.testing.assert_close(found.rotated[:, 4], torch.tensor([0.1, 0, 0, 0.2]))
    assert torch.equal(found.rotated[:, 0], found.xyxy[:, 0]) and slots(boxes, 2)[0].rotated is None
