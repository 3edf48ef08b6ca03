"""What a run takes, from a few steps: the sums, the share of devices, and what is left out of a trial."""

from __future__ import annotations

import time
from dataclasses import replace

import psutil
import pytest
import torch
import ultralytics.utils.callbacks as integrations
from ultralytics.utils import LOGGER

from tests.check.helpers import COST
from tests.helpers import settings
from tskd_yolo.check import trial
from tskd_yolo.check.trial import Trial
from tskd_yolo.config import ConfigError


def test_an_epoch_and_a_run_follow_from_the_steps():
    assert (COST.epoch, COST.run) == (10 * 2.0 + 3, 100 * 23.0)
    assert COST.cached_epoch == 10 * 1.5 + 3 and COST.cached_run == 40 * 23.0 + 60 * 18.0
    assert replace(COST, passes=None).cached_run is None
    rare = replace(COST, validates=False)
    assert (rare.epoch, rare.run, rare.cached_run) == (20.0, 2003.0, 40 * 20.0 + 60 * 15.0 + 3)
    assert COST.row()["run"] == COST.run and COST.row()["batch"] == 4


@pytest.mark.parametrize(
    ("device", "batch", "devices", "expected"),
    [
        ("cpu", 16, 1, {"device": "cpu", "batch": 16}),
        ("0,1", 16, 2, {"device": "0", "batch": 8}),
        ([0, 1, 2, 3], 16, 4, {"device": "0", "batch": 4}),
        ("0,1", -1, 2, {"device": "0", "batch": -1}),
        ("0,1", 0.5, 2, {"device": "0", "batch": 0.5}),
        ("", 16, 1, {"device": "", "batch": 16}),
    ],
)
def test_a_run_on_several_devices_is_tried_on_one(device, batch, devices, expected):
    assert trial._of_one_device({"device": device, "batch": batch}) == (devices, expected)


class Loader:
    dataset, batch_size = "set", 4

    def __len__(self) -> int:
        return 5

    def __iter__(self):
        return iter(range(5))


def test_a_few_batches_stand_for_a_loader():
    few = trial._Few(Loader(), 2)
    assert (len(few), list(few), few.dataset, few.batch_size) == (2, [0, 1], "set", 4)
    assert len(trial._Few(Loader(), 9)) == 5


def test_memory_is_looked_at_while_steps_run():
    memory = trial._Memory(torch.device("cpu"))
    memory.start()
    before, held = psutil.Process().memory_info().rss, torch.ones(30_000_000)  # 120 MB
    wanted, deadline = before + 0.9 * held.nbytes, time.monotonic() + 30
    while memory.peak < wanted and time.monotonic() < deadline:
        time.sleep(0.01)
    memory.stop()
    memory.stop()
    assert wanted <= memory.peak < memory.of and memory.name == "cpu"


def test_a_level_of_logging_comes_back():
    before = LOGGER.level
    with pytest.raises(ValueError), trial.quiet():
        assert LOGGER.getEffectiveLevel() > before
        raise ValueError
    assert LOGGER.level == before


@pytest.mark.slow
def test_a_trial_takes_real_steps_and_no_logger_hears_of_it(data, teacher, tmp_path, monkeypatch):
    heard = []
    monkeypatch.setattr(integrations, "add_integration_callbacks", heard.append)
    with trial.quiet():
        run = Trial(tmp_path, **settings(tmp_path / "elsewhere", data, teacher=str(teacher), plots=True, save=True))
        run.measure()
    assert heard == [] and run.cost.steps == 1 and run.cost.batches == 2
    assert 0 < run.cost.teacher < run.cost.step  # it is a part of it, however busy the machine
    assert len(run.facts.taught["classes"]) == 6 and run.facts.known == {}
    assert [row is None for row in run.facts.taught["classes"]].count(False) >= 3
    assert not (tmp_path / "elsewhere").exists() and not list(tmp_path.rglob("*.pt"))
    assert run.teacher_names[0] == "crazing" and [size for _, size in run.trained_at] == [64]


def test_a_trial_is_refused_as_a_run_is(data, tmp_path):
    with pytest.raises(ConfigError, match="teacher: missing"):
        Trial(tmp_path, data=str(data), model="yolo11n.yaml", device="cpu")
    assert not list(tmp_path.iterdir())
