"""What an interrupted run is asked before it goes on; that it does go on: :mod:`tests.integration.test_resume`."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import yaml

from tests.helpers import NAMES, copied_data
from tskd_yolo import ConfigError
from tskd_yolo.train import going_on


@pytest.fixture
def content(data):
    """Of a checkpoint, as much as is read."""
    network = SimpleNamespace(names=dict(enumerate(NAMES)), yaml={"backbone": [0] * 10, "head": [0] * 4})
    return {"ema": network, "train_args": {"data": str(data), "epochs": 3, "imgsz": 64, "device": "cpu", "drd": 0.5}}


def problems(content, **given):
    with pytest.raises(ConfigError) as caught:
        going_on.check({"resume": "last.pt", "model": "last.pt", **given}, content)
    return caught.value.problems


def test_what_may_be_given_anew_is_taken(content, data):
    going_on.check({"resume": "last.pt"}, content)
    going_on.check({"resume": "last.pt", "imgsz": 128, "batch": 4, "data": str(data), "teacher": "t.pt"}, content)


def test_all_that_is_wrong_is_told_at_once(content):
    found = problems(content, imgsz="abc", device=7, data="nowhere.yaml", freeze="abc")
    assert [sentence.partition(":")[0] for sentence in found] == ["imgsz", "device", "data", "freeze"]


@pytest.mark.parametrize("names", [NAMES[:3], NAMES[::-1]], ids=["fewer", "turned"])
def test_data_of_other_classes_is_refused(names, content, data, tmp_path):
    file = copied_data(data, tmp_path)
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), "names": dict(enumerate(names))}))
    (sentence,) = problems(content, data=str(file))
    assert sentence.startswith(f"data: {file} has other classes than this run began with, or in another order;")


def test_images_that_are_gone_are_named(content, tmp_path):
    (tmp_path / "gone.yaml").write_text("path: nowhere\ntrain: a\nval: b\nnames: [x]\n")
    (sentence,) = problems(content, data=str(tmp_path / "gone.yaml"))
    assert sentence.startswith("data: ") and "could not be read" in sentence
