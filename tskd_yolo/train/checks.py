"""What a user gave, checked: settings, teacher, student, data and checkpoints, with every mistake told at once."""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ultralytics.cfg import get_cfg
from ultralytics.data import dataset as scanner
from ultralytics.data.utils import check_det_dataset
from ultralytics.nn.tasks import yaml_model_load
from ultralytics.utils import LOCAL_RANK, LOGGER
from ultralytics.utils.checks import check_model_file_from_stem
from ultralytics.utils.files import get_latest_run
from ultralytics.utils.torch_utils import select_device

from tskd_yolo import compat, config
from tskd_yolo.config import ConfigError
from tskd_yolo.data import dataset
from tskd_yolo.distill import teacher
from tskd_yolo.distill.matching import mismatches

PREVIOUS = "tskd_previous.pt"
"""The checkpoint before last.pt, kept while a run lasts."""


def check(base: Mapping[str, Any], overrides: dict[str, Any], found: Sequence[str] = ()) -> Any:
    """Checks that settings, teacher, student and data fit, before anything is written, and returns the teacher.

    Puts absolute paths of teacher and data into ``overrides``, so that the run can be resumed from anywhere.

    Args:
        base: Ultralytics' defaults and ours.
        overrides: What the user gave.
        found: Mistakes that are known already, to be told with the others.

    Raises:
        ConfigError: Naming everything that is wrong.
    """
    found = list(found)
    values, theirs = _read(base, overrides, found)
    ours = config.problems(values)
    told = {sentence.partition(":")[0] for sentence in ours}
    found += [sentence for key, sentence in theirs.items() if key not in told] + ours
    found += _device(values["device"])
    model = student = names = None
    with compat.guarded(trust=values["trust"] is True):
        if isinstance(values["teacher"], (str, Path)) and str(values["teacher"]):
            with _collected(found):
                model = teacher.load(values["teacher"])
                overrides["teacher"] = str(Path(model.pt_path).resolve())
        if LOCAL_RANK in {-1, 0}:  # one process of a machine is enough
            student = _told("model", found, _student_yaml, values["model"])
            names = _told("data", found, _names, values["data"])
            names = {0: "item"} if names and values["single_cls"] else names
        if isinstance(values["pretrained"], (str, Path)):
            with _collected(found):
                compat.load(values["pretrained"], key="pretrained")
    if values["data"] and Path(str(values["data"])).is_file():
        overrides["data"] = str(Path(values["data"]).resolve())
    if student and _all_frozen(student, values["freeze"]):
        found.append(f"freeze: {values['freeze']} freezes every layer of the student, so nothing could be learned.")
    if model is not None and student and names:
        found += mismatches(student_yaml=student, teacher=model, names=names)
    if found:
        raise ConfigError(found)
    if _same_file(values["teacher"], values["model"]):
        LOGGER.warning(f"teacher {values['teacher']} is the student itself: it can teach nothing new.")
    return model


def _read(
    base: Mapping[str, Any], overrides: Mapping[str, Any], found: list[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The arguments as Ultralytics reads them, and by key what it says of wrong ones; unknown ones go to ``found``."""
    values, wrong, told = dict(base), {}, {}
    for key, value in overrides.items():
        try:
            with compat.silent():  # on an unknown key it prints its whole help page
                values = vars(get_cfg(dict(values), {key: value}))
        except SyntaxError:
            found.append(config.unknown(key, base))
        except (TypeError, ValueError) as error:
            told[key], wrong[key] = f"{key}: {compat.plain(error)}.", value
        else:
            if isinstance(value, float) and not math.isfinite(value):
                told[key] = f"{key}: must be a finite number, got {value!r}."
    return {**values, **wrong}, told


@contextlib.contextmanager
def _collected(found: list[str]) -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        found += error.problems


_NEEDED = {
    "data": "data: missing; give data=FILE.yaml, the data set as Ultralytics takes it.",
    "model": "model: missing; give the student, i.e. model=yolo11n.yaml (random weights) or model=yolo11n.pt.",
}


def _told(key: str, found: list[str], read: Callable[[Any], Any], value: Any) -> Any:
    """What ``read`` gives; or None, with a sentence in ``found``, whatever Ultralytics raises at a user's file."""
    if not value:
        found.append(_NEEDED[key])
        return None
    try:
        with _collected(found):
            return read(value)
    except Exception as error:  # a missing or broken file ends in many types of exception
        found.append(f"{key}: {value} could not be read ({compat.plain(error, about=value)}); {_REMEDY[key]}.")
    return None


_REMEDY = {
    "data": "give a data YAML whose folders exist, and can be written to where the set has to be prepared first",
    "model": "give a detector's .pt or .yaml",
}


def _names(data: Any) -> dict[int, str]:
    """The classes of a data set; none yet of one that Ultralytics has to fetch and convert (NDJSON, its platform)."""
    fetched = str(data).startswith("ul://") or str(data).endswith(".ndjson")
    if fetched:
        return {}
    content = check_det_dataset(data)
    for split in ("train", "val"):
        if isinstance(content[split], str) and (gone := dataset.gone(Path(content[split]))):
            raise ConfigError([f"data: {gone}"])
    return content["names"]


def _student_yaml(name: str | Path) -> dict[str, Any]:
    file = str(check_model_file_from_stem(str(name)))
    if file.endswith((".yaml", ".yml")):
        return yaml_model_load(file)
    student = teacher.load(file, key="model")
    if student.is_fused():  # the engine would drop the biases into which they were folded
        raise ConfigError(
            [f"model: the batch norms of {name} are folded, it cannot be trained; give it as it was saved."]
        )
    return student.yaml


def _all_frozen(student: Mapping[str, Any], freeze: Any) -> bool:
    layers = len(student["backbone"]) + len(student["head"])
    frozen = range(freeze) if isinstance(freeze, int) else freeze if isinstance(freeze, (list, tuple)) else ()
    return set(range(layers)) <= set(frozen)


def _same_file(a: Any, b: Any) -> bool:
    paths = [Path(str(x)) for x in (a, b)]
    return all(p.is_file() for p in paths) and paths[0].samefile(paths[1])


def _device(device: Any) -> list[str]:
    """What is wrong with ``device=``; of a process that torchrun has started, whether it has one."""
    try:
        select_device(device, verbose=False)
    except (ValueError, RuntimeError, AssertionError) as error:
        reason = compat.plain(error).split("; ")[0]
        return [f"device: {device!r} cannot be used here ({reason}); give device=cpu or another."]
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    listed = str(device or "").split(",")
    if LOCAL_RANK != -1 and device and device != "cpu" and len(listed) < here:
        return [f"device: {device!r} names {len(listed)} for {here} processes on this machine; leave it out."]
    return []


# Resuming -------------------------------------------------------------------------------------------------------------


def resumable(resume: Any) -> tuple[Path, dict[str, Any]]:
    """The checkpoint to go on from, with its content: the file, or the one saved before it where it is torn.

    Raises:
        ConfigError: If there is none, or it is the end of a finished run, or of a run without a teacher.
    """
    latest = get_latest_run() if resume is True else str(resume)
    if not latest:
        raise ConfigError(["model: missing; write 'resume model=RUN/weights/last.pt'."])
    last = Path(latest)
    try:
        content = compat.load(last, key="model")[1]
    except ConfigError as error:
        before = last.with_name(PREVIOUS)
        if not before.is_file() or any("asks for" in p for p in error.problems):
            raise
        content = compat.load(before, key="model")[1]
        LOGGER.warning(f"{error.problems[0]} The checkpoint before it, of epoch {content['epoch'] + 1}, is used.")
        last = before
    if content.get("epoch", -1) == -1:
        raise ConfigError([f"model: {last} is the end of a finished run, there is nothing to resume; start a new run."])
    best = last.with_name("best.pt")
    if best.is_file():  # read when the run ends
        try:
            compat.load(best, key="best.pt")
        except ConfigError as error:
            raise ConfigError([f"{problem[:-1]}, or remove it." for problem in error.problems]) from error
    if "teacher" not in (content.get("train_args") or {}):
        raise ConfigError(
            [f"model: {last} belongs to a run without a teacher; resume it with Ultralytics' own 'yolo train resume'."]
        )
    return last, content


def states(file: Path) -> dict[int, Any]:
    """Adapters by epoch from a side file; none, said, from one that is missing or torn."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True)["states"]
    except Exception as error:  # a torn file ends in many types of exception
        LOGGER.warning(f"{file} could not be read ({compat.plain(error)}).")
        return {}


# The scan of the data -------------------------------------------------------------------------------------------------


class _Listener:
    """Stands in for the logger of Ultralytics' data scan and remembers what it says of single files."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, message: str, *args: Any) -> None:
        self.lines += str(message).splitlines()
        LOGGER.info(message, *args)

    def __getattr__(self, name: str) -> Any:
        return getattr(LOGGER, name)


def scanned(mode: str, build: Callable[[], Any]) -> Any:
    """The data set that ``build`` gives; what its scan finds is refused or counted.

    Args:
        mode: ``train`` or ``val``.
        build: Makes the data set as Ultralytics does.

    Raises:
        ConfigError: If there are no images or no labels, or labels name classes that the data set does not have.
    """
    listener = _Listener()
    try:
        with compat.swapped(scanner, "LOGGER", listener):
            dataset = build()
    except (OSError, RuntimeError, ValueError, AssertionError) as error:
        listener.lines += str(error).splitlines()
        _refuse_beyond(listener.lines, mode)
        said = compat.plain(error).split("; See http")[0].replace(".cache", "")
        raise ConfigError(
            [f"data: the {mode} images could not be read ({said}); correct the set or its YAML."]
        ) from error
    _refuse_beyond(listener.lines, mode)
    reasons = Counter(_reason(line) for line in listener.lines if ": ignoring corrupt" in line)
    if reasons:
        words = "; ".join(f"{count} with {reason}" for reason, count in reasons.most_common())
        LOGGER.warning(f"{mode}: {sum(reasons.values())} images are left out: {words}.")
    if twice := sum(int(n) for line in listener.lines for n in re.findall(r": (\d+) duplicate labels removed", line)):
        LOGGER.warning(f"{mode}: {twice} boxes that were there twice are counted once.")
    if flat := sum(int((label["bboxes"][:, 2:] <= 0).any(1).sum()) for label in dataset.labels):
        LOGGER.warning(f"{mode}: {flat} boxes have no area; {_FLAT[mode]}.")
    return dataset


_FLAT = {"train": "they teach nothing", "val": "nothing can find them, so they lower the recall"}


def _refuse_beyond(lines: Sequence[str], mode: str) -> None:
    beyond = [line for line in lines if "exceeds dataset class count" in line]
    if beyond:
        name, number, count = re.findall(
            r"([^\s:]+): ignoring .* class (\d+) exceeds dataset class count (\d+)", beyond[0]
        )[0]
        raise ConfigError(
            [
                f"data: labels of {len(beyond)} {mode} images name classes beyond the {count} of the set, the first is "
                f"class {number} in that of {Path(name).name}; correct the labels or the names."
            ]
        )


def _reason(line: str) -> str:
    """Why an image is left out, without what is its alone."""
    text = line.split(": ignoring corrupt image/label: ", 1)[-1]
    if text.startswith("No module named"):  # of an unknown format Ultralytics asks a plugin last, which is not there
        return "an unreadable image"
    return re.sub(r"\[.*|'[^']*'|<.*", "", text).strip() or "an unknown fault"
