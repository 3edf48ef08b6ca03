"""What the engine refuses, told as we tell it: before a run where it can be known, while it sets up otherwise."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any, cast

from torch import nn
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.utils import LOCAL_RANK
from ultralytics.utils.torch_utils import select_device

from tskd_yolo import compat
from tskd_yolo.config import ConfigError
from tskd_yolo.train.engine import Arguments


def of(values: Mapping[str, Any]) -> list[str]:
    """What is wrong with the optimizer, the device, and ``amp=`` on it, of arguments as the engine reads them."""
    return [*_optimizer(values["optimizer"]), *_device(values["device"], values["amp"])]


def _optimizer(name: Any) -> list[str]:
    """What Ultralytics says of an ``optimizer=`` that it does not have."""
    if str(name).lower() == "auto":
        return []
    network = nn.ModuleDict({"model": nn.Sequential(nn.Linear(1, 1))})
    try:
        with compat.silent():
            BaseTrainer.build_optimizer(cast(Any, None), network, name)
    except NotImplementedError as error:
        return [f"optimizer: {compat.plain(error).partition('; ')[0]}; give one of these."]
    return []


def _device(device: Any, amp: Any) -> list[str]:
    """What is wrong with ``device=``, or ``amp=`` on it; of a process that torchrun has started, whether it has one."""
    try:
        found = select_device(device, verbose=False)
    except (ValueError, RuntimeError, AssertionError) as error:
        reason = compat.plain(error).split("; ")[0]
        return [f"device: {device!r} cannot be used here ({reason}); give device=cpu or another."]
    if amp == "bf16" and found.type != "cuda":
        return ["amp: bf16 needs a CUDA device, and this run has none; leave it out."]
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    listed = str(device or "").split(",")
    if LOCAL_RANK != -1 and device and device != "cpu" and len(listed) < here:
        return [f"device: {device!r} names {len(listed)} for {here} processes on this machine; leave it out."]
    return []


# While it sets up -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def data_errors() -> Iterator[None]:
    """Inside, what we refuse in a data set is told as it is, and not as the engine wraps it."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error.__cause__, ConfigError):
            raise
        raise error.__cause__ from None


@contextlib.contextmanager
def setup_errors(args: Arguments) -> Iterator[None]:
    """Inside, what the engine says of a user's mistakes becomes ours.

    Raises:
        ConfigError: If the student's checkpoint was refused, or freeze or the last batch cannot be.
    """
    try:
        yield
    except TypeError as error:
        if not compat.refused_global(error):
            raise
        raise ConfigError([f"model: {args.model} {compat.why(error)}."]) from error
    except ValueError as error:
        if "single value per channel" not in str(error):
            raise
        raise ConfigError([f"batch: {compat.plain(error)}."]) from error
    except RuntimeError as error:
        if "froze the entire model" not in str(error):
            raise
        raise ConfigError([f"freeze: {args.freeze} leaves no parameter to train; freeze less."]) from error
