"""labelme: one JSON per image, with shapes that become boxes.

convert(Path("IMAGES"), Options(out=Path("my-set")))
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from tskd_yolo.data.convert.common import Box, Found, Options, build
from tskd_yolo.data.convert.files import IMAGES, ConvertError, Notes, files_below, number, read_json
from tskd_yolo.data.dataset import Corners, Summary


def convert(images: Path, options: Options, *, annotations: Path | None = None) -> Summary:
    """Turns images annotated with labelme into an Ultralytics data set.

    A shape's box is the smallest one around its points; around a circle, whose two points are its centre and one on
    its edge, that of the circle. Points and lines along an axis have no area and are problems. The image is the one
    that ``imagePath`` names, found in the same subfolder of ``images`` as the JSON's of ``annotations``, otherwise
    that of the JSON's own name. ``imageData`` is not read. A JSON without shapes makes a background image.

    Args:
        images: Folder of the images.
        options: What every conversion takes. labelme writes no JSON for an image without shapes: ``background`` says
            that images without a JSON show nothing.
        annotations: Folder of the JSON files, without it that of the images.

    Raises:
        ConvertError, FileExistsError: As :func:`~tskd_yolo.data.convert.common.build`.
    """
    images, annotations = Path(images), Path(annotations or images)
    notes = Notes()
    return build(_read(images, annotations, options, notes), notes, options, sources=(images, annotations))


def _read(images: Path, annotations: Path, options: Options, notes: Notes) -> Iterator[Found]:
    """Yields the images in order of their JSON files; notes what has no partner."""
    pictures = files_below(images, IMAGES, notes)
    jsons = files_below(annotations, frozenset((".json",)), notes)
    stems: dict[str, list[str]] = {}
    for image in pictures:
        stems.setdefault(_stem(image), []).append(image)
    described: dict[str, str] = {}
    doubted: set[str] = set()
    for name, file in jsons.items():
        try:
            content = read_json(file, name)
            image, own = _image_of(content, name, pictures, stems)
            if image != own:
                doubted |= {image, own}
                raise ConvertError(
                    f"{name}: its imagePath leads to {image}, and {own} has its name. Correct imagePath, or rename one."
                )
            if image in described:
                raise ConvertError(f"{name}: {described[image]} describes {image}, too. Remove one of them.")
            described[image] = name
            boxes = list(_shapes(content, name))
        except ConvertError as error:
            notes.problems.extend(error.problems)
        else:
            yield Found(pictures[image], image, boxes, name, _size(content))
    broken = {_stem(name) for name in jsons.keys() - described.values()}  # these are told; they are no background
    for image in sorted(pictures.keys() - described.keys()):
        if _stem(image) in broken or image in doubted:
            continue
        if options.background:
            yield Found(pictures[image], image, [], "")
        else:
            notes.problems.append(
                f"{image}: no JSON in {annotations} describes it. Add one, remove the image, or say that such images "
                "are background."
            )


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _image_of(
    content: dict[str, Any], name: str, pictures: Mapping[str, Path], stems: Mapping[str, list[str]]
) -> tuple[str, str]:
    """The image that a JSON describes, by its path below the folder of images; and the one that has its name, which is
    another where files were renamed: labelme writes imagePath once.
    """
    folder = PurePosixPath(name).parent
    stated = PurePosixPath(str(content.get("imagePath") or "").replace("\\", "/")).name  # Windows writes \ into it
    own = stems.get(_stem(name), [])
    if stated and (image := (folder / stated).as_posix()) in pictures:
        return image, own[0] if len(own) == 1 else image
    if len(own) == 1:
        return own[0], own[0]
    raise ConvertError(
        f"{name}: {'several images have' if own else 'no image has'} its name, and there is none called "
        f"{stated or 'as its imagePath says'} beside it. Add the image or remove the JSON."
    )


def _size(content: dict[str, Any]) -> tuple[object, object] | None:
    """(width, height) that the JSON states; None where it states none."""
    size = content.get("imageWidth"), content.get("imageHeight")
    return None if None in size else size


def _shapes(content: dict[str, Any], name: str) -> Iterator[Box]:
    """The boxes of a JSON.

    Raises:
        ConvertError: If it is not labelme's, or a shape has no points.
    """
    shapes = content.get("shapes")
    if not isinstance(shapes, list):
        raise ConvertError(f"{name}: has no list of shapes. Is it a file of labelme? Repair or remove it.")
    for count, shape in enumerate(shapes, start=1):
        where = f"{name}, shape {count}"
        if not isinstance(shape, dict):
            raise ConvertError(f"{where}: is a {type(shape).__name__}, expected an object. Correct or remove it.")
        label = shape.get("label")
        kind = str(shape.get("shape_type") or "polygon")
        corners = _around(_points(shape.get("points"), where), kind, where)
        yield Box(where, "" if label is None else str(label).strip(), corners, f"{kind} {_written(corners)}")


def _written(corners: Corners) -> str:
    return "(" + ", ".join(f"{value:g}" for value in corners) + ")"


def _points(points: Any, where: str) -> list[tuple[float, float]]:
    if not isinstance(points, list) or not points:
        raise ConvertError(f"{where}: has no points. Correct or remove it.")
    if not all(isinstance(point, list) and len(point) == 2 for point in points):
        raise ConvertError(f"{where}: has a point that is no pair of numbers. Correct or remove it.")
    return [(number(x), number(y)) for x, y in points]


def _around(points: list[tuple[float, float]], kind: str, where: str) -> Corners:
    """The smallest box around a shape; NaN in it where a coordinate is no number."""
    xs, ys = zip(*points)
    if any(map(math.isnan, (*xs, *ys))):
        return (math.nan,) * 4
    if kind != "circle":
        return min(xs), min(ys), max(xs), max(ys)
    if len(points) != 2:
        raise ConvertError(f"{where}: is a circle of {len(points)} points, expected 2. Correct or remove it.")
    radius = math.dist(*points)
    return xs[0] - radius, ys[0] - radius, xs[0] + radius, ys[0] + radius
