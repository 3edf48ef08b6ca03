"""The trainer: a mixin with the engine's hook points, and nothing else."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from ultralytics.cfg import cfg2dict, get_save_dir
from ultralytics.data import build_yolo_dataset
from ultralytics.engine import trainer as engine
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import DEFAULT_CFG, LOCAL_RANK, LOGGER, RANK, IterableSimpleNamespace, colorstr
from ultralytics.utils.callbacks import get_default_callbacks
from ultralytics.utils.torch_utils import get_flops, get_num_params, torch_distributed_zero_first, unwrap_model

from tskd_yolo import compat, config, files
from tskd_yolo.config import Config, ConfigError
from tskd_yolo.data.views import Passes, Views, of_views
from tskd_yolo.distill import cache, teacher
from tskd_yolo.distill.balance import schedule
from tskd_yolo.distill.distiller import Distiller, Pair, Trial
from tskd_yolo.distill.teacher import Teacher
from tskd_yolo.hashing import Score
from tskd_yolo.rng import undisturbed
from tskd_yolo.train import checks
from tskd_yolo.train.checks import PREVIOUS

SIDE_FILE = "tskd_last.pt"
"""What a run needs beside last.pt to go on: adapters and graph units, tensors only, of its last two epochs."""


class RunError(RuntimeError):
    """A run that had to stop, with what is kept and how it goes on."""


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
    save_dir: Any
    wdir: Any
    last: Any
    best: Any
    csv: Any
    epoch: Any
    start_epoch: Any
    train_time_start: Any
    ddp: Any
    world_size: Any
    device: Any
    amp: Any
    scaler: Any
    metrics: Any
    epochs: Any
    train_loader: Any
    test_loader: Any
    plot_metrics: Any
    run_callbacks: Any
    add_callback: Any

    def __init__(self, cfg: Any = DEFAULT_CFG, overrides: Any = None, _callbacks: Any = None, **arguments: Any) -> None:
        overrides = {**(overrides or {}), **arguments}
        config.resolve(overrides)
        base = {**config.DEFAULTS, **cfg2dict(cfg)}
        compat.place_fonts()
        self.config: Config
        self.distiller: Distiller | None = None
        self._teacher: Any = None
        self._before: dict[int, Any] = {}  # what the side file held last, by epoch
        self._complete = self._fresh = self._knows = False
        self._batch = 0
        self._stepped = self._alive = False
        self._passes: Passes | None = None
        self._answers: cache.Cache | None = None
        with compat.guarded(trust=overrides.get("trust") is True):
            if overrides.get("resume"):
                self._find_checkpoint(overrides)
            else:
                self._teacher = checks.check(base, overrides)
            _join_group(overrides)
            super().__init__(base, overrides, _callbacks)  # type: ignore[call-arg]
        self.config = config.build(vars(self.args))
        if LOCAL_RANK != -1:  # the engine counts the devices of this machine, torchrun the processes of all
            self.world_size = int(os.environ["WORLD_SIZE"])
        self._make_paths_whole()
        if self.ddp:
            self._teacher = None

    def _find_checkpoint(self, overrides: dict[str, Any]) -> None:
        """Puts the checkpoint to go on from into the arguments, with the folder that it lies in now."""
        model = overrides.get("model")
        named = model if overrides["resume"] is True and model else overrides["resume"]
        last, content = checks.resumable(named)
        arguments = content["train_args"]
        self._complete = content["epoch"] + 1 >= arguments["epochs"]
        overrides["resume"] = str(last.resolve())
        if last.resolve().parent.name == "weights":  # the folder may have been moved
            overrides["save_dir"] = str(last.resolve().parent.parent)

    def check_resume(self, overrides: dict[str, Any]) -> None:
        """Brings our keys back from the checkpoint; a new ``teacher=`` path is taken."""
        super().check_resume(overrides)  # type: ignore[misc]
        if not self.args.resume:
            self._fresh = RANK in {-1, 0} and not get_save_dir(self.args).exists()
            return
        for key, value in config.DEFAULTS.items():
            setattr(self.args, key, getattr(self.args, key, value))
        self.args.trust = overrides.get("trust") is True
        if overrides.get("teacher"):
            self.args.teacher = str(Path(overrides["teacher"]).resolve())
        if any(config.build(vars(self.args)).weights.values()):
            self._teacher = teacher.load(self.args.teacher)

    def _make_paths_whole(self) -> None:
        """The engine writes checkpoints in place, through these paths."""
        self.save_dir = Path(self.save_dir)
        self.wdir = files.WholePath(self.save_dir / "weights")
        self.last, self.best = self.wdir / "last.pt", self.wdir / "best.pt"
        self.csv = self.save_dir / "results.csv"

    # The run ----------------------------------------------------------------------------------------------------------

    def train(self) -> Any:
        """Trains to the end. An interruption leaves a checkpoint, and says how to go on.

        Raises:
            ConfigError: If the data cannot be trained on; the run's folder is gone again then.
            RunError: If a checkpoint could not be saved, or a process of a distributed run failed.
        """
        try:
            with compat.guarded(trust=self.config.trust):
                if self.ddp:
                    self._scan()
                return super().train()  # type: ignore[misc]
        except ConfigError:
            if self._fresh:
                shutil.rmtree(self.save_dir, ignore_errors=True)
            raise
        except KeyboardInterrupt:
            if RANK == -1:
                LOGGER.info(f"\n{colorstr('tskd-yolo:')} interrupted. {self._how_to_go_on()}")
            raise
        except subprocess.CalledProcessError as error:
            raise RunError(
                f"a process of the distributed run ended with {error.returncode}, what it said stands above. "
                + self._how_to_go_on()
            ) from error

    def _how_to_go_on(self) -> str:
        if not self.last.exists():
            return "No epoch was finished, so there is no checkpoint: give the same command again."
        return f"Go on with: tskd-yolo train resume model={self.last}"

    def _scan(self) -> None:
        """Reads the data once before processes are launched, so that its mistakes are told here."""
        for mode, split in (("train", "train"), ("val", self.args.split)):
            batch = max(int(self.args.batch), 1)
            given = self.args, self.data[split], batch, self.data
            checks.scanned(mode, partial(build_yolo_dataset, *given, mode=mode, rect=mode == "val"))

    def build_dataset(self, *args: Any, **kwargs: Any) -> Any:
        """The engine's data set; what its scan finds wrong is refused or counted."""
        mode = kwargs.get("mode") or (args[1] if len(args) > 1 else "train")
        dataset = checks.scanned(mode, partial(super().build_dataset, *args, **kwargs))  # type: ignore[misc]
        keeps = mode == "train" and self.distiller is not None and self.config.teacher_cache
        if not keeps:
            return dataset
        views = Views(dataset, self.config.views, self.args.seed)
        if self._answers is not None:  # after one that ran out of memory, a smaller batch has a new set
            views.store = self._answers.store
        return views

    def get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """The engine's loader; where the teacher's answers are kept it goes through views, each image in another one
        in each epoch.
        """
        loader = super().get_dataloader(*args, **kwargs)  # type: ignore[misc]
        if isinstance(loader.dataset, Views):
            self._passes = of_views(loader)
        return loader

    def _close_dataloader_mosaic(self) -> None:
        super()._close_dataloader_mosaic()  # type: ignore[misc]
        if self._passes is not None:
            self._passes.restart(self.epoch)

    def _do_train(self) -> None:
        if not self._complete:
            return super()._do_train()  # type: ignore[misc]
        # Killed after the last epoch: what is left is to reduce and to validate the checkpoints.
        if self.world_size > 1:
            self._setup_ddp()
        self._setup_train()
        self.epoch = self.start_epoch - 1
        self.train_time_start = time.time()
        self.final_eval()
        if RANK in {-1, 0}:
            if self.args.plots:
                self.plot_metrics()
            self.run_callbacks("on_train_end")

    def _setup_ddp(self) -> None:
        super()._setup_ddp()  # type: ignore[misc]
        self._agree_on_folder()

    def _agree_on_folder(self) -> None:
        """Of processes that no parent launched, only the first has counted up the folder's name."""
        folder = [str(self.save_dir)]
        dist.broadcast_object_list(folder, src=0)
        self.save_dir = Path(folder[0])
        self.args.save_dir = folder[0]
        self._make_paths_whole()

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
        if self._lays_out():
            self.model.to(memory_format=torch.channels_last)
        with undisturbed():  # folding batch norms draws random numbers
            frozen = Teacher(model, like=self.model, names=self.data["names"], responses=self.config.crd > 0)
        self.distiller = Distiller(student=self.model, teacher=frozen, config=self.config, seed=self.args.seed)

    def _lays_out(self) -> bool:
        """Whether the student is brought to channels_last here: on a CPU, where the engine never does it, a step takes
        a quarter less time. Elsewhere the engine decides, and it writes checkpoints in its own format anyway.
        """
        return self.device.type == "cpu" and self.args.channels_last is not False and compat.channels_last_pays()

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
        """The engine's model; remembers whether its weights were trained on these classes."""
        known = getattr(weights, "names", None) or {}
        self._knows = weights is not None and list(known.values()) == list(self.data["names"].values())
        return super().get_model(cfg, weights, verbose)  # type: ignore[misc]

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

    def auto_batch(self, *args: Any, **kwargs: Any) -> int:
        """The engine's estimate, of a step with the teacher in it."""
        if self.distiller is None:
            return super().auto_batch(*args, **kwargs)  # type: ignore[misc]
        self._cast_teacher(self.distiller)
        model, self.model = self.model, Trial(unwrap_model(self.model), self.distiller)
        try:
            return super().auto_batch(*args, **kwargs)  # type: ignore[misc]
        finally:
            self.model = model

    def _cast_teacher(self, distiller: Distiller) -> None:
        if self.amp and self.device.type != "mps":
            distiller.teacher.cast(torch.bfloat16 if self.args.amp == "bf16" else torch.float16)

    def _setup_train(self, *args: Any, **kwargs: Any) -> None:
        wanted = self.args.channels_last
        if any(self.config.weights.values()) and self._lays_out():
            self.args.channels_last = None  # or the engine says that it ignores what we do
        try:
            super()._setup_train(*args, **kwargs)  # type: ignore[misc]
        except TypeError as error:
            if not compat.refused_global(error):
                raise
            raise ConfigError([f"model: {self.args.model} {compat.why(error)}."]) from error
        except NotImplementedError as error:
            raise ConfigError([f"optimizer: {compat.plain(error)}."]) from error
        except RuntimeError as error:
            if "froze the entire model" in str(error):
                raise ConfigError([f"freeze: {self.args.freeze} leaves no parameter to train; freeze less."]) from error
            raise
        finally:
            self.args.channels_last = wanted
        if self.distiller is None:
            LOGGER.info(f"{colorstr('tskd-yolo:')} drd=0 ded=0 crd=0, nothing is distilled: this is plain training.")
            return
        self.epoch = self.start_epoch  # the engine sets it when its loop begins
        for term in self.distiller.leave_frozen():
            LOGGER.warning(f"{term} is left out: freeze={self.args.freeze} freezes every layer that it would teach.")
        self._share(self.distiller)
        self._cast_teacher(self.distiller)
        for gate in self.distiller.gates.values():
            gate.scaled = self.scaler.is_enabled()
        self.distiller.meter.scale = 2.0**10 if self.scaler.is_enabled() else 1.0
        self.distiller.meter.total = dist.all_reduce if self.world_size > 1 else None
        self.add_callback("on_train_epoch_start", DistillationMixin._begin_epoch)
        self.add_callback("on_train_epoch_end", DistillationMixin._look_after)
        with undisturbed():
            if self.config.teacher_cache:
                self._keep_answers(self.distiller, self.train_loader.dataset)
            self._introduce(self.distiller)

    def _keep_answers(self, distiller: Distiller, views: Views) -> None:
        """Puts the cache between teacher and training."""
        shared = f"tskd-{os.getppid()}" if self.world_size > 1 else ""  # processes of a machine have one parent
        with torch_distributed_zero_first(LOCAL_RANK):  # the first of them makes the file
            found = cache.prepare(distiller=distiller, views=views, args=self.args, epochs=self.epochs, shared=shared)
        if self.world_size > 1:
            dist.barrier()
        cache.release(self.args, found)
        self._answers = distiller.cache = found
        views.store = found.store

    def _share(self, distiller: Distiller) -> None:
        """Adapters and graph units of the first process, on all of them."""
        if self.world_size > 1:
            for tensor in distiller.learned.state_dict().values():
                dist.broadcast(tensor, src=0)

    def _begin_epoch(self) -> None:
        self._batch = 0
        if self._passes is not None:
            self._passes.begin(self.epoch)

    def _look_after(self) -> None:
        """After each epoch: says which terms were left out of steps, and switches off those that were too often."""
        if self.distiller is None:
            return
        for term, (left_out, steps, off) in self.distiller.sick(self._total).items():
            end = "It is switched off for the rest of the run." if off else "The detection loss went on."
            LOGGER.warning(f"{term} was not finite in {left_out} of {steps} steps and left out of them. {end}")
        if RANK in {-1, 0}:  # validation, where there is one, makes the metrics anew
            self.metrics.update(self.distiller.pulls())
        if self._stepped and not self._alive:
            self._say_that_it_is_alive(self.distiller)
            self._alive = True

    def _say_that_it_is_alive(self, distiller: Distiller) -> None:
        """Once, after the first epoch with a step of the optimizer in it.

        Raises:
            RunError: If nothing is being taught, with the reason.
        """
        if found := distiller.dead(self._total, max(self.world_size, 1)):
            raise RunError(f"after the first epoch the distillation is dead, the run was stopped: {'; '.join(found)}.")
        shares = {k: v for k, v in distiller.pulls().items() if k.startswith("share/")}
        words = "   ".join(f"{key.split('/')[1]} {value:.1%}" for key, value in shares.items())
        LOGGER.info(
            f"{colorstr('tskd-yolo:')} alive: every term reaches the student on {max(self.world_size, 1)} process(es), "
            f"adapters have moved, the teacher has not. Gradient beside the detection loss's: {words}."
        )

    def _total(self, numbers: list[float]) -> list[float]:
        """Sums over all processes."""
        if self.world_size <= 1:
            return numbers
        tensor = torch.tensor(numbers, device=self.device)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def _introduce(self, distiller: Distiller) -> None:
        """Says what is distilled, once, with the teacher's own accuracy on this validation set."""
        frozen, student = distiller.teacher, deepcopy(unwrap_model(self.model))
        metrics = self._score(frozen)
        own = self.validated(student) if self._knows and not self.args.resume else {}
        if RANK not in {-1, 0}:
            return
        frozen.measure(self.args.imgsz)
        trained = [p for p in distiller.learned.parameters()]
        rows = [
            f"{'':10}{'name':<28}{'parameters':>12}{'GFLOPs':>9}{'mAP50':>9}{'mAP50-95':>10}   at {self.args.imgsz} px",
            f"{'teacher':10}{frozen.name:<28}{frozen.params:>12,}{frozen.gflops:>9.1f}{_accuracy(metrics)}",
            f"{'student':10}{Path(str(self.args.model)).name:<28}{get_num_params(student):>12,}"
            f"{get_flops(student, self.args.imgsz):>9.1f}{_accuracy(own)}",
            "levels    " + _pair_words(distiller.pairs["neck"]),
            *(["stages    " + _pair_words(distiller.pairs["stages"])] if distiller.compares("stages") else []),
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
        for doubt in _doubts(metrics, own, larger=frozen.params > get_num_params(student)):
            LOGGER.warning(doubt)

    def _score(self, frozen: Teacher) -> dict[str, float]:
        """The teacher's metrics on the run's validation set, from an earlier run where there was one like this."""
        score = Score(network=frozen.model, dataset=self.test_loader.dataset, args=self.args)
        found, where = score.recall(), f"{colorstr('tskd-yolo:')} the teacher {frozen.name}"
        if self._total([float(bool(found))])[0] == max(self.world_size, 1):  # ranks validate together or not at all
            LOGGER.info(f"\n{where} was validated on these images before; its score is in {score.file}")
            return found
        LOGGER.info(f"\n{where} is validated, once for these images and settings...")
        found = self.validated(frozen.detector())
        if RANK in {-1, 0}:
            score.keep(found)
        return found

    def validated(self, model: Any) -> dict[str, float]:
        """A detector's metrics on the run's validation set, by the engine's own validator; the model is spoiled."""
        args = _engine_args(self.args)
        args.plots = args.save_json = args.save_txt = args.save_crop = False
        mine, self.args = self.args, args
        try:
            with tempfile.TemporaryDirectory() as folder:
                validator = super().get_validator()  # type: ignore[misc]
                validator.save_dir, validator.callbacks = Path(folder), get_default_callbacks()
                return validator(model=model.float().eval())
        finally:
            self.args = mine

    # Each step --------------------------------------------------------------------------------------------------------

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The last moment before the student's forward pass: the teacher sees the images that the student will see."""
        batch = super().preprocess_batch(batch)  # type: ignore[misc]
        if self.distiller is not None:
            if self._lays_out():  # once for both networks
                batch["img"] = batch["img"].contiguous(memory_format=torch.channels_last)
            self.distiller.factor = self._schedule()
            self.distiller.arm(unwrap_model(self.model), batch["img"], batch)
        return batch

    def _schedule(self) -> float:
        """The terms' common factor at this batch."""
        progress = self.epoch + self._batch / len(self.train_loader)
        self._batch += 1
        return schedule(progress, epochs=self.epochs, ramp=self.config.ramp, fade=self.config.fade)

    def optimizer_step(self) -> None:
        """Averages the adapters' gradients over ranks as DDP does the student's."""
        if self.world_size > 1:
            for parameter in self._learned():
                if parameter.grad is None:  # a rank whose batch did not reach it must still answer the others
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)
                parameter.grad /= self.world_size
        super().optimizer_step()  # type: ignore[misc]
        self._stepped = True

    def _clear_memory(self, *args: Any, **kwargs: Any) -> None:
        """Between steps; after one that ran out of memory, what the teacher said to it is in the way."""
        if self.distiller is not None:
            self.distiller.disarm(unwrap_model(self.model))
        super()._clear_memory(*args, **kwargs)  # type: ignore[misc]

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

    def validate(self) -> Any:
        """The engine's validation; each term's share and cosine stand beside its metrics, in every logger."""
        metrics, fitness = super().validate()  # type: ignore[misc]
        if metrics is not None and self.distiller is not None:
            metrics = {**metrics, **self.distiller.pulls()}
        return metrics, fitness

    def save_metrics(self, metrics: dict[str, Any]) -> None:
        """A line of results.csv."""
        with self._saving(self.csv):
            super().save_metrics(metrics)  # type: ignore[misc]

    def save_model(self) -> bool:
        """Saves what the engine saves, a plain student, and the adapters in a file beside it.

        The side file comes first and holds two epochs, so it has the right one whichever last.pt a kill leaves.
        """
        if self.distiller is not None:
            with self._saving(self.wdir / SIDE_FILE):
                states = {**self._before, self.epoch: self.distiller.state()}
                files.save(self.wdir / SIDE_FILE, {"states": states})
                self._before = {self.epoch: states[self.epoch]}
        with self._saving(self.last):
            files.keep(self.last, self.wdir / PREVIOUS)
            return super().save_model()  # type: ignore[misc]

    @contextlib.contextmanager
    def _saving(self, file: Path) -> Iterator[None]:
        """Turns a disk that cannot be written to into a sentence; what was saved before is untouched."""
        try:
            yield
        except OSError as error:
            need = f", {sum(f.stat().st_size for f in self.wdir.glob('*.pt')) / 1e6:.0f} MB are needed" * (
                error.errno in {errno.ENOSPC, errno.EDQUOT}
            )
            raise RunError(
                f"{file} could not be written ({error.strerror or error}{need}). Checkpoints saved before are whole. "
                + self._how_to_go_on()
            ) from error

    def resume_training(self, ckpt: dict[str, Any] | None) -> None:
        """The engine's, also for a run killed after its last epoch; results.csv is cut back to the checkpoint."""
        if ckpt is None or not self.args.resume:
            return super().resume_training(ckpt)  # type: ignore[misc]
        if self._complete:
            self._load_checkpoint_state(ckpt)
            self.start_epoch = ckpt["epoch"] + 1
        else:
            super().resume_training(ckpt)  # type: ignore[misc]
        if RANK in {-1, 0} and self.csv.exists():
            files.cut(self.csv, epochs=self.start_epoch)

    def _load_checkpoint_state(self, ckpt: dict[str, Any]) -> None:
        """Resuming, and the engine's recovery from NaN: the adapters come back with optimizer and EMA."""
        super()._load_checkpoint_state(ckpt)  # type: ignore[misc]
        if self.distiller is None:
            return
        file, epoch = self.wdir / SIDE_FILE, ckpt.get("epoch", -1)
        states = checks.states(file)
        if epoch in states:
            try:
                self.distiller.restore(states[epoch])
            except (RuntimeError, KeyError) as error:
                raise ConfigError(
                    [f"teacher: {self.args.teacher} is not as wide as the one that this run began with; give that one."]
                ) from error
            self._before = {epoch: states[epoch]}
        else:
            LOGGER.warning(f"{file} holds nothing of epoch {epoch + 1}: adapters and graph units start anew.")
        self._share(self.distiller)

    def final_eval(self) -> None:
        """The engine's: both checkpoints become plain weights, whole or not at all, last.pt as the very last act.

        Until then the run can be resumed; afterwards nothing is kept for it.
        """

        def strip(file: Path, updates: Any = None) -> dict[str, Any]:
            return compat.load(file, key="model")[1] if file == self.last else compat.strip(file, updates)

        with self._saving(self.best), compat.swapped(engine, "strip_optimizer", strip):
            super().final_eval()  # type: ignore[misc]
        if RANK in {-1, 0}:
            with self._saving(self.last):
                if self.last.exists():
                    compat.strip(self.last)
                for name in (SIDE_FILE, PREVIOUS):
                    (self.wdir / name).unlink(missing_ok=True)
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


def _pair_words(pairs: Iterable[Pair]) -> str:
    """Strides, and how many channels of the student are compared with how many of the teacher's."""
    return "   ".join(
        f"stride {p.stride}: {p.ours} -> " + f"{p.compared} of " * (p.compared < p.theirs) + str(p.theirs)
        for p in pairs
    )


def _accuracy(metrics: dict[str, float]) -> str:
    if not metrics:
        return ""
    return f"{metrics['metrics/mAP50(B)']:>9.3f}{metrics['metrics/mAP50-95(B)']:>10.3f}"


def _doubts(metrics: dict[str, float], own: dict[str, float], *, larger: bool) -> list[str]:
    """What speaks against this teacher, seen on the validation set; ``own`` is the student's before training."""
    found = []
    taught, known = metrics["metrics/mAP50-95(B)"], own.get("metrics/mAP50-95(B)", 0.0)
    if metrics["metrics/mAP50(B)"] < 0.05:
        found.append(
            f"the teacher finds next to nothing on this validation set (mAP50 {metrics['metrics/mAP50(B)']:.3f}): "
            "is it trained, and on these classes?"
        )
    if own and taught <= known:
        found.append(
            f"the teacher is no better than the student already is ({taught:.3f} against {known:.3f} mAP50-95): "
            "there is little to learn from it."
        )
    if not larger:
        found.append("the teacher is not larger than the student; usually it is one or two sizes up.")
    return found


def _join_group(overrides: dict[str, Any]) -> None:
    """Under torchrun, one device per process of this machine, unless they are named."""
    if LOCAL_RANK != -1 and not overrides.get("device") and torch.cuda.is_available():
        overrides["device"] = ",".join(str(i) for i in range(int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
