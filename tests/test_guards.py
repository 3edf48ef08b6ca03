"""A guard that this Ultralytics no longer reads is noticed before anything is loaded."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import ultralytics
from ultralytics.data import dataset as scanner
from ultralytics.data.utils import load_dataset_cache_file
from ultralytics.nn import tasks
from ultralytics.utils import YAML

from tests.helpers import logged, settings
from tskd_yolo import ConfigError, compat, guards
from tskd_yolo.cli import main


@pytest.fixture(autouse=True)
def as_in_a_new_process():
    """What is done once in a process is done anew, before each test and after the last."""
    for once in (guards.verify, compat._tell_untested):
        once.cache_clear()
    yield
    for once in (guards.verify, compat._tell_untested):
        once.cache_clear()


def _any_checkpoint(weight, safe_only=None):
    return torch.load(weight, weights_only=False), weight


def _any_cache(self, path, digest):
    try:
        return load_dataset_cache_file(path), True
    except Exception:
        return self.cache_labels(path), False


NOT_READ = {
    "checkpoints": (tasks, "torch_safe_load", _any_checkpoint),
    "activations in model YAMLs": (tasks._SafeLoad, "restricted", classmethod(lambda cls: False)),
    "label caches": (scanner.YOLODataset, "_load_or_scan_cache", _any_cache),
    "the download: entry of data YAMLs": (compat, "DataYaml", YAML),
}


@pytest.mark.parametrize("place", guards.PROBES)
def test_a_guard_that_is_not_read_stops_the_program(place, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(*NOT_READ[place])
    sentence = f"ultralytics: version {ultralytics.__version__} does not refuse code in {place}; install a tested"
    with pytest.raises(ConfigError, match=re.escape(sentence)), compat.guarded():
        pytest.fail("it went on")
    assert main(["train", *(f"{key}={value}" for key, value in settings(tmp_path, tmp_path).items())]) == 1
    assert sentence in capsys.readouterr().err and not list(tmp_path.iterdir())
    with compat.guarded(trust=True):
        pass


def test_all_guards_that_are_not_read_are_named(monkeypatch):
    for change in NOT_READ.values():
        monkeypatch.setattr(*change)
    with pytest.raises(ConfigError) as caught, compat.guarded():
        pytest.fail("it went on")
    assert " and ".join(guards.PROBES) in str(caught.value)


def test_a_probe_that_cannot_ask_any_more_proves_nothing(monkeypatch):
    monkeypatch.setattr(tasks, "parse_model", lambda *_, **__: None)
    with pytest.raises(ConfigError, match="code in activations in model YAMLs"), compat.guarded():
        pytest.fail("it went on")


def test_the_guards_are_tried_once_in_a_process_and_quietly(monkeypatch):
    tried = []
    probes = {
        name: lambda folder, probe=probe: (tried.append(1), probe(folder)) for name, probe in guards.PROBES.items()
    }
    monkeypatch.setattr(guards, "PROBES", probes)
    with logged() as lines:
        for _ in range(3):
            with compat.guarded():
                pass
    assert len(tried) == len(probes) and not lines and not guards._ran


@pytest.mark.parametrize(
    ("version", "told"),
    [("8.4.190", False), ("8.4.99", False), ("8.4.191", True), ("8.5.0", True), ("8.4.1000rc1", True)],
)
def test_an_ultralytics_newer_than_the_tested_is_told_once(version, told, monkeypatch):
    monkeypatch.setattr(guards, "TESTED", ("8.4.190", "8.4.190"))
    monkeypatch.setattr(ultralytics, "__version__", version)
    with logged() as lines:
        for trust in (False, True, False):
            with compat.guarded(trust=trust):
                pass
    assert len(lines) == told
    assert all(f"Ultralytics {version} is newer than " in line and "8.4.190 to 8.4.190" in line for line in lines)


def test_the_oldest_tested_ultralytics_is_the_floor():
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert f'"ultralytics>={guards.TESTED[0]},<8.5"' in project
    assert guards._numbers(guards.TESTED[0]) <= guards._numbers(guards.TESTED[1])
