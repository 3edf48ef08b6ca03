"""What ``tskd-yolo autolabel`` is asked for, checked before any network is loaded or anything is written."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ultralytics.utils.torch_utils import select_device

from tskd_yolo import compat, config, settings_files
from tskd_yolo.confidence import FLOOR, PRECISION
from tskd_yolo.config import ConfigError
from tskd_yolo.distill import feature_model

KEYS: dict[str, Any] = {
    "teacher": "", "source": "", "out": "", "data": "", "conf": None, "precision": None, "imgsz": None, "batch": 16,
    "device": "", "augment": False, "export": "", "classes_map": "", "trust": False,
}  # fmt: skip
"""All keys with their defaults."""
EXPORTS = "cvat", "labelstudio"
NEEDED = {
    "teacher": "teacher: missing; give teacher=FILE.pt, the detector whose labels are wanted, or several in brackets.",
    "source": "source: missing; give source=FOLDER, the images without labels.",
    "out": "out: missing; give out=FOLDER, a new folder for the data set.",
}


@dataclass(frozen=True)
class Plan:
    """What was asked for.

    ``data`` is None where there are no labelled images to measure on; ``conf`` is None where thresholds are measured;
    ``imgsz`` is None where it is that of the teacher's own training.
    """

    teachers: list[str]
    source: str
    out: Path
    data: str | None
    conf: float | None
    precision: float
    imgsz: int | None
    batch: int
    device: str
    augment: bool
    exports: list[str]
    classes_map: Any
    trust: bool


def checked(given: Mapping[str, Any], errors: Sequence[str] = ()) -> Plan:
    """The plan that these arguments make.

    Args:
        given: By key; :data:`KEYS` has the defaults of those that are left out.
        errors: Mistakes that are known already, to be told with the others.

    Raises:
        ConfigError: Naming everything that is wrong.
    """
    strange = [config.unknown(key, KEYS) for key in given if key not in KEYS]
    values = {**KEYS, **{key: value for key, value in given.items() if value is not None}}
    settings_files.resolve(values)
    exports = listed(values["export"])
    if problems := [*errors, *strange, *_problems(values, exports)]:
        raise ConfigError(problems)
    return Plan(
        teachers=config.teachers(values["teacher"]),
        source=str(Path(str(values["source"])).expanduser()),
        out=Path(str(values["out"])).expanduser().resolve(),
        data=str(values["data"]) or None,
        conf=None if values["conf"] is None else float(values["conf"]),
        precision=float(PRECISION if values["precision"] is None else values["precision"]),
        imgsz=values["imgsz"],
        batch=values["batch"],
        device=str(values["device"]),
        augment=values["augment"],
        exports=exports,
        classes_map=values["classes_map"],
        trust=values["trust"],
    )


def listed(given: Any) -> list[str]:
    """The words of ``export=``: one, or several with commas, in brackets or in a list."""
    words = given if isinstance(given, (list, tuple)) else str(given or "").strip("[]() ").split(",")
    return list(dict.fromkeys(str(word).strip(" '\"") for word in words if str(word).strip()))


def _problems(values: Mapping[str, Any], exports: Sequence[str]) -> list[str]:
    problems = [sentence for key, sentence in NEEDED.items() if not values[key]]
    if values["teacher"]:
        problems += config.teacher_problems(values["teacher"]) or _teachers(config.teachers(values["teacher"]))
    return [
        *problems,
        *_thresholds(values),
        *_sizes(values),
        *_device(str(values["device"])),
        *config.trust_problems(values),
        *_flags(values),
        *[f"export: {word!r} is no format; the formats are {', '.join(EXPORTS)}."
          for word in exports if word not in EXPORTS],
    ]  # fmt: skip


def _teachers(files: Sequence[str]) -> list[str]:
    problems = [
        f"teacher: {file} has no detection head, so it finds nothing; give a detector."
        for file in files
        if feature_model.named(file)
    ]
    if len(files) > 1 and importlib.util.find_spec("ensemble_boxes") is None:
        problems.append(
            "teacher: what several find is fused by the package ensemble-boxes, which is not installed; install it "
            "with pip install ensemble-boxes, or give one teacher."
        )
    return problems


def _thresholds(values: Mapping[str, Any]) -> list[str]:
    """What is wrong with the ways to say which detections become labels."""
    conf, precision, problems = values["conf"], values["precision"], []
    if conf is None and not values["data"]:
        problems.append(
            "conf: missing; give data=FILE.yaml, on whose val images a threshold per class is measured, or one for all "
            "classes such as conf=0.5."
        )
    if conf is not None and not (_number(conf) and FLOOR <= conf <= 1):
        problems.append(f"conf: must be a number from {FLOOR} to 1, got {conf!r}.")
    if precision is not None and not (_number(precision) and 0 < precision <= 1):
        problems.append(f"precision: must be a number above 0 and at most 1, got {precision!r}.")
    if precision is not None and conf is not None:
        problems.append("precision: thresholds are measured for it, and conf= gives one; drop one of the two.")
    if precision is not None and conf is None and not values["data"]:
        problems.append("precision: it is measured on labelled images; add data=FILE.yaml.")
    if values["classes_map"] and not values["data"]:
        problems.append("classes_map: it leads to the classes of a data set; add data=FILE.yaml, or leave it out.")
    return problems


def _sizes(values: Mapping[str, Any]) -> list[str]:
    size, batch, problems = values["imgsz"], values["batch"], []
    if size is not None and (not _whole(size) or size < 32 or size % 32):
        problems.append(f"imgsz: must be a whole number of pixels, a multiple of 32, got {size!r}.")
    if not _whole(batch) or batch < 1:
        problems.append(f"batch: must be a whole number >= 1, got {batch!r}.")
    return problems


def _device(device: str) -> list[str]:
    if "," in device:
        return [f"device: one device labels, got {device!r}; give one of them."]
    try:
        select_device(device, verbose=False)
    except (ValueError, RuntimeError, AssertionError) as error:
        reason = compat.plain(error).split("; ")[0]
        return [f"device: {device!r} cannot be used here ({reason}); give device=cpu or another."]
    return []


def _flags(values: Mapping[str, Any]) -> list[str]:
    given = values["augment"]
    return [] if isinstance(given, bool) else [f"augment: must be True or False, got {given!r}."]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
