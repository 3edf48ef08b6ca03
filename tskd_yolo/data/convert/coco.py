"""COCO: a folder of images and JSON files of instances.

convert(Path("images"), {"train": Path("instances_train.json"), "val": Path("instances_val.json")}, Options(out=...))
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tskd_yolo.data.convert.common import Box, Found, Options, build
from tskd_yolo.data.convert.files import IMAGES, ConvertError, Notes, inside, is_file, number, read_json
from tskd_yolo.data.dataset import SPLITS, Summary


def convert(images: Path, annotations: Mapping[str, Path], options: Options) -> Summary:
    """Turns images and COCO's instances into an Ultralytics data set.

    Category ids may be any; classes are in their order. Crowds (``iscrowd``) are left out, as Ultralytics does, and
    counted. An image that a JSON lists and that has no annotation is a background image; images that no JSON lists are
    left out and counted.

    Ultralytics' own ``convert_coco`` is not used. It takes the id less 1 as the class, writes labels wherever
    ``file_name`` leads, also out of its folder, adds to label files that are there, keeps boxes outside the image, and
    leaves images without annotations without a label.

    Args:
        images: Folder of the images. A ``file_name`` is looked for in it, in its subfolder of the JSON's name (without
            ``instances_``: ``train2017``), and in that of the split's.
        annotations: A JSON per split. Images of ``train`` are divided by their content among the splits that have no
            JSON of their own.
        options: What every conversion takes. ``background`` changes nothing here.

    Raises:
        ConvertError, FileExistsError: As :func:`~tskd_yolo.data.convert.common.build`.
    """
    images = Path(images)
    notes = Notes()
    contents = {split: _load(Path(file), notes) for split, file in annotations.items()}
    names: dict[str, None] = {}
    for content in contents.values():
        names.update(dict.fromkeys(_categories(content).values()))
    found = _read(images, annotations, contents, notes)
    return build(found, notes, options, sources=(images, *annotations.values()), names=list(names) or None)


def _load(file: Path, notes: Notes) -> dict[str, list[Any]]:
    """The lists of a JSON, with images and categories that have an id of their own; empty where it is not COCO's."""
    try:
        content = read_json(file, file.name)
    except ConvertError as error:
        notes.problems.extend(error.problems)
        return {}
    wrong = [key for key in ("images", "annotations", "categories") if not isinstance(content.get(key), list)]
    if wrong:
        notes.problems.append(f"{file.name}: has no list of {' and of '.join(wrong)}. Is it COCO's instances?")
        return {}
    return {
        "images": _identified(content["images"], f"{file.name}, images", notes),
        "categories": _identified(content["categories"], f"{file.name}, categories", notes),
        "annotations": content["annotations"],
    }


def _identified(rows: list[Any], where: str, notes: Notes) -> list[dict[str, Any]]:
    """The rows that have a whole number as id, which no other has; the others are noted."""
    good = [row for row in rows if isinstance(row, dict) and _is_id(row.get("id"))]
    if len(good) < len(rows):
        notes.problems.append(f"{where}: {len(rows) - len(good)} have no whole number as their id. Correct them.")
    count = Counter(row["id"] for row in good)
    for key in [key for key, times in count.items() if times > 1]:
        notes.problems.append(f"{where}: {count[key]} have the id {key}, so nobody knows whose is whose. Correct them.")
    return [row for row in good if count[row["id"]] == 1]


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _categories(content: Mapping[str, list[Any]]) -> dict[int, str]:
    """Class names by category id, in the order of the ids."""
    rows = sorted(content.get("categories", ()), key=lambda row: row["id"])
    return {row["id"]: str(row.get("name") or "").strip() for row in rows}


def _read(
    images: Path, annotations: Mapping[str, Path], contents: Mapping[str, Mapping[str, list[Any]]], notes: Notes
) -> Iterator[Found]:
    """Yields the images of every JSON; counts those in the same folders that none lists."""
    seen: dict[Path, str] = {}
    for split, content in contents.items():
        file = Path(annotations[split])
        among = (split, *(s for s in SPLITS if s not in contents)) if split == "train" else (split,)
        boxes, broken = _boxes(content, file.name, notes)
        for row in content.get("images", ()):
            try:
                place = _place(row.get("file_name"), images, file, split)
                name = place.relative_to(images).as_posix()
                if place in seen:
                    raise ConvertError(f"{file.name}: {name} is listed in {seen[place]}, too. Remove it from one.")
            except ConvertError as error:
                notes.problems.extend(error.problems)
            else:
                seen[place] = file.name
                source = f"{file.name}, {name}"
                yield Found(place, name, boxes.get(row["id"], []), source, _size(row), among, row["id"] in broken)
    there = sum(file.suffix.lower() in IMAGES for folder in {p.parent for p in seen} for file in folder.iterdir())
    notes.left_out["images that no JSON lists"] += max(there - len(seen), 0)


def _size(row: Mapping[str, Any]) -> tuple[object, object] | None:
    """(width, height) that the JSON states; None where it states none."""
    size = row.get("width"), row.get("height")
    return None if None in size else size


def _place(name: Any, images: Path, file: Path, split: str) -> Path:
    """The image that a ``file_name`` means.

    Raises:
        ConvertError: If there is none.
    """
    if isinstance(name, str) and name:
        for folder in (images, images / file.stem.removeprefix("instances_"), images / split):
            place = inside(folder, name)
            if place is not None and is_file(place):
                return place
    raise ConvertError(f"{file.name}: no image {name} in {images}. Add it or remove it from the JSON.")


def _boxes(content: Mapping[str, list[Any]], source: str, notes: Notes) -> tuple[dict[int, list[Box]], set[int]]:
    """The boxes of a JSON by image id, and the ids of images with a broken one; that is noted, crowds are counted."""
    categories = _categories(content)
    images = {row["id"] for row in content.get("images", ())}
    boxes: dict[int, list[Box]] = {}
    broken: set[int] = set()
    for count, row in enumerate(content.get("annotations", ()), start=1):
        if isinstance(row, dict) and (row.get("iscrowd") is True or number(row.get("iscrowd")) == 1):
            notes.left_out["crowds (iscrowd)"] += 1
            continue
        where = f"{source}, annotation {row.get('id', count) if isinstance(row, dict) else count}"
        try:
            box = _box(row, where, categories, images)
        except ConvertError as error:
            notes.problems.extend(error.problems)
            if isinstance(row, dict) and _is_id(row.get("image_id")):
                broken.add(row["image_id"])
        else:
            boxes.setdefault(row["image_id"], []).append(box)
    return boxes, broken


def _box(row: Any, where: str, categories: Mapping[int, str], images: set[int]) -> Box:
    """The box of one row of ``annotations``.

    Raises:
        ConvertError: If it belongs to no image or class, or has no ``bbox``.
    """
    if not isinstance(row, dict):
        raise ConvertError(f"{where}: is a {type(row).__name__}, expected an object. Correct or remove it.")
    for key, known in (("image_id", images), ("category_id", categories)):
        if not _is_id(row.get(key)) or row[key] not in known:
            kind = "images" if key == "image_id" else "categories"
            raise ConvertError(f"{where}: {key} {row.get(key)!r} is none of the {kind}. Correct or remove it.")
    stated = row.get("bbox")
    if not isinstance(stated, list) or len(stated) != 4:
        raise ConvertError(f"{where}: has no bbox of four numbers. Correct or remove it.")
    x, y, width, height = map(number, stated)
    return Box(where, categories[row["category_id"]], (x, y, x + width, y + height), f"bbox {stated}")
