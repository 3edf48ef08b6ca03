"""A run that kills itself (SIGKILL) at a given moment, for tests: KILL=val, saving or stripping, EPOCH from 0.

Started with the command line's words. Writes the adapters that it begins with to ``begins.pt`` beside the run.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from tskd_yolo import Trainer, compat, files
from tskd_yolo.cli import main

MOMENT, EPOCH = os.environ.get("KILL"), int(os.environ.get("EPOCH", "0"))


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def watched(begin: Any) -> Any:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        self.add_callback("on_train_start", keep)
        if MOMENT == "val":
            self.add_callback("on_val_batch_start", lambda v: self.epoch == EPOCH and hasattr(self, "epoch") and die())
        if MOMENT == "saving":
            self.add_callback("on_train_epoch_end", lambda t: t.epoch == EPOCH and half_written())

    return __init__


def keep(trainer: Any) -> None:
    trainer.epoch = -1  # the engine has not set it yet
    torch.save(trainer.distiller.learned.state_dict(), Path(trainer.save_dir).parent / "begins.pt")


def half_written() -> None:
    """From now on the process dies in the middle of writing last.pt."""
    whole = files.replace

    def replace(path: Any, data: bytes) -> None:
        if Path(path).name == "last.pt":
            Path(path).with_name(".half").write_bytes(data[: len(data) // 2])
            die()
        whole(path, data)

    files.replace = replace


if __name__ == "__main__":
    Trainer.__init__ = watched(Trainer.__init__)  # type: ignore[method-assign]
    if MOMENT == "stripping":
        compat.strip = die  # type: ignore[assignment]
    sys.exit(main(sys.argv[1:]))
