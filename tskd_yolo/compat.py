"""What is asked of Ultralytics before it runs: safe loading, nothing installed, nothing fetched when offline."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import pickle
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
import ultralytics
from ultralytics import YOLO, utils
from ultralytics.data import dataset as scanner
from ultralytics.data import utils as data_utils
from ultralytics.nn import tasks
from ultralytics.nn.distill_model import DistillationModel
from ultralytics.utils import LOGGER, ONLINE, RANK, ROOT, USER_CONFIG_DIR, YAML, checks
from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES
from ultralytics.utils.torch_utils import strip_optimizer

import tskd_yolo.backbones  # noqa: F401, of whose layer it tells Ultralytics and torch
from tskd_yolo import config, files, guards, settings_files
from tskd_yolo.config import ConfigError


@contextlib.contextmanager
def swapped(owner: Any, name: str, value: Any) -> Iterator[None]:
    """``owner.name`` is ``value`` inside, and what it was before afterwards."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def silent() -> contextlib.AbstractContextManager[None]:
    """Inside, Ultralytics says nothing."""
    return swapped(LOGGER, "disabled", True)


@contextlib.contextmanager
def safe(*, trust: bool = False) -> Iterator[None]:
    """Safe loading: inside, checkpoints are loaded with allow-listed classes only, unless they are trusted.

    A checkpoint is a pickle, and a pickle is a program: torch and Ultralytics can restrict it to an allow-list.

    Raises:
        ConfigError: If this torch cannot do that, and no trust was given.
    """
    _tell_untested()
    if not trust and not tasks._SafeLoad.SUPPORTED:
        raise ConfigError(["torch: 2.6 or newer is needed to load checkpoints safely; update it, or say trust=True."])
    with contextlib.ExitStack() as stack:
        stack.enter_context(swapped(tasks, "SAFE_LOAD", not trust))
        if not trust:
            stack.enter_context(swapped(scanner, "load_dataset_cache_file", read_cache))
            stack.enter_context(swapped(data_utils, "YAML", DataYaml))
        stack.enter_context(side_by_side())
        for module in (utils, data_utils):
            stack.enter_context(swapped(module, "DATASETS_DIR", datasets_folder()))
        if not trust:
            with silent():
                guards.verify()
        yield


@functools.cache
def _tell_untested() -> None:
    if RANK in {-1, 0} and (sentence := guards.untested(ultralytics.__version__)):
        LOGGER.warning(sentence)


def datasets_folder() -> Path:
    """Where Ultralytics prepares data sets; beside a checkout, where that would be the checkout's own ``datasets``."""
    ours = config.folder("datasets").resolve()
    where = Path(utils.DATASETS_DIR)
    return ours.parent.parent / "datasets" if where.resolve() == ours else where


def side_by_side() -> contextlib.AbstractContextManager[None]:
    """Inside, runs that start together do not stumble over each other's label cache (see :func:`write_cache`)."""
    return swapped(scanner, "save_dataset_cache_file", write_cache)


@contextlib.contextmanager
def forced(*, trust: bool = False) -> Iterator[None]:
    """:func:`guarded`, also where Ultralytics reads other kinds of model without asking: torch itself refuses."""
    force, never = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"  # both set is an error
    before = {name: os.environ.pop(name, None) for name in (force, never)}
    os.environ[force] = "0" if trust else "1"
    try:
        with guarded(trust=trust):
            yield
    finally:
        del os.environ[force]
        os.environ.update({name: value for name, value in before.items() if value is not None})


class _Arrays(pickle.Unpickler):
    """Reads plain values and NumPy arrays, nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """The class or function that the pickle asks for, if an array needs it."""
        if module in {"numpy", "numpy._core.multiarray", "numpy.core.multiarray"} and name in _OF_ARRAYS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not needed for an array")


_OF_ARRAYS = {"ndarray", "dtype", "scalar", "_reconstruct"}


def read_cache(path: Path) -> dict[str, Any]:
    """What Ultralytics has kept of a data set's labels: a pickle too, and it travels with the data.

    Raises:
        pickle.UnpicklingError: If it asks for more than arrays; Ultralytics then reads the labels themselves.
    """
    with open(path, "rb") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        return _Arrays(file).load().item()


class DataYaml(YAML):
    """Reads data YAMLs as Ultralytics does. Where one brings code for ``download:``, a refusal takes its place.

    Ultralytics runs that entry where images are missing. A URL of an archive stays, and so does the code of the data
    sets that come with tskd-yolo and with Ultralytics.
    """

    @classmethod
    def load(cls, file: Any = "data.yaml", append_filename: bool = False) -> dict[str, Any]:
        """The content of a data YAML.

        Raises:
            ConfigError: If it gives ``trust``.
        """
        content = YAML.load(file, append_filename)
        settings_files.refuse_trust(content, source=f"the data set {file}")
        code = content.get("download")
        if isinstance(code, str) and not _ARCHIVE.fullmatch(code) and not _shipped(file, code):
            content["download"] = f"from {__name__} import refuse_code\nrefuse_code(yaml)"
        return content


_ARCHIVE = re.compile(r"https?://[^\s?#]+\.(zip|tar|gz|tgz|xz|bz2|txz|tbz2)", re.IGNORECASE)


def _shipped(file: str | Path, code: str) -> bool:
    """Whether a data set of this name comes with tskd-yolo or with Ultralytics, and is prepared by this code."""
    known = (folder / Path(file).name for folder in (config.folder("datasets"), ROOT / "cfg" / "datasets"))
    return any(path.is_file() and YAML.load(path).get("download") == code for path in known)


def refuse_code(data: dict[str, Any]) -> None:
    """Stands where a data YAML's code would run.

    Raises:
        ConfigError: Always.
    """
    raise ConfigError(
        [f"data: {data['yaml_file']} would prepare its images by code of its own (download:), which is not run; "
         "prepare the set before, or give trust=True if you wrote that code yourself."]
    )  # fmt: skip


def write_cache(prefix: str, path: Path, content: dict[str, Any], version: str) -> None:
    """Keeps a data set's labels where Ultralytics does, whole or not at all.

    Its own function removes the old file first, which ends a run that was about to remove it, too.
    """
    content["version"] = version
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(content, dtype=object), allow_pickle=True)
    try:
        files.replace(path, buffer.getvalue())
    except OSError as error:
        LOGGER.warning(f"{prefix}{path} cannot be written ({error.strerror}): the next run reads all labels again.")


@contextlib.contextmanager
def guarded(*, trust: bool = False) -> Iterator[None]:
    """:func:`safe`, and nothing is ever installed."""
    with safe(trust=trust), swapped(checks, "AUTOINSTALL", False):
        yield


def channels_last_pays() -> bool:
    """Whether this machine's processor computes faster in channels_last: where Ultralytics predicts in it, too."""
    return platform.machine() in {"AMD64", "x86_64"} and torch.backends.mkldnn.is_available()


def place_fonts() -> None:
    """Offline, puts a free font where Ultralytics looks for its own, which it would try to download all the same."""
    if ONLINE:
        return
    font = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    for name in ("Arial.ttf", "Arial.Unicode.ttf"):
        if not (USER_CONFIG_DIR / name).exists():
            shutil.copy(font, USER_CONFIG_DIR / name)


_EXPORTED = {".onnx", ".torchscript", ".engine", ".tflite", ".mlpackage", ".openvino", ".pb", ".ncnn", ".mnn"}


def yolo(model: str | Path, *, trust: bool = False) -> YOLO:
    """Ultralytics' ``YOLO(model)``, loaded with allow-listed classes only. Its public name is ``tskd_yolo.load``.

    ``YOLO(model)`` itself runs what a checkpoint asks for, before any trainer is there to look at it.

    Args:
        model: A checkpoint, an official name, or a model YAML.
        trust: Load it whatever it asks for: for files that you made yourself.

    Raises:
        ConfigError: If it cannot be loaded, or asks for more than allow-listed classes.

    Examples:
        >>> tskd_yolo.load("yolo11n.pt").train(trainer=Trainer, data="neu.yaml", teacher="teacher.pt")
    """
    named = {"model": model}
    settings_files.resolve(named)
    model = named["model"]
    with forced(trust=trust):
        if Path(model).suffix not in {".yaml", ".yml"}:
            load(model, key="model")
        try:
            return YOLO(str(model))
        except Exception as error:  # as in load
            raise ConfigError([f"model: {model} {why(error)}."]) from error


def own_yaml(name: str | Path) -> Path | None:
    """The user's file behind a model YAML's name, in which a scale may stand that is not in the file's own name.

    Ultralytics reads ``my11n.yaml`` from ``my11.yaml``, by the first digit with a scale's letter behind it. None of a
    YAML that comes with Ultralytics, and of anything else.
    """
    text = str(name)
    if Path(text).suffix not in {".yaml", ".yml"}:
        return None
    scale = re.search(r"\d[nslmx]", text)
    unscaled = text[: scale.end() - 1] + text[scale.end() :] if scale else text
    return next((file for file in map(Path, (text, unscaled)) if file.is_file()), None)


def load(path: str | Path, *, key: str) -> tuple[Any, dict[str, Any]]:
    """The model of a checkpoint, on the CPU and in float32, and the checkpoint; an official name is fetched.

    Args:
        path: The file.
        key: The argument it was given with, for messages.

    Raises:
        ConfigError: If the file is missing, cannot be read, holds no model, or asks for more than allow-listed classes.
    """
    path = Path(path)
    wanted = "give a detector's checkpoint (.pt) as Ultralytics saves it"
    if path.is_dir():
        raise ConfigError([f"{key}: {path} is a folder; give the .pt file in it."])
    if path.suffix.lower() in _EXPORTED:
        raise ConfigError([f"{key}: {path} is an exported model, which cannot be trained; give the .pt it came from."])
    if path.suffix.lower() != ".pt":
        raise ConfigError([f"{key}: {path} ends in '{path.suffix}', not in '.pt'; {wanted}."])
    if not path.exists() and path.name not in GITHUB_ASSETS_NAMES:
        raise ConfigError([f"{key}: {path} was not found; {wanted}."])
    try:
        model, content = tasks.load_checkpoint(str(path))
    except Exception as error:  # unreadable files end in a dozen types of exception, each with its own first line
        raise ConfigError([f"{key}: {path} {why(error)}; {wanted}."]) from error
    if not isinstance(model, (tasks.BaseModel, DistillationModel)):
        raise ConfigError([f"{key}: {path} holds a {type(model).__name__} and no model of Ultralytics; {wanted}."])
    return model, content


def why(error: BaseException) -> str:
    """What is wrong with a checkpoint, from the exception that loading it ended in."""
    text = " ".join(f"{error} {error.__cause__ or ''}".split())
    if name := refused_global(error):
        return (
            f"asks for {name}, which no detector needs and which could run foreign code "
            "(trust=True loads it all the same: only for files that you made yourself)"
        )
    if isinstance(error, ConfigError):  # of a layer of ours
        return f"holds what cannot be built ({'; '.join(error.problems).rstrip('.')})"
    if "TorchScript" in text:
        return "is a TorchScript export, which cannot be trained"
    if "not a loadable checkpoint" in text or isinstance(error.__cause__, pickle.UnpicklingError):
        return "is empty, cut short or no checkpoint at all"
    if isinstance(error, (KeyError, AttributeError)) or "references types outside" in text:
        return "holds no model"
    return f"could not be loaded ({plain(error)})"


def plain(error: BaseException, *, about: Any = None) -> str:
    """What an exception says, in one line: its first two sentences, without colours, signs and the name in front."""
    text = re.sub(r"\x1b\[[0-9;]*m|[\u2600-\u27bf\ufe0f\U0001f000-\U0001faff]", "", str(error) or type(error).__name__)
    text = text.strip().removeprefix(f"{about} ")
    parts = [part.strip(" .") for part in re.split(r"\.\s+|\n", text.replace("i.e. ", "such as "))]
    return "; ".join([" ".join(part.split()) for part in parts if part][:2])


def refused_global(error: BaseException) -> str | None:
    """The name that a refused checkpoint asked for, i.e. ``posix.system``; None if it was not refused for one."""
    text = f"{error} {error.__cause__ or ''}"
    match = re.search(
        r"GLOBAL (\S+) (?:was not an allowed|whose module)|unsafe (getattr\([^)]*\))|activation '(.*)' blocked", text
    )
    return next((name for name in match.groups() if name), None) if match else None


def strip(file: Path, updates: dict[str, Any] | None = None) -> dict[str, Any]:
    """The engine's reduction of a checkpoint to plain weights, into a new file that then takes the old one's place."""
    load(file, key="model")  # the engine's own function loads whatever a pickle asks for
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        part = Path(folder, file.name)
        with silent():  # it would name the file in the folder that is gone in a moment
            content = strip_optimizer(file, s=str(part), updates=updates)
        files.replace(file, part.read_bytes())
    return content
