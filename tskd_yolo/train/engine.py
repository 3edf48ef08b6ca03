"""Ultralytics' engine as types: the trainer under the mixin, and the arguments that the other modules are given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import IterableSimpleNamespace

from tskd_yolo import config


class Arguments(Protocol):
    """A run's arguments, Ultralytics' and ours, as far as these modules read them.

    The engine holds them in a namespace that answers to any name; with this a wrong one is found before it is run.
    """

    model: Any
    data: Any
    pretrained: Any
    resume: Any
    task: str
    imgsz: int
    seed: int
    amp: Any
    channels_last: bool | None
    freeze: Any
    classes: Any
    single_cls: bool


if TYPE_CHECKING:

    class Engine(DetectionTrainer):
        """What stands under the mixin: type checkers compare every hook point with the installed Ultralytics.

        The attributes here are those whose type there is that of their first value.
        """

        model: Any
        """A file's name, then a detector, then that detector in what distributes it."""
        metrics: Any
        """None, then the metrics of the last validation by name."""

else:
    Engine = object  # the engine's trainer comes after the mixin, in the class that joins them


def engine_arguments(args: Arguments) -> IterableSimpleNamespace:
    """A copy of the arguments without our keys: the engine's validator refuses those that it does not know."""
    return IterableSimpleNamespace(**{k: v for k, v in vars(args).items() if k not in config.DEFAULTS})
