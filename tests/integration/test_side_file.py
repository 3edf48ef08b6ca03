"""A run begun by an earlier version goes on: its side file, stored beside this test, still fits."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from ultralytics.nn.tasks import yaml_model_load

from tests.helpers import settings
from tskd_yolo import Trainer

pytestmark = pytest.mark.slow
STORED = Path(__file__).with_name("side_file_0.1.0.bin")
"""Written by the first version, whose modules had other names, for a YOLO11 of half the width of n under an n."""


def narrow(file: Path) -> Path:
    """The model YAML of the student that the stored file belongs to."""
    content = {k: v for k, v in yaml_model_load("yolo11n.yaml").items() if k not in {"yaml_file", "scale"}}
    file.write_text(yaml.safe_dump({**content, "scales": {"n": [0.5, 0.125, 256]}}), encoding="utf-8")
    return file


def test_a_side_file_of_the_first_version_is_restored(tmp_path, data, detector, no_end):
    teacher = detector("yolo11n.yaml")
    given = dict(model=str(narrow(tmp_path / "yolo11n-narrow.yaml")), teacher=str(teacher), epochs=2)
    trainer = Trainer(**settings(tmp_path, data, **given))

    def interrupt(_) -> None:
        raise KeyboardInterrupt

    trainer.add_callback("on_fit_epoch_end", interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    weights = tmp_path / "run" / "weights"
    shutil.copyfile(STORED, weights / "tskd_last.pt")
    stored = torch.load(STORED, weights_only=True)["states"][0]
    began = {}
    resumed = Trainer(resume=True, model=str(weights / "last.pt"))
    resumed.add_callback("on_train_epoch_start", lambda t: began.update(t.distiller.state()))
    resumed.train()
    assert began["learned"].keys() == stored["learned"].keys() and len(stored["learned"]) > 20
    assert all(torch.equal(began["learned"][key], value) for key, value in stored["learned"].items())
    assert began["on"] == stored["on"] == ["drd", "ded", "crd"]
    assert began["meter"]["step"] == stored["meter"]["step"] > 0
    for name, measured in stored["meter"]["pulls"].items():
        assert began["meter"]["pulls"][name] == pytest.approx(measured)
