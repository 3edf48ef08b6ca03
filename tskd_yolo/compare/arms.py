"""The arms of a comparison: how each is trained, and what one of the user's own may change."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tskd_yolo.config import TERMS, teachers

STOCK = "plain", "plain_same_time", "ultralytics"
"""The arms that train with Ultralytics' own trainer; all others train with ours."""
ARMS = *STOCK, "tskd", *TERMS
"""The arms of a comparison that names none, see :func:`default`."""
UNLABELLED = "tskd_unlabelled"
"""The arm that learns from images without labels too."""
BUILT_IN = (*ARMS, *(f"without_{term}" for term in TERMS), UNLABELLED)
_ABOUT_UNLABELLED = {"unlabelled", "unlabelled_share", "unlabelled_precision", "pseudo"}
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}")
"""An arm's name is part of a folder's."""
COMMON = frozenset(
    "data model task mode seed project name save_dir exist_ok resume cfg trust device split single_cls classes "
    "imgsz".split()
)
"""What is the same for every arm: all are judged at one size."""

Own = Mapping[str, Mapping[str, Any]]
"""Arms of the user's own: by name, the settings that differ from those of tskd."""


def default(values: Mapping[str, Any]) -> list[str]:
    """The arms of a comparison that names none: without the arm of a term that weighs nothing, or that is all of tskd.

    Args:
        values: Our keys as they are for all arms.
    """
    weighing = [term for term in TERMS if values[term] != 0]
    return [arm for arm in ARMS if arm not in TERMS or (arm in weighing and len(weighing) > 1)]


def overrides_of(arm: str, own: Own) -> dict[str, Any]:
    """Our settings and training arguments of an arm that distils, where they differ from those of all."""
    if arm in own:
        return dict(own[arm])
    if arm in TERMS:
        return {term: 0.0 for term in TERMS if term != arm}
    return {term: 0.0 for term in TERMS if arm == f"without_{term}"}


def settings_of(arm: str, keys: Mapping[str, Any], own: Own) -> dict[str, Any]:
    """What an arm is trained with besides the arguments of all.

    Args:
        arm: Its name.
        keys: Our keys, and ``teacher``.
        own: Arms of the user's own.
    """
    if arm == "ultralytics":
        return {"distill_model": teachers(keys["teacher"])[0]}
    if arm in STOCK:
        return {}
    given = {**keys, **overrides_of(arm, own)}
    return {**given, "unlabelled": False, "pseudo": False} if given["unlabelled"] and not uses(arm, own) else given


def uses(arm: str, own: Own) -> bool:
    """Whether an arm learns from images without labels, where there are some: one of the user's own by its settings."""
    return arm == UNLABELLED or bool(_ABOUT_UNLABELLED & own.get(arm, {}).keys())


def described(arm: str, own: Own, several: bool = False) -> str:
    """How an arm is trained, in words; ``several``: by more than one teacher, of which the rival takes the first."""
    if arm in own:
        return "distilled, with settings of its own"
    if arm in TERMS:
        return f"distilled with {arm} alone"
    if arm.startswith("without_"):
        return f"distilled without {arm.removeprefix('without_')}"
    words = {
        "plain": "Ultralytics' own training, without a teacher",
        "plain_same_time": "Ultralytics' own training, for as many epochs as take as long as tskd of the same seed",
        "ultralytics": f"Ultralytics' built-in distill_model= with the {'first' if several else 'same'} teacher",
        "tskd": "distilled, with the settings of all",
        UNLABELLED: "the same, from images without labels too",
    }
    return words[arm]


# Reading arms= --------------------------------------------------------------------------------------------------------


def read(value: Any, problems: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Names of the arms that are asked for, and those of the user's own with what they say; adds to ``problems``.

    Args:
        value: Names with commas or as a list. Names of YAML files, and mappings, of arms to settings may be among them.
        problems: Sentences on what is wrong.
    """
    items = [value] if isinstance(value, Mapping) else value
    if not isinstance(items, (list, tuple)):
        items = [item.strip() for item in str(items).strip("[]()").split(",")]
    names: list[str] = []
    own: dict[str, Any] = {}
    for item in items:
        if not isinstance(item, Mapping) and not str(item).endswith((".yaml", ".yml")):
            names.append(str(item))
            continue
        for name, settings in (item if isinstance(item, Mapping) else _loaded(Path(str(item)), problems)).items():
            names.append(str(name))
            if settings or name not in BUILT_IN:
                own[str(name)] = settings
    return names, own


def _loaded(file: Path, problems: list[str]) -> Mapping[Any, Any]:
    """The arms in a YAML file; none, with a sentence, where it has none."""
    if not file.is_file():
        problems.append(f"arms: {file} was not found; give a YAML file that maps names of arms to settings.")
        return {}
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        content = None
    if not isinstance(content, Mapping) or not content:
        problems.append(f"arms: {file} maps no names to settings; write lines such as 'short: {{epochs: 12}}'.")
        return {}
    return content


# What is wrong with them ----------------------------------------------------------------------------------------------


def wrong_arms(arms: Sequence[str], own: Mapping[str, Any], values: Mapping[str, Any]) -> list[str]:
    """A sentence for everything that is wrong with arms but the values of their settings.

    Args:
        arms: All that are asked for.
        own: Those of the user's own.
        values: Our keys as they are for all arms.
    """
    problems = [
        f"arms: {arm} is none; choose from {', '.join(BUILT_IN)}, or give a YAML file with arms of your own."
        for arm in arms
        if arm not in (*BUILT_IN, *own)
    ]
    if len({arm.lower() for arm in arms}) < len(arms):
        problems.append("arms: one is named twice; name each once, and in more than another letter case.")
    if "plain" not in arms:
        problems.append("arms: plain is missing, and every other arm is compared with it; add it.")
    if "plain_same_time" in arms and "tskd" not in arms:
        problems.append("arms: plain_same_time takes the time of tskd, which is missing; add tskd.")
    for name, settings in own.items():
        problems += _wrong_own(name, settings, values)
    return problems + _idle(arms, own, values)


def _wrong_own(name: str, settings: Any, values: Mapping[str, Any]) -> list[str]:
    """What is wrong with an arm of the user's own."""
    if name in BUILT_IN:
        return [f"arms: {name} is built in and cannot be changed; give an arm of your own another name."]
    if not NAME.fullmatch(name) or name.lower() in {"teacher", "truth", "latency", "logs"}:
        return [
            f"arms: {name!r} cannot be an arm's name; take letters, digits and _, at most 40, a letter first, and none "
            "of teacher, truth, latency and logs."
        ]
    if not isinstance(settings, Mapping) or not settings:
        return [f"arms: {name}: has no settings; write those that differ from tskd's, such as {name}: {{epochs: 12}}."]
    fixed = [str(key) for key in settings if key in COMMON]
    problems = [f"arms: {name}: {key} is the same for every arm; drop it here." for key in fixed]
    if not fixed and all(key in values and values[key] == value for key, value in settings.items()):
        problems.append(f"arms: {name}: has the settings of tskd, and would be tskd again; change one or drop the arm.")
    return problems


def _idle(arms: Iterable[str], own: Mapping[str, Any], values: Mapping[str, Any]) -> list[str]:
    """Arms that would train as plain or tskd does, because of the terms that weigh nothing."""
    problems = []
    for arm in arms:
        left_out = arm.removeprefix("without_")
        if arm in TERMS and values[arm] == 0:
            problems.append(f"{arm}: is 0, and the arm {arm} would distil nothing; give it a weight or drop the arm.")
        elif arm in BUILT_IN and left_out in TERMS and arm not in TERMS and values[left_out] == 0:
            problems.append(f"{left_out}: is 0, and the arm {arm} would be tskd again; drop the arm.")
        elif arm not in (*STOCK, *TERMS) and isinstance(own.get(arm, {}), Mapping):
            mine = {**values, **overrides_of(arm, own)}
            if all(mine[term] == 0 for term in TERMS):
                problems.append(f"drd, ded, crd: all are 0, and the arm {arm} would distil nothing; give one a weight.")
    return problems
