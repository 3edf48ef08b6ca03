"""Whether the guards of :mod:`tskd_yolo.compat` are in force: each is given something harmless that it must refuse.

They replace names of Ultralytics. A version that no longer reads one of these names would run without that guard, and
without a word.
"""

from __future__ import annotations

import functools
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import ultralytics
import yaml
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import check_det_dataset
from ultralytics.nn import tasks

from tskd_yolo.config import ConfigError

TESTED = "8.4.190", "8.4.190"
"""The oldest and the newest Ultralytics that the tests have run with; pyproject.toml asks for the oldest or newer."""


def untested(version: str) -> str | None:
    """A sentence where this version of Ultralytics is newer than every tested one."""
    if _numbers(version) <= _numbers(TESTED[1]):
        return None
    return f"Ultralytics {version} is newer than what tskd-yolo was tested with, {tested()}."


def tested() -> str:
    """The range of tested versions, in words."""
    return f"{TESTED[0]} to {TESTED[1]}"


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)[:3]]


_ran: list[str] = []


def witness() -> None:
    """What the probes ask for. Where it is called, foreign code would have run."""
    _ran.append("witness")


class _Call:
    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return witness, ()


CODE = f"__import__({__name__!r}, fromlist=['witness']).witness()"


def _checkpoint(folder: Path) -> None:
    torch.save({"model": _Call()}, folder / "witness.pt")
    tasks.load_checkpoint(str(folder / "witness.pt"))


def _activation(folder: Path) -> None:
    tasks.parse_model({"nc": 1, "activation": CODE, "backbone": [], "head": []}, ch=3, verbose=False)


class _Labels(YOLODataset):
    def cache_labels(self, path: Any = None) -> Any:
        """Called where the cache was refused, while that exception is handled."""
        raise RuntimeError("the labels themselves are not looked at")


def _label_cache(folder: Path) -> None:
    (folder / "images").mkdir()
    (folder / "images" / "a.png").touch()
    with open(folder / "labels.cache", "wb") as file:
        np.save(file, np.asarray(_Call(), dtype=object), allow_pickle=True)
    _Labels(img_path=str(folder / "images"), data={"names": {0: "a"}}, augment=False)


def _data_yaml(folder: Path) -> None:
    file = folder / "witness.yaml"
    content = {"path": str(folder), "train": "gone", "val": "gone", "names": ["a"], "download": CODE}
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    check_det_dataset(str(file))


PROBES: dict[str, Callable[[Path], None]] = {
    "checkpoints": _checkpoint,
    "activations in model YAMLs": _activation,
    "label caches": _label_cache,
    "the download: entry of data YAMLs": _data_yaml,
}
"""Each asks for :func:`witness` in a place from which a stranger's code could come."""


@functools.cache
def verify() -> None:
    """Tries every guard, once in a process; called where all of them are in force.

    Raises:
        ConfigError: If one of them did not refuse, which names it.
    """
    with tempfile.TemporaryDirectory() as folder:
        idle = [place for place, probe in PROBES.items() if not _refused(probe, Path(folder))]
    if idle:
        raise ConfigError(
            [f"ultralytics: version {ultralytics.__version__} does not refuse code in {' and '.join(idle)}; install "
             f"a tested version ({tested()}), or give trust=True for files that you made yourself."]
        )  # fmt: skip


def _refused(probe: Callable[[Path], None], folder: Path) -> bool:
    """Whether the probe ended in an exception that names what it asked for, and that was not run."""
    _ran.clear()
    try:
        probe(folder)
    except Exception as error:  # each guard refuses in a way of its own
        return not _ran and "witness" in _said(error)
    return False


def _said(error: BaseException | None) -> str:
    """What an exception says, with those that it came from."""
    return f"{error} {_said(error.__cause__ or error.__context__)}" if error else ""
