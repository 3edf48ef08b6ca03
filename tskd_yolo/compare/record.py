"""What a comparison's folder remembers of how it was begun: its plan, its settings, and the files of its data set.

Runs of different settings, data, devices or versions are never mixed. The number of seeds is part of the plan: a change
after the start is told beside every verdict.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from ultralytics.data.base import BaseDataset
from ultralytics.data.utils import check_det_dataset, img2label_paths
from ultralytics.utils import DEFAULT_CFG_DICT
from ultralytics.utils.checks import check_file

from tskd_yolo import compat, hashing
from tskd_yolo.compare.plan import Plan
from tskd_yolo.config import ConfigError
from tskd_yolo.files import write_json

Files = Mapping[str, str]
"""What stands for the content of each file, by its name relative to the data set's folder."""

_IRRELEVANT = frozenset(
    "project name exist_ok save_dir mode task seed verbose plots device cache cfg resume trust".split()
)
_OTHERWISE = "take the old value, or another folder with out="


def begin(plan: Plan) -> None:
    """Writes plan, settings and files into a new comparison's folder; goes on in an older one that has the same.

    Raises:
        ConfigError: Naming everything that the runs in the folder do not have.
    """
    files = data_files(plan)
    now = settings(plan, files)
    if (plan.out / "settings.json").exists():
        if problems := _changes(plan.out, now, files):
            raise ConfigError(problems)
    else:
        write_json(plan.out / "data.json", files)
        write_json(plan.out / "settings.json", now)
    asked = {"seeds": plan.seeds, "arms": plan.arms}
    if asked not in (before := plans(plan.out)):
        write_json(plan.out / "plan.json", [*before, asked])


# The plan -------------------------------------------------------------------------------------------------------------


def plans(out: Path) -> list[dict[str, Any]]:
    """Seeds and arms as they were asked for in this folder, in this order; the first is the plan."""
    file = out / "plan.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else []


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


def settings(plan: Plan, files: Mapping[str, Mapping[str, Files]]) -> dict[str, Any]:
    """What decides the result of a run: settings, contents of files, device and versions; no path and no host."""
    chosen = {**DEFAULT_CFG_DICT, **plan.common, **{k: v for k, v in plan.own.items() if k != "teacher"}}
    content = {k: named(v) for k, v in chosen.items() if k not in _IRRELEVANT and k not in {"data", "model"}}
    given = {"data": check_file(plan.common["data"]), "model": plan.model, "teacher": plan.own["teacher"]}
    known = {
        f"{kind} of {split}": f"{len(found)} (sha256 {_hash(found)})"
        for split, kinds in files.items()
        for kind, found in kinds.items()
    }
    versions = {name.replace("_", "-"): version for name, version in hashing.versions().items()}
    rest = {**known, "device": hardware(plan.common.get("device")), **versions}
    return json.loads(json.dumps({**{k: named(v) for k, v in given.items()}, **content, **rest}, default=str))


def named(value: Any) -> Any:
    """A file by its name and the hash of its content; anything else as it is."""
    if not isinstance(value, str) or not Path(value).is_file():
        return value
    return f"{Path(value).name} (sha256 {hashlib.sha256(Path(value).read_bytes()).hexdigest()[:16]})"


def hardware(device: Any) -> str:
    """What computes where ``device=`` is this, without the machine's name."""
    asked = str("" if device is None else device).lower()
    if torch.cuda.is_available() and asked not in {"cpu", "mps"}:
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


# The data set's files -------------------------------------------------------------------------------------------------


def data_files(plan: Plan) -> dict[str, dict[str, dict[str, str]]]:
    """Images and labels of every split of the data set: images by size and time, labels by content."""
    data = check_det_dataset(plan.common["data"])
    found = {}
    for split in ("train", "val", "test"):
        images = images_of(data, split, plan.argument("fraction") if split == "train" else 1.0)
        if images:
            labels = img2label_paths([*images])
            found[split] = {
                "images": {_name(file, data): _dated(file) for file in images},
                "labels": {_name(file, data): _content(file) for file in labels},
            }
    return found


def images_of(data: Mapping[str, Any], split: str, fraction: float = 1.0) -> list[str]:
    """The images of a split as Ultralytics finds them; none where the data YAML or the disk has no such split."""
    if not data.get(split):
        return []
    reader: Any = SimpleNamespace(prefix="", fraction=fraction)
    try:
        with compat.silent():
            return BaseDataset.get_img_files(reader, data[split])
    except FileNotFoundError:  # what the YAML names is not there; a split that training needs was checked before
        return []


def _name(file: str, data: Mapping[str, Any]) -> str:
    return Path(os.path.relpath(file, data["path"])).as_posix()


def _dated(file: str) -> str:
    found = os.stat(file)
    return f"{found.st_size} {found.st_mtime_ns}"


def _content(file: str) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] if os.path.isfile(file) else "none"


def _hash(files: Files) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]


# What has changed -----------------------------------------------------------------------------------------------------


def _changes(out: Path, now: Mapping[str, Any], files: Mapping[str, Mapping[str, Files]]) -> list[str]:
    """A sentence for everything that the runs in the folder do not have."""
    before = json.loads((out / "settings.json").read_text(encoding="utf-8"))
    kinds = {f"{kind} of {split}": (split, kind) for split in files for kind in files[split]}
    problems = []
    for key in {**before, **now}:
        if key not in before:
            problems.append(f"{key}: was not written down when the runs in {out.name} were begun; give another out=.")
        elif before[key] != now.get(key) and key in kinds:
            problems.append(_changed_files(key, out, *kinds[key], files))
        elif before[key] != now.get(key):
            problems.append(f"{key}: the runs in {out.name} have {before[key]!r}, not {now.get(key)!r}; {_OTHERWISE}.")
    return problems


def _changed_files(key: str, out: Path, split: str, kind: str, files: Mapping[str, Mapping[str, Files]]) -> str:
    """How many files of a kind are others than those that the runs in the folder saw, and one of them."""
    known = json.loads((out / "data.json").read_text(encoding="utf-8"))
    before, now = known[split][kind], files[split][kind]
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
