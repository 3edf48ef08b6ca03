"""``tskd-yolo convert FORMAT key=value ...``: the keys of every format, and what a user can get wrong in them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tskd_yolo.config import ConfigError
from tskd_yolo.data.convert import coco, deeppcb, labelme, masks, rle, voc
from tskd_yolo.data.convert.common import Options
from tskd_yolo.data.convert.files import number
from tskd_yolo.data.dataset import Summary

COMMON = {"out": "", "val": "0.2", "test": "0", "skip": False}


class Format(NamedTuple):
    """One layout.

    Args:
        required: Keys that must be given, with what each names.
        optional: Further keys with their defaults, beside :data:`COMMON`.
        run: Takes the values and the common options.
    """

    required: Mapping[str, str]
    optional: Mapping[str, Any]
    run: Callable[[Mapping[str, Any], Options], Summary]

    @property
    def keys(self) -> dict[str, Any]:
        """All keys with their defaults."""
        return {**dict.fromkeys(self.required, ""), **COMMON, **self.optional}


def _voc(values: Mapping[str, Any], options: Options) -> Summary:
    return voc.convert(_path(values["images"]), _path(values["annotations"]), options)


def _coco(values: Mapping[str, Any], options: Options) -> Summary:
    files = {"train": _path(values["annotations"])}
    files |= {split: _path(values[split]) for split in ("val", "test") if _names_a_file(values.get(split))}
    return coco.convert(_path(values["images"]), files, options)


def _deeppcb(values: Mapping[str, Any], options: Options) -> Summary:
    return deeppcb.convert(_path(values["source"]), options)


def _masks(values: Mapping[str, Any], options: Options) -> Summary:
    folders = bool(values.get("folders"))
    return masks.convert(
        _path(values["images"]),
        options,
        masks=_path(values["masks"]) if values.get("masks") else None,
        classes=_classes(values["names"]) if values.get("names") and not folders else "defect",
        folders=folders,
        min_area=_area(values),
    )


def _rle(values: Mapping[str, Any], options: Options) -> Summary:
    classes = _numbered(values["names"]) if values.get("names") else None
    return rle.convert(
        _path(values["images"]), _path(values["annotations"]), options, classes=classes, min_area=_area(values)
    )


def _labelme(values: Mapping[str, Any], options: Options) -> Summary:
    annotations = _path(values["annotations"]) if values.get("annotations") else None
    return labelme.convert(_path(values["images"]), options, annotations=annotations)


_IMAGES = {"images": "FOLDER"}
FORMATS = {
    "voc": Format({**_IMAGES, "annotations": "FOLDER"}, {"names": "", "background": False}, _voc),
    "coco": Format({**_IMAGES, "annotations": "FILE.json"}, {"names": ""}, _coco),
    "labelme": Format(_IMAGES, {"annotations": "", "names": "", "background": False}, _labelme),
    "masks": Format(
        _IMAGES, {"masks": "", "names": "", "folders": False, "min_area": "1", "background": False}, _masks
    ),
    "rle": Format(
        {**_IMAGES, "annotations": "FILE.csv"}, {"names": "", "min_area": "1", "background": False}, _rle
    ),
    "deeppcb": Format({"source": "FOLDER"}, {"background": False}, _deeppcb),
}  # fmt: skip


def chosen(words: Sequence[str]) -> Format:
    """The format that the first word names.

    Raises:
        ConfigError: If it names none.
    """
    known = ", ".join(FORMATS)
    if not words or "=" in words[0]:
        raise ConfigError([f"convert: the format is missing; write 'tskd-yolo convert FORMAT', one of {known}."])
    if words[0] not in FORMATS:
        near = difflib.get_close_matches(words[0], FORMATS, n=1)
        hint = f"did you mean '{near[0]}'? The formats are {known}" if near else f"the formats are {known}"
        raise ConfigError([f"convert: {words[0]!r} is no format; {hint}."])
    return FORMATS[words[0]]


def convert(layout: Format, values: Mapping[str, Any], errors: Sequence[str] = ()) -> Summary:
    """Checks the values of a format's keys and converts.

    Args:
        layout: The format.
        values: By key; those that are text as they were given.
        errors: What is wrong with the command line already.

    Raises:
        ConfigError: If anything is wrong with it, naming all of it.
        ConvertError, FileExistsError: As :func:`~tskd_yolo.data.convert.common.build`.
    """
    if found := [*errors, *_problems(layout, values)]:
        raise ConfigError(found)
    shares = {key: number(values[key]) for key in ("val", "test") if key in values and not _names_a_file(values[key])}
    numbered = layout.run in (_masks, _rle) and not values.get("folders")  # there names= says which value is which
    options = Options(
        out=_path(values["out"]),
        names=_listed(values["names"]) if values.get("names") and not numbered else None,
        skip=bool(values.get("skip", False)),
        background=bool(values.get("background", False)),
        **shares,
    )
    return layout.run(values, options)


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _names_a_file(text: Any) -> bool:
    """Whether ``val=`` or ``test=`` is a JSON and no share."""
    return isinstance(text, str) and text.lower().endswith(".json")


def _problems(layout: Format, values: Mapping[str, Any]) -> list[str]:
    """What is wrong with the values, one sentence each."""
    needed = {**layout.required, "out": "FOLDER"}
    errors = [f"{key}: missing; write {key}={what}." for key, what in needed.items() if not values.get(key)]
    for key in ("images", "annotations", "masks", "source", "val", "test"):
        given = values.get(key)
        if given and (key not in ("val", "test") or (_names_a_file(given) and layout.run is _coco)):
            what = "file" if layout.required.get(key, "").startswith("FILE") or key in ("val", "test") else "folder"
            if not (_path(given).is_file() if what == "file" else _path(given).is_dir()):
                errors.append(f"{key}: {given} is no {what}; name the {what} to read.")
    for key in ("skip", "background", "folders"):
        if not isinstance(values.get(key, False), bool):
            errors.append(f"{key}: must be True or False, got {values[key]!r}.")
    return [*errors, *_share_problems(layout, values), *_class_problems(layout, values), *_area_problems(values)]


def _share_problems(layout: Format, values: Mapping[str, Any]) -> list[str]:
    shares = {}
    for key in ("val", "test"):
        text = values.get(key, COMMON[key])
        if not (_names_a_file(text) and layout.run is _coco):
            shares[key] = number(text)
    errors = []
    if "val" in shares and not 0 < shares["val"] < 1:
        errors.append(f"val: must be a fraction between 0 and 1, got {values['val']!r}.")
    if "test" in shares and not 0 <= shares["test"] < 1:
        errors.append(f"test: must be a fraction from 0 to below 1, got {values['test']!r}.")
    if not errors and "val" not in shares and "test" in shares and not shares["test"] < 1 - Options.val:
        # val's part of [0, 1) stays free, so that test is what it is without the JSON
        errors.append(f"test: must be below {1 - Options.val:g} beside val=FILE.json, got {values['test']!r}.")
    if not errors and not sum(shares.values()) < 1:
        errors.append(f"test: val and test must leave images to train on, got {values['val']} and {values['test']}.")
    return errors


def _class_problems(layout: Format, values: Mapping[str, Any]) -> list[str]:
    """What is wrong with ``names=``."""
    text = values.get("names")
    if not text:
        return []
    words = _listed(text)
    if layout.run in (_masks, _rle) and not values.get("folders"):
        try:
            classes = _numbered(text)
        except ValueError:
            return [f"names: must be names such as crack,dent or VALUE:NAME such as 1:crack,255:dent, got {text!r}."]
        if layout.run is _masks and 0 in classes:
            return [f"names: the value 0 is the background and has no class, got {text!r}; leave it out."]
        if ":" in text:  # two values may be one class
            return [] if all(classes.values()) else [f"names: holds an empty name, got {text!r}."]
    if not words or not all(words) or len(set(words)) != len(words):
        return [f"names: must be different names such as crack,dent, got {text!r}."]
    return []


def _area_problems(values: Mapping[str, Any]) -> list[str]:
    area = number(values.get("min_area", 1))
    whole = area >= 1 and area.is_integer()
    return [] if whole else [f"min_area: must be a whole number of pixels from 1 on, got {values['min_area']!r}."]


def _area(values: Mapping[str, Any]) -> int:
    return int(number(values.get("min_area", 1)))


def _listed(text: str) -> list[str]:
    """The words between commas; brackets around them and quotation marks do not count."""
    inner = text.strip().removeprefix("[").removesuffix("]")
    return [word.strip().strip("'\"").strip() for word in inner.split(",")]


def _numbered(text: str) -> dict[int, str]:
    """Names by value: as given, 1:crack,255:dent, or in order from 1 on.

    Raises:
        ValueError: If only some have a value, or two have the same.
    """
    words = _listed(text)
    if not any(":" in word for word in words):
        return dict(enumerate(words, start=1))
    pairs = [word.partition(":") for word in words]
    classes = {int(value): name.strip() for value, _, name in pairs}
    if len(classes) < len(words) or min(classes) < 0:
        raise ValueError(f"a value is there twice, or is negative, in {text}")
    return classes


def _classes(text: str) -> masks.Classes:
    """Classes of a mask's values; one name without a value is that of every value."""
    words = _listed(text)
    return words[0] if len(words) == 1 and ":" not in words[0] else _numbered(text)
