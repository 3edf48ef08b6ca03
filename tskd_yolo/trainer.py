"""The trainer: a mixin with the engine's hook points, and nothing else."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from ultralytics.cfg import cfg2dict, get_cfg
from ultralytics.data.utils import check_det_dataset
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import load_checkpoint, yaml_model_load
from ultralytics.utils import DEFAULT_CFG, LOCAL_RANK, LOGGER, RANK, IterableSimpleNamespace, colorstr
from ultralytics.utils.callbacks import get_default_callbacks
from ultralytics.utils.checks import check_model_file_from_stem
from ultralytics.utils.torch_utils import get_flops, get_num_params, unwrap_model

from tskd_yolo import config, teacher
from tskd_yolo.config import Config, ConfigError
from tskd_yolo.distiller import Distiller, undisturbed
from tskd_yolo.teacher import Teacher

SIDE_FILE = "tskd_last.pt"
"""What a run needs beside last.pt to go on: adapters and graph units, tensors only."""


class DistillationMixin:
    """Adds a teacher to an Ultralytics trainer.

    The student stays a plain Ultralytics model: teacher, adapters and graph units live here. Before each forward pass
    of the student the teacher sees the same images, and for this one pass the student's criterion is ours.

    Args:
        cfg, overrides, _callbacks: As Ultralytics' trainers take them.
        **arguments: Any Ultralytics argument and the keys of ``cfg/default.yaml``, e.g. ``teacher="teacher.pt"``.

    Raises:
        ConfigError: If settings, teacher, student and data do not fit, naming every mistake, before anything is
        written.
    """

    # What the engine's trainer brings; declared for readers and type checkers.
    args: Any
    model: Any
    data: dict[str, Any]
    wdir: Path

    def __init__(self, cfg: Any = DEFAULT_CFG, overrides: Any = None, _callbacks: Any = None, **arguments: Any) -> None:
        overrides = {**(overrides or {}), **arguments}
        config.resolve(overrides)
        if overrides.get("resume") is True and overrides.get("model"):
            overrides["resume"] = str(overrides["model"])
        base = {**config.DEFAULTS, **cfg2dict(cfg)}
        self.config: Config
        self.distiller: Distiller | None = None
        self._teacher: Any = None
        if not overrides.get("resume"):
            self._teacher = _checked(base, overrides)
        super().__init__(base, overrides, _callbacks)  # type: ignore[call-arg]
        self.config = config.build(vars(self.args))

    def check_resume(self, overrides: dict[str, Any]) -> None:
        """Brings our keys back from the checkpoint; a new ``teacher=`` path is taken."""
        super().check_resume(overrides)  # type: ignore[misc]
        if not self.args.resume:
            return
        for key, value in config.DEFAULTS.items():
            setattr(self.args, key, getattr(self.args, key, value))
        if overrides.get("teacher"):
            self.args.teacher = str(Path(overrides["teacher"]).resolve())
        if any(config.build(vars(self.args)).weights.values()):
            self._teacher = teacher.load(self.args.teacher)

    # Before the first step --------------------------------------------------------------------------------------------

    def set_model_attributes(self) -> None:
        """Builds teacher, adapters and losses: the student is on its device, and nothing wraps it yet."""
        super().set_model_attributes()  # type: ignore[misc]
        if not any(self.config.weights.values()):
            return
        model, self._teacher = self._teacher, None
        assert model is not None
        if found := teacher.mismatches(student_yaml=self.model.yaml, teacher=model, names=self.data["names"]):
            raise ConfigError(found)
        with undisturbed():  # folding batch norms draws random numbers
            frozen = Teacher(model, like=self.model, names=self.data["names"], responses=self.config.crd > 0)
        self.distiller = Distiller(student=self.model, teacher=frozen, config=self.config, seed=self.args.seed)

    def build_optimizer(self, model: nn.Module, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """One optimizer for student, adapters and graph units, in the same parameter groups."""
        learned = self._learned()
        if not learned:
            return super().build_optimizer(model, *args, **kwargs)  # type: ignore[misc]
        together = nn.Module()
        together.model = unwrap_model(model).model
        together.tskd = self.distiller.learned  # type: ignore[union-attr]
        optimizer = super().build_optimizer(together, *args, **kwargs)  # type: ignore[misc]

        def clip(*_: Any) -> None:
            torch.nn.utils.clip_grad_norm_(learned, max_norm=10.0)

        # The engine clips the student only. At this point the scaler has divided the gradients, as it must have.
        optimizer.register_step_pre_hook(clip)
        return optimizer

    def get_validator(self) -> Any:
        """The engine's validator, which refuses keys it does not know."""
        mine, self.args = self.args, _engine_args(self.args)
        try:
            return super().get_validator()  # type: ignore[misc]
        finally:
            self.args = mine

    def _setup_train(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_train(*args, **kwargs)  # type: ignore[misc]
        if self.distiller is None:
            LOGGER.info(f"{colorstr('tskd-yolo:')} drd=0 ded=0 crd=0, nothing is distilled: this is plain training.")
            return
        if self.world_size > 1:  # type: ignore[attr-defined]
            for tensor in self.distiller.learned.state_dict().values():
                dist.broadcast(tensor, src=0)
        if self.amp and self.device.type != "mps":  # type: ignore[attr-defined]
            self.distiller.teacher.cast(torch.bfloat16 if self.args.amp == "bf16" else torch.float16)
        with undisturbed():
            self._introduce(self.distiller)

    def _introduce(self, distiller: Distiller) -> None:
        """Says what is distilled, once, with the teacher's own accuracy on this validation set."""
        frozen, student = distiller.teacher, deepcopy(unwrap_model(self.model))
        LOGGER.info(f"\n{colorstr('tskd-yolo:')} validating the teacher {frozen.name}...")
        metrics = self.teacher_metrics(frozen)
        if RANK not in {-1, 0}:
            return
        frozen.measure(self.args.imgsz)
        trained = [p for p in distiller.learned.parameters()]
        rows = [
            f"{'':10}{'name':<28}{'parameters':>12}{'GFLOPs':>9}{'mAP50':>9}{'mAP50-95':>10}   at {self.args.imgsz} px",
            f"{'teacher':10}{frozen.name:<28}{frozen.params:>12,}{frozen.gflops:>9.1f}"
            f"{metrics['metrics/mAP50(B)']:>9.3f}{metrics['metrics/mAP50-95(B)']:>10.3f}",
            f"{'student':10}{Path(str(self.args.model)).name:<28}{get_num_params(student):>12,}"
            f"{get_flops(student, self.args.imgsz):>9.1f}",
            "levels    " + "   ".join(_level_words(distiller, stride) for stride in distiller.strides),
            "terms     "
            + "   ".join(f"{t} {w:g}" if w else f"{t} off" for t, w in self.config.weights.items())
            + f"   (balance={self.config.balance} variant={self.config.variant} graph={self.config.graph})",
            f"adapters  {sum(p.numel() for p in trained):,} parameters, trained with the student and not part of it",
        ]
        if distiller.unpaired:
            rows.append(
                f"unpaired  levels of stride {distiller.unpaired} exist in one network only and are not distilled"
            )
        if distiller.untaught:
            rows.append(f"untaught  {', '.join(distiller.untaught)}: the teacher has lost this branch by fusing")
        if frozen.reordered:
            rows.append("classes   the teacher's are in another order; they are matched by name")
        LOGGER.info("\n" + colorstr("tskd-yolo:") + " what is distilled\n  " + "\n  ".join(rows) + "\n")

    def teacher_metrics(self, frozen: Teacher) -> dict[str, float]:
        """The teacher's metrics on the run's validation set, by the engine's own validator."""
        args = _engine_args(self.args)
        args.plots = args.save_json = args.save_txt = args.save_crop = False
        mine, self.args = self.args, args
        try:
            with tempfile.TemporaryDirectory() as folder:
                validator = super().get_validator()  # type: ignore[misc]
                validator.save_dir, validator.callbacks = Path(folder), get_default_callbacks()
                return validator(model=frozen.detector())
        finally:
            self.args = mine

    # Each step --------------------------------------------------------------------------------------------------------

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The last moment before the student's forward pass: the teacher sees the images that the student will see."""
        batch = super().preprocess_batch(batch)  # type: ignore[misc]
        if self.distiller is not None:
            self.distiller.arm(unwrap_model(self.model), batch["img"])
        return batch

    def optimizer_step(self) -> None:
        """Averages the adapters' gradients over ranks as DDP does the student's."""
        if self.world_size > 1:  # type: ignore[attr-defined]
            for parameter in self._learned():
                if parameter.grad is None:  # a rank whose batch did not reach it must still answer the others
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)
                parameter.grad /= self.world_size  # type: ignore[attr-defined]
        super().optimizer_step()  # type: ignore[misc]

    def _learned(self) -> list[nn.Parameter]:
        return list(self.distiller.learned.parameters()) if self.distiller is not None else []

    # Records ----------------------------------------------------------------------------------------------------------

    def label_loss_items(self, loss_items: Any = None, prefix: str = "train") -> Any:
        """Our terms exist in training only: a column of zeros under ``val/`` would say nothing."""
        labelled = super().label_loss_items(loss_items, prefix)  # type: ignore[misc]
        if prefix != "val":
            return labelled
        ours = {f"{prefix}/{term}_loss" for term in config.TERMS}
        if isinstance(labelled, dict):
            return {key: value for key, value in labelled.items() if key not in ours}
        return [key for key in labelled if key not in ours]

    def save_model(self) -> bool:
        """Saves what the engine saves, a plain student, and the adapters in a file beside it."""
        saved = super().save_model()  # type: ignore[misc]
        if saved and self.distiller is not None:
            state = {"epoch": self.epoch, "learned": self.distiller.learned.state_dict()}  # type: ignore[attr-defined]
            part = self.wdir / f"{SIDE_FILE}.part"
            torch.save(state, part)
            os.replace(part, self.wdir / SIDE_FILE)
        return saved

    def _load_checkpoint_state(self, ckpt: dict[str, Any]) -> None:
        """Resuming, and the engine's recovery from NaN: the adapters come back with optimizer and EMA."""
        super()._load_checkpoint_state(ckpt)  # type: ignore[misc]
        if self.distiller is None:
            return
        file = self.wdir / SIDE_FILE
        state = torch.load(file, map_location="cpu", weights_only=True) if file.exists() else {}
        if state.get("epoch") != ckpt.get("epoch"):
            LOGGER.warning(f"{file} does not belong to epoch {ckpt.get('epoch', -1) + 1}: the adapters start anew.")
            return
        self.distiller.learned.load_state_dict(state["learned"])

    def final_eval(self) -> None:
        """The engine reduces its checkpoints to plain weights: nothing can be resumed, nothing is kept for it."""
        super().final_eval()  # type: ignore[misc]
        if RANK in {-1, 0}:
            (self.wdir / SIDE_FILE).unlink(missing_ok=True)
        self.distiller = None  # Model keeps its trainer alive: let go of the teacher


class Trainer(DistillationMixin, DetectionTrainer):
    """Trains a detector from a larger one.

    Example:
        >>> Trainer(data="neu.yaml", teacher="teacher.pt", model="yolo11n.yaml", epochs=100).train()
        >>> YOLO("yolo11n.yaml").train(trainer=Trainer, data="neu.yaml", teacher="teacher.pt")
    """


def _engine_args(args: Any) -> Any:
    """A copy of the arguments without our keys."""
    return IterableSimpleNamespace(**{k: v for k, v in vars(args).items() if k not in config.DEFAULTS})


def _level_words(distiller: Distiller, stride: int) -> str:
    neck = distiller.widths[stride]
    return f"stride {stride}: {neck[0]} -> {neck[1]}"


def _checked(base: dict[str, Any], overrides: dict[str, Any]) -> Any:
    """Loads the teacher and checks that settings, teacher, student and data fit, before anything is written.

    Puts the teacher's absolute path into ``overrides``, so that the run can be resumed from anywhere.

    Raises:
        ConfigError: Naming everything that is wrong.
    """
    found: list[str] = []
    values = {**base, **overrides}
    try:
        values = vars(get_cfg(base, overrides))
    except (SyntaxError, TypeError, ValueError) as error:  # unknown keys and values of a wrong type
        found += [line.strip() for line in str(error).splitlines() if line.strip()]
    found += config.problems(values)
    model = student_yaml = names = None
    if isinstance(values["teacher"], (str, Path)) and str(values["teacher"]):
        try:
            model = teacher.load(values["teacher"])
            overrides["teacher"] = str(Path(model.pt_path).resolve())
        except ConfigError as error:
            found += error.problems
    if LOCAL_RANK == -1:  # a process of a distributed launch: the launching one has checked data and student
        student_yaml = _told("model", found, lambda: _student_yaml(values["model"]), values["model"])
        names = _told("data", found, lambda: _names(values["data"]), values["data"])
        names = {0: "item"} if names and values["single_cls"] else names
    if model is not None and student_yaml and names:
        found += teacher.mismatches(student_yaml=student_yaml, teacher=model, names=names)
    if found:
        raise ConfigError(found)
    return model


_NEEDED = {
    "data": "data: missing; give data=FILE.yaml, the data set as Ultralytics takes it.",
    "model": "model: missing; give the student, i.e. model=yolo11n.yaml (random weights) or model=yolo11n.pt.",
}


def _told(key: str, found: list[str], read: Callable[[], Any], value: Any) -> Any:
    """What ``read`` gives; or None, with a sentence in ``found``, whatever Ultralytics raises at a user's file."""
    if not value:
        found.append(_NEEDED[key])
        return None
    try:
        return read()
    except Exception as error:  # a missing or broken file ends in many types of exception
        found.append(f"{key}: {value} could not be read ({' '.join(str(error).split())}).")
        return None


def _names(data: Any) -> dict[int, str]:
    """The classes of a data set; none yet of one that Ultralytics has to fetch and convert (NDJSON, its platform)."""
    fetched = str(data).startswith("ul://") or str(data).endswith(".ndjson")
    return {} if fetched else check_det_dataset(data)["names"]


def _student_yaml(name: str | Path) -> dict[str, Any]:
    file = str(check_model_file_from_stem(str(name)))
    return load_checkpoint(file)[0].yaml if file.endswith(".pt") else yaml_model_load(file)
