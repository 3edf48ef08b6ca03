"""What a comparison's folder remembers of how it was begun: its plan, its settings, and the files of its data set.

Runs of different settings, data, devices or versions are never mixed. The number of seeds is part of the plan: a change
after the start is told beside every verdict.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ultralytics.data.utils import IMG_FORMATS, check_det_dataset
from ultralytics.utils import DEFAULT_CFG_DICT, YAML
from ultralytics.utils.checks import check_file

from tskd_yolo import compat, config, hashing
from tskd_yolo.compare.arms import overrides_of
from tskd_yolo.compare.plan import Plan
from tskd_yolo.compare.splits import Files, contents, files_of
from tskd_yolo.config import ConfigError
from tskd_yolo.data import index
from tskd_yolo.data.dataset import SPLITS
from tskd_yolo.files import write_json
from tskd_yolo.train import scan

_IRRELEVANT = frozenset(
    "project name exist_ok save_dir mode task seed verbose plots device cache cfg resume trust".split()
)
_OTHERWISE = "take the old value, or another folder with out="
_HASHED = re.compile(r".* \(.*?sha256 (\w+)\)")
"""What :func:`named` and :func:`_named` make of files."""


def begin(plan: Plan) -> None:
    """Writes plan, settings and files into a new comparison's folder; goes on in an older one that has the same.

    Raises:
        ConfigError: Naming everything that the runs in the folder do not have.
    """
    known = _read(plan.out / "data.json", {})
    files = files_of(plan.common["data"], plan.argument("fraction"), known)
    now, arms = settings(plan, files), _read(plan.out / "arms.json", {})
    own = {arm: told(plan, arm) for arm in plan.own_arms}
    begun = (plan.out / "settings.json").exists()
    if problems := (_changes(plan.out, now, files) if begun else []) + _changed_arms(plan.out, arms, own):
        raise ConfigError(problems)
    if not begun:
        write_json(plan.out / "settings.json", now)  # first: by it the folder is known as a comparison's
    if files != known:
        write_json(plan.out / "data.json", files)
    if not own.keys() <= arms.keys():
        write_json(plan.out / "arms.json", {**arms, **own})
    asked = {"seeds": plan.seeds, "arms": plan.arms}
    if asked not in (before := plans(plan.out)):
        write_json(plan.out / "plan.json", [*before, asked])


def learned_from(plan: Plan) -> list[str]:
    """A sentence where images without labels are in the split that judges."""
    given = [plan.settings_of(arm).get("unlabelled") for arm in plan.arms]
    places = list(dict.fromkeys(place for each in given for place in config.sources(each)))
    if plan.judged.split != "test" or not places:
        return []
    found = index.images(places, suffixes=IMG_FORMATS, kept=hashing.kept)
    same = found.same_as(scan.images_of(check_det_dataset(plan.common["data"]), "test"))
    if not same:
        return []
    first = Path(found.file(min(same))).name
    return [
        f"unlabelled: {len(same)} images are in the test split too, by content (such as {first}), and test judges; "
        "take them out, or judge on val with split=val."
    ]


# The plan -------------------------------------------------------------------------------------------------------------


def plans(out: Path) -> list[dict[str, Any]]:
    """Seeds and arms as they were asked for in this folder, in this order; the first is the plan."""
    return _read(out / "plan.json", [])


def _read(file: Path, otherwise: Any) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else otherwise


def changed_seeds(plan: Plan) -> str:
    """``planned 5 seeds, now 8``; empty where the seeds are those of the plan."""
    planned: list[int] = plans(plan.out)[0]["seeds"]
    if sorted(planned) == sorted(plan.seeds):
        return ""
    if len(planned) != len(plan.seeds):
        return f"planned {_count(planned)}, now {len(plan.seeds)}"
    return f"planned seeds {', '.join(map(str, planned))}, now {', '.join(map(str, plan.seeds))}"


def _count(seeds: list[int]) -> str:
    return f"{len(seeds)} seed{'' if len(seeds) == 1 else 's'}"


def arms_ever(plan: Plan) -> list[str]:
    """Every arm that was ever asked for in this folder: each was a chance of a verdict."""
    return list(dict.fromkeys(arm for asked in plans(plan.out) for arm in asked["arms"]))


# What decides the result ----------------------------------------------------------------------------------------------


def told(plan: Plan, arm: str) -> dict[str, Any]:
    """What an arm is trained with besides the settings of all, as JSON takes it: files by name and hash."""
    overrides = {key: _named(key, value) for key, value in overrides_of(arm, plan.own_arms).items()}
    return json.loads(json.dumps(overrides, default=str))


def settings(plan: Plan, files: Files) -> dict[str, Any]:
    """What decides the result of a run: settings, contents of files, device and versions; no path and no host."""
    chosen = {**DEFAULT_CFG_DICT, **plan.common, **{k: v for k, v in plan.own.items() if k != "teacher"}}
    content = {k: _named(k, v) for k, v in chosen.items() if k not in _IRRELEVANT and k not in {"data", "model"}}
    given = {"model": str(compat.own_yaml(plan.model) or plan.model), "teacher": plan.own["teacher"]}
    known = {
        f"{kind} of {split}": f"{len(found)} (sha256 {_hash(found)})"
        for split, kinds in files.items()
        for kind, found in kinds.items()
    }
    versions = {name.replace("_", "-"): version for name, version in hashing.versions().items()}
    judged = {"split": plan.judged.split, "judged by": f"{plan.judged.weights}.pt"}
    rest = {**judged, **known, "device": hardware(plan.common.get("device")), **versions}
    told = {"data": _data(check_file(plan.common["data"])), **{k: named(v) for k, v in given.items()}}
    return json.loads(json.dumps({**told, **content, **rest}, default=str))


_PLACES = "path", "download", *SPLITS
"""Of a data YAML what says where its files are: these are known by their content."""


def _data(file: str) -> str:
    """A data YAML by its name and a hash of what decides the result, so that a set may be copied."""
    content = YAML.load(file)
    decides = json.dumps({key: value for key, value in content.items() if key not in _PLACES}, default=str)
    return f"{Path(file).name} (sha256 {hashlib.sha256(decides.encode()).hexdigest()[:16]})"


def _named(key: str, value: Any) -> Any:
    """The value of a setting, as :func:`named`; images without labels by the names of their places, and a hash."""
    if key != "unlabelled" or not (places := config.sources(value)):
        return named(value)
    found = index.images(places, suffixes=IMG_FORMATS, kept=hashing.kept)
    return f"{', '.join(Path(place).name for place in places)} ({len(found)}, sha256 {found.digest()[:16]})"


def named(value: Any) -> Any:
    """A file by its name and the hash of its content, and so each of a list; anything else as it is."""
    if isinstance(value, (list, tuple)):
        return [named(entry) for entry in value]
    if not isinstance(value, str) or not Path(value).is_file():
        return value
    return f"{Path(value).name} (sha256 {hashlib.sha256(Path(value).read_bytes()).hexdigest()[:16]})"


def clock(device: Any) -> str:
    """By which column of results.csv a run on this ``device=`` is timed, see ``timing.SECONDS``."""
    return "time" if _on_cuda(device) or str(device).lower() == "mps" else "process_time"


def _on_cuda(device: Any) -> bool:
    return torch.cuda.is_available() and str(device).lower() not in {"cpu", "mps"}


def hardware(device: Any) -> str:
    """What computes where ``device=`` is this, without the machine's name."""
    asked = str("" if device is None else device).lower()
    if _on_cuda(device):
        numbers = [int(n) for n in asked.strip("[]()").replace("cuda:", "").split(",") if n.strip().isdigit()] or [0]
        return " + ".join(torch.cuda.get_device_name(n) for n in numbers)
    if asked == "mps":
        return f"MPS ({platform.machine()})"
    return f"CPU ({platform.machine()}, {_processor()}, {os.cpu_count()} cores)"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or "unknown processor"


def _hash(files: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(contents(files), sort_keys=True).encode()).hexdigest()[:16]


# What has changed -----------------------------------------------------------------------------------------------------


def _changes(out: Path, now: Mapping[str, Any], files: Files) -> list[str]:
    """A sentence for everything that the runs in the folder do not have."""
    before = _read(out / "settings.json", {})
    kinds = {f"{kind} of {split}": (split, kind) for split in files for kind in files[split]}
    problems = []
    for key in {**before, **now}:
        if key not in before:
            problems.append(f"{key}: was not written down when the runs in {out.name} were begun; give another out=.")
        elif _unnamed(before[key]) == _unnamed(now.get(key)):
            continue
        elif key in kinds:
            problems.append(_changed_files(key, out, *kinds[key], files))
        else:
            problems.append(f"{key}: the runs in {out.name} have {before[key]!r}, not {now.get(key)!r}; {_OTHERWISE}.")
    return problems


def _unnamed(value: Any) -> Any:
    """The same without names of files that have a hash: a file that was renamed is the same."""
    if isinstance(value, (list, tuple)):
        return [_unnamed(entry) for entry in value]
    if isinstance(value, dict):
        return {key: _unnamed(entry) for key, entry in value.items()}
    found = _HASHED.fullmatch(value) if isinstance(value, str) else None
    return found[1] if found else value


def _changed_arms(out: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A sentence for every arm of the user's own that had other settings in this folder."""
    return [
        f"arms: {arm}: the runs in {out.name} have {before[arm]!r}, not {now[arm]!r}; take the old settings, another "
        "name, or another folder with out=."
        for arm in now
        if _unnamed(before.get(arm, now[arm])) != _unnamed(now[arm])
    ]


def _changed_files(key: str, out: Path, split: str, kind: str, files: Files) -> str:
    """How many files of a kind are others than those that the runs in the folder saw, and one of them."""
    known = _read(out / "data.json", {}).get(split, {}).get(kind, {})  # none where the beginning was cut short
    before, now = contents(known), contents(files[split][kind])
    counts = {
        "changed": [name for name in now if name in before and now[name] != before[name]],
        "gone": [name for name in before if name not in now],
        "new": [name for name in now if name not in before],
    }
    told = ", ".join(f"{len(names)} {what}" for what, names in counts.items() if names)
    first = next(name for names in counts.values() for name in names)
    return (
        f"{key}: {told} since the runs in {out.name} were begun, such as {first}; bring the old files back, or take "
        "another folder with out=."
    )
