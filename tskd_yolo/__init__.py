"""tskd-yolo: trains a small YOLO detector from a large one, by triple semantic-aware knowledge distillation (TSKD)."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = "ConfigError", "Trainer", "__version__", "load"

if TYPE_CHECKING:
    from tskd_yolo.compat import yolo as load
    from tskd_yolo.config import ConfigError
    from tskd_yolo.train.trainer import Trainer

# Ultralytics reads this once, when it is imported: its own YOLO(FILE) is then restricted, too. Where it is imported
# already, other code in this process may count on what it has read.
if "ultralytics" not in sys.modules:
    os.environ.setdefault("ULTRALYTICS_SAFE_LOAD", "1")


def __getattr__(name: str) -> Any:
    """Loads the trainer, and Ultralytics with it, only when it is asked for: losses and data need neither."""
    if name == "Trainer":
        from tskd_yolo.train.trainer import Trainer

        return Trainer
    if name == "load":
        from tskd_yolo.compat import yolo

        return yolo
    if name == "ConfigError":
        from tskd_yolo.config import ConfigError

        return ConfigError
    raise AttributeError(f"module 'tskd_yolo' has no attribute '{name}'")
