"""What is asked of an interrupted run before it goes on: arguments that may be given anew, data, and what moved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ultralytics.utils import DEFAULT_CFG_DICT

from tskd_yolo import config, settings_files
from tskd_yolo.config import ConfigError
from tskd_yolo.data import index
from tskd_yolo.train import checks, freezing


def check(overrides: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    """Checks what is given anew, and that the data is there and has the classes that the run began with.

    Args:
        overrides: What the user gave.
        content: The checkpoint to go on from.

    Raises:
        ConfigError: Naming everything that is wrong.
    """
    kept = {key: value for key, value in content["train_args"].items() if key in DEFAULT_CFG_DICT}
    given = {key: value for key, value in overrides.items() if key in DEFAULT_CFG_DICT and key != "resume"}
    values, errors = checks.engine_values({**DEFAULT_CFG_DICT, **kept}, given)
    data = checks.attempted_data(values, errors)
    student, names = content.get("ema") or content["model"], data["names"]
    errors += freezing.wrong(student.yaml, values["freeze"])
    if names and not values["single_cls"] and list(names.values()) != list(student.names.values()):
        errors.append(
            f"data: {values['data']} has other classes than this run began with, or in another order; give a YAML of "
            "the same names, or start a new run."
        )
    if errors:
        raise ConfigError(errors)


def restore(args: Any, *, trust: bool, moved: Mapping[str, Any]) -> None:
    """Brings our keys into the arguments of a run that goes on, in place, where its checkpoint lacks them.

    Args:
        args: As they were in the checkpoint.
        trust: Whether the command line or the Python call trusts.
        moved: Where teachers and images without labels lie now, by their keys, if that is given.

    Raises:
        ConfigError: If the checkpoint itself says ``trust`` and they do not, or there are no images in such a place.
    """
    if not trust:
        settings_files.refuse_trust(vars(args), source=f"the checkpoint {args.resume}", editable=False)
    vars(args).pop("trust", None)
    for key, value in config.KEPT.items():
        setattr(args, key, getattr(args, key, value))
    if "teacher" in moved:
        args.teacher = checks.absolute(config.teachers(moved["teacher"]))
    if "unlabelled" in moved:
        if not args.unlabelled:
            raise ConfigError(["unlabelled: this run had no images without labels; leave it out."])
        args.unlabelled = index.absolute(config.sources(moved["unlabelled"]))
