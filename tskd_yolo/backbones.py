"""timm models as backbones: the first layer of a detector, as ``TimmBackbone`` in a model YAML.

Importing this module tells Ultralytics of that layer, and torch that a checkpoint may hold it: it is the one place
where either learns of it. A checkpoint holds no object of timm's, but the name of the model and its tensors, from which
the model is built when the checkpoint is loaded.
"""

from __future__ import annotations

import difflib
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn import tasks
from ultralytics.utils import ONLINE

from tskd_yolo.config import ConfigError
from tskd_yolo.rng import seeded

COARSEST = 32
"""A detector's images are multiples of so many pixels."""


class BatchNorm(nn.BatchNorm2d):
    """A batch norm that keeps the ``eps`` and ``momentum`` with which its weights were trained.

    Ultralytics sets its own in a new detector, in batch norms whose class is ``nn.BatchNorm2d`` itself.
    """


class TimmModel(nn.Module):
    """A timm model without its head: images to maps. It normalises images as its weights were trained with.

    Args:
        name: timm's name of the model, i.e. ``resnet18``, also with a tag of its weights, i.e. ``resnet18.a1_in1k``.
        channels: Of the images.
        maps: How many of its maps are given, the coarsest ones; of a plain transformer those of its last blocks.

    Shapes:
        images ``(N, channels, H, W)`` in 0 to 1, output a list of ``(N, widths[i], H / strides[i], W / strides[i])``.

    Raises:
        ConfigError: If timm has no such model, or it has not so many maps.
    """

    def __init__(self, name: str, channels: int = 3, maps: int = 4) -> None:
        super().__init__()
        self.name, self.channels, self.maps = name, channels, maps
        self.body = _body(name, channels, maps)
        self.strides: list[int] = self.body.feature_info.reduction()
        self.widths: list[int] = self.body.feature_info.channels()
        for norm in self.body.modules():
            if type(norm) is nn.BatchNorm2d:
                norm.__class__ = BatchNorm
        for key in ("mean", "std"):
            values = torch.tensor(getattr(_settings(name), key))
            values = values if channels == len(values) else values.mean().expand(channels)
            self.register_buffer(key, values.view(1, -1, 1, 1), persistent=False)

    mean: Tensor
    std: Tensor

    def forward(self, images: Tensor) -> list[Tensor]:
        """The maps, the finest first."""
        maps = self.body((images - self.mean) / self.std)
        if getattr(self.body, "output_fmt", "NCHW") == "NHWC":  # of Swin, for one
            return [features.permute(0, 3, 1, 2) for features in maps]
        return list(maps)


class TimmBackbone(TimmModel):
    """A timm model as a layer of a detector; ``Index`` layers take its maps.

    ``[-1, 1, TimmBackbone, [resnet18, c2]]`` in a model YAML, where ``c2`` is the number of channels of the images.
    It is copied as any module, and pickled as its name and its tensors.

    Raises:
        ConfigError: If its maps do not fit images of a detector, beside what :class:`TimmModel` raises.
    """

    def __init__(self, name: str, channels: int = 3, maps: int = 4) -> None:
        super().__init__(name, channels, maps)
        if wrong := [stride for stride in self.strides if COARSEST % stride]:
            raise ConfigError(
                [f"model: maps of {name} have stride {wrong[0]}, and the images of a detector are multiples of "
                 f"{COARSEST} px; take a model with patches of 8, 16 or 32 px."]
            )  # fmt: skip

    def __deepcopy__(self, memo: dict[int, Any]) -> TimmBackbone:
        copy = type(self).__new__(type(self))
        memo[id(self)] = copy
        vars(copy).update(deepcopy(vars(self), memo))
        return copy

    def __getstate__(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "channels": self.channels,
            "maps": self.maps,
            "tensors": dict(self.state_dict()),
            "frozen": [name for name, parameter in self.named_parameters() if not parameter.requires_grad],
            "training": self.training,
            "layer": {key: getattr(self, key) for key in _OF_LAYERS if hasattr(self, key)},
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        with seeded(0):  # a new model draws its first weights
            TimmBackbone.__init__(self, str(state["name"]), int(state["channels"]), int(state["maps"]))
        self.load_state_dict(state["tensors"], assign=True)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name not in state["frozen"])
        self.train(state["training"])
        vars(self).update({key: state["layer"][key] for key in _OF_LAYERS if key in state["layer"]})


_OF_LAYERS = "i", "f", "type", "np"
"""What Ultralytics writes into each layer: its number, where its input is from, its name, its size."""

setattr(tasks, TimmBackbone.__name__, TimmBackbone)  # where it looks for the layers that a model YAML names
torch.serialization.add_safe_globals([TimmBackbone])


def of(detector: nn.Module) -> TimmBackbone | None:
    """The timm backbone of a detector, where it has one."""
    return next((module for module in detector.modules() if isinstance(module, TimmBackbone)), None)


# Building -------------------------------------------------------------------------------------------------------------


def _settings(name: str) -> Any:
    """What timm knows of the weights of a model: sizes, mean and deviation of images, where they lie.

    Raises:
        ConfigError: If it knows no such model or weights. A name that is an address is none: it would be fetched.
    """
    import timm

    if re.fullmatch(r"[\w.-]+", name) and timm.is_model(name):
        try:
            return timm.get_pretrained_cfg(name, allow_unregistered=False)
        except RuntimeError:
            tags = [tagged for tagged in timm.list_pretrained() if tagged.startswith(name.partition(".")[0] + ".")]
            raise ConfigError([f"timm: it has no weights {name}; it has {', '.join(tags) or 'none'}."]) from None
    near = difflib.get_close_matches(name, timm.list_models(), n=1)
    hint = f"did you mean '{near[0]}'?" if near else "see timm.list_models()."
    raise ConfigError([f"timm: it has no model '{name}'; {hint}"])


def _body(name: str, channels: int, maps: int, file: Path | None = None) -> Any:
    """A model of timm's that gives its last maps, with the weights of a file or random ones."""
    import timm

    more: dict[str, Any] = {"dynamic_img_size": True} if _settings(name).fixed_input_size else {}
    if file is not None:
        more |= {"pretrained": True, "pretrained_cfg_overlay": {"file": str(file), "custom_load": False}}
    try:
        return timm.create_model(name, features_only=True, out_indices=range(-maps, 0), in_chans=channels, **more)
    except (TypeError, AssertionError, ValueError, IndexError) as error:
        if file is not None:
            raise
        raise ConfigError(
            [f"timm: {name} gives no {maps} maps of images of any size ({_first_line(error)}); take another model."]
        ) from error


# Weights --------------------------------------------------------------------------------------------------------------


def load_weights(model: TimmModel, *, key: str, file: str | Path | None = None) -> None:
    """Loads the weights of a file into a model, or timm's own, which are fetched where the network may be used.

    Args:
        model: The model.
        key: The argument that asks for it, for messages.
        file: A checkpoint of timm's, tensors only: ``.safetensors``, ``.bin``, ``.pth``.

    Raises:
        ConfigError: If there are none, or they are not of this model.
    """
    path = Path(file) if file is not None else _fetched(model.name, key)
    if not path.is_file():
        raise ConfigError([f"{key}: {path} was not found; give a checkpoint of timm's {model.name}."])
    try:
        bodies = []
        for seed in (0, 1):  # what is not in the file is drawn, and differs
            with seeded(seed):
                bodies.append(_body(model.name, model.channels, model.maps, path).state_dict())
    except Exception as error:  # a file of another kind ends in a dozen types of exception
        raise ConfigError(
            [f"{key}: {path} could not be loaded into {model.name} ({_first_line(error)}); give its checkpoint as timm "
             "saves it, tensors only."]
        ) from error  # fmt: skip
    if any(not torch.equal(a, b) for a, b in zip(*(body.values() for body in bodies))):
        raise ConfigError([f"{key}: {path} lacks weights of {model.name}; give a checkpoint of this model."])
    model.body.load_state_dict(bodies[0])


def _fetched(name: str, key: str) -> Path:
    """The file with timm's weights of a model, from the cache of the Hugging Face hub, or fetched where one may."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    settings, reason = _settings(name), "they are in no cache, and there is no network"
    if not settings.hf_hub_id:
        raise ConfigError([f"{key}: timm has no weights of {name} on the Hugging Face hub; give a file of them."])
    for file in [settings.hf_hub_filename] if settings.hf_hub_filename else _OF_THE_HUB:
        found = try_to_load_from_cache(settings.hf_hub_id, file)
        if isinstance(found, str):
            return Path(found)
        if ONLINE:  # where it is not, even looking for a file with hf_hub_download asks the network for something
            try:
                return Path(hf_hub_download(settings.hf_hub_id, file))
            except EntryNotFoundError as error:
                reason = _first_line(error)
            except Exception as error:  # of the network, of a licence that was not accepted
                reason = _first_line(error)
                break
    raise ConfigError([f"{key}: the weights {settings.hf_hub_id} of {name} cannot be loaded ({reason}); give a file."])


_OF_THE_HUB = "model.safetensors", "pytorch_model.bin"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
