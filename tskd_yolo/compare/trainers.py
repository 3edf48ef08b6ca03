"""The trainers of a comparison: Ultralytics' own and ours, in the same memory format, and witnessed.

A witness writes down from what a run started, so that it can be seen whether arms are paired.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import RANK
from ultralytics.utils.torch_utils import unwrap_model

from tskd_yolo import compat
from tskd_yolo.files import write_json
from tskd_yolo.hashing import hash_tensors
from tskd_yolo.train import prepare
from tskd_yolo.train.backbone import BackboneMixin
from tskd_yolo.train.trainer import Trainer

if TYPE_CHECKING:
    from tskd_yolo.train.engine import Engine
else:
    Engine = object  # the engine's trainer comes after the mixins, in the class that joins them

WITNESSED = 3
"""Batches of the first epoch that are compared over the arms of a seed: one of them may train for one epoch only."""


class _Witness(Engine):
    """Writes ``start.json``: hashes of the student's first weights, of the first images and of their files' names.

    Images are compared as the student sees them, augmented; files by name alone. results.csv gets a column with the
    processor's time beside the clock's, and with ``teacher_cache`` one with the share of views that had been there.
    """

    def _setup_train(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_train(*args, **kwargs)
        self._process_start = time.process_time()  # where the engine starts its clock

    def save_metrics(self, metrics: dict[str, Any]) -> None:
        """A line of results.csv."""
        kept = getattr(self, "_cache", None)
        found = {"found": 1 - kept.computed / max(kept.asked, 1)} if kept is not None else {}
        super().save_metrics({"process_time": time.process_time() - self._process_start, **found, **metrics})

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The student has made no step yet when the first batch comes."""
        seen = self.__dict__.setdefault("_seen", [])
        if RANK in {-1, 0} and not self.resume and self.epoch == self.start_epoch and len(seen) < WITNESSED:
            names = " ".join(Path(file).name for file in batch["im_file"])
            seen.append((hash_tensors([batch["img"]]).hexdigest() + names, names))
            if len(seen) == 1:
                self._start = _state(unwrap_model(self.model))
            images, files = (hashlib.sha256("\n".join(column).encode()).hexdigest() for column in zip(*seen))
            write_json(self.save_dir / "start.json", {**self._start, "images": images, "files": files})
        return super().preprocess_batch(batch)


def _state(model: nn.Module) -> dict[str, str]:
    """A student's weights and memory format; Ultralytics' own distillation wraps it."""
    student = getattr(model, "student_model", model)
    return {"weights": hash_tensors(student.state_dict().values()).hexdigest(), "memory_format": memory_format(student)}


def memory_format(network: nn.Module) -> str:
    """``channels_last`` or ``contiguous``: in which order the weights of a network lie."""
    other = (p for p in network.parameters() if p.ndim == 4 and not p.is_contiguous())
    return "channels_last" if any(p.is_contiguous(memory_format=torch.channels_last) for p in other) else "contiguous"


class _OurFormat(Engine):
    """Brings Ultralytics' own trainer to channels_last where ours is: a step then costs the same in every arm."""

    def set_model_attributes(self) -> None:
        """At the same point as in our trainer."""
        super().set_model_attributes()
        if prepare.in_channels_last(self.args, self.device):
            self.model.to(memory_format=torch.channels_last)

    def _setup_train(self, *args: Any, **kwargs: Any) -> None:
        ours = prepare.in_channels_last(self.args, self.device)
        # None where the layout is our business, or the engine says that it ignores what was asked for.
        with compat.swapped(self.args, "channels_last", None if ours else self.args.channels_last):
            super()._setup_train(*args, **kwargs)
        model: Any = unwrap_model(self.model)
        # The teacher of distill_model= comes after the engine has seen to the format.
        if hasattr(model, "teacher_model") and memory_format(model.student_model) == "channels_last":
            model.teacher_model.to(memory_format=torch.channels_last)

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Once for all networks."""
        batch = super().preprocess_batch(batch)
        if prepare.in_channels_last(self.args, self.device):
            batch["img"] = batch["img"].contiguous(memory_format=torch.channels_last)
        return batch


class PlainTrainer(_Witness, _OurFormat, BackboneMixin, DetectionTrainer):
    """Ultralytics' own trainer, witnessed; a timm backbone starts from the weights that it has in our trainer."""


class DistilledTrainer(_Witness, Trainer):
    """Our trainer, witnessed."""
