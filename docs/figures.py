"""Makes the pictures of the documentation from a finished demonstration.

    tskd-yolo demo out=runs/demo
    python docs/figures.py runs/demo

``demo.png`` is the top of the demonstration's own picture. The others show what each loss weighs on one of its
validation images, with the networks that were trained there. They show no measured figure.
"""

from __future__ import annotations

import functools
import math
import sys
from pathlib import Path
from typing import Any

import cv2
import matplotlib.pyplot as plt
import numpy as np
import torch
import yaml
from matplotlib.patches import Rectangle
from PIL import Image
from ultralytics import YOLO

from tskd_yolo.losses.boxes import Boxes, covered
from tskd_yolo.losses.crd import LOCATION_STEP
from tskd_yolo.losses.drd import SIDE, regions
from tskd_yolo.losses.paper import masks
from tskd_yolo.losses.standardize import standardize

ASSETS = Path(__file__).resolve().parent / "assets"
STRIDES = 8, 16, 32
NETWORKS = {"teacher": "teacher", "plain student": "plain", "distilled student": "distilled"}
"""What is called how, and where the demonstration has it."""
SIZE = 128
"""Pixels of the demonstration's images."""
ROWS, WIDTH = 3, 832
"""Of the demonstration's picture: the rows that are shown, and their width in pixels."""


def main(folder: Path) -> None:
    top(folder / "picture.png").save(ASSETS / "demo.png", optimize=True)
    image, boxes = chosen(folder)
    scores = {who: said(folder / who / "weights" / "last.pt", image) for who in ("teacher", "plain")}
    save("weighs-ded", ded(image, boxes))
    networks = {who: folder / run / "weights" / "last.pt" for who, run in NETWORKS.items()}
    save("weighs-drd", drd(image, boxes, **networks))
    save("weighs-crd", crd(image, boxes, **scores))


def top(file: Path) -> Image.Image:
    """The head and first rows of the demonstration's picture, small and in few colours."""
    picture = Image.open(file).convert("RGB")
    head, row = 26, (picture.height - 26) // 6
    part = picture.crop((0, 0, picture.width, head + ROWS * row))
    small = part.resize((WIDTH, round(part.height * WIDTH / part.width)), Image.Resampling.LANCZOS)
    return small.quantize(255, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)


def chosen(folder: Path) -> tuple[np.ndarray, Boxes]:
    """Of the validation images with defects of different size, the one on which the teacher is most confident."""
    found = [pair for pair in annotated(folder) if various(pair[1])]
    if not found:
        raise SystemExit("no validation image of this demonstration has defects of different size.")
    teacher = folder / "teacher" / "weights" / "last.pt"
    return max(found, key=lambda pair: sum(level.max(axis=0).sum() for level in said(teacher, pair[0])))


def annotated(folder: Path) -> list[tuple[np.ndarray, Boxes]]:
    """The validation images that have defects, with their boxes."""
    data = Path(yaml.safe_load((folder / "demo.yaml").read_text(encoding="utf-8"))["path"])
    found = []
    for file in sorted((data / "labels" / "val").glob("*.txt")):
        rows = [[float(word) for word in line.split()[1:]] for line in file.read_text(encoding="utf-8").splitlines()]
        if rows:
            image = cv2.imread(str(data / "images" / "val" / f"{file.stem}.png"))
            assert image is not None
            centre, half = (torch.tensor(rows) * SIZE * torch.tensor([1, 1, 0.5, 0.5])).split(2, dim=1)
            corners = torch.cat((centre - half, centre + half), dim=1)
            found.append((image[..., 0], Boxes(corners, torch.zeros(len(rows)), 1, (SIZE, SIZE))))
    return found


def various(boxes: Boxes) -> bool:
    """Whether the largest of several boxes has three times the area of the smallest."""
    areas = (boxes.xyxy[:, 2:] - boxes.xyxy[:, :2]).prod(dim=1)
    return len(areas) > 1 and bool(areas.max() > 3 * areas.min())


def said(weights: Path, image: np.ndarray) -> list[np.ndarray]:
    """Class probabilities of a network per stride, ``(classes, H, W)``."""
    network: Any = network_of(weights)
    tensor = torch.from_numpy(np.repeat(image[None, None], 3, axis=1).copy()).float() / 255
    with torch.no_grad():
        scores = network(tensor)[1]["scores"][0].sigmoid()
    sides = [SIZE // stride for stride in STRIDES]
    parts = scores.split([side * side for side in sides], dim=1)
    return [part.unflatten(1, (side, side)).numpy() for part, side in zip(parts, sides, strict=True)]


@functools.lru_cache
def network_of(weights: Path) -> Any:
    """A trained network."""
    return YOLO(weights).model.eval()


# The panels -----------------------------------------------------------------------------------------------------------


def ded(image: np.ndarray, boxes: Boxes) -> Any:
    """Foreground and background at stride 8, and the paper's weights of the same boxes."""
    side = SIZE // STRIDES[0]
    ours, paper = covered(boxes, side, side), masks(boxes, side, side)
    figure, axes = panels()
    shown(axes[0], image, boxes, "annotated defects")
    heat(axes[1], image, ours.foreground[0].numpy(), "foreground: covered part\nof each cell")
    heat(axes[2], image, ours.background[0].numpy(), "background: the rest")
    heat(axes[3], image, paper.foreground[0].numpy(), "the paper's foreground:\n1 / area of the box")
    return figure


def drd(image: np.ndarray, boxes: Boxes, **networks: Path) -> Any:
    """The nodes of both graphs, and how alike one region and all others are to each network."""
    side = SIZE // STRIDES[0]
    region = SIZE / SIDE
    figure, axes = panels()
    shown(axes[0], image, boxes, "instances and their edges,\nand the regions at stride 8")
    for line in range(1, SIDE):
        axes[0].axhline(line * region, color="#ff9d5c", linewidth=0.4)
        axes[0].axvline(line * region, color="#ff9d5c", linewidth=0.4)
    middles = boxes.xyxy.unflatten(1, (2, 2)).mean(dim=1)
    for number, (x, y) in enumerate(middles.tolist()):
        for u, v in middles[:number].tolist():
            axes[0].plot([x, u], [y, v], color="white", linewidth=1.6)
    areas = (boxes.xyxy[:, 2:] - boxes.xyxy[:, :2]).prod(dim=1)
    column, row = (middles[areas.argmax()] // region).int().tolist()
    for axis, (who, weights) in zip(axes[1:], networks.items(), strict=False):
        alike = relations(weights, image, side)[row * SIDE + column].reshape(SIDE, SIDE)
        axis.imshow(alike, cmap="viridis", extent=(0, SIZE, SIZE, 0), vmin=-1, vmax=1)
        place = (column * region, row * region)
        axis.add_patch(Rectangle(place, region, region, fill=False, edgecolor="white", linewidth=1.6))
        axis.set_title(f"{who}: cosines of all\nregions with the marked one", fontsize=10)
    return figure


def relations(weights: Path, image: np.ndarray, side: int) -> np.ndarray:
    """Cosines between the regions of a network's finest map, by what it sees in all of an image."""
    network = network_of(weights)
    caught: list[Any] = []
    hook = network.model[-1].register_forward_pre_hook(lambda head, given: caught.append(given[0][0]))
    tensor = torch.from_numpy(np.repeat(image[None, None], 3, axis=1).copy()).float() / 255
    with torch.no_grad():
        network(tensor)
    hook.remove()
    nodes = regions(standardize(caught[0]))
    return (nodes @ nodes.transpose(1, 2))[0].numpy()


def crd(image: np.ndarray, boxes: Boxes, *, teacher: list[np.ndarray], plain: list[np.ndarray]) -> Any:
    """Where classes and boxes are compared, at stride 8."""
    best = np.concatenate([level.max(axis=0).reshape(-1) for level in teacher])
    least = np.sort(best)[-math.ceil(len(best) / LOCATION_STEP)]
    fine = teacher[0].max(axis=0)
    figure, axes = panels()
    shown(axes[0], image, boxes, "annotated defects")
    heat(axes[1], image, np.abs(plain[0] - teacher[0]).max(axis=0), "classes: disagreement of\nstudent and teacher")
    heat(axes[2], image, fine, "w: the teacher's\nbest class score")
    heat(axes[3], image, np.where(fine >= least, fine, 0), "boxes: w, on the eighth of\nthe locations with most of it")
    return figure


def panels() -> tuple[Any, Any]:
    """Four empty panels, two in a row: readable on a telephone, too."""
    figure, axes = plt.subplots(2, 2, figsize=(5.2, 5.9))
    for axis in axes.flat:
        axis.set_axis_off()
    figure.subplots_adjust(left=0.005, right=0.995, bottom=0.005, top=0.93, wspace=0.03, hspace=0.17)
    return figure, axes.flat


def shown(axis: Any, image: np.ndarray, boxes: Boxes, title: str) -> None:
    """The image with its boxes."""
    axis.imshow(image, cmap="gray", extent=(0, SIZE, SIZE, 0), vmin=0, vmax=255)
    for x1, y1, x2, y2 in boxes.xyxy.tolist():
        axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor="white", linewidth=1.2))
    axis.set_title(title, fontsize=10)


def heat(axis: Any, image: np.ndarray, weight: np.ndarray, title: str, most: float | None = None) -> None:
    """Weights of cells over the image: the stronger the colour, the more a cell counts."""
    axis.imshow(image, cmap="gray", extent=(0, SIZE, SIZE, 0), vmin=0, vmax=255)
    strength = weight / (most or weight.max() or 1)
    axis.imshow(
        weight, cmap="viridis", extent=(0, SIZE, SIZE, 0), alpha=0.2 + 0.65 * np.clip(strength, 0, 1), vmin=0, vmax=most
    )
    axis.set_title(title, fontsize=10)


def save(name: str, figure: Any) -> None:
    figure.savefig(ASSETS / f"{name}.webp", dpi=110, facecolor="white")
    plt.close(figure)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
