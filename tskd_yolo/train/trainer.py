"""The trainer: mixins with the engine's hook points, and nothing else. The work behind them is in the other modules."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import torch
from torch import nn
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.models.yolo.obb import OBBTrainer as OBBEngine
from ultralytics.models.yolo.pose import PoseTrainer as PoseEngine
from ultralytics.models.yolo.segment import SegmentationTrainer
from ultralytics.utils import DEFAULT_CFG, LOCAL_RANK, LOGGER, colorstr
from ultralytics.utils.torch_utils import unwrap_model

from tskd_yolo import compat, config, settings_files
from tskd_yolo.data.views import Passes, Views, of_views
from tskd_yolo.distill import cache
from tskd_yolo.distill.balance import schedule
from tskd_yolo.distill.distiller import Distiller, Trial, resting
from tskd_yolo.rng import undisturbed
from tskd_yolo.train import checkpoints, checks, going_on, hooks, prepare, processes, refusals, scan, summary, tasks
from tskd_yolo.train.backbone import BackboneMixin
from tskd_yolo.train.engine import engine_arguments
from tskd_yolo.train.giving_way import GivingWayMixin
from tskd_yolo.train.processes import FIRST
from tskd_yolo.train.resumable import ResumableMixin
from tskd_yolo.train.unlabelled import UnlabelledMixin


@hooks.noting
class DistillationMixin(ResumableMixin, GivingWayMixin, BackboneMixin, UnlabelledMixin):
    """Adds a teacher to an Ultralytics trainer.

    The student stays a plain Ultralytics model: teacher and adapters live here. Before each forward pass
    of the student the teacher sees the same images, and for this one pass the student's criterion is ours.

    Args:
        cfg, overrides, _callbacks: As Ultralytics' trainers take them.
        **arguments: Any Ultralytics argument and the keys of ``cfg/default.yaml``, e.g. ``teacher="teacher.pt"``.

    Raises:
        ConfigError: If settings, teacher, student and data do not fit, naming every mistake, before anything is
            written.
    """

    def __init__(self, cfg: Any = DEFAULT_CFG, overrides: Any = None, _callbacks: Any = None, **arguments: Any) -> None:
        given = settings_files.without_file({**(overrides or {}), **arguments})
        overrides = config.with_variant(given)
        settings_files.resolve(overrides)
        base, trust = checks.base(cfg), overrides.get("trust", False)
        self._trust = trust is True
        compat.place_fonts()
        self.distiller, self._teacher = None, None
        self.facts: summary.Facts | None = None
        self._complete = self._new_folder = False
        self._student_trained = False  # on these classes, before this run
        self._ded_if_trained = prepare.ded_if_trained(given, base)  # None where a student is no new one
        self.batches = 0  # of this epoch, so far
        self._steps: int | torch.Tensor = 0  # of the optimizer, without those that a loss scaler skips
        self._first_epoch_checked = False
        self._passes: Passes | None = None
        self._cache: cache.Cache | None = None
        with compat.guarded(trust=self._trust), refusals.data_errors():
            if overrides.get("resume"):
                content = checkpoints.find(overrides)
                going_on.check(overrides, content)
                self._complete = content["epoch"] + 1 >= content["train_args"]["epochs"]
            else:
                self._teacher = checks.check({**base, "trust": False}, overrides)
                tasks.become(self, overrides["task"])
            processes.name_devices(overrides)
            overrides.pop("trust", None)
            super().__init__(base, overrides, _callbacks)
        self.config = config.build({**vars(self.args), "trust": trust})
        if LOCAL_RANK != -1:  # the engine counts the devices of this machine, torchrun the processes of all
            self.world_size = int(os.environ["WORLD_SIZE"])
        self._use_whole_paths()
        if self.ddp:
            self._teacher = None

    @property
    def _learned(self) -> list[nn.Parameter]:
        """What is trained besides the student."""
        return list(self.distiller.learned.parameters()) if self.distiller is not None else []

    # Data -------------------------------------------------------------------------------------------------------------

    def build_dataset(self, *args: Any, **kwargs: Any) -> Any:
        """The engine's data set; what its scan finds wrong is refused or counted."""
        mode = kwargs.get("mode") or (args[1] if len(args) > 1 else "train")
        with compat.swapped(self.args, "imgsz", self._image_size(mode)):
            dataset = scan.scanned(mode, partial(super().build_dataset, *args, **kwargs))
        if mode != "train" or self.distiller is None or not self.config.teacher_cache:
            return dataset
        views = Views(dataset, self.config.views, self.args.seed)
        if self._cache is not None:  # after a step that ran out of memory, a smaller batch has a new set
            views.store = self._cache.stores[0]
        return views

    def _image_size(self, mode: str) -> int:
        """Size at which images are read: the teacher's for training, where it is another; the student's are reduced."""
        larger = self.config.teacher_imgsz if self.distiller is not None and mode == "train" else None
        return larger or self.args.imgsz

    def get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """The engine's loader; where teacher outputs are cached it goes through views, each image in another one in
        each epoch.
        """
        loader = super().get_dataloader(*args, **kwargs)
        if isinstance(loader.dataset, Views):
            self._passes = of_views(loader)
        return loader

    def _close_dataloader_mosaic(self) -> None:
        super()._close_dataloader_mosaic()
        if self._passes is not None:
            self._passes.restart(self.epoch)

    # Before the first step --------------------------------------------------------------------------------------------

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
        """The engine's model; remembers whether its weights were trained on these classes."""
        if weights is not None:
            prepare.take_as_trained(self, weights)
        with compat.guarded(trust=self._trust):  # YOLO.train asks for it outside of train
            return super().get_model(cfg, weights, verbose)

    def set_model_attributes(self) -> None:
        """Builds teacher, adapters and losses: the student is on its device, and nothing wraps it yet."""
        super().set_model_attributes()
        if not self.config.distils:
            return
        loaded, self._teacher = self._teacher, None
        if prepare.in_channels_last(self.args, self.device):
            self.model.to(memory_format=torch.channels_last)
        self.distiller = prepare.build_distiller(
            self.model, loaded, names=self.data["names"], config=self.config, args=self.args
        )

    def build_optimizer(self, model: nn.Module, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """One optimizer for student and adapters, in the same parameter groups."""
        if self.distiller is not None and self._learned:
            model = prepare.with_adapters(unwrap_model(model), self.distiller.learned)
        optimizer = super().build_optimizer(model, *args, **kwargs)
        prepare.clip_adapters(optimizer, self._learned)
        optimizer.register_step_pre_hook(self._count_step)
        return optimizer

    def _count_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        skipped = getattr(optimizer, "found_inf", None)  # a fused one is called in any case, and told on the device
        self._steps = self._steps + (1 if skipped is None else (skipped == 0).long())

    def get_validator(self) -> Any:
        """The engine's validator, which refuses keys it does not know."""
        with compat.swapped(self, "args", engine_arguments(self.args)):
            return super().get_validator()

    def auto_batch(self, *args: Any, **kwargs: Any) -> int:
        """The engine's estimate, of a step with the teacher in it."""
        if self.distiller is None:
            return super().auto_batch(*args, **kwargs)
        prepare.cast_teacher(self.distiller, args=self.args, amp=self.amp, device=self.device)
        with compat.swapped(self, "model", Trial(unwrap_model(self.model), self.distiller)):
            return super().auto_batch(*args, **kwargs)

    def _setup_train(self, *args: Any, **kwargs: Any) -> None:
        wanted = self.args.channels_last
        ours = self.config.distils and prepare.in_channels_last(self.args, self.device)
        # None where the layout is our business, or the engine says that it ignores what we do.
        with refusals.setup_errors(self.args), compat.swapped(self.args, "channels_last", None if ours else wanted):
            super()._setup_train(*args, **kwargs)
        if self.distiller is None:
            LOGGER.info(f"{colorstr('tskd-yolo:')} drd=0 ded=0 crd=0, nothing is distilled: this is plain training.")
            return
        self.epoch = self.start_epoch  # the engine sets it when its loop begins
        given: dict[str, Any] = dict(args=prepare.as_decided(self.args, amp=self.amp), processes=self._processes)
        prepare.make_ready(self.distiller, unwrap_model(self.model), scaled=self.scaler.is_enabled(), **given)
        prepare.cast_teacher(self.distiller, args=self.args, amp=self.amp, device=self.device)
        self.add_callback("on_train_epoch_start", DistillationMixin._begin_epoch)
        self.add_callback("on_train_epoch_end", DistillationMixin._end_epoch)
        with undisturbed():
            size, loader = self.config.teacher_imgsz or self.args.imgsz, prepare.teacher_loader(self, self.distiller)
            taught = summary.teacher_scores(self.distiller, loader=loader, size=size, **given)
            if len(taught) > 1:  # before the cache: what they say together depends on it
                summary.weigh_teachers(self.distiller, taught, processes=self._processes)
            self._watch_lead(self.distiller, taught)
            self._see_others(self.distiller)
            self._open_cache(self.distiller)
            self.facts = summary.log_summary(
                self.distiller,
                unwrap_model(self.model),
                config=self.config,
                loader=self.test_loader,
                trained=self._student_trained and not self.args.resume,
                new=self._ded_if_trained is not None,
                taught=taught,
                **given,
            )
            self._doubt_others(self.distiller)
            finest = min(self.distiller.readers.head.strides)
            summary.log_data(self.train_loader.dataset, self.test_loader.dataset, args=self.args, stride=finest)

    def _open_cache(self, distiller: Distiller) -> None:
        if self.config.teacher_cache:
            given: dict[str, Any] = dict(args=self.args, epochs=self.epochs, processes=self._processes)
            others = self._flow.views if self._flow is not None else None
            self._cache = prepare.keep_teacher_outputs(distiller, self.train_loader.dataset, others=others, **given)

    # Each epoch, by the engine's callbacks ----------------------------------------------------------------------------

    def _begin_epoch(self) -> None:
        self._agree_on_lead(self._processes)
        if self._passes is not None:
            self._passes.begin(self.epoch)

    def _end_epoch(self) -> None:
        """Counts what was not finite; after the first epoch with which two steps were taken, the first-epoch check."""
        if self.distiller is None:
            return
        checks.report_epoch(self.distiller.monitor, self._processes)
        self._tell_others(self.distiller)
        self._tell_agreement(self.distiller)
        if FIRST:  # validation, where there is one, makes the metrics anew
            self.metrics.update(self.distiller.monitor.columns())
        if self._first_epoch_checked or resting(self.distiller):  # a run may go on in which nothing is taught
            return
        if self._steps > 1:  # warm-up takes the first step at a rate of 0
            checks.check_first_epoch(self.distiller.monitor, self._processes)
            self._first_epoch_checked = True

    # Each step --------------------------------------------------------------------------------------------------------

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The last moment before the student's forward pass: the teacher sees the images that the student will see."""
        batch = super().preprocess_batch(batch)
        progress = self.epoch + self.batches / len(self.train_loader)
        self.batches += 1
        if self.distiller is None:
            return batch
        if prepare.in_channels_last(self.args, self.device):  # once for both networks
            batch["img"] = batch["img"].contiguous(memory_format=torch.channels_last)
        self.distiller.factor = schedule(progress, epochs=self.epochs, ramp=self.config.ramp, fade=self.config.fade)
        self._settle_agreement(self.distiller, progress)
        teacher_images = batch["img"]
        if self.config.teacher_imgsz:
            batch = prepare.reduced_batch(batch, self.args.imgsz)
        self.distiller.attach(unwrap_model(self.model), batch["img"], batch, teacher_images)
        return batch

    def optimizer_step(self) -> None:
        """The engine's, after the adapters' gradients were averaged over processes as DDP averages the student's."""
        self._processes.average_gradients(self._learned)
        super().optimizer_step()

    def _clear_memory(self, threshold: float | None = None) -> None:
        """Between steps; after one that ran out of memory, its outputs and what is recorded of steps are in the way."""
        if self.distiller is not None:
            self.distiller.detach()
            if threshold is None and self.distiller.recorder is not None:
                self.distiller.recorder.forget()
        super()._clear_memory(threshold)

    # Records ----------------------------------------------------------------------------------------------------------

    def label_loss_items(self, loss_items: Any = None, prefix: str = "train") -> Any:
        """Our terms exist in training only: a column of zeros under ``val/`` would say nothing."""
        labelled = super().label_loss_items(loss_items, prefix)
        if prefix != "val":
            return labelled
        ours = {f"{prefix}/{term}_loss" for term in config.TERMS}
        if isinstance(labelled, dict):
            return {key: value for key, value in labelled.items() if key not in ours}
        return [key for key in labelled if key not in ours]

    def validate(self) -> Any:
        """The engine's validation; each term's gradient share and cosine stand beside its metrics, in every logger."""
        columns = {} if self.distiller is None else self.distiller.monitor.columns()  # before terms give way
        metrics, fitness = super().validate()
        return (None if metrics is None else {**metrics, **columns}), fitness


class Trainer(DistillationMixin, DetectionTrainer):
    """Trains a model from a larger one of the same task: detect, segment, pose or obb, as the model has it.

    It is made for detect. Where the model turns out to be one for another task it becomes the class below with the
    engine of that task.

    Examples:
        >>> Trainer(data="neu.yaml", teacher="teacher.pt", model="yolo11n.pt", epochs=100).train()
        >>> tskd_yolo.load("yolo11n.pt").train(trainer=Trainer, data="neu.yaml", teacher="teacher.pt", epochs=100)
    """


class SegmentTrainer(Trainer, SegmentationTrainer):
    """:class:`Trainer` for segment: masks are left to the task's own loss."""


class PoseTrainer(Trainer, PoseEngine):
    """:class:`Trainer` for pose: key points are left to the task's own loss."""


class OBBTrainer(Trainer, OBBEngine):
    """:class:`Trainer` for obb: angles are left to the task's own loss."""
