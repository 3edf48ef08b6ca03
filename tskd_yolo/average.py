"""Several checkpoints made one: the mean of their weights, as wide and as fast as one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from ultralytics import __version__
from ultralytics.utils import LOGGER, colorstr

from tskd_yolo import compat, config, files
from tskd_yolo.config import ConfigError

KEYS: dict[str, Any] = {"model": "", "out": "", "trust": False}
"""All keys with their defaults."""


def average(errors: Sequence[str] = (), **arguments: Any) -> Path:
    """Averages checkpoints of one architecture into a new one, which any YOLO command takes.

    The weights of checkpoints that were trained from the same ones lie in one basin often enough that their mean

        θ = 1/n Σ θ_i

    is better than each: about as good as asking them all, at the cost of one. Nothing guarantees it; the result has
    to be measured. Means and variances of batch norm are averaged like weights.

    Args:
        errors: Mistakes that are known already.
        **arguments: Those of the command, see :data:`KEYS`. ``model``: the checkpoints, two or more.
            ``out``: the new file.

    Returns:
        The file.

    Raises:
        ConfigError: Naming everything that is wrong, before anything is written.

    Source:
        Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy without
        increasing inference time", ICML 2022, https://arxiv.org/abs/2203.05482. The sum is torch's ``AveragedModel``.
    """
    values = {**KEYS, **arguments}
    strange = [config.unknown(key, KEYS) for key in arguments if key not in KEYS]
    given, out = config.teachers(values["model"]), Path(str(values["out"])).expanduser()
    problems = [*errors, *strange, *_problems(given, values), *config.trust_problems(values)]
    with compat.guarded(trust=values["trust"] is True):
        loaded = _loaded(given, problems)
    if problems:
        raise ConfigError(problems)
    models = [model for model, _ in loaded.values()]
    mean = AveragedModel(models[0], use_buffers=True)
    for model in models:
        mean.update_parameters(model)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        files.save(out, _checkpoint(mean.module, next(iter(loaded.values()))[1], models))
    except OSError as error:
        raise ConfigError([f"out: {out} could not be written ({error.strerror or error}); give another."]) from error
    LOGGER.info(
        f"{colorstr('tskd-yolo average:')} {out} is the mean of {len(given)} checkpoints. Whether it is better than "
        f"each of them has to be measured: tskd-yolo val model={out} data=FILE.yaml"
    )
    return out


def _problems(given: Sequence[str], values: Mapping[str, Any]) -> list[str]:
    """What is wrong with the arguments, before any file is read."""
    problems, out = [], Path(str(values["out"])).expanduser()
    if len(given) < 2 or "" in given or len({Path(file).resolve() for file in given}) < len(given):
        problems.append(f"model: give two different checkpoints or more, such as [a.pt,b.pt], got {values['model']!r}.")
    if not values["out"]:
        problems.append("out: missing; give out=FILE.pt, the new checkpoint.")
    elif out.suffix != ".pt":
        problems.append(f"out: must end in .pt, got {out}.")
    elif out.exists():
        problems.append(f"out: {out} is there already, and nothing is overwritten; give another or remove it.")
    return problems


def _loaded(given: Sequence[str], problems: list[str]) -> dict[str, tuple[nn.Module, dict[str, Any]]]:
    """Models and checkpoints by file; adds to ``problems`` which cannot be read, or averaged with the first."""
    loaded = {}
    for file in filter(None, given):
        with config.collected(problems):
            loaded[file] = compat.load(file, key="model")
    for file, (model, _) in loaded.items():
        first = next(iter(loaded))
        problems += _unfit(file, model, first, loaded[first][0])
    return loaded


def _unfit(file: str, model: Any, first: str, other: Any) -> list[str]:
    """Why a model cannot be averaged with the first one."""
    state, wanted = model.state_dict(), other.state_dict()
    apart = [name for name in {**wanted, **state} if _shape(state, name) != _shape(wanted, name)]
    if apart:
        told = f"{apart[0]} is {_shape(state, apart[0])} and not {_shape(wanted, apart[0])}"
        return [f"model: {file} has not the layers of {first} ({told}); give checkpoints of one architecture."]
    if dict(model.names) != dict(other.names):
        return [f"model: {file} has not the classes of {first}, or in another order; give checkpoints of one data set."]
    if not all(value.isfinite().all() for value in state.values()):
        return [f"model: {file} has weights that are not finite; leave it out."]
    return []


def _shape(state: Mapping[str, torch.Tensor], name: str) -> str:
    return "x".join(map(str, state[name].shape)) or "one number" if name in state else "missing"


def _checkpoint(mean: nn.Module, like: Mapping[str, Any], models: Sequence[Any]) -> dict[str, Any]:
    """What Ultralytics leaves of a finished run, with what was averaged."""
    vars(mean).pop("pt_path", None)  # where the first one lay
    averaged = [{"name": Path(each.pt_path).name, "sha256": files.digest(each.pt_path)} for each in models]
    return {
        "date": datetime.now(tz=timezone.utc).isoformat(), "version": __version__, "epoch": -1, "best_fitness": None,
        "model": mean.half(), "ema": None, "updates": None, "optimizer": None, "scaler": None,
        "train_args": dict(like.get("train_args") or {}), "averaged": averaged,
    }  # fmt: skip
