"""Whether the engine calls the trainer's hook points: where it stops calling one, a run goes on without a word.

Each hook point in :data:`EXPECTED` notes that it was called. What is missing when it is due ends the run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import ultralytics

from tskd_yolo import guards
from tskd_yolo.train.checkpoints import RunError
from tskd_yolo.train.processes import FIRST

TRAINED, SAVED, OVER = range(3)
"""When a call is due: when an epoch's last step is done, when the epoch is validated and saved, when all is over."""


def _always(trainer: Any) -> bool:
    return True


def _on_the_first(trainer: Any) -> bool:
    """Only one process writes."""
    return FIRST


class Expected(NamedTuple):
    """A hook point that the engine calls in every run, or in every run of which ``when`` is true."""

    due: int = TRAINED
    when: Callable[[Any], bool] = _always


def _step_is_due(trainer: Any) -> bool:
    """Whether the batches so far fill one step: a short first epoch may end before it.

    The engine counts batches over all epochs, those before a run went on included.
    """
    return trainer.epoch * len(trainer.train_loader) + trainer.batches >= trainer.accumulate


EXPECTED = {
    # Before the first step
    "check_resume": Expected(),
    "_do_train": Expected(),
    "_setup_train": Expected(),
    "set_model_attributes": Expected(),
    "build_dataset": Expected(),
    "_build_train_pipeline": Expected(),
    "get_dataloader": Expected(),
    "build_optimizer": Expected(),
    "get_validator": Expected(),
    "resume_training": Expected(),
    # In an epoch
    "on_train_epoch_start": Expected(),
    "preprocess_batch": Expected(),
    "optimizer_step": Expected(when=_step_is_due),
    # At its end
    "on_train_epoch_end": Expected(SAVED),
    "label_loss_items": Expected(SAVED, _on_the_first),
    "validate": Expected(SAVED, lambda trainer: trainer.args.val),
    "save_metrics": Expected(SAVED, _on_the_first),
    "save_model": Expected(SAVED, lambda trainer: FIRST and trainer.args.save),
    "on_fit_epoch_end": Expected(OVER),
    "_clear_memory": Expected(OVER),
}

EXEMPT = {
    "train": "the user calls it",
    "setup_model": "a student may come built, as of get_model",
    "get_model": "a student may come built: one that YOLO(...) has loaded, in the processes of a distributed run",
    "_setup_ddp": "only distributed runs",
    "auto_batch": "only batch=-1, or a fraction of the memory",
    "_close_dataloader_mosaic": "only in the last epochs, with close_mosaic",
    "_load_checkpoint_state": "only resuming, and the engine's recovery from NaN",
    "final_eval": "after the last epoch: without it last.pt stays as it was saved, and resuming finishes the run",
}
"""The trainer's other hook points, and in which situations alone the engine calls them."""

Mixin = TypeVar("Mixin", bound=type)


def noting(mixin: Mixin) -> Mixin:
    """Has the hook points in a class note that they were called."""
    for name in EXPECTED.keys() & vars(mixin).keys():
        setattr(mixin, name, _noting(name, vars(mixin)[name]))
    return mixin


def _noting(name: str, hook: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(hook)
    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        note(self, name)
        return hook(self, *args, **kwargs)

    return noted


def note(trainer: Any, name: str) -> None:
    """Notes that the engine has called a hook point, or its callbacks of an event."""
    vars(trainer).setdefault("hooks_called", set()).add(name)


def watch(trainer: Any) -> None:
    """Has a trainer count its batches of an epoch, and look in every epoch whether all was called that is due."""

    def begin(trainer: Any) -> None:
        trainer.batches = 0
        note(trainer, "on_train_epoch_start")
        if trainer.epoch > trainer.start_epoch:
            require(trainer, OVER)

    def end(trainer: Any) -> None:
        note(trainer, "on_train_epoch_end")
        require(trainer, TRAINED)

    def saved(trainer: Any) -> None:
        note(trainer, "on_fit_epoch_end")
        require(trainer, SAVED)

    for event, look in {"on_train_epoch_start": begin, "on_train_epoch_end": end, "on_fit_epoch_end": saved}.items():
        trainer.add_callback(event, look)


def require(trainer: Any, due: int) -> None:
    """Ends the run where the engine has not called what is due.

    Raises:
        RunError: Naming it.
    """
    called = vars(trainer).get("hooks_called", set())
    missing = [n for n, hook in EXPECTED.items() if n not in called and hook.due <= due and hook.when(trainer)]
    if missing:
        raise RunError(
            f"Ultralytics {ultralytics.__version__} did not call {', '.join(missing)} of the trainer, so the run is "
            f"not what it should be and was stopped. Install a tested version ({guards.tested()}); in a trainer of "
            "your own, call super() there."
        )
