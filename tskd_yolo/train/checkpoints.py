"""A run's checkpoints: replaced whole or not at all, found again on resuming, reduced to plain weights at the end."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ultralytics.engine import trainer as engine
from ultralytics.utils import LOGGER
from ultralytics.utils.files import get_latest_run

from tskd_yolo import compat, files
from tskd_yolo.config import ConfigError
from tskd_yolo.distill.distiller import Distiller

SIDE_FILE = "tskd_last.pt"
"""What a run needs beside last.pt to go on: adapters, tensors only, of its last two epochs."""

PREVIOUS = "tskd_previous.pt"
"""The checkpoint before last.pt, kept while a run lasts."""


class RunError(RuntimeError):
    """A run that had to stop, with what is kept and how it goes on."""


# Writing --------------------------------------------------------------------------------------------------------------


class Paths(NamedTuple):
    """Where the engine writes, in its own words."""

    save_dir: Path
    wdir: Path
    last: Path
    best: Path
    csv: Path


def whole_paths(save_dir: str | Path) -> Paths:
    """Paths of a run through which the engine, which writes checkpoints in place, replaces them in one step."""
    save_dir = Path(save_dir)
    wdir = files.WholePath(save_dir / "weights")
    return Paths(save_dir, wdir, wdir / "last.pt", wdir / "best.pt", save_dir / "results.csv")


def how_to_go_on(last: Path) -> str:
    """A sentence for whoever's run has stopped."""
    if not last.exists():
        return "No epoch was finished, so there is no checkpoint: give the same command again."
    return f"Go on with: tskd-yolo train resume model={last}"


@contextlib.contextmanager
def saving(file: Path, *, last: Path) -> Iterator[None]:
    """Inside, ``file`` is written; what was saved before stays whole if that fails.

    Raises:
        RunError: If the disk cannot be written to.
    """
    try:
        yield
    except OSError as error:
        reason = f"{error.strerror or error}{_needed(error, last.parent)}"
        raise RunError(
            f"{file} could not be written ({reason}). Checkpoints saved before are whole. {how_to_go_on(last)}"
        ) from error


def _needed(error: OSError, folder: Path) -> str:
    """How much room a run's checkpoints take, where there is none left."""
    if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
        return ""
    taken = sum(f.stat().st_size for f in folder.glob("*.pt")) / 1e6
    return f", {taken:.0f} MB are needed" if taken >= 1 else ""  # at the first save nothing is known yet


def keep_previous(last: Path) -> None:
    """Keeps the checkpoint that is about to be replaced."""
    files.keep(last, last.with_name(PREVIOUS))


class SideFile:
    """The file beside last.pt with the adapters: last.pt itself holds a plain student.

    It is written before last.pt and holds two epochs, so it has the right one whichever last.pt a kill leaves.
    """

    def __init__(self, last: Path) -> None:
        self.file, self._last = last.with_name(SIDE_FILE), last
        self._newest: dict[int, Any] = {}  # the state that was saved last, by its epoch

    def save(self, distiller: Distiller, *, epoch: int) -> None:
        """Writes a distiller's state and who teaches, and keeps that of the epoch before.

        Raises:
            RunError: If the disk cannot be written to.
        """
        state = {**distiller.state(), "teachers": _digests(distiller)}
        with saving(self.file, last=self._last):
            files.save(self.file, {"states": {**self._newest, epoch: state}})
        self._newest = {epoch: state}

    def restore(self, distiller: Distiller, *, epoch: int, teacher: str) -> None:
        """Brings the distiller's state of an epoch back; where there is none, that is said.

        Args:
            distiller: Of the resumed run.
            epoch: That of the checkpoint.
            teacher: Its file, for messages.

        Raises:
            ConfigError: If the run began with another teacher.
        """
        states = self._states()
        if epoch not in states:
            LOGGER.warning(f"{self.file} holds nothing of epoch {epoch + 1}: adapters start anew.")
            return
        if states[epoch].get("teachers") != _digests(distiller):
            raise ConfigError([f"teacher: {teacher} is not the one that this run began with; give that one."])
        try:
            distiller.restore(states[epoch])
        except (RuntimeError, KeyError) as error:
            raise ConfigError(
                [f"teacher: {teacher} is not as wide as the one that this run began with; give that one."]
            ) from error
        self._newest = {epoch: states[epoch]}

    def _states(self) -> dict[int, Any]:
        """States by epoch; none, and that is said, from a file that is missing or torn."""
        try:
            return torch.load(self.file, map_location="cpu", weights_only=True)["states"]
        except Exception as error:  # a torn file ends in many types of exception
            LOGGER.warning(f"{self.file} could not be read ({compat.plain(error)}).")
            return {}


def _digests(distiller: Distiller) -> list[str]:
    return [teacher.digest for teacher in distiller.teachers]


# Resuming -------------------------------------------------------------------------------------------------------------


def find(overrides: dict[str, Any]) -> dict[str, Any]:
    """Puts the checkpoint to go on from into the arguments, with the folder that it lies in now.

    Returns:
        What it holds.

    Raises:
        ConfigError: As :func:`resumable`.
    """
    model = overrides.get("model")
    last, content = resumable(model if overrides["resume"] is True and model else overrides["resume"])
    last = last.resolve()
    overrides["resume"] = str(last)
    if last.parent.name == "weights":  # the folder may have been moved
        overrides["save_dir"] = str(last.parent.parent)
    return content


def resumable(resume: Any) -> tuple[Path, dict[str, Any]]:
    """The checkpoint to go on from, with its content: the file, or the one saved before it where it is torn.

    Raises:
        ConfigError: If there is none, or it is the end of a finished run, or of a run without a teacher.
    """
    latest = get_latest_run() if resume is True else str(resume)
    if not latest:
        raise ConfigError(["model: missing; write 'resume model=RUN/weights/last.pt'."])
    last, content = _last_or_previous(Path(latest))
    if content.get("epoch", -1) == -1:
        raise ConfigError([f"model: {last} is the end of a finished run, there is nothing to resume; start a new run."])
    _check_best(last.with_name("best.pt"))
    if "teacher" not in (content.get("train_args") or {}):
        raise ConfigError(
            [f"model: {last} belongs to a run without a teacher; resume it with Ultralytics' own 'yolo train resume'."]
        )
    return last, content


def _last_or_previous(last: Path) -> tuple[Path, dict[str, Any]]:
    """last.pt with its content, or the checkpoint before it where last.pt is torn; never where it was refused."""
    try:
        return last, compat.load(last, key="model")[1]
    except ConfigError as error:
        previous = last.with_name(PREVIOUS)
        if not previous.is_file() or any("asks for" in problem for problem in error.problems):
            raise
        content = compat.load(previous, key="model")[1]
        LOGGER.warning(f"{error.problems[0]} The checkpoint before it, of epoch {content['epoch'] + 1}, is used.")
        return previous, content


def _check_best(best: Path) -> None:
    """best.pt is read when the run ends: what is wrong with it is told before."""
    if not best.is_file():
        return
    try:
        compat.load(best, key="best.pt")
    except ConfigError as error:
        raise ConfigError([f"{problem[:-1]}, or remove it." for problem in error.problems]) from error


# The end of a run -----------------------------------------------------------------------------------------------------


def stripping_all_but(last: Path) -> contextlib.AbstractContextManager[None]:
    """Inside, the engine reduces checkpoints to plain weights whole or not at all, and leaves ``last`` as it is."""

    def strip(file: Path, updates: Any = None) -> dict[str, Any]:
        if file == last:
            return compat.load(file, key="model")[1]
        with saving(file, last=last):
            return compat.strip(file, updates)

    return compat.swapped(engine, "strip_optimizer", strip)


def finish(last: Path) -> None:
    """Reduces last.pt to plain weights, as a run's very last act: until then it can be resumed, afterwards not.

    Raises:
        RunError: If the disk cannot be written to.
    """
    with saving(last, last=last):
        if last.exists():
            compat.strip(last)
        for name in (SIDE_FILE, PREVIOUS):
            last.with_name(name).unlink(missing_ok=True)
