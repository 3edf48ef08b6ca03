"""Whether the teachers of a comparison can teach its student: found before its first run, not by the run that fails."""

from __future__ import annotations

import json
from typing import Any

from ultralytics.data.utils import check_det_dataset
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG_DICT, IterableSimpleNamespace

from tskd_yolo import compat, config
from tskd_yolo.compare.arms import STOCK
from tskd_yolo.compare.metrics import class_names
from tskd_yolo.compare.plan import Plan
from tskd_yolo.config import ConfigError
from tskd_yolo.distill import teacher
from tskd_yolo.rng import undisturbed
from tskd_yolo.train import checks, prepare

_DECIDING = "teacher", "teacher_imgsz", "classes_map", "variant", "imgsz", "rect", "multi_scale", "classes"
"""What decides it, beside which terms weigh anything."""


def unfit(plan: Plan) -> list[str]:
    """Why teachers of an arm cannot teach the student, one sentence each: levels, branches, classes, sizes of images.

    Each pair of student and teachers is built once, as a run builds it.
    """
    found: dict[str, list[str]] = {}
    problems: list[str] = []
    for arm in (arm for arm in plan.arms if arm not in STOCK):
        values = {**DEFAULT_CFG_DICT, **config.DEFAULTS, **plan.common, **plan.settings_of(arm), "model": plan.model}
        pair = [*(values[key] for key in _DECIDING), *(values[term] != 0 for term in config.TERMS)]
        known = json.dumps(pair, default=str)
        if known not in found:
            found[known] = _problems(values)
        place = f"arms: {arm}: " if arm in plan.own_arms or arm in config.TERMS or arm.startswith("without_") else ""
        problems += [place + problem for problem in found[known]]
    return [*dict.fromkeys(problems)]


def _problems(values: dict[str, Any]) -> list[str]:
    """What a run with these arguments would find when it has built student and teachers."""
    data = check_det_dataset(values["data"])
    names = class_names(values["data"], bool(values["single_cls"]))
    with compat.guarded(trust=values["trust"] is True), undisturbed(), compat.silent():
        loaded = [teacher.load(file) for file in config.teachers(values["teacher"])]
        student: Any = DetectionModel(
            checks.student_yaml(values["model"]), ch=data["channels"], nc=len(names), verbose=False
        )
        student.names = names
        args = IterableSimpleNamespace(**values)
        try:
            prepare.build_distiller(student, loaded, names=names, config=config.build(values), args=args)
        except ConfigError as error:
            return list(error.problems)
    return []
