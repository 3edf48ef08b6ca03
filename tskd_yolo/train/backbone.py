"""Hook points of a student with a timm backbone: weights to start from, and what is said of its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import LOCAL_RANK, LOGGER, colorstr
from ultralytics.utils.torch_utils import torch_distributed_zero_first, unwrap_model

from tskd_yolo import backbones, compat
from tskd_yolo.config import ConfigError
from tskd_yolo.train.processes import FIRST

if TYPE_CHECKING:
    from tskd_yolo.train.engine import Engine
else:
    Engine = object  # the engine's trainer comes after the mixins, in the class that joins them


def weights_file(pretrained: Any) -> Path | None:
    """The checkpoint of timm's that ``pretrained=`` names; None where it names a detector's, which the engine loads."""
    named = isinstance(pretrained, (str, Path)) and Path(pretrained).suffix.lower() != ".pt"
    return Path(pretrained) if named else None


def names(student: Mapping[str, Any]) -> list[str]:
    """timm's names of the backbones in a model YAML: of one, or of none."""
    return [str(args[0]) for *_, module, args in student["backbone"] if module == "TimmBackbone"]


def wrong_weights(student: Mapping[str, Any], values: Mapping[str, Any], *, asked: bool) -> list[str]:
    """What is wrong with the weights that a student is to start from: a detector's, or those of a timm backbone.

    Args:
        student: Its YAML.
        values: The run's arguments.
        asked: Whether ``pretrained`` is among what the user gave.
    """
    found, given = names(student), values["pretrained"]
    file, new = weights_file(given), str(values["model"]).endswith((".yaml", ".yml"))
    try:
        if found and (file or (new and asked and given is True)):
            backbones.load_weights(backbones.TimmModel(found[0]), key="pretrained", file=file)
        elif isinstance(given, (str, Path)):
            compat.load(given, key="pretrained")
    except ConfigError as error:
        return error.problems
    return []


class BackboneMixin(Engine):
    """Gives a timm backbone its first weights: timm's own, or those of a file.

    ``pretrained=True``, Ultralytics' default, of a student that is new; ``pretrained=FILE`` where FILE is none of
    Ultralytics' ``.pt``. What was asked for in words and cannot be had is an error before the run; the default that
    cannot be had is said.
    """

    _told_of_backbone = False

    def setup_model(self) -> Any:
        """The engine's, which would take a checkpoint of timm's for one of its own."""
        file = None if self.resume else weights_file(self.args.pretrained)
        with compat.swapped(self.args, "pretrained", None if file else self.args.pretrained):
            ckpt = super().setup_model()
        if file and (backbone := backbones.of(unwrap_model(self.model))) is not None:
            backbones.load_weights(backbone, key="pretrained", file=file)
        return ckpt

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
        """The engine's model, its backbone with timm's weights where it is new and they can be had."""
        model = super().get_model(cfg, weights, verbose)
        backbone = backbones.of(model)
        if backbone is None or weights is not None or self.args.pretrained is not True:
            return model
        with torch_distributed_zero_first(LOCAL_RANK):  # the first of this machine's processes fetches them
            try:  # inside: others wait until the first is through, whatever came of it
                backbones.load_weights(backbone, key="pretrained")
            except ConfigError as error:
                if FIRST:
                    LOGGER.warning(f"the backbone starts from random weights. {error.problems[0]}")
        return model

    def save_model(self) -> Any:
        """The engine's; once in a run it is said what a checkpoint with a timm backbone needs."""
        saved = super().save_model()
        if not self._told_of_backbone and backbones.of(unwrap_model(self.model)) is not None:
            self._told_of_backbone = True
            LOGGER.info(
                f"{colorstr('tskd-yolo:')} the student has a timm backbone: tskd-yolo and tskd_yolo.load() read its "
                "checkpoint, plain YOLO() after 'import tskd_yolo.backbones'. What it is exported to needs neither."
            )
        return saved


class BackboneTrainer(BackboneMixin, DetectionTrainer):
    """Ultralytics' own trainer for a detector with a timm backbone, such as a teacher of that kind.

    Examples:
        >>> tskd_yolo.load("timm-resnet50.yaml").train(trainer=BackboneTrainer, data="mine.yaml", epochs=300)
    """
