"""Labels in the formats of tools in which people correct them: CVAT and Label Studio."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote
from xml.etree.ElementTree import Element, SubElement, tostring

from tskd_yolo.autolabel.record import Labelled

Write = Callable[[Iterable[Labelled], Sequence[str], int, str, Path], Path]
"""Takes images, classes, the number of images, the teacher's name and the folder; gives the file."""


def cvat(images: Iterable[Labelled], names: Sequence[str], count: int, teacher: str, out: Path) -> Path:
    """CVAT for images 1.1: an XML of boxes with corners in pixels, whose images are named as they lie in
    ``images/train``.

    Source:
        https://docs.cvat.ai/docs/manual/advanced/xml_format/
    """
    with _file(out / "cvat.xml") as file:
        file.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n')
        file.write(_line(_cvat_meta(names, count)))
        for number, image in enumerate(images):
            file.write(_line(_cvat_image(number, image, names)))
        file.write("</annotations>\n")
    return out / "cvat.xml"


def _cvat_meta(names: Sequence[str], count: int) -> Element:
    """The task with its labels."""
    meta = Element("meta")
    task = SubElement(meta, "task")
    SubElement(task, "size").text = str(count)
    labels = SubElement(task, "labels")
    for name in names:
        label = SubElement(labels, "label")
        SubElement(label, "name").text = name
        SubElement(label, "attributes")
    return meta


def _cvat_image(number: int, image: Labelled, names: Sequence[str]) -> Element:
    width, height = image.size
    element = Element("image", id=str(number), name=image.name, width=str(width), height=str(height))
    for found in image.labels:
        corners: dict[str, Any] = dict(zip(("xtl", "ytl", "xbr", "ybr"), (f"{value:.2f}" for value in found.box)))
        SubElement(element, "box", label=names[found.label], source="auto", occluded="0", z_order="0", **corners)
    return element


def _line(element: Element) -> str:
    return tostring(element, encoding="unicode") + "\n"


def labelstudio(images: Iterable[Labelled], names: Sequence[str], count: int, teacher: str, out: Path) -> Path:
    """Label Studio's tasks with predictions: boxes in percent of the image, each with its score.

    Images are those of a local storage whose root is the data set's folder.

    Source:
        https://labelstud.io/guide/predictions
    """
    with _file(out / "labelstudio.json") as file:
        file.write("[")
        for number, image in enumerate(images):
            file.write(",\n" if number else "\n")
            json.dump(_task(image, names, teacher), file, ensure_ascii=False, allow_nan=False)
        file.write("\n]\n")
    return out / "labelstudio.json"


def _task(image: Labelled, names: Sequence[str], teacher: str) -> dict[str, Any]:
    width, height = image.size
    result = []
    for number, found in enumerate(image.labels):
        x1, y1, x2, y2 = found.box
        shares = {"x": x1 / width, "y": y1 / height, "width": (x2 - x1) / width, "height": (y2 - y1) / height}
        value: dict[str, Any] = {key: round(100 * share, 5) for key, share in shares.items()}
        result.append(
            {
                "id": f"box{number}",
                "type": "rectanglelabels",
                "from_name": "label",
                "to_name": "image",
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "score": found.score,
                "value": {**value, "rotation": 0, "rectanglelabels": [names[found.label]]},
            }
        )
    scores = [found.score for found in image.labels]
    score = round(sum(scores) / len(scores), 5) if scores else 0.0
    place = f"/data/local-files/?d=images/train/{quote(image.name)}"
    return {
        "data": {"image": place},
        "predictions": [{"model_version": teacher, "score": score, "result": result}],
    }


FORMATS: dict[str, Write] = {"cvat": cvat, "labelstudio": labelstudio}


@contextlib.contextmanager
def _file(path: Path) -> Iterator[IO[str]]:
    """A file that is written line by line and takes its place when it is whole."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "w", encoding="utf-8", newline="\n") as file:
            yield file
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
