"""Drawn images of hot-rolled steel strip with defects, for trying things out without any data set.

Six kinds of defect, modelled on those of NEU-DET and with its names, on a grey strip with rolling lines, uneven light,
noise, and things that are no defects: shadows, water marks, dust. A toy: what is learned here says nothing about steel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from tskd_yolo.data.dataset import data_set_folder, label_line

Field = NDArray[np.float32]
"""(size, size) brightness, or what a defect adds to it."""
Box = tuple[int, int, int, int]
"""(x1, y1, x2, y2) in pixels, x2 and y2 exclusive."""
Point = Sequence[float] | NDArray[np.float64]
"""(x, y) in pixels."""
Rng = np.random.Generator

SMALLEST = 64  # pixels; below that the finest defects are thinner than a pixel
COUNTS = (0.08, 0.34, 0.30, 0.18, 0.10)  # probability of 0, 1, 2, 3, 4 defects on an image
VISIBLE = 0.2  # share of a defect's strongest mark from which a pixel belongs to its box


def draw(seed: int | Sequence[int], size: int = 128) -> tuple[NDArray[np.uint8], list[tuple[int, int, int, int, int]]]:
    """Draws one image.

    Args:
        seed: Not negative. The same seed gives the same image, with the same versions of NumPy and OpenCV.
        size: Width and height in pixels, at least 64.

    Returns:
        The image, ``(size, size, 3)`` and grey, and its defects, ``(class, x1, y1, x2, y2)`` each, in pixels.

    Raises:
        ValueError: If the size is too small.
    """
    if size < SMALLEST:
        raise ValueError(f"size must be at least {SMALLEST} pixels, got {size}.")
    rng = np.random.default_rng(seed)
    canvas = _strip(rng, size)
    _distract(canvas, rng)
    boxes: list[Box] = []
    objects: list[tuple[int, int, int, int, int]] = []
    for _ in range(rng.choice(len(COUNTS), p=COUNTS)):
        index = int(rng.integers(len(KINDS)))
        kind = KINDS[NAMES[index]]
        region = _free_region(rng, size, kind, boxes)
        if region is not None:
            boxes.append(kind.draw(canvas, rng, region))
            objects.append((index, *boxes[-1]))
    return _photograph(canvas, rng), objects


def prepare(out: Path, train: int = 800, val: int = 80, size: int = 128, seed: int = 0, test: int = 0) -> None:
    """Writes a data set of drawn images for Ultralytics.

    The set is built beside ``out`` and moved there at the end; one made by an earlier run is replaced.

    Args:
        out: Folder to make.
        train: Number of training images.
        val: Number of validation images; they do not change with ``train``.
        size: Width and height of the images in pixels.
        seed: Another seed, other images.
        test: Number of test images, which change neither of the others; without any there is no such split.

    Raises:
        FileExistsError: If ``out`` is there and was not made by this project.
    """
    counts = {"train": train, "val": val, **({"test": test} if test else {})}
    with data_set_folder(out, names=NAMES, splits=list(counts)) as folder:
        for part, (split, count) in enumerate(counts.items()):
            for number in range(count):
                image, objects = draw((seed, part, number), size)
                lines = [label_line(found[0], found[1:], (size, size)) + "\n" for found in objects]
                stem = f"strip_{number:04d}"
                (folder / "images" / split / f"{stem}.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
                (folder / "labels" / split / f"{stem}.txt").write_text("".join(lines), encoding="ascii")


def crazing(canvas: Field, rng: Rng, region: Box) -> Box:
    """Short, jagged, fine cracks, all across the rolling direction."""
    x1, y1, x2, y2 = region
    mark = np.zeros_like(canvas)
    for _ in range(max(8, (y2 - y1) // 3)):
        length = rng.uniform(0.2, 0.7) * (x2 - x1)
        start = rng.uniform(x1, x2 - length), rng.uniform(y1, y2)
        _crack(mark, rng, start, length, angle=rng.normal(0, 0.15))
    return _apply(canvas, _inside(mark, region), -rng.uniform(28, 48))


def inclusion(canvas: Field, rng: Rng, region: Box) -> Box:
    """One to four dark, ragged slivers along the rolling direction."""
    x1, y1, x2, y2 = region
    mark = np.zeros_like(canvas)
    for _ in range(rng.integers(1, 5)):
        half = rng.uniform(0.2, 0.5) * (y2 - y1)
        y = rng.uniform(y1 + half, y2 - half)
        x = rng.uniform(x1 + 0.2 * (x2 - x1), x2 - 0.2 * (x2 - x1))
        width = max(1.2, rng.uniform(0.08, 0.25) * (x2 - x1))
        mark = np.maximum(mark, _blob(canvas.shape, (x, y), (width, half), rng.normal(0, 0.06)))
    ragged = np.clip(mark * 2.2 + 0.7 * _noise(rng, canvas.shape, (1, 3)), 0, 1) * (mark > 0)
    return _apply(canvas, _inside(ragged, region), -rng.uniform(24, 50))


def patches(canvas: Field, rng: Rng, region: Box) -> Box:
    """A dark area with a ragged, grainy edge."""
    x1, y1, x2, y2 = region
    mark = _blob(canvas.shape, ((x1 + x2) / 2, (y1 + y2) / 2), ((x2 - x1) / 2, (y2 - y1) / 2), 0.0)
    coarse = (x2 - x1 + y2 - y1) / 16
    ragged = mark + 0.2 * _noise(rng, canvas.shape, (coarse, coarse)) + 0.12 * _noise(rng, canvas.shape, (1, 1))
    return _apply(canvas, _inside(np.clip((ragged - 0.25) * 4, 0, 1) * (mark > 0), region), -rng.uniform(26, 50))


def pitted_surface(canvas: Field, rng: Rng, region: Box) -> Box:
    """Many small dark pits of very different size, densest in the middle."""
    x1, y1, x2, y2 = region
    mark = np.zeros_like(canvas)
    middle = np.array([(x1 + x2) / 2, (y1 + y2) / 2])
    spread = np.array([x2 - x1, y2 - y1]) / 3.5
    scale = canvas.shape[0] / 128
    for _ in range(max(15, int((x2 - x1) * (y2 - y1) / (45 * scale**2)))):
        axes = rng.lognormal(0.25, 0.4) * scale * rng.uniform(0.8, 1.5, 2)
        _pit(mark, rng.normal(middle, spread), (axes[0], axes[1]), rng.uniform(0, np.pi), rng.uniform(0.5, 1.0))
    return _apply(canvas, _inside(mark, region), -rng.uniform(28, 46))


def rolled_in_scale(canvas: Field, rng: Rng, region: Box) -> Box:
    """A swarm of dark dashes, scale pressed into the strip, all at about the same angle."""
    x1, y1, x2, y2 = region
    mark = np.zeros_like(canvas)
    scale, angle = canvas.shape[0] / 128, rng.normal(0.15, 0.25)
    for _ in range(max(10, int((x2 - x1) * (y2 - y1) / (90 * scale**2)))):
        start = rng.uniform((x1, y1), (x2, y2))
        steps = scale * rng.uniform(1.5, 3.5, (3, 1)) * np.stack([np.cos(angle), np.sin(angle)])
        points = start + np.cumsum(steps + rng.normal(0, 0.7 * scale, (3, 2)), axis=0)
        _line(mark, points, rng.uniform(0.5, 1.0), round(rng.integers(1, 4) * scale))
    return _apply(canvas, _inside(mark, region), -rng.uniform(28, 48))


def scratches(canvas: Field, rng: Rng, region: Box) -> Box:
    """Two to five bright, nearly straight lines from one end of the region to the other, broken in places."""
    x1, y1, x2, y2 = region
    mark = np.zeros_like(canvas)
    upright = y2 - y1 > x2 - x1
    for _ in range(rng.integers(2, 6)):
        ends = (rng.uniform(x1 + 1, x2 - 1, 2), (y1, y2)) if upright else ((x1, x2), rng.uniform(y1 + 1, y2 - 1, 2))
        steps = np.linspace(0, 1, 12)
        points = np.stack([end[0] + steps * (end[1] - end[0]) for end in ends], axis=1)
        points += rng.normal(0, 0.25, points.shape)
        _line(mark, points, rng.uniform(0.5, 1.0), 2 if rng.random() < 0.4 else 1)
    mark *= np.clip(0.8 + 0.4 * _noise(rng, canvas.shape, (2, 2)), 0.1, 1)
    return _apply(canvas, _inside(mark, region), rng.uniform(45, 85))


class Kind(NamedTuple):
    """How a class is drawn.

    Args:
        draw: Adds a defect to the canvas, inside a region; returns its tight box.
        width: Least and most width of the region as shares of the image.
        height: The same for its height.
        turns: Whether width and height may change places.
    """

    draw: Callable[[Field, Rng, Box], Box]
    width: tuple[float, float]
    height: tuple[float, float]
    turns: bool = False


KINDS = {
    "crazing": Kind(crazing, width=(0.40, 0.90), height=(0.25, 0.60)),
    "inclusion": Kind(inclusion, width=(0.08, 0.22), height=(0.25, 0.70)),
    "patches": Kind(patches, width=(0.20, 0.50), height=(0.25, 0.70)),
    "pitted_surface": Kind(pitted_surface, width=(0.35, 0.80), height=(0.35, 0.80)),
    "rolled-in_scale": Kind(rolled_in_scale, width=(0.25, 0.60), height=(0.25, 0.60)),
    "scratches": Kind(scratches, width=(0.07, 0.20), height=(0.40, 0.95), turns=True),
}
NAMES = tuple(KINDS)


def _strip(rng: Rng, size: int) -> Field:
    """Sound steel: rolling lines along y, thin scale in places, light that falls off to one side."""
    shape, scale = (size, size), size / 128
    canvas = np.full(shape, rng.uniform(85, 165), np.float32)
    canvas += rng.uniform(2, 5) * _noise(rng, shape, (0.7 * scale, 24 * scale))
    canvas += rng.uniform(1, 4) * _noise(rng, shape, (3 * scale, 60 * scale))
    canvas += rng.uniform(2, 7) * _noise(rng, shape, (0.7 * scale, 1.0 * scale))
    canvas += rng.uniform(1, 4) * _noise(rng, shape, (1.2 * scale, 2.5 * scale))
    canvas += rng.uniform(3, 8) * _noise(rng, shape, (14 * scale, 18 * scale))
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    canvas += (rng.uniform(4, 24) * (x * np.cos(angle) + y * np.sin(angle))).astype(np.float32)
    return canvas


def _distract(canvas: Field, rng: Rng) -> None:
    """Adds what may be mistaken for a defect and has no box."""
    size = canvas.shape[0]
    if rng.random() < 0.35:
        _shadow(canvas, rng, size)
    if rng.random() < 0.35:
        _water_mark(canvas, rng, size)
    for _ in range(rng.poisson(1.5)):
        _dot(canvas, rng.uniform(0, size, 2), rng.uniform(0.8, 1.8) * size / 128, rng.uniform(-30, 30))


def _shadow(canvas: Field, rng: Rng, size: int) -> None:
    """A broad soft band, darker than the rest."""
    middle = rng.uniform(0, size, 2)
    band = _blob(canvas.shape, middle, (rng.uniform(0.1, 0.25) * size, size), rng.uniform(0, np.pi))
    canvas -= rng.uniform(12, 28) * cv2.GaussianBlur(band, (0, 0), 0.03 * size)


def _water_mark(canvas: Field, rng: Rng, size: int) -> None:
    """The pale rim that a dried drop leaves."""
    axes = rng.uniform(0.08, 0.25, 2) * size
    drop = _blob(canvas.shape, rng.uniform(0, size, 2), (axes[0], axes[1]), rng.uniform(0, np.pi))
    rim = np.exp(-np.square((drop - 0.25) / 0.12), dtype=np.float32) * (drop > 0)
    canvas += rng.uniform(8, 18) * rim


def _photograph(canvas: Field, rng: Rng) -> NDArray[np.uint8]:
    """A camera's picture of the strip: slight blur, noise, three equal channels of 8 bit."""
    blurred = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.3, 0.8))
    noisy = blurred + rng.uniform(2, 7) * rng.standard_normal(canvas.shape, np.float32)
    grey = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def _free_region(rng: Rng, size: int, kind: Kind, taken: Sequence[Box], tries: int = 12) -> Box | None:
    """A random region for this kind that overlaps those taken at most slightly; None if none was found."""
    for _ in range(tries):
        width, height = int(rng.uniform(*kind.width) * size), int(rng.uniform(*kind.height) * size)
        if kind.turns and rng.random() < 0.5:
            width, height = height, width
        x, y = int(rng.integers(size - width + 1)), int(rng.integers(size - height + 1))
        region = (x, y, x + width, y + height)
        if all(_overlap(region, other) < 0.15 for other in taken):
            return region
    return None


def _overlap(a: Box, b: Box) -> float:
    """Shared area as a share of the smaller box."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return max(width, 0) * max(height, 0) / smaller


def _apply(canvas: Field, mark: Field, strength: float) -> Box:
    """Adds ``strength * mark`` to the canvas; returns the tight box of what can be seen of it."""
    canvas += strength * mark
    ys, xs = np.nonzero(np.abs(mark) > VISIBLE * np.abs(mark).max())
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


def _inside(mark: Field, region: Box) -> Field:
    """The mark, nothing outside the region."""
    x1, y1, x2, y2 = region
    cut = np.zeros_like(mark)
    cut[y1:y2, x1:x2] = mark[y1:y2, x1:x2]
    return cut


def _noise(rng: Rng, shape: tuple[int, ...], sigma: tuple[float, float]) -> Field:
    """Random field of zero mean and unit deviation, smooth over ``sigma`` pixels in x and y."""
    field = cv2.GaussianBlur(
        rng.standard_normal(shape, np.float32), (0, 0), sigmaX=sigma[0], sigmaY=sigma[1], borderType=cv2.BORDER_REFLECT
    )
    return np.asarray((field - field.mean()) / field.std(), np.float32)


def _blob(shape: tuple[int, ...], centre: Point, axes: tuple[float, float], angle: float) -> Field:
    """A hill of height 1 with an elliptic foot of these half axes, 0 outside."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    x, y = x - centre[0], y - centre[1]
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return np.asarray(np.clip(1 - np.square(along / axes[0]) - np.square(across / axes[1]), 0, 1), np.float32)


def _crack(mark: Field, rng: Rng, start: tuple[float, float], length: float, angle: float) -> None:
    """A thin line that changes its direction at random."""
    count = max(4, int(length / 3))
    angles = angle + rng.normal(0, 0.7, count)
    steps = np.stack([np.cos(angles), np.sin(angles)], axis=1) * length / count
    _line(mark, np.cumsum(np.concatenate([[start], steps]), axis=0), rng.uniform(0.5, 1.0), 1)


def _line(mark: Field, points: NDArray[np.float64], value: float, width: int) -> None:
    """Draws an antialiased line through (x, y) points where it is stronger than what is there."""
    layer = np.zeros(mark.shape, np.uint8)
    fixed = np.rint(points * 16).astype(np.int32)  # sixteenths of a pixel: OpenCV takes integers and a shift of 4 bits
    cv2.polylines(layer, [fixed], isClosed=False, color=255, thickness=width, lineType=cv2.LINE_AA, shift=4)
    np.maximum(mark, layer.astype(np.float32) * (value / 255), out=mark)


def _pit(mark: Field, centre: Point, axes: tuple[float, float], angle: float, depth: float) -> None:
    """Draws an elliptic hole with a flat bottom where it is deeper than what is there."""
    corner, window = _window(mark, centre, max(axes))
    pit = np.clip(2 * _blob(window.shape, np.subtract(centre, corner), axes, angle), 0, 1)
    np.maximum(window, depth * pit, out=window)


def _dot(mark: Field, centre: Point, radius: float, value: float) -> None:
    """Adds a round soft dot."""
    corner, window = _window(mark, centre, radius)
    window += value * _blob(window.shape, np.subtract(centre, corner), (radius, radius), 0.0)


def _window(field: Field, centre: Point, reach: float) -> tuple[tuple[int, int], Field]:
    """The part of a field, as a view, that holds all within this reach of the centre, and its (x, y) corner."""
    x, y = (max(0, int(c - reach)) for c in centre)
    return (x, y), field[y : max(0, int(centre[1] + reach) + 2), x : max(0, int(centre[0] + reach) + 2)]
