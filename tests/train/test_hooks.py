"""A hook point that the engine does not call ends the run, with its name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ultralytics.models.yolo.detect import DetectionTrainer

from tests.helpers import rows, settings
from tskd_yolo import Trainer
from tskd_yolo.train import hooks
from tskd_yolo.train.checkpoints import RunError

EVENTS = "on_train_epoch_start", "on_train_epoch_end", "on_fit_epoch_end"
ENDS_OTHERWISE = {"get_validator"}
"""Without it the engine's validator refuses our keys."""


def skipping(name: str) -> type[Trainer]:
    """A trainer whose engine calls its own function where it called ours, or does not announce an event."""

    class Silent(Trainer):
        def run_callbacks(self, event: str) -> None:
            if event != name:
                super().run_callbacks(event)

    return Silent if name in EVENTS else type("Skipping", (Trainer,), {name: getattr(DetectionTrainer, name)})


def epochs_of(trainer: Any) -> int:
    """How many epochs a run has begun."""
    return 1 + getattr(trainer, "epoch", -1)


@pytest.mark.slow
def test_a_run_whose_engine_skips_a_step_ends_after_an_epoch(tmp_path, data, teacher):
    trainer = skipping("optimizer_step")(**settings(tmp_path, data, teacher=str(teacher), epochs=3))
    with pytest.raises(RunError, match=r"^Ultralytics [\d.]+ did not call optimizer_step of the trainer, so the run"):
        trainer.train()
    assert epochs_of(trainer) == 1 and not trainer.last.exists()


OFTEN = "build_dataset", "label_loss_items", "on_train_epoch_end", "_clear_memory"
"""One of each moment, and an event: the others go the same way."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in OFTEN else pytest.mark.soak)
        for name in sorted(hooks.EXPECTED.keys() - ENDS_OTHERWISE - {"optimizer_step"})
    ],
)
def test_a_run_whose_engine_skips_a_hook_names_it(name, tmp_path, data, teacher):
    trainer = skipping(name)(**settings(tmp_path, data, teacher=str(teacher), epochs=3))
    with pytest.raises(RunError, match=f"did not call {name} of the trainer"):
        trainer.train()
    due = hooks.EXPECTED[name].due
    assert epochs_of(trainer) == 1 + (due == hooks.OVER)  # what follows an epoch is missed when the next one begins
    assert trainer.csv.exists() == (due > hooks.TRAINED)


@pytest.mark.slow
def test_plain_training_and_a_run_of_one_epoch_are_watched_too(tmp_path, data, teacher):
    more = dict(teacher=str(teacher), drd=0, ded=0, crd=0)
    with pytest.raises(RunError, match="did not call preprocess_batch of the trainer"):
        skipping("preprocess_batch")(**settings(tmp_path, data, **more)).train()
    with pytest.raises(RunError, match="did not call on_fit_epoch_end of the trainer"):
        skipping("on_fit_epoch_end")(**settings(tmp_path, data, **more)).train()


@pytest.mark.slow
def test_a_step_that_is_not_due_in_the_first_epoch_is_not_missed(tmp_path, data, teacher, no_end):
    run = settings(tmp_path, data, teacher=str(teacher), epochs=3, nbs=16)  # two batches an epoch, a step every four
    Trainer(**run).train()
    assert len(rows(tmp_path)) == 3
    trainer = skipping("optimizer_step")(**run)
    with pytest.raises(RunError, match="did not call optimizer_step of the trainer"):
        trainer.train()
    assert epochs_of(trainer) == 2


def called(*names: str, **attributes: Any) -> SimpleNamespace:
    """A trainer of which the engine has called these hook points."""
    base = dict(epoch=0, batches=2, accumulate=2, train_loader=[0, 0], args=SimpleNamespace(val=True, save=True))
    return SimpleNamespace(**{**base, **attributes}, hooks_called=set(names))


@pytest.mark.parametrize(
    ("attributes", "due"),
    [
        (dict(batches=2, accumulate=2), True),
        (dict(batches=2, accumulate=3), False),
        (dict(batches=1, accumulate=2), False),  # stopped from outside
        (dict(epoch=1, batches=1, accumulate=3), True),
    ],
    ids=str,
)
def test_a_step_is_due_when_the_batches_so_far_fill_one(attributes, due):
    every_other = hooks.EXPECTED.keys() - {"optimizer_step"}
    if due:
        with pytest.raises(RunError, match="did not call optimizer_step of"):
            hooks.require(called(*every_other, **attributes), hooks.OVER)
    else:
        hooks.require(called(*every_other, **attributes), hooks.OVER)


def test_what_the_run_was_told_to_leave_out_is_not_missed():
    rest = hooks.EXPECTED.keys() - {"validate", "save_model"}
    hooks.require(called(*rest, args=SimpleNamespace(val=False, save=False)), hooks.OVER)
    with pytest.raises(RunError, match="did not call validate, save_model of"):
        hooks.require(called(*rest), hooks.OVER)


def test_processes_that_do_not_write_miss_no_records(monkeypatch):
    rest = hooks.EXPECTED.keys() - {"save_metrics", "save_model", "label_loss_items"}
    monkeypatch.setattr(hooks, "FIRST", False)
    hooks.require(called(*rest), hooks.OVER)
