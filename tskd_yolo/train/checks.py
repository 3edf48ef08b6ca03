"""What a user gave, checked: settings, teacher, student and data, with every mistake told at once.

And what the run itself shows: terms that are not finite, the first-epoch check.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ultralytics import YOLO
from ultralytics.cfg import cfg2dict, get_cfg
from ultralytics.data.utils import check_det_dataset
from ultralytics.nn.tasks import yaml_model_load
from ultralytics.utils import DEFAULT_CFG_DICT, LOCAL_RANK, LOGGER, colorstr
from ultralytics.utils.checks import check_model_file_from_stem

from tskd_yolo import compat, config, settings_files
from tskd_yolo.config import ConfigError
from tskd_yolo.data import dataset
from tskd_yolo.data.convert.files import ConvertError
from tskd_yolo.data.sets import MissingSetError
from tskd_yolo.distill import classes, teacher
from tskd_yolo.distill.feature_model import whole_path
from tskd_yolo.distill.features import channels
from tskd_yolo.distill.matching import no_student, task_of
from tskd_yolo.distill.monitor import Monitor
from tskd_yolo.rng import undisturbed
from tskd_yolo.train import backbone, freezing, refusals, tasks, unlabelled
from tskd_yolo.train.checkpoints import RunError
from tskd_yolo.train.processes import Processes

# Before a run ---------------------------------------------------------------------------------------------------------


def base(cfg: Any) -> dict[str, Any]:
    """The arguments beneath those that a user gives: Ultralytics' defaults and ours, and over them ``cfg``.

    Args:
        cfg: A file of settings, or settings, as Ultralytics' trainers take them.

    Raises:
        ConfigError: If it is a file and none of settings, or gives ``trust``.
    """
    theirs = {**DEFAULT_CFG_DICT, **settings_files.from_file(cfg)} if isinstance(cfg, (str, Path)) else cfg2dict(cfg)
    settings_files.refuse_trust(theirs, source="cfg=")
    merged = {**config.KEPT, **{key: value for key, value in theirs.items() if key != "trust"}}
    settings_files.resolve(merged)
    return merged


def check(base: Mapping[str, Any], overrides: dict[str, Any], errors: Sequence[str] = ()) -> list[Any]:
    """Checks that settings, teachers, student and data fit, before anything is written, and returns the teachers.

    Puts absolute paths of teachers and data into ``overrides``, so that the run can be resumed from anywhere, and the
    task.

    Args:
        base: Ultralytics' defaults and ours, ``trust`` among them.
        overrides: What the user gave.
        errors: Mistakes that are known already, to be told with the others.

    Raises:
        ConfigError: Naming everything that is wrong.
    """
    values, errors = _settings(base, overrides, errors)
    with compat.guarded(trust=values["trust"] is True):
        loaded = _teachers(values["teacher"], errors)
        wanted = overrides.get("task")
        student, data = _student_and_data(values, errors, sure=bool(wanted or any(map(task_of, loaded))))
        # YOLO.train, and who launches processes, give a mode, and every argument whether it was asked for or not.
        asked = "pretrained" in overrides and "mode" not in overrides
        errors += backbone.wrong_weights(student, values, asked=asked) if student else []
    if student:
        errors += [*freezing.wrong(student, values["freeze"]), *no_student(student)]
    mapping = _classes_map(values, loaded, data, errors)
    errors += [*wrong_channels(loaded, data["channels"]), *unlabelled.wrong_sources(values, overrides)]
    task = tasks.decided(wanted, student, loaded)
    with_others = {**values, "unlabelled": overrides.get("unlabelled")}  # also those that the data YAML names
    errors += tasks.wrong(task, with_others, data, loaded, asked=wanted if wanted in config.TASKS else None)
    if errors:
        raise ConfigError(errors)
    _tell_students(values)
    overrides["task"] = task
    overrides["teacher"] = absolute(model.pt_path for model in loaded)
    if mapping:
        overrides["classes_map"] = mapping  # the run keeps what the file says, and not where it was
    if values["data"] and Path(str(values["data"])).is_file():
        overrides["data"] = str(Path(values["data"]).resolve())
    return loaded


def _tell_students(values: Mapping[str, Any]) -> None:
    """Says which of the teachers is the student."""
    for file in config.teachers(values["teacher"]):
        if _same_file(file, values["model"]):
            LOGGER.warning(f"teacher {file} is the student itself: it can teach nothing new.")


def absolute(files: Iterable[Any]) -> str | list[str]:
    """Teachers by their absolute paths: of one its path, of several a list."""
    paths = [whole_path(file) for file in files]
    return paths[0] if len(paths) == 1 else paths


def _settings(
    base: Mapping[str, Any], overrides: Mapping[str, Any], errors: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """The arguments as Ultralytics reads them, and all that is wrong with them, each key told once."""
    values, wrong = engine_values(base, overrides, config.problems)
    return values, [*errors, *wrong]


def engine_values(
    base: Mapping[str, Any],
    overrides: Mapping[str, Any],
    problems: Callable[[Mapping[str, Any]], list[str]] = config.lengths,
) -> tuple[dict[str, Any], list[str]]:
    """The arguments as Ultralytics reads them, and what is wrong with them.

    Args:
        base: The arguments beneath.
        overrides: What was given.
        problems: What else is wrong with them all.
    """
    values, unknown, theirs = _read(base, overrides)
    ours = problems(values)
    told = {sentence.partition(":")[0] for sentence in ours}
    wrong = [sentence for key, sentence in theirs.items() if key not in told]
    return values, [*unknown, *wrong, *ours, *refusals.of(values)]


def _read(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> tuple[dict[str, Any], list[str], dict[str, str]]:
    """The arguments as Ultralytics reads them, the unknown ones, and by key what it says of wrong ones."""
    values, unknown = dict(base), []
    wrong: dict[str, Any] = {}
    told: dict[str, str] = {}
    for key, value in overrides.items():
        try:
            with compat.silent():  # on an unknown key it prints its whole help page
                values = vars(get_cfg(dict(values), {key: value}))
        except SyntaxError:
            unknown.append(config.unknown(key, base))
        except (TypeError, ValueError) as error:
            told[key], wrong[key] = f"{key}: {compat.plain(error)}.", value
        else:
            if isinstance(value, float) and not math.isfinite(value):
                told[key] = f"{key}: must be a finite number, got {value!r}."
    return {**values, **wrong}, unknown, told


def mistyped(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> bool:
    """Whether Ultralytics refuses the value of one of these arguments."""
    return bool(_read(base, overrides)[2])


def _teachers(given: Any, errors: list[str]) -> list[Any]:
    """The teachers that can be loaded."""
    found: list[Any] = []
    if config.teacher_problems(given):  # told already
        return found
    for path in config.teachers(given):
        with config.collected(errors):
            found.append(teacher.load(path))
    return found


def _classes_map(values: Mapping[str, Any], teachers: Sequence[Any], data: Any, errors: list[str]) -> Any:
    """The map of classes, where there is one; where nothing is left in common, something else has to be taught."""
    given, names, mapping = values["classes_map"], data["names"], None
    if isinstance(given, (str, Path, Mapping)):
        with config.collected(errors):
            mapping = classes.read(given)
    if not teachers or not names:
        return mapping
    theirs = classes.of_all(model.names for model in teachers)
    if problems := classes.wrong(mapping, theirs, data["whole"]):
        errors += problems
    elif values["drd"] == values["ded"] == 0 and values["crd"]:
        matched = classes.match(theirs, names, mapping, single=bool(values["single_cls"]))
        if not classes.only(matched, values["classes"]).known:
            errors.append(
                f"teacher: it has no class ({classes.short(theirs)}) in common with the data "
                f"({classes.short(names)}), and with drd=0 ded=0 nothing is left to teach; give classes_map=, or "
                "another teacher."
            )
    return mapping


def wrong_channels(teachers: Iterable[Any], ours: int | None) -> list[str]:
    """What is wrong with the channels of the teachers' images, beside those of the data."""
    return [
        f"teacher: it takes images of {theirs} channels and the data has {ours}; only grey and RGB are brought "
        "together, so train a teacher on such images."
        for theirs in map(channels, teachers)
        if ours is not None and ours != theirs and {ours, theirs} != {1, 3}
    ]


_NO_DATA: dict[str, Any] = {"names": {}, "whole": {}, "channels": None, "kpt_shape": None}
"""``whole`` are the classes before ``single_cls`` made them one."""


def _student_and_data(values: Mapping[str, Any], errors: list[str], *, sure: bool) -> tuple[Any, dict[str, Any]]:
    """The student's YAML, and classes and channels of the data; empty where they cannot be read, or another process
    does it.

    Args:
        values: The run's arguments.
        errors: Gets a sentence for what cannot be read.
        sure: Whether the task is known without the student.
    """
    elsewhere = LOCAL_RANK not in {-1, 0}  # one process of a machine is enough
    student = None if elsewhere and sure else _attempt("model", student_yaml, values["model"], errors)
    if elsewhere:
        return student, _NO_DATA
    data = attempted_data(values, errors)
    one = {"names": {0: "item"}} if data["names"] and values["single_cls"] else {}
    return student, {**data, "whole": data["names"], **one}


def attempted_data(values: Mapping[str, Any], errors: list[str]) -> dict[str, Any]:
    """Classes and channels of the data, empty where it cannot be read; ``errors`` gets what is wrong with it."""
    data = _attempt("data", partial(_data, split=values["split"]), values["data"], errors) or _NO_DATA
    errors += classes.wrong_asked(values["classes"], data["names"]) if data["names"] else []
    return data


_NEEDED = {
    "data": "data: missing; give data=FILE.yaml, the data set as Ultralytics takes it.",
    "model": "model: missing; give the student, i.e. model=yolo11n.yaml (random weights) or model=yolo11n.pt.",
}
_REMEDY = {
    "data": "give a data YAML whose folders exist, and can be written to where the set has to be prepared first",
    "model": "give a YOLO's .pt or .yaml",
}


def _attempt(key: str, read: Callable[[Any], Any], value: Any, errors: list[str]) -> Any:
    """What ``read`` gives; or None, with a sentence in ``errors``, whatever Ultralytics raises at a user's file."""
    if not value:
        errors.append(_NEEDED[key])
        return None
    try:
        with config.collected(errors):
            return read(value)
    except Exception as error:  # a missing or broken file ends in many types of exception
        errors.append(f"{key}: {value} could not be read ({compat.plain(error, about=value)}); {_REMEDY[key]}.")
    return None


def fetched(data: Any) -> bool:
    """Whether Ultralytics has to fetch and convert a data set before anything is known of it: NDJSON, its platform."""
    return str(data).startswith("ul://") or str(data).endswith(".ndjson")


def _data(data: Any, split: Any) -> dict[str, Any]:
    """Classes and channels of a data set that has a split to validate on; none yet of one that is fetched."""
    if fetched(data):
        return _NO_DATA
    try:
        content = check_det_dataset(data)
    except (MissingSetError, ConvertError) as error:  # ours, and whole sentences already
        raise ConfigError([f"data: {error}"]) from error
    if not isinstance(content.get(split), (str, list)):
        named = ", ".join(name for name in dataset.SPLITS if content.get(name))
        raise ConfigError([f"split: must be one that the data YAML names ({named}), got {split!r}."])
    for name in ("train", split):
        if isinstance(content[name], str) and (gone := dataset.gone(Path(content[name]))):
            raise ConfigError([f"data: {gone}"])
    return {key: content.get(key) for key in _NO_DATA}


def student_yaml(name: str | Path) -> dict[str, Any]:
    """The YAML of a student, from a model's YAML or from a checkpoint.

    Raises:
        ConfigError: If it describes no network, or cannot be trained.
    """
    file = str(check_model_file_from_stem(str(name)))
    if file.endswith((".yaml", ".yml")):
        content = yaml_model_load(file)
        if not all(isinstance(content.get(part), list) and content[part] for part in ("backbone", "head")):
            raise ConfigError([f"model: {name} describes no network (backbone: and head: are missing); give a YOLO's."])
        if compat.own_yaml(file):
            _build(file)
        return content
    student = teacher.load(file, key="model")
    if student.is_fused():  # the engine would drop the biases into which they were folded
        raise ConfigError(
            [f"model: the batch norms of {name} are folded, it cannot be trained; give it as it was saved."]
        )
    return student.yaml


def _build(file: str) -> None:
    """Builds the network of a YAML of the user's: what is wrong with its layers shows in no other way.

    Raises:
        ConfigError: If it cannot be built.
    """
    try:
        with undisturbed(), compat.silent():
            YOLO(file)
    except ConfigError:
        raise
    except Exception as error:  # of a layer that is not there, or of sizes that do not fit
        reason = f"{type(error).__name__}: {compat.plain(error)}"
        raise ConfigError([f"model: the network of {file} cannot be built ({reason}); mend its layers."]) from error


def _same_file(a: Any, b: Any) -> bool:
    paths = [Path(str(x)) for x in (a, b)]
    return all(p.is_file() for p in paths) and paths[0].samefile(paths[1])


# After an epoch -------------------------------------------------------------------------------------------------------


def report_epoch(monitor: Monitor, processes: Processes) -> None:
    """Says which terms were left out of steps, or cut; those that were left out too often are switched off."""
    for term, (left_out, steps, off) in monitor.nonfinite(processes.total).items():
        end = "It is switched off for the rest of the run." if off else "The detection loss went on."
        LOGGER.warning(f"{term} was not finite in {left_out} of {steps} steps and left out of them. {end}")
    for term, part in monitor.clipped().items():
        LOGGER.warning(
            f"{term}: its factor was cut at cap or floor in {part:.0%} of the steps, so its gradient share is not what "
            "was asked for; its column says what it is."
        )


def check_first_epoch(monitor: Monitor, processes: Processes) -> None:
    """The first-epoch check: that every term reaches the student, adapters have moved and the teacher has not; says
    where a gradient share is below a tenth of what was asked for.

    Raises:
        RunError: If nothing is being taught, with the reasons.
    """
    if problems := monitor.first_epoch_problems(processes.total, processes.count):
        raise RunError(f"the first-epoch check failed, the run was stopped: {'; '.join(problems)}.")
    shares = {k: v for k, v in monitor.columns().items() if k.startswith("share/")}
    words = "   ".join(f"{key.split('/')[1]} {value:.1%}" for key, value in shares.items())
    moved = ", adapters have moved" if monitor.adapters else ""
    LOGGER.info(
        f"{colorstr('tskd-yolo:')} first-epoch check passed: every term reaches the student on {processes.count} "
        f"process(es){moved}, the teacher has not. Gradient shares: {words}."
    )
    for term, (reached, asked) in monitor.short_shares().items():
        LOGGER.warning(
            f"{term}: its gradient share is {reached:.2%} of the detection loss's, less than a tenth of the "
            f"{asked:.2%} that was asked for: it teaches next to nothing."
        )
