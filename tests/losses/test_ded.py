"""DED: foreground, background and structure, each felt on its own."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tests.losses import reference
from tests.losses.test_drd import SIZE, NoHostSync, pair, random_boxes
from tskd_yolo.losses.boxes import Boxes, Masks, covered
from tskd_yolo.losses.ded import CHANNELS, DED, WINDOW_STEP, _band, _blur, _Compared, compared, ssim
from tskd_yolo.losses.paper import masks
from tskd_yolo.losses.standardize import standardize
from tskd_yolo.rounding import ceil_div

PARTS = "foreground", "background", "structure"


def regions(count: int = 5, images: int = 2, grid: tuple[int, int] = (20, 20), seed: int = 0) -> Masks:
    return masks(random_boxes(count, images, seed=seed), *grid)


def total(*, masks: Masks, **maps: torch.Tensor) -> torch.Tensor:
    return torch.stack(list(DED().terms(**maps, masks=masks).values())).sum()


def test_the_loss_is_the_sum_of_its_unequal_parts():
    maps, boxes = pair(), random_boxes(5, 2)
    where = covered(boxes, 20, 20)
    terms = DED().terms(**maps, masks=where)
    assert tuple(terms) == PARTS
    assert len({round(float(value), 4) for value in terms.values()}) == 3 and all(v > 0 for v in terms.values())
    torch.testing.assert_close(DED()(**maps, boxes=boxes), sum(terms.values()))


def reference_terms(student: torch.Tensor, teacher: torch.Tensor, where: Masks) -> dict[str, float]:
    """The formula of the docstring, cell by cell."""
    s, t = reference.standardize(student), reference.standardize(teacher)
    found, roots = {}, [math.sqrt(float(mask.sum())) for mask in where]
    for name, mask in zip(("foreground", "background"), where):
        total = 0.0
        for n in range(len(t)):
            for y in range(t.shape[2]):
                for x in range(t.shape[3]):
                    total += float(mask[n, y, x] * ((s[n, :, y, x] - t[n, :, y, x]) ** 2).mean())
        found[name] = 2 * math.sqrt(float(mask.sum())) / sum(roots) * total / float(mask.sum())
    return found


def test_foreground_and_background_are_the_formula_cell_by_cell():
    maps, where = pair(c=4, h=5, w=6), regions(grid=(5, 6), count=2)
    terms = DED().terms(**maps, masks=where)
    for name, value in reference_terms(maps["student"], maps["teacher"], where).items():
        assert float(terms[name]) == pytest.approx(value, rel=1e-4)


def test_an_error_inside_a_box_is_foreground_outside_background():
    where = masks(Boxes(torch.tensor([[40.0, 40, 79, 79]]), torch.tensor([0]), 1, SIZE), 20, 20)
    teacher = pair(n=1)["teacher"]
    inside = where.foreground.gt(0).unsqueeze(1)
    for own, other, region in (("foreground", "background", inside), ("background", "foreground", ~inside)):
        noise = torch.randn_like(teacher) * region
        terms = DED().terms(student=teacher + noise, teacher=teacher, masks=where)
        assert terms[own] > 5 * terms[other]


@pytest.mark.parametrize("part", PARTS)
def test_each_part_pulls_at_the_student_through_the_total(part):
    maps, where = pair(), regions()
    gradients = {}
    for name in ("total", *PARTS):
        student = maps["student"].clone().requires_grad_()
        terms = DED().terms(student=student, teacher=maps["teacher"], masks=where)
        (total(student=student, teacher=maps["teacher"], masks=where) if name == "total" else terms[name]).backward()
        gradients[name] = student.grad
    assert gradients[part].abs().sum() > 0
    torch.testing.assert_close(gradients["total"], sum(gradients[p] for p in PARTS))


def test_every_part_falls_to_zero_on_the_way_to_the_teacher():
    maps, where = pair(), regions()
    values = []
    for alpha in (0, 0.5, 0.9, 1):
        student = torch.lerp(maps["student"], maps["teacher"], alpha)
        values.append(DED().terms(student=student, teacher=maps["teacher"], masks=where))
    for part in PARTS:
        a, b, c, d = (float(v[part]) for v in values)
        assert a > b > c > d
        assert d == pytest.approx(0, abs=1e-6)


def test_gradient_reaches_student_and_adapter_but_no_teacher():
    adapter = torch.nn.Conv2d(8, 16, 1, bias=False)
    student, teacher = torch.randn(2, 8, 20, 20, requires_grad=True), torch.randn(2, 16, 20, 20, requires_grad=True)
    total(student=adapter(student), teacher=teacher, masks=regions()).backward()
    assert student.grad.abs().sum() > 0 and adapter.weight.grad.abs().sum() > 0
    assert teacher.grad is None


def mean_loss(repeats: int = 3, count: int = 12, **shape: int) -> dict[str, float]:
    values = []
    for seed in range(repeats):
        maps = pair(**shape, seed=seed)
        values.append(DED().terms(**maps, masks=regions(count, len(maps["student"]), maps["student"].shape[2:], seed)))
    return {part: float(torch.stack([v[part] for v in values]).mean()) for part in PARTS}


@pytest.mark.parametrize("shape", [dict(c=64), dict(h=40, w=40), dict(n=8), dict(count=40)], ids=str)
def test_unrelated_features_give_one_value_at_any_size(shape):
    base, other = mean_loss(), mean_loss(**shape)
    for found in (base, other):
        assert found["foreground"] + found["background"] == pytest.approx(4, rel=0.05)
    for part in PARTS if {"c", "h"} & set(shape) else PARTS[2:]:  # more boxes in an image are more foreground
        assert other[part] == pytest.approx(base[part], rel=0.1)


@pytest.mark.parametrize("side", [12.0, 30.0, 70.0])
def test_both_regions_pull_alike_whatever_their_area(side):
    """Boxes of 2, 14 and 77 % of the image: norms of their gradients on the standardised map, which ten times apart in
    area would be three times apart.
    """
    corners = torch.tensor([[4.0, 4.0, 4 + side, 4 + side]])
    where = covered(Boxes(corners, torch.tensor([0]), 1, (80, 80)), 40, 40)
    maps = pair(n=1, c=32, h=40, w=40)
    student = standardize(maps["student"])
    student = student._replace(cells=student.cells.requires_grad_())
    terms = DED().terms(student=student, teacher=maps["teacher"], masks=where)
    norms = [torch.autograd.grad(terms[part], student.cells, retain_graph=True)[0].norm() for part in PARTS[:2]]
    assert float(norms[0] / norms[1]) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("factor", [1e-2, 300.0])
def test_scaling_or_shifting_student_features_changes_nothing(factor):
    maps, where = pair(), regions()
    moved = maps["student"] * factor + factor * torch.randn(16).view(1, 16, 1, 1)
    before, after = (DED().terms(student=s, teacher=maps["teacher"], masks=where) for s in (maps["student"], moved))
    for part in PARTS:
        assert float(after[part]) == pytest.approx(float(before[part]), rel=1e-3)


@pytest.mark.parametrize("factor", [0.01, 100.0])
def test_scaling_the_teachers_features_changes_nothing(factor):
    maps, where = pair(), regions()
    before = DED().terms(**maps, masks=where)
    after = DED().terms(student=maps["student"], teacher=maps["teacher"] * factor, masks=where)
    for part in PARTS:
        assert float(after[part]) == pytest.approx(float(before[part]), rel=1e-3)


def test_the_structural_prior_tells_opposite_maps_from_like_ones():
    maps, where = pair(), regions()
    smooth = torch.nn.functional.avg_pool2d(maps["teacher"], 5, 1, 2)
    opposite, unrelated, same = (
        float(DED().terms(student=s, teacher=smooth, masks=where)["structure"])
        for s in (-smooth, torch.nn.functional.avg_pool2d(maps["student"], 5, 1, 2), smooth)
    )
    assert opposite > unrelated > same == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_half_precision_features_in_autocast_stay_finite(dtype):
    maps = {name: (value * 300).to(dtype) for name, value in pair().items()}
    student = maps["student"].requires_grad_()
    with torch.autocast("cpu", dtype):
        value = total(student=student, teacher=maps["teacher"], masks=regions())
    value.backward()
    assert value.dtype == torch.float32 and value.isfinite() and student.grad.isfinite().all()


def test_without_a_box_the_foreground_and_its_gradient_are_zero():
    maps = pair()
    student = maps["student"].requires_grad_()
    terms = DED().terms(student=student, teacher=maps["teacher"], masks=regions(count=0))
    assert terms["foreground"] == 0 and terms["background"] > 0 and terms["structure"] > 0
    terms["foreground"].backward(retain_graph=True)
    assert torch.equal(student.grad, torch.zeros_like(student))
    sum(terms.values()).backward()
    assert student.grad.isfinite().all() and student.grad.any()


@pytest.mark.parametrize("step", [1, 2])
def test_a_defect_of_one_cell_is_foreground_of_that_cell(step):
    """At every position, also where the maps are read at every second cell only: 4 px cells of a 16 px image."""
    side, pixels = 4, 4
    teacher = standardize(torch.randn(1, 4, side, side), spatial_step=step)
    for y in range(0, side, step):
        for x in range(0, side, step):
            corners = torch.tensor([[x, y, x + 1, y + 1]]) * float(pixels)
            boxes = Boxes(corners, torch.zeros(1), 1, (side * pixels, side * pixels))
            for there in range(teacher.cells.shape[1]):
                off = torch.zeros_like(teacher.cells)
                off[0, there] = 1
                student = teacher._replace(cells=teacher.cells + off)
                error = DED()(student=student, teacher=teacher, boxes=boxes)
                same = DED().terms(student=student, teacher=teacher, masks=covered(boxes, side, side, step))
                assert error == torch.stack(list(same.values())).sum()
                hit = there == (y // step) * (side // step) + x // step
                assert (same["foreground"] > 0) == hit and (same["background"] > 0) == (not hit)


def test_without_background_that_part_is_exactly_zero():
    where = masks(Boxes(torch.tensor([[-9.0, -9, 400, 400]] * 2), torch.tensor([0, 1]), 2, SIZE), 20, 20)
    terms = DED().terms(**pair(), masks=where)
    assert terms["background"] == 0 and terms["foreground"] > 0


def test_a_level_of_a_single_pixel_stays_finite():
    maps = pair(n=1, h=1, w=1)
    student = maps["student"].requires_grad_()
    total(student=student, teacher=maps["teacher"], masks=regions(1, 1, (1, 1))).backward()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("channels", [5, 40])
def test_the_compared_has_the_gradient_that_differences_give(channels):
    cells, teacher = (torch.randn(2, 3, channels, dtype=torch.float64) for _ in "ab")
    assert torch.autograd.gradcheck(_Compared.apply, (cells.requires_grad_(), teacher))


def test_the_compared_is_the_error_and_evenly_spaced_channels():
    student, teacher = (standardize(torch.randn(2, 3 * CHANNELS, 4, 6)) for _ in "ab")
    maps = [m.image(m.cells) for m in (student, teacher)]
    error, chosen = compared(student=student, teacher=teacher)
    torch.testing.assert_close(error, (maps[0] - maps[1]).square().mean(dim=1))
    assert torch.equal(chosen, maps[0][:, ::3])


# Structure ------------------------------------------------------------------------------------------------------------


def reference_ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """An explicit 11x11 window in a depthwise convolution with zero padding."""
    line = torch.tensor([math.exp(-((i - 5) ** 2) / (2 * 1.5**2)) for i in range(11)], dtype=a.dtype)
    line = line / line.sum()
    window = (line[:, None] * line[None, :]).expand(a.shape[1], 1, 11, 11)

    def blur(x):
        return F.conv2d(x, window, padding=5, groups=a.shape[1])

    ma, mb = blur(a), blur(b)
    va, vb, cov = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    return ((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean()


@pytest.mark.parametrize("grid", [(20, 26), (11, 11), (4, 3), (1, 1)])
def test_ssim_is_what_an_explicit_window_gives(grid):
    a, b = torch.randn(2, 3, *grid, dtype=torch.float64), torch.randn(2, 3, *grid, dtype=torch.float64)
    b = 0.7 * a + 0.3 * b
    torch.testing.assert_close(ssim(a, b), reference_ssim(a, b), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("step", [2, 3])
def test_windows_apart_are_those_of_the_dense_grid_at_a_stride(step):
    a = torch.randn(1, 1, 13, 17, dtype=torch.float64)
    bands = [_band(size, a) for size in a.shape[2:]]
    dense = _blur(a, bands).view(-1, 13)
    apart = _blur(a, [band[:, ::step] for band in bands]).view(-1, ceil_div(13, step))
    torch.testing.assert_close(apart, dense[::step, ::step])


def test_the_structural_prior_reads_evenly_spaced_channels():
    c = 3 * CHANNELS
    maps, where = pair(c=c), regions()
    s, t = (reference.standardize(m)[:, ::3] for m in (maps["student"], maps["teacher"]))
    expected = (1 - ssim(s, t, luminance=False, step=WINDOW_STEP)) / 2
    torch.testing.assert_close(DED().terms(**maps, masks=where)["structure"], expected, rtol=1e-4, atol=1e-6)


def test_ssim_is_one_for_equals_and_negative_for_inverses():
    a, b = torch.randn(2, 3, 20, 20), torch.randn(2, 3, 20, 20)
    assert float(ssim(a, a)) == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(ssim(a, b), ssim(b, a))
    assert ssim(5 + a, 5 - a) < 0


def test_no_part_of_it_waits_for_the_device():
    maps, boxes = pair(), random_boxes(30, 2)
    student = maps["student"].requires_grad_()
    with NoHostSync():
        DED()(student=student, teacher=maps["teacher"], boxes=boxes).backward()
