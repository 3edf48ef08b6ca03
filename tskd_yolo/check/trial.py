"""A few real steps of the real trainer, in a folder that is gone afterwards: what a step takes, and what it is made of.

Memory and time are measured, not modelled: of a handful of steps, of one pass of the teacher, and of some batches of
validation. From these follows what an epoch and the run take.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
from ultralytics.utils import LOGGER, callbacks
from ultralytics.utils.torch_utils import time_sync, unwrap_model

from tskd_yolo import compat
from tskd_yolo.distill import cache
from tskd_yolo.distill.classes import of_all
from tskd_yolo.distill.distiller import Distiller
from tskd_yolo.distill.recording import WARM
from tskd_yolo.rounding import ceil_div
from tskd_yolo.train import summary
from tskd_yolo.train.trainer import Trainer

STEPS = 5
"""Steps that are timed, after one that is not: the first makes what later ones use again."""
VALIDATED = 2
"""Batches of validation that are timed."""

ASIDE = {
    "name": "trial", "exist_ok": True, "plots": False, "save": False, "save_period": -1, "cache": False, "time": None,
}  # fmt: skip
"""What a trial does not do although the run would: it leaves nothing behind."""


@dataclass(frozen=True)
class Cost:
    """What a run takes, in seconds and bytes.

    Args:
        device: On which it was measured.
        batch: Images of a step.
        batches, epochs: Of the run; devices share the batches.
        steps: How many were timed.
        step: A step of training, with its images read.
        teacher: Of that, the teacher's part.
        validation: One validation of the student.
        peak, of: Memory at most, and memory that there is.
        passes: Epochs in which a cached teacher still has to look; None where its outputs cannot be cached.
        validates: Whether every epoch ends in a validation, and not only the run.
    """

    device: str
    batch: int
    batches: int
    epochs: int
    steps: int
    step: float
    teacher: float
    validation: float
    peak: int
    of: int
    passes: int | None
    validates: bool = True

    @property
    def epoch(self) -> float:
        """An epoch."""
        return self.batches * self.step + (self.validation if self.validates else 0.0)

    @property
    def _at_the_end(self) -> float:
        return 0.0 if self.validates else self.validation

    @property
    def run(self) -> float:
        """The run."""
        return self.epochs * self.epoch + self._at_the_end

    @property
    def cached_epoch(self) -> float:
        """An epoch in which every output of the teacher is read."""
        return self.epoch - self.batches * self.teacher

    @property
    def cached_run(self) -> float | None:
        """The run with ``teacher_cache``."""
        if self.passes is None:
            return None
        return self.passes * self.epoch + (self.epochs - self.passes) * self.cached_epoch + self._at_the_end

    def row(self) -> dict[str, Any]:
        """As JSON takes it."""
        derived = {"epoch": self.epoch, "run": self.run, "cached_epoch": self.cached_epoch}
        return {**vars(self), **derived, "cached_run": self.cached_run}


class _Enough(Exception):
    """The steps are done."""


class Trial(Trainer):
    """A run that stops after some steps.

    Args:
        folder: Into which it writes what the engine cannot do without.
        **arguments: Of the run.

    Raises:
        ConfigError: As a run does.
    """

    def __init__(self, folder: Path, **arguments: Any) -> None:
        self.cost: Cost | None = None
        self._moments: list[float] = []
        self._looks = [0.0]
        self._devices, own = _of_one_device(arguments)
        with compat.swapped(callbacks, "add_integration_callbacks", lambda _: None):  # no logger hears of this run
            super().__init__(overrides={**own, **ASIDE, "project": str(folder)})
        self.asked_batch = self.args.batch
        """On one device; the engine makes it smaller where it does not fit."""
        self.teacher_names = of_all(model.names for model in self._teacher)
        """The classes of the teacher, or of several, in their own order."""
        self.trained_at = [(Path(model.pt_path).name, dict(model.args).get("imgsz")) for model in self._teacher]
        """Of each teacher its file, and the size of images on which it was trained, where its checkpoint tells it."""

    def measure(self) -> None:
        """Takes the steps; what they take is in :attr:`cost`, what is distilled in :attr:`facts`.

        Raises:
            ConfigError: If the data cannot be trained on.
        """
        self._memory = _Memory(self.device)
        self.add_callback("on_train_start", Trial._begin)
        self.add_callback("on_train_batch_end", Trial._after_batch)
        try:
            with compat.swapped(callbacks, "add_integration_callbacks", lambda _: None):
                self.train()
        except _Enough:
            pass
        finally:
            self._memory.stop()
            if self._flow is not None:
                self._flow.close()
            for name in ("train_loader", "test_loader"):
                if name in vars(self):
                    vars(self)[name].close()

    def _open_cache(self, distiller: Distiller) -> None:
        """Whether the teacher's outputs would fit; none is kept."""
        if self.config.teacher_cache:
            others = self._flow.views if self._flow is not None else None
            views = self.train_loader.dataset
            cache.plan(distiller=distiller, views=views, args=self.args, epochs=self.epochs, others=others)

    def _begin(self) -> None:
        if self.distiller is not None:
            vars(self.distiller)["teacher_outputs"] = self._clocked(self.distiller.teacher_outputs)
        self._memory.start()
        self._moments.append(time_sync())

    def _clocked(self, look: Callable[..., Any]) -> Callable[..., Any]:
        """The teacher's pass, with its time added to that of the step: measured apart, it can come out above it."""

        def clocked(*args: Any, **kwargs: Any) -> Any:
            start = time_sync()
            outputs = look(*args, **kwargs)
            self._looks[-1] += time_sync() - start
            return outputs

        return clocked

    def _after_batch(self) -> None:
        self._moments.append(time_sync())
        self._looks.append(0.0)
        if len(self._moments) > min(self._warm + STEPS, len(self.train_loader)):
            self._memory.stop()
            self.cost = self._measured()
            raise _Enough

    @property
    def _warm(self) -> int:
        """Steps that take longer than those after them: the first, and those until the terms are recorded."""
        recorder = None if self.distiller is None else self.distiller.recorder
        return 1 if recorder is None or self.device.type not in recorder.devices else 1 + WARM

    def _measured(self) -> Cost:
        took = [b - a for a, b in itertools.pairwise(self._moments)]
        timed, looks = took[self._warm :] or took[1:] or took, self._looks[1:-1] or self._looks[:1]
        open_epochs, closed = self._epochs()
        cacheable = not (self.args.multi_scale or self.args.rect or self.config.variant == "paper")
        passes = min(self.config.views, open_epochs) + min(self.config.views, closed)
        return Cost(
            device=self._memory.name,
            batch=int(self.args.batch),
            batches=ceil_div(len(self.train_loader), self._devices),
            epochs=self.epochs,
            steps=len(timed),
            step=median(timed),
            teacher=median(looks),
            validation=self._of_validation() / self._devices,
            peak=self._memory.peak,
            of=self._memory.of,
            passes=passes if cacheable and self.distiller is not None else None,
            validates=bool(self.args.val),
        )

    def _epochs(self) -> tuple[int, int]:
        """Epochs with mosaic and its like, and those after it is closed."""
        closed = min(self.args.close_mosaic, self.epochs)
        return self.epochs - closed, closed

    def _of_validation(self) -> float:
        """One validation of the student, from a part of it."""
        few = _Few(self.test_loader, VALIDATED)
        student = deepcopy(unwrap_model(self.model))
        return _timed(lambda: summary.validate(student, loader=few, args=self.args)) * len(self.test_loader) / len(few)


def devices(arguments: Mapping[str, Any]) -> list[str]:
    """The devices that a run asks for, by their names."""
    return [word for word in re.split(r"[\s,()\[\]]+", str(arguments.get("device", ""))) if word]


def _of_one_device(arguments: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """How many devices the run has, and its arguments for the first of them with its share of a batch."""
    named = devices(arguments)
    if len(named) < 2:
        return 1, dict(arguments)
    batch = arguments.get("batch", 16)
    share = batch // len(named) if isinstance(batch, int) and batch >= len(named) else batch
    return len(named), {**arguments, "device": named[0], "batch": share}


def _timed(work: Callable[[], Any]) -> float:
    start = time_sync()
    work()
    return time_sync() - start


class _Few:
    """The first batches of a loader, as a loader."""

    def __init__(self, loader: Any, count: int) -> None:
        self.loader, self.count = loader, min(count, len(loader))
        self.dataset, self.batch_size = loader.dataset, loader.batch_size

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(iter(self.loader), self.count)


class _Memory:
    """The most memory that is taken between :meth:`start` and :meth:`stop`: a GPU's, or this process's.

    What processes that load images take is not in it.
    """

    EVERY = 0.02
    """Seconds between two looks at this process's memory."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device if device.type == "cuda" else None
        self.peak = 0
        self._process, self._over = psutil.Process(), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        if self.cuda is not None:
            found = torch.cuda.get_device_properties(self.cuda)
            self.name, self.of = found.name, found.total_memory
        else:
            self.name = device.type
            self.of = psutil.virtual_memory().available + self._process.memory_info().rss

    def start(self) -> None:
        """Begins to look."""
        if self.cuda is not None:
            torch.cuda.reset_peak_memory_stats(self.cuda)
        else:
            self._thread.start()

    def stop(self) -> None:
        """Ends it; may be called again."""
        self._over.set()
        if self.cuda is not None:
            self.peak = max(self.peak, torch.cuda.max_memory_reserved(self.cuda))
        elif self._thread.is_alive():
            self._thread.join()

    def _look(self) -> None:
        while not self._over.is_set():
            self.peak = max(self.peak, self._process.memory_info().rss)
            time.sleep(self.EVERY)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, Ultralytics tells errors only, and draws no bars."""
    level = LOGGER.level
    LOGGER.setLevel("ERROR")
    try:
        yield
    finally:
        LOGGER.setLevel(level)
