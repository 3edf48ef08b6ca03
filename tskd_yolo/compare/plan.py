"""What a comparison is asked for: its arms, seeds and settings, and whether they fit together."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ultralytics.utils import DEFAULT_CFG_DICT

from tskd_yolo import config
from tskd_yolo.config import TERMS, ConfigError
from tskd_yolo.train.checks import check

ARMS = "plain", "plain_same_time", "ultralytics", "tskd", *TERMS
KEYS: dict[str, Any] = {"arms": ",".join(ARMS), "seeds": 5, "jobs": 1, "ray": False, "out": "runs/compare"}
"""The arguments of ``compare`` besides those of training, with their defaults."""
_REFUSED = {
    "seed": "seed: a comparison has several; write seeds=5 or seeds=[0,3].",
    "project": "project: a comparison has one folder; write out=FOLDER.",
    "name": "name: a comparison has one folder; write out=FOLDER.",
    "save_dir": "save_dir: a comparison has one folder; write out=FOLDER.",
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

    ``common`` goes to every arm, ``own`` (our keys, and ``teacher``) to those that distil.
    """

    arms: list[str]
    seeds: list[int]
    jobs: int
    ray: bool
    out: Path
    model: str
    common: dict[str, Any]
    own: dict[str, Any]

    @property
    def runs(self) -> list[Run]:
        """All runs, seed by seed: an interruption leaves whole pairs."""
        return [Run(arm, seed) for seed in self.seeds for arm in self.arms]

    @property
    def chains(self) -> list[list[Run]]:
        """Runs that may stand side by side; plain training for tskd's time follows tskd."""
        chains = []
        for run in self.runs:
            follows = Run("plain_same_time", run.seed)
            if run.arm == "tskd" and follows in self.runs:
                chains.append([run, follows])
            elif run.arm != "plain_same_time":
                chains.append([run])
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


def checked(values: Mapping[str, Any]) -> Plan:
    """The comparison that is asked for.

    Args:
        values: :data:`KEYS`, our keys, and any of Ultralytics' training arguments.

    Raises:
        ConfigError: Naming everything that is wrong; nothing is written.
    """
    asked = {**KEYS, **{k: v for k, v in values.items() if k in KEYS}}
    training = {k: v for k, v in values.items() if k not in KEYS}
    config.resolve(training)
    problems = [text for key, text in _REFUSED.items() if _given(training.pop(key, None))]
    arms = [arm.strip() for arm in _listed(asked["arms"])]
    problems += _wrong_seeds(asked["seeds"]) + _wrong_arms(arms) + _idle_arms(arms, {**config.DEFAULTS, **training})
    problems += _wrong_keys(asked) + _wrong_training(training, arms)
    if problems:
        raise ConfigError(problems)
    for key in ("data", "model", "teacher"):
        training[key] = _absolute(training[key])
    theirs = {k: v for k, v in training.items() if k not in {"model", "task", "mode", *config.DEFAULTS}}
    ours = {k: v for k, v in training.items() if k in config.DEFAULTS}
    return Plan(
        arms=arms,
        seeds=_seeds(asked["seeds"]),
        jobs=asked["jobs"],
        ray=asked["ray"],
        out=_folder(asked["out"]),
        model=training["model"],
        common={"plots": False, **theirs},
        own={**config.DEFAULTS, **ours},
    )


def _given(value: Any) -> bool:
    """Whether an argument says anything: 0 does, and a list."""
    return value is not None and value is not False and value != ""


def _listed(value: Any) -> list[str]:
    return [str(v) for v in value] if isinstance(value, (list, tuple)) else str(value).strip("[]()").split(",")


def _seeds(value: Any) -> list[int]:
    """``5`` is 0 to 4, a list is itself."""
    return list(value) if isinstance(value, (list, tuple)) else list(range(value))


def _folder(value: Any) -> Path:
    return Path(str(value)).resolve()


def _absolute(file: Any) -> str:
    """A file of the user's by its absolute path; a name that Ultralytics knows as it is."""
    return str(Path(file).resolve()) if Path(file).exists() else str(file)


# What is wrong with it ------------------------------------------------------------------------------------------------


def _whole(value: Any) -> bool:
    """Whether it is a whole number; True is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def _wrong_seeds(value: Any) -> list[str]:
    numbers, least = (value, 0) if isinstance(value, (list, tuple)) else ([value], 1)
    if not numbers or not all(_whole(number) for number in numbers):
        return [f"seeds: must be a number of seeds or a list of seeds, got {value!r}; i.e. seeds=5 or seeds=[0,3]."]
    if min(numbers) < least or len(set(numbers)) < len(numbers):
        return [f"seeds: must be a number from 1 on, or a list of different seeds from 0 on, got {value!r}."]
    return []


def _wrong_arms(arms: Sequence[str]) -> list[str]:
    problems = [f"arms: {arm} is none; choose from {', '.join(ARMS)}." for arm in arms if arm not in ARMS]
    if len(set(arms)) < len(arms):
        problems.append("arms: one is named twice; name each once.")
    if "plain" not in arms:
        problems.append("arms: plain is missing, and every other arm is compared with it; add it.")
    if "plain_same_time" in arms and "tskd" not in arms:
        problems.append("arms: plain_same_time takes the time of tskd, which is missing; add tskd.")
    return problems


def _idle_arms(arms: Sequence[str], values: Mapping[str, Any]) -> list[str]:
    """Arms that would train as plain does, because their terms weigh nothing."""
    problems = [
        f"{arm}: is 0, and the arm {arm} would distil nothing; give it a weight or drop the arm."
        for arm in arms
        if arm in TERMS and values[arm] == 0
    ]
    if "tskd" in arms and all(values[term] == 0 for term in TERMS):
        problems.append("drd, ded, crd: all are 0, and the arm tskd would distil nothing; give one a weight.")
    return problems


def _wrong_keys(asked: Mapping[str, Any]) -> list[str]:
    """What is wrong with ``jobs``, ``ray`` and ``out``."""
    problems = []
    if not _whole(asked["jobs"]) or asked["jobs"] < 1:
        problems.append(f"jobs: must be a whole number from 1 on, got {asked['jobs']!r}.")
    if not isinstance(asked["ray"], bool):
        problems.append(f"ray: must be True or False, got {asked['ray']!r}.")
    elif asked["ray"] and importlib.util.find_spec("ray") is None:
        problems.append("ray: is not installed; pip install 'tskd-yolo[all]' adds it, or leave ray=True out.")
    out = _folder(asked["out"])
    if out.exists() and not out.is_dir():
        problems.append(f"out: {asked['out']} is a file; give a folder.")
    return problems


def _wrong_training(training: dict[str, Any], arms: Sequence[str]) -> list[str]:
    """What the trainer finds wrong; the teacher is wanted by every comparison."""
    problems = []
    try:
        check({**DEFAULT_CFG_DICT, **config.DEFAULTS}, training)
    except ConfigError as error:
        problems += error.problems
    epochs = training.get("epochs", DEFAULT_CFG_DICT["epochs"])
    if isinstance(epochs, int) and epochs < 1:
        problems.append(f"epochs: must be a whole number from 1 on, got {epochs}.")
    if str(training.get("data")).startswith("ul://") or str(training.get("data")).endswith(".ndjson"):
        problems.append(f"data: a comparison needs a data YAML with its files on disk, got {training['data']!r}.")
    if training.get("time") and "plain_same_time" in arms:
        problems.append("time: plain_same_time takes the time of tskd; drop this arm, or drop time=.")
    return problems
