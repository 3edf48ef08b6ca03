"""What a run leaves behind however it ends; the engine's own part is played by a class that ends that way."""

from __future__ import annotations

import logging
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ultralytics.utils import LOGGER

from tskd_yolo.config import ConfigError
from tskd_yolo.train.checkpoints import RunError
from tskd_yolo.train.resumable import ResumableMixin


class Ends:
    """An engine whose training ends with ``how``."""

    def __init__(self, folder: Path, how: BaseException | None, new: bool = True) -> None:
        self.save_dir, self.last = folder, folder / "weights" / "last.pt"
        self.how = how
        self.ddp, self._complete, self._trust, self._new_folder = False, True, False, new

    def train(self) -> Any:
        self.save_dir.mkdir(exist_ok=True)
        if self.how is not None:
            raise self.how
        return "metrics"


class Run(ResumableMixin, Ends):
    """With the mixin over it."""


def test_a_run_that_ends_well_gives_what_the_engine_gives(tmp_path):
    assert Run(tmp_path / "run", None).train() == "metrics"


@pytest.mark.parametrize("new", [True, False])
def test_data_that_cannot_be_trained_on_leave_no_new_folder(new, tmp_path):
    with pytest.raises(ConfigError):
        Run(tmp_path / "run", ConfigError(["data: nothing there."]), new).train()
    assert (tmp_path / "run").exists() != new


@pytest.mark.parametrize("new", [True, False])
def test_what_was_trained_stays_where_a_mistake_shows_later(new, tmp_path):
    run = Run(tmp_path / "run", ConfigError(["model: last.pt could not be read."]), new)
    run.last.parent.mkdir(parents=True)
    run.last.touch()
    with pytest.raises(RunError if new else ConfigError, match="model: last.pt could not be read.") as caught:
        run.train()
    assert run.last.exists()
    if new:  # a run that goes on is told what was wrong with going on, and nothing more
        words = f"model: last.pt could not be read. Go on with: tskd-yolo train resume model={run.last}"
        assert str(caught.value) == words


def test_an_interruption_says_how_to_go_on_and_leaves_the_folder(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(LOGGER, "propagate", True)
    with caplog.at_level(logging.INFO), pytest.raises(KeyboardInterrupt):
        Run(tmp_path / "run", KeyboardInterrupt()).train()
    assert "interrupted" in caplog.text and (tmp_path / "run").exists()


def test_a_failed_process_is_a_sentence_with_its_exit_code(tmp_path):
    with pytest.raises(RunError, match="ended with 7"):
        Run(tmp_path / "run", subprocess.CalledProcessError(7, ["python"])).train()
