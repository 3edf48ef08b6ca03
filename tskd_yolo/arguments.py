"""The ``key=value`` arguments of a command line, read as Ultralytics reads them; all mistakes are told at once."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from tskd_yolo.config import DEFAULTS, ConfigError, unknown
from tskd_yolo.settings_files import from_file, resolve


def parse(
    arguments: list[str], known: Mapping[str, Any] | None = None, more: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """``key=value`` arguments as Ultralytics reads them; ``cfg=FILE`` is unfolded beneath the explicit ones.

    Args:
        arguments: Words of the command line without the mode.
        known: The keys that are allowed, with their defaults: of a text the value is taken as it stands. Without it all
            of Ultralytics' and ours, read as Ultralytics does.
        more: Keys that are allowed besides, with their defaults.

    Returns:
        The values by key, and a sentence for every word that is no known argument.
    """
    from ultralytics.cfg import DEFAULT_CFG_DICT

    keys = {**DEFAULT_CFG_DICT, **DEFAULTS, **(more or {})} if known is None else dict(known)
    values: dict[str, Any] = {}
    words, errors = joined(arguments)
    for word in words:
        try:
            key, value = _read(word.removeprefix("--").removesuffix(","), keys, theirs=known is None)
            values[key] = value
        except ConfigError as error:
            errors += error.problems
    if known is None:
        values = _unfold(values, errors)
        _rename_retired(values, keys)
    strange = [key for key in values if key not in keys and key not in {"augmentations", "save_dir"}]
    errors += [unknown(key, keys) for key in strange]
    return {key: value for key, value in values.items() if key not in strange}, errors


def joined(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The words with what belongs to one argument put together, and what is wrong with them."""
    from ultralytics.cfg import merge_equals_args

    try:
        return merge_equals_args(arguments), []
    except (SyntaxError, IndexError):
        words = [word for word in arguments if not set("[]") & set(word)]
        return words, ["brackets: some are not closed; quote a list, such as 'classes=[0, 2]'."]


def _read(word: str, keys: Mapping[str, Any], *, theirs: bool) -> tuple[str, Any]:
    """Key and value of one word: ``key=value``, a flag, or for a command that takes Ultralytics' keys a task.

    Raises:
        ConfigError: If it is none of these.
    """
    from ultralytics.cfg import TASKS, parse_key_value_pair

    key, sign, value = word.partition("=")
    if sign and value.strip() and not theirs and isinstance(keys.get(key), str):
        return key, value.strip()
    if sign and value.strip():
        return parse_key_value_pair(word)
    if sign:
        raise ConfigError([f"{key}: has no value; write {key}=VALUE."])
    if isinstance(keys.get(word), bool):
        return word, True
    if theirs and word in TASKS:
        return "task", word
    if word in keys:
        raise ConfigError([f"{word}: is missing its '=' sign; write {word}=VALUE."])
    raise ConfigError([unknown(word, keys)])


def _unfold(values: dict[str, Any], errors: list[str]) -> dict[str, Any]:
    """Puts the settings of ``cfg=FILE`` beneath the explicit ones."""
    resolve(values)
    file = values.pop("cfg", None)
    if not file:
        return values
    try:
        return {**from_file(file), **values}
    except ConfigError as error:
        errors += error.problems
        return values


def _rename_retired(values: dict[str, Any], keys: dict[str, Any]) -> None:
    """Brings keys that Ultralytics has retired to their present names, in place, by Ultralytics' own rules."""
    from ultralytics.cfg import check_dict_alignment

    from tskd_yolo import compat

    # On an unknown key it prints its whole help page; those are told by the caller, together with everything else.
    with compat.silent(), contextlib.suppress(SyntaxError, TypeError):
        check_dict_alignment(keys, values)
