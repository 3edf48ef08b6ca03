"""Files of settings: found by name, read, and left with what a file can give."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tskd_yolo.config import ConfigError, folder


def resolve(arguments: dict[str, Any]) -> None:
    """Finds ``data=neu.yaml``, ``cfg=neu.yaml`` and ``model=timm-resnet18.yaml`` by name, in place: the user's own file
    first, then ours.

    Anything else is left to Ultralytics, which looks among its own data sets and models.
    """
    for key, place in (("data", folder("datasets")), ("cfg", folder("cfg")), ("model", folder("cfg") / "models")):
        value = arguments.get(key)
        if not isinstance(value, (str, Path)) or Path(value).exists():
            continue
        ours = place / value
        if ours.is_file() and len(Path(value).parts) == 1:
            arguments[key] = str(ours)


NOT_FROM_A_FILE = "cfg", "mode", "save_dir", "exist_ok", "resume"
"""What no file of settings gives: with the last three a run would write into a folder that is there."""


def refuse_trust(content: Mapping[str, Any], *, source: str, editable: bool = True) -> None:
    """Refuses ``trust`` in anything but the command line or the Python call: a file could trust itself.

    Args:
        content: What was read.
        source: Where it was read, for the message.
        editable: Whether it can be taken out there.

    Raises:
        ConfigError: If it says anything but False.
    """
    if content.get("trust"):
        remedy = "give trust=True on the command line or in the Python call if you made all of its files yourself"
        raise ConfigError(
            [f"trust: {source} says trust={content['trust']!r}, which no file can give; "
             f"{'take it out, and ' if editable else ''}{remedy}."]
        )  # fmt: skip


def from_file(file: str | Path) -> dict[str, Any]:
    """The settings in a YAML file, such as ``args.yaml`` of an earlier run, that a file can give.

    Args:
        file: Its path, or the name of one of ours.

    Raises:
        ConfigError: If it is no file of settings, or gives ``trust``.
    """
    content = _read(file)
    refuse_trust(content, source=f"the file {file}")
    _tell_left_out(content, file)
    return {k: v for k, v in content.items() if k not in {*NOT_FROM_A_FILE, "trust"} and v is not None}


def without_file(values: dict[str, Any]) -> dict[str, Any]:
    """Arguments without what no file can give, where ``YOLO.train(cfg=FILE)`` has put those of the file among them.

    Raises:
        ConfigError: As :func:`from_file`.
    """
    from ultralytics.utils.checks import check_yaml

    values = dict(values)
    file = values.pop("cfg", None)
    if not file:
        return values
    content = _read(check_yaml(str(file)))
    refuse_trust(content, source=f"the file {file}")
    theirs = [key for key in NOT_FROM_A_FILE if key in content and values.get(key) == content[key]]
    _tell_left_out({key: content[key] for key in theirs}, file)
    return {key: value for key, value in values.items() if key not in theirs}


def _read(file: Any) -> dict[str, Any]:
    from ultralytics.utils import YAML

    named = {"cfg": file}
    resolve(named)
    path = Path(str(named["cfg"]))
    if not path.is_file():
        raise ConfigError([f"cfg: {file} was not found; give a YAML file of settings, or one of ours by its name."])
    try:
        return YAML.load(path)
    except (OSError, ValueError, SyntaxError, yaml.YAMLError, AssertionError) as error:
        raise ConfigError(
            [f"cfg: {file} is no YAML file of settings; give one with lines such as 'epochs: 100'."]
        ) from error


def _tell_left_out(content: Mapping[str, Any], file: str | Path) -> None:
    """Says what is left out of a file although it would change where the run writes."""
    from ultralytics.utils import LOGGER

    for key in ("exist_ok", "resume"):
        if content.get(key):
            LOGGER.warning(f"{key} in {file} is left out: no file may have a run write into a folder that is there.")
