"""Runs that may end at any moment: hook points of checkpoints, of resuming, and of the end."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from ultralytics.cfg import get_save_dir
from ultralytics.utils import LOGGER, RANK, colorstr

from tskd_yolo import compat, config, files
from tskd_yolo.config import Config, ConfigError
from tskd_yolo.distill import teacher
from tskd_yolo.distill.cache import Cache
from tskd_yolo.distill.distiller import Distiller
from tskd_yolo.train import checkpoints, going_on, hooks, processes, scan, tasks
from tskd_yolo.train.checkpoints import RunError, SideFile
from tskd_yolo.train.engine import Engine
from tskd_yolo.train.processes import FIRST, Processes


@hooks.noting
class ResumableMixin(Engine):
    """Hook points of a run that may end at any moment and goes on from its last whole checkpoint.

    Checkpoints hold a plain student. What else a resumed run needs lies in a file beside last.pt while the run lasts.
    """

    config: Config
    distiller: Distiller | None
    _cache: Cache | None
    _teacher: Any
    """The teachers as they were loaded, until the distiller is built."""
    _complete: bool
    """The last epoch is done, and only the end of the run is left."""
    _new_folder: bool
    """The run's folder was made by this run."""
    _trust: bool
    """Said by the command line or the Python call; no file keeps it."""

    def _use_whole_paths(self) -> None:
        self.save_dir, self.wdir, self.last, self.best, self.csv = checkpoints.whole_paths(self.save_dir)
        self._side_file = SideFile(self.last)

    @property
    def _processes(self) -> Processes:
        return Processes(max(self.world_size, 1), self.device)

    def check_resume(self, overrides: dict[str, Any]) -> None:
        """Brings task and keys of ours back from the checkpoint; ``teacher=`` and ``unlabelled=`` may have moved."""
        moved = {key: overrides[key] for key in ("teacher", "unlabelled") if overrides.get(key)}
        super().check_resume({key: value for key, value in overrides.items() if key not in moved})
        if not self.args.resume:
            self._new_folder = FIRST and not get_save_dir(self.args).exists()
            return
        tasks.become(self, self.args.task)
        going_on.restore(self.args, trust=self._trust, moved=moved)
        if config.build({**vars(self.args), "trust": self._trust}).distils:
            self._teacher = [teacher.load(file) for file in config.teachers(self.args.teacher)]

    def train(self) -> Any:
        """Trains to the end. An interruption leaves a checkpoint, and says how to go on.

        Raises:
            ConfigError: If the data cannot be trained on; the run's folder is gone again then.
            RunError: If a checkpoint could not be saved or read, a process of a distributed run failed, or the engine
                left out a hook point.
        """
        try:
            with compat.guarded(trust=self._trust):
                if self.ddp:
                    scan.scan_before_launch(self.args, self.data)
                    self.args.trust = self._trust  # what the processes are given; their files have it no more
                watched = not self.ddp and not self._complete
                if watched:
                    hooks.watch(self)
                result = super().train()
                if watched:
                    hooks.require(self, hooks.OVER)
                return result
        except ConfigError as error:
            if self._new_folder and self.last.exists():  # it came after an epoch: what was trained stays
                raise RunError(f"{' '.join(error.problems)} {checkpoints.how_to_go_on(self.last)}") from error
            if self._new_folder:
                shutil.rmtree(self.save_dir, ignore_errors=True)
            raise
        except KeyboardInterrupt:
            if RANK == -1:
                LOGGER.info(f"\n{colorstr('tskd-yolo:')} interrupted. {checkpoints.how_to_go_on(self.last)}")
            raise
        except subprocess.CalledProcessError as error:
            raise RunError(
                f"a process of the distributed run ended with {error.returncode}, what it said stands above. "
                + checkpoints.how_to_go_on(self.last)
            ) from error

    def _do_train(self) -> None:
        if not self._complete:
            return super()._do_train()
        # Killed after the last epoch: what is left is to reduce and to validate the checkpoints.
        if self.world_size > 1:
            self._setup_ddp()
        self._setup_train()
        self.epoch = self.start_epoch - 1
        self.train_time_start = time.time()
        self.final_eval()
        if FIRST:
            if self.args.plots:
                self.plot_metrics()
            self.run_callbacks("on_train_end")

    def _setup_ddp(self) -> None:
        super()._setup_ddp()
        self._agree_on_folder()

    def _agree_on_folder(self) -> None:
        """Of processes that no parent launched, only the first has counted up the folder's name."""
        self.args.save_dir = processes.from_first(str(self.save_dir))
        self.save_dir = Path(self.args.save_dir)
        self._use_whole_paths()

    # Records ----------------------------------------------------------------------------------------------------------

    def save_metrics(self, metrics: dict[str, Any]) -> None:
        """A line of results.csv; one of a run that an earlier version began gets the columns of this one."""
        with checkpoints.saving(self.csv, last=self.last):
            if self.csv.exists() and (gone := files.set_columns(self.csv, ["epoch", "time", *metrics])):
                LOGGER.warning(f"results.csv: columns that an earlier version wrote are left out: {', '.join(gone)}.")
            super().save_metrics(metrics)

    def save_model(self) -> bool:
        """Saves what the engine saves, a plain student, and the adapters in a file beside it."""
        if self.distiller is not None:
            self._side_file.save(self.distiller, epoch=self.epoch)
        with checkpoints.saving(self.last, last=self.last):
            # A torn last.pt must not take the place of the one before it, from which this run goes on.
            if self.epoch > self.start_epoch or Path(str(self.args.resume)).name != checkpoints.PREVIOUS:
                checkpoints.keep_previous(self.last)
            return super().save_model()

    def resume_training(self, ckpt: dict[str, Any] | None) -> None:
        """The engine's, also for a run killed after its last epoch; results.csv is cut back to the checkpoint."""
        if ckpt is None or not self.args.resume:
            return super().resume_training(ckpt)
        if self._complete:
            self._load_checkpoint_state(ckpt)
            self.start_epoch = ckpt["epoch"] + 1
        else:
            super().resume_training(ckpt)
        if FIRST and self.csv.exists():
            files.cut(self.csv, epochs=self.start_epoch)

    def _load_checkpoint_state(self, ckpt: dict[str, Any]) -> None:
        """Resuming, and the engine's recovery from NaN: the adapters come back with optimizer and EMA."""
        super()._load_checkpoint_state(ckpt)
        if self.distiller is not None:
            self._side_file.restore(self.distiller, epoch=ckpt.get("epoch", -1), teacher=self.args.teacher)
            self._processes.broadcast(self.distiller.learned.state_dict().values())

    def final_eval(self) -> None:
        """The engine's: both checkpoints become plain weights, whole or not at all, last.pt as the very last act."""
        with checkpoints.stripping_all_but(self.last):
            super().final_eval()
        if FIRST:
            checkpoints.finish(self.last)
        if self._cache is not None:
            self._cache.close()
        self.distiller = self._cache = None  # Model keeps its trainer alive: let go of the teacher and of its outputs
