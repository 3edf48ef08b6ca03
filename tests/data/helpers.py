"""Views of the tiny set, and Pascal VOC folders to fill."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from ultralytics.cfg import get_cfg
from ultralytics.data import build_yolo_dataset
from ultralytics.data.utils import check_det_dataset

from tskd_yolo.data.convert.common import Options
from tskd_yolo.data.convert.voc import convert
from tskd_yolo.data.views import Views

STRONG = dict(mosaic=0.6, mixup=0.3, cutmix=0.3, degrees=10.0, hsv_h=0.1, fliplr=0.5, flipud=0.3, bgr=0.3)


def stock(data: Path, **more):
    cfg = get_cfg(overrides={"data": str(data), "imgsz": 64, **STRONG, **more})
    content = check_det_dataset(str(data))
    return build_yolo_dataset(cfg, content["train"], 4, content), cfg


def make(data: Path, views: int = 2, seed: int = 0, **more) -> Views:
    return Views(stock(data, **more)[0], views, seed)


def equal(a: dict, b: dict) -> bool:
    return all(torch.equal(a[k], b[k]) for k in ("img", "cls", "bboxes")) and a["im_file"] == b["im_file"]


# Images and data sets -------------------------------------------------------------------------------------------------

SIZE = (40, 20)  # width and height of the test images, different so that a swap shows


def draw_image(file: Path, size: tuple[int, int] = SIZE, seed: str = "", mode: str = "L") -> Path:
    """An image whose content is its own: noise by its name and its folder's, or by a seed."""
    digest = hashlib.sha256((seed or "/".join(file.parts[-2:])).encode()).digest()
    noise = np.random.default_rng(list(digest[:4])).integers(0, 256, (size[1], size[0]), dtype=np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise).convert(mode).save(file)
    return file


def labels(out: Path, stem: str) -> list[list[float]]:
    """The label file of an image, in whatever split it is."""
    (file,) = out.glob(f"labels/*/{stem}.txt")
    return [[float(word) for word in line.split()] for line in file.read_text().splitlines()]


def boxes(out: Path, stem: str, size: tuple[int, int] = SIZE) -> list[tuple[float, ...]]:
    """Class and corners in pixels of its boxes."""
    width, height = size
    found = []
    for c, x, y, w, h in labels(out, stem):
        corners = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
        found.append((int(c), *(round(value, 4) for value in corners)))
    return found


def placed(out: Path) -> dict[str, str]:
    """The split of every image of a data set, by its stem."""
    return {file.stem: file.parent.name for file in out.glob("images/*/*")}


# Pascal VOC -----------------------------------------------------------------------------------------------------------

Object = tuple[str, object, object, object, object]


def object_xml(name: object, *corners: object) -> str:
    """One <object> of an annotation."""
    keys = ("xmin", "ymin", "xmax", "ymax")
    box = "".join(f"<{key}>{value}</{key}>" for key, value in zip(keys, corners))
    return f"<object><name>{name}</name><bndbox>{box}</bndbox></object>"


def annotation_xml(*objects: Object, size: tuple[object, object] = SIZE, filename: str = "") -> str:
    """An annotation file."""
    stated = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>1</depth></size>"
    found = "".join(object_xml(*item) for item in objects)
    return f"<annotation><filename>{filename}</filename>{stated}{found}</annotation>"


class VocFolder:
    """A Pascal VOC folder to fill: ``a_1`` trains, ``a_2`` validates, and both are fine."""

    def __init__(self, root: Path) -> None:
        self.images, self.annotations, self.out = root / "IMAGES", root / "ANNOTATIONS", root / "made" / "set"
        self.images.mkdir(parents=True)
        self.annotations.mkdir()
        self.add("a_1", ("hole", 4, 5, 12, 15))
        self.add("a_2", ("dent", 0, 0, 40, 20))

    def add(self, stem: str, *objects: Object, suffix: str = ".png", **more: object) -> None:
        self.image(stem + suffix)
        self.xml(stem, annotation_xml(*objects, **more))

    def image(self, name: str, seed: str = "") -> None:
        draw_image(self.images / name, seed=seed or name)

    def xml(self, stem: str, text: str) -> None:
        (self.annotations / f"{stem}.xml").write_text(text, encoding="utf-8")

    def convert(self, *, split: Callable[[str], str] | float = lambda s: "val" if s == "a_2" else "train", **more):
        assign = split if callable(split) else None
        options = Options(out=self.out, **more) if assign else Options(out=self.out, val=split, **more)
        return convert(self.images, self.annotations, options, split=assign)

    def labels(self, stem: str, split: str = "train") -> list[list[float]]:
        text = (self.out / "labels" / split / f"{stem}.txt").read_text()
        return [[float(word) for word in line.split()] for line in text.splitlines()]


def tree(root: Path) -> dict[str, bytes]:
    """Every file below a folder with what is in it."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
