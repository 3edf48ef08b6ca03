"""tskd-yolo: trains a small YOLO detector from a large one, by triple semantic-aware knowledge distillation (TSKD)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = "ConfigError", "Trainer", "__version__"

if TYPE_CHECKING:
    from tskd_yolo.config import ConfigError
    from tskd_yolo.train.trainer import Trainer


def __getattr__(name: str) -> Any:
    """Loads the trainer, and Ultralytics with it, only when it is asked for: losses and data need neither."""
    if name == "Trainer":
        from tskd_yolo.train.trainer import Trainer

        return Trainer
    if name == "ConfigError":
        from tskd_yolo.config import ConfigError

        return ConfigError
    raise AttributeError(f"module 'tskd_yolo' has no attribute '{name}'")
