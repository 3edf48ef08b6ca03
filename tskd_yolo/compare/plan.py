"""What a comparison is asked for: its arms, seeds and settings, and whether they fit together."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ultralytics.utils import DEFAULT_CFG_DICT

from tskd_yolo import compat, config, settings_files
from tskd_yolo.compare.arms import ARMS, UNLABELLED, default, overrides_of, read, settings_of, uses, wrong_arms
from tskd_yolo.compare.metrics import class_names
from tskd_yolo.compare.splits import Judging, judging
from tskd_yolo.config import ConfigError
from tskd_yolo.data.index import absolute
from tskd_yolo.distill import classes, feature_model
from tskd_yolo.train.checks import check, fetched

KEYS: dict[str, Any] = {
    "arms": ",".join(ARMS),
    "seeds": 5,
    "split": None,
    "jobs": 1,
    "ray": False,
    "out": "runs/compare",
}
"""The arguments of ``compare`` besides those of training, with their defaults; ``split`` judges, and never trains."""
_KNOWN = {**DEFAULT_CFG_DICT, **config.DEFAULTS}
_REFUSED = {
    "seed": "seed: a comparison has several; write seeds=5 or seeds=[0,3].",
    "project": "project: a comparison has one folder; write out=FOLDER.",
    "name": "name: a comparison has one folder; write out=FOLDER.",
    "save_dir": "save_dir: a comparison has one folder; write out=FOLDER.",
    "exist_ok": "exist_ok: a comparison goes on in its folder by itself; leave it out.",
    "resume": "resume: a comparison goes on by itself; give the same command and the same out= again.",
}


class Run(NamedTuple):
    """One arm with one seed."""

    arm: str
    seed: int

    def __str__(self) -> str:
        return f"{self.arm}-{self.seed}"


class Plan(NamedTuple):
    """A checked comparison.

    ``common`` goes to every arm, ``own`` (our keys, and ``teacher``) to those that distil, with what ``own_arms`` has
    for arms of the user's own.
    """

    arms: list[str]
    own_arms: dict[str, dict[str, Any]]
    seeds: list[int]
    jobs: int
    ray: bool
    out: Path
    model: str
    common: dict[str, Any]
    own: dict[str, Any]
    judged: Judging

    @property
    def runs(self) -> list[Run]:
        """All runs, seed by seed: an interruption leaves whole pairs."""
        return [Run(arm, seed) for seed in self.seeds for arm in self.arms]

    @property
    def chains(self) -> list[list[Run]]:
        """Runs that may stand side by side; plain training for tskd's time follows both."""
        if "plain_same_time" not in self.arms:
            return [[run] for run in self.runs]
        needed = "plain", "tskd", "plain_same_time"
        chains = []
        for seed in self.seeds:
            chains.append([Run(arm, seed) for arm in needed])
            chains += [[Run(arm, seed)] for arm in self.arms if arm not in needed]
        return chains

    def folder(self, name: Run | str) -> Path:
        """Where a run, or ``teacher`` or ``latency``, leaves what it found."""
        return self.out / str(name)

    def log(self, name: Run | str) -> Path:
        """What its worker printed."""
        return self.out / "logs" / f"{name}.txt"

    def argument(self, key: str) -> Any:
        """A training argument of every arm; Ultralytics' default where none is given."""
        return self.common.get(key, DEFAULT_CFG_DICT[key])

    def settings_of(self, arm: str) -> dict[str, Any]:
        """What an arm is trained with besides ``common``."""
        return settings_of(arm, self.own, self.own_arms)

    def epochs(self, arm: str) -> int:
        """How long an arm trains; plain training for tskd's time has no number of its own."""
        return self.settings_of(arm).get("epochs", self.argument("epochs"))


def checked(values: Mapping[str, Any]) -> Plan:
    """The comparison that is asked for.

    Args:
        values: :data:`KEYS`, our keys, and any of Ultralytics' training arguments.

    Raises:
        ConfigError: Naming everything that is wrong; nothing is written.
    """
    values = dict(_plain(values))
    if file := values.pop("cfg", None):
        values = {**settings_files.from_file(file), **values}
    asked = {**KEYS, **{k: v for k, v in values.items() if k in KEYS}}
    given = {k: v for k, v in values.items() if k not in KEYS}
    settings_files.resolve(given)
    problems = [text for key, text in _REFUSED.items() if _given(given.pop(key, None))]
    problems += [*filter(None, map(_untold, given, given.values()))]
    training = config.with_variant(given)
    known = {**_KNOWN, **training}
    arms, own_arms = read(asked["arms"] if "arms" in values else default(known), problems)
    own_arms = {arm: _resolved(settings, given, training) for arm, settings in own_arms.items()}
    problems += _wrong_seeds(asked["seeds"]) + wrong_arms(arms, own_arms, known)
    problems += _wrong_keys(asked) + _wrong_training(training, arms) + _wrong_batches(training, own_arms)
    problems += _wrong_unlabelled(given, training, arms, own_arms)
    if not problems:
        problems += _wrong_settings(training, own_arms)
    if problems:
        raise ConfigError(problems)
    for key in ("data", "model"):
        training[key] = _absolute(training[key])
    training["teacher"] = _teachers(training["teacher"])
    with compat.guarded(trust=training.get("trust") is True):
        judged = judging(training["data"], asked["split"])
    theirs = {k: v for k, v in training.items() if k not in {"model", "task", "mode", *config.DEFAULTS}}
    ours = {k: v for k, v in training.items() if k in config.DEFAULTS}
    return Plan(
        arms=arms,
        own_arms={arm: _with_teacher(settings) for arm, settings in own_arms.items()},
        seeds=_seeds(asked["seeds"]),
        jobs=asked["jobs"],
        ray=asked["ray"],
        out=_folder(asked["out"]),
        model=training["model"],
        common={"plots": False, **theirs},
        own={**config.DEFAULTS, **ours},
        judged=judged,
    )


def _plain(value: Any) -> Any:
    """The same with paths as text, which is what a worker is told."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _untold(key: str, value: Any) -> str:
    """What is wrong with a value that a worker cannot be told; empty where it can."""
    try:
        json.dumps(value)
    except TypeError:
        what = type(value[0] if isinstance(value, list) else value).__name__
        transform = "; give each as albumentations.to_dict(transform)" if key == "augmentations" else ""
        return f"{key}: must be what JSON can hold, as runs are processes of their own, got {what}{transform}."
    return ""


def _given(value: Any) -> bool:
    """Whether an argument says anything: 0 does, and a list."""
    return value is not None and value is not False and value != ""


def _seeds(value: Any) -> list[int]:
    """``5`` is 0 to 4, a list is itself."""
    return list(value) if isinstance(value, (list, tuple)) else list(range(value))


def _folder(value: Any) -> Path:
    return Path(str(value)).expanduser().resolve()


def _resolved(settings: Any, given: Mapping[str, Any], training: Mapping[str, Any]) -> Any:
    """The settings of an arm of the user's own, with what else a ``variant`` among them changes.

    Args:
        settings: What the user gave for this arm; what is no mapping is left to be refused.
        given: What the user gave for all arms.
        training: The same over the settings of its variant.
    """
    if not isinstance(settings, Mapping):
        return settings
    mine, common = {**_KNOWN, **config.with_variant({**given, **settings})}, {**_KNOWN, **training}
    return {**settings, **{k: v for k, v in mine.items() if k not in settings and v != common.get(k)}}


def _with_teacher(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an arm of the user's own; a teacher and images of its own by their absolute paths."""
    own = {key: _teachers(value) if key == "teacher" else value for key, value in settings.items()}
    return {**own, "unlabelled": absolute(config.sources(given))} if (given := own.get("unlabelled")) else own


def _teachers(given: Any) -> str | list[str]:
    """One teacher or several, as :func:`_absolute` has each."""
    files = [_absolute(file) for file in config.teachers(given)]
    return files[0] if len(files) == 1 else files


def _absolute(file: Any) -> str:
    """A file of the user's by its absolute path; a name that Ultralytics knows as it is."""
    if Path(file).exists() or feature_model.named(file):
        return feature_model.whole_path(file)
    return str(file)


# What is wrong with it ------------------------------------------------------------------------------------------------


def _whole(value: Any) -> bool:
    """Whether it is a whole number; True is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def _wrong_seeds(value: Any) -> list[str]:
    numbers, least = (value, 0) if isinstance(value, (list, tuple)) else ([value], 1)
    if not numbers or not all(_whole(number) for number in numbers):
        return [f"seeds: must be a number of seeds or a list of seeds, got {value!r}; i.e. seeds=5 or seeds=[0,3]."]
    if min(numbers) < least or len(set(numbers)) < len(numbers) or max(numbers) >= 2**32:
        return [
            f"seeds: must be a number from 1 on, or a list of different seeds from 0 to {2**32 - 1}, got {value!r}."
        ]
    return []


def _wrong_keys(asked: Mapping[str, Any]) -> list[str]:
    """What is wrong with ``jobs``, ``ray`` and ``out``."""
    problems = []
    if not _whole(asked["jobs"]) or asked["jobs"] < 1:
        problems.append(f"jobs: must be a whole number from 1 on, got {asked['jobs']!r}.")
    if not isinstance(asked["ray"], bool):
        problems.append(f"ray: must be True or False, got {asked['ray']!r}.")
    elif asked["ray"] and importlib.util.find_spec("ray") is None:
        problems.append("ray: is not installed; pip install ray adds it, or leave ray=True out.")
    out = _folder(asked["out"])
    if out.exists() and not out.is_dir():
        problems.append(f"out: {asked['out']} is a file; give a folder.")
    elif out.exists() and not _ours(out):
        problems.append(f"out: {asked['out']} is there and holds no comparison; give another folder.")
    return problems


def _ours(out: Path) -> bool:
    """Whether a folder is empty, or was begun by a comparison, which writes its settings first."""
    try:
        begun = json.loads((out / "settings.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return all(file.name == ".lock" or file.name.endswith(".part") for file in out.iterdir())
    except ValueError:
        return False
    return isinstance(begun, dict) and begun.keys() >= {"data", "model", "teacher"}


def _wrong_training(training: dict[str, Any], arms: Sequence[str]) -> list[str]:
    """What the trainer finds wrong; the teacher is wanted by every comparison."""
    problems = []
    remote = fetched(training.get("data"))
    try:
        teachers = check(_KNOWN, training)
        problems += _no_detectors(training["task"]) or ([] if remote else _unjudged(teachers, training))
    except ConfigError as error:
        problems += error.problems
    epochs = training.get("epochs", DEFAULT_CFG_DICT["epochs"])
    if isinstance(epochs, int) and epochs < 1:
        problems.append(f"epochs: must be a whole number from 1 on, got {epochs}.")
    if remote:
        problems.append(f"data: a comparison needs a data YAML with its files on disk, got {training['data']!r}.")
    if training.get("time") and "plain_same_time" in arms:
        problems.append("time: plain_same_time takes the time of tskd; drop this arm, or drop time=.")
    return problems


def _wrong_batches(training: Mapping[str, Any], own_arms: Mapping[str, Any]) -> list[str]:
    """A batch that is chosen by what fits into memory: it would be another one in every arm."""
    places = {"": training, **{f"arms: {arm}: ": own for arm, own in own_arms.items() if isinstance(own, Mapping)}}
    return [
        f"{place}batch: must be a number of images, the same in every run, got {batch!r}, which is chosen anew in each "
        "by what fits into memory; give batch=16 or another number."
        for place, values in places.items()
        if isinstance(batch := values.get("batch"), (int, float)) and (batch == -1 or 0 < batch < 1)
    ]


def _no_detectors(task: str) -> list[str]:
    """What keeps student and teacher from being judged: a page tells of boxes, pictures and latencies of detectors."""
    if task == "detect":
        return []
    return [
        f"task: a comparison judges detectors, and these are for {task}; train a run with and one without the teacher, "
        "and compare their columns in results.csv."
    ]


def _wrong_unlabelled(
    given: Mapping[str, Any], training: Mapping[str, Any], arms: Sequence[str], own_arms: Mapping[str, Any]
) -> list[str]:
    """What is wrong with images without labels: an arm that has none, or images that no arm uses."""
    if UNLABELLED in arms and not config.sources(training.get("unlabelled")):
        return [f"arms: {UNLABELLED} needs images without labels; give unlabelled=, or drop the arm."]
    if config.sources(given.get("unlabelled")) and not any(uses(arm, own_arms) for arm in arms):
        return [f"unlabelled: no arm learns from images without labels; add {UNLABELLED} to arms, or drop it."]
    return []


def _unjudged(teachers: Sequence[Any], training: Mapping[str, Any]) -> list[str]:
    """What keeps teachers from being judged on the data set, after everything else was found right."""
    if headless := [model.pt_path for model in teachers if isinstance(model, feature_model.FeatureModel)]:
        return [
            f"teacher: a comparison judges its teacher, and {headless[0]} has no detection head; give a detector, and "
            "this one to an arm of your own (arms=FILE.yaml)."
        ]
    single = bool(training.get("single_cls"))
    names = class_names(training["data"], single)
    theirs = classes.of_all(model.names for model in teachers)
    if classes.match(theirs, names, classes.read(training.get("classes_map")), single=single).known:
        return []
    return [
        f"teacher: it has no class ({classes.short(theirs)}) in common with the data ({classes.short(names)}), "
        "and a comparison judges it on them; give classes_map=, or another teacher."
    ]


def _wrong_settings(training: Mapping[str, Any], own_arms: Mapping[str, Any]) -> list[str]:
    """What the trainer finds wrong with the settings of each arm of the user's own."""
    problems = []
    for arm in own_arms:
        try:
            check(_KNOWN, {**training, **overrides_of(arm, own_arms)})
        except ConfigError as error:
            problems += [f"arms: {arm}: {problem}" for problem in error.problems]
    return problems
