"""A teacher's outputs on the student's grid: what is at a place in the one image is at the same place in the other."""

from __future__ import annotations

import pytest
import torch

from tskd_yolo.distill.features import Level
from tskd_yolo.distill.resample import Grid, response, to_grid
from tskd_yolo.losses import Response

BOX = 18.0, 10.0, 42.0, 50.0
"""A defect in pixels of the student's image of 64 x 64."""


def said(stride: int, scale: float, confidence: torch.Tensor) -> Level:
    """A level of a teacher that sees :data:`BOX` from everywhere in an image ``scale`` times as large.

    Args:
        stride: In pixels of its image.
        scale: Size of its image over that of the student's.
        confidence: Logit of the first of two classes, ``(h, w)``; the other one's is 10 below.
    """
    height, width = confidence.shape
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    x1, y1, x2, y2 = (side * scale / stride for side in BOX)
    sides = torch.stack((x - x1, y - y1, x2 - x, y2 - y)).unsqueeze(0)
    scores = torch.stack((confidence, confidence - 10)).unsqueeze(0)
    towers = torch.rand(1, 3, height, width), torch.rand(1, 5, height, width)
    return Level(towers[0], scores, {"one2many": Response(sides, scores, *towers)})


def corners(found: Response, stride: int) -> torch.Tensor:
    """The boxes ``(4, h, w)`` in the student's pixels that a response on one of its levels means."""
    height, width = found.boxes.shape[2:]
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    left, top, right, bottom = found.boxes[0]
    return stride * torch.stack((x - left, y - top, x + right, y + bottom))


@pytest.mark.parametrize("scale", [1.0, 1.5, 1.75, 2.0, 4.0, 0.5])
@pytest.mark.parametrize("stride", [8, 16])
def test_a_box_is_where_it_was_whatever_the_sizes(scale, stride):
    theirs = {s: said(s, scale, torch.rand(round(64 * scale) // s, round(64 * scale) // s)) for s in (8, 16, 32)}
    grid = Grid(8, 8, 8)
    found = response("one2many", {s: theirs[s] for s in (8, stride)}, stride, grid, scale)
    assert found.boxes.shape == (1, 4, 8, 8) and found.scores.shape == (1, 2, 8, 8)
    torch.testing.assert_close(corners(found, 8), torch.tensor(BOX).view(4, 1, 1).expand(4, 8, 8), rtol=1e-4, atol=1e-3)
    assert found.box_features is theirs[stride].responses["one2many"].box_features


def test_a_distribution_comes_as_the_distance_that_it_means():
    plain, spread = said(8, 2.0, torch.zeros(16, 16)), said(8, 2.0, torch.zeros(16, 16))
    answer = plain.responses["one2many"]
    sides = answer.boxes.clamp(0, 14)
    low = sides.floor()
    mass = torch.zeros(1, 4, 16, 16, 16).scatter_(2, low.long().unsqueeze(2), (low + 1 - sides).unsqueeze(2))
    mass.scatter_(2, low.long().unsqueeze(2) + 1, (sides - low).unsqueeze(2))  # on the two bins beside the distance
    plain.responses["one2many"] = answer._replace(boxes=sides)
    spread.responses["one2many"] = answer._replace(boxes=mass.clamp(min=1e-30).log().flatten(1, 2))
    expected, found = (response("one2many", {8: level}, 8, Grid(8, 8, 8), 2.0) for level in (plain, spread))
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=1e-4, atol=1e-3)


def test_the_most_confident_cell_of_a_place_speaks():
    fine, coarse = torch.full((16, 16), -5.0), torch.full((8, 8), -5.0)
    fine[5, 9], coarse[1, 6] = 3.0, 2.0  # in the student's cells (2, 4) and (1, 6)
    levels = {8: said(8, 2.0, fine), 16: said(16, 2.0, coarse)}
    found = response("one2many", levels, 16, Grid(8, 8, 8), 2.0).scores[0, 0]
    expected = torch.full((8, 8), -5.0)
    expected[2, 4], expected[1, 6] = 3.0, 2.0
    assert torch.equal(found, expected)


@pytest.mark.parametrize("size", [(16, 16), (14, 14), (4, 4), (16, 12)])
def test_a_map_is_interpolated_by_position(size):
    height, width = size
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    found = to_grid(torch.stack((y, x)).unsqueeze(0), 8, 8)[0, :, 1:-1, 1:-1]  # not at the edge, where it is repeated
    ours = (torch.arange(8) + 0.5)[1:-1] / 8
    inside = (ours > 0.5 / min(size)) & (ours < 1 - 0.5 / min(size))
    expected = torch.stack(torch.meshgrid(ours, ours, indexing="ij"))
    torch.testing.assert_close(found[:, inside][:, :, inside], expected[:, inside][:, :, inside])


def test_a_map_that_fits_is_left_as_it_is():
    features = torch.rand(1, 2, 8, 8)
    assert to_grid(features, 8, 8) is features
