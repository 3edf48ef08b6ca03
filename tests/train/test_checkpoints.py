"""Checkpoints: whole or not at all, found again, and what is said where that fails."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ultralytics.engine import trainer as engine

from tskd_yolo import ConfigError, compat, files
from tskd_yolo.train import checkpoints
from tskd_yolo.train.checkpoints import PREVIOUS, SIDE_FILE, RunError, SideFile


class Distiller:
    """Has a state, taught by someone, and takes one of one width."""

    def __init__(self, value: float | None = None, width: int = 2, teacher: str = "abc") -> None:
        self.learned = None if value is None else torch.full((width,), value)
        self.teachers = [SimpleNamespace(digest=teacher)]

    def state(self):
        return {"learned": self.learned}

    def restore(self, state):
        if len(state["learned"]) != 2:
            raise RuntimeError("size mismatch")
        self.learned = state["learned"]


@pytest.fixture(scope="session")
def content(detector) -> dict:
    """What a checkpoint holds besides its run."""
    return torch.load(detector("yolo11n.yaml"), weights_only=False)


@pytest.fixture
def checkpoint(content) -> Callable[..., Path]:
    """Writes what last.pt holds in the middle of a run."""

    def write(file: Path, epoch: int = 1, **arguments) -> Path:
        torch.save({**content, "epoch": epoch, "train_args": {"teacher": "a.pt", "epochs": 3, **arguments}}, file)
        return file

    return write


@pytest.fixture
def last(tmp_path) -> Path:
    (tmp_path / "run" / "weights").mkdir(parents=True)
    return tmp_path / "run" / "weights" / "last.pt"


def test_the_engine_replaces_files_whole_through_these_paths(tmp_path, monkeypatch):
    paths = checkpoints.whole_paths(str(tmp_path))
    assert paths == (tmp_path, tmp_path / "weights", *(tmp_path / "weights" / n for n in ("last.pt", "best.pt")),
                     tmp_path / "results.csv")  # fmt: skip
    written = []
    monkeypatch.setattr(files, "replace", lambda path, data: written.append(Path(path).name))
    for path in (paths.last, paths.best, paths.wdir / "epoch0.pt"):
        path.write_bytes(b"new")
    assert written == ["last.pt", "best.pt", "epoch0.pt"]


def test_a_full_disk_is_told_with_what_is_needed(last):
    last.write_bytes(bytes(2_000_000))
    with pytest.raises(RunError) as caught, checkpoints.saving(last.with_name("best.pt"), last=last):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(caught.value) == (
        f"{last.with_name('best.pt')} could not be written (No space left on device, 2 MB are needed). "
        f"Checkpoints saved before are whole. Go on with: tskd-yolo train resume model={last}"
    )


def test_any_other_failure_to_write_is_told_without_a_size(last):
    with pytest.raises(RunError) as caught, checkpoints.saving(last, last=last):
        raise OSError(errno.EROFS, "Read-only file system")
    assert "(Read-only file system)" in str(caught.value) and "No epoch was finished" in str(caught.value)


def test_a_side_file_holds_the_last_two_epochs(last):
    side = SideFile(last)
    for epoch in range(3):
        side.save(Distiller(epoch), epoch=epoch)
    kept = torch.load(last.with_name(SIDE_FILE), weights_only=True)["states"]
    assert {epoch: float(value["learned"][0]) for epoch, value in kept.items()} == {1: 1.0, 2: 2.0}


def test_a_restored_epoch_is_the_one_that_is_kept_next(last):
    side = SideFile(last)
    for epoch in range(2):
        side.save(Distiller(epoch), epoch=epoch)
    again, distiller = SideFile(last), Distiller()
    again.restore(distiller, epoch=0, teacher="a.pt")
    assert float(distiller.learned[0]) == 0
    again.save(Distiller(7), epoch=1)
    kept = torch.load(last.with_name(SIDE_FILE), weights_only=True)["states"]
    assert {epoch: float(value["learned"][0]) for epoch, value in kept.items()} == {0: 0.0, 1: 7.0}


@pytest.mark.parametrize("damage", ["missing", "torn", "another epoch"])
def test_without_a_state_adapters_start_anew_and_that_is_said(damage, last, caplog):
    SideFile(last).save(Distiller(1), epoch=1)
    side = last.with_name(SIDE_FILE)
    if damage == "missing":
        side.unlink()
    elif damage == "torn":
        side.write_bytes(side.read_bytes()[:100])
    distiller = Distiller()
    SideFile(last).restore(distiller, epoch=2 if damage == "another epoch" else 1, teacher="a.pt")
    assert distiller.learned is None and "adapters start anew" in caplog.text
    assert ("could not be read" in caplog.text) == (damage != "another epoch")


def test_another_teacher_of_the_same_width_is_refused(last):
    SideFile(last).save(Distiller(1, teacher="xyz"), epoch=1)
    with pytest.raises(ConfigError, match="teacher: a.pt is not the one that this run began with; give that one"):
        SideFile(last).restore(Distiller(), epoch=1, teacher="a.pt")


def test_a_state_of_another_width_names_the_teacher(last):
    SideFile(last).save(Distiller(1, width=3), epoch=1)
    with pytest.raises(ConfigError, match="teacher: a.pt is not as wide as the one that this run began with"):
        SideFile(last).restore(Distiller(), epoch=1, teacher="a.pt")


@pytest.mark.parametrize(("epoch", "complete"), [(1, False), (2, True)])
def test_the_checkpoint_is_found_in_the_folder_where_it_is_now(epoch, complete, checkpoint, last, monkeypatch):
    checkpoint(last, epoch, save_dir="/elsewhere/run")
    monkeypatch.chdir(last.parent)
    overrides = {"resume": True, "model": "last.pt"}
    content = checkpoints.find(overrides)
    assert (content["epoch"] + 1 >= content["train_args"]["epochs"]) is complete
    assert overrides == {"resume": str(last), "model": "last.pt", "save_dir": str(last.parents[1])}


def test_of_a_torn_checkpoint_the_one_before_is_taken(last, checkpoint, caplog):
    checkpoint(last.with_name(PREVIOUS), epoch=0)
    last.write_bytes(b"torn")
    found, content = checkpoints.resumable(str(last))
    assert found == last.with_name(PREVIOUS) and content["epoch"] == 0
    assert "The checkpoint before it, of epoch 1, is used" in caplog.text


def test_a_torn_best_checkpoint_is_told_before_the_run_goes_on(last, checkpoint):
    checkpoint(last)
    last.with_name("best.pt").write_bytes(b"torn")
    with pytest.raises(ConfigError, match="best.pt: .*, or remove it"):
        checkpoints.resumable(str(last))


def test_last_is_stripped_at_the_very_end_and_nothing_else_left(last, checkpoint):
    best = checkpoint(last.with_name("best.pt"))
    checkpoint(last)
    for name in (SIDE_FILE, PREVIOUS):
        last.with_name(name).touch()
    strip = engine.strip_optimizer
    with checkpoints.stripping_all_but(last):
        assert engine.strip_optimizer(last)["epoch"] == 1
        engine.strip_optimizer(best)
    assert engine.strip_optimizer is strip
    assert compat.load(last, key="model")[1]["epoch"] == 1 and compat.load(best, key="model")[1]["epoch"] == -1
    checkpoints.finish(last)
    assert compat.load(last, key="model")[1]["epoch"] == -1
    assert sorted(f.name for f in last.parent.iterdir()) == ["best.pt", "last.pt"]
