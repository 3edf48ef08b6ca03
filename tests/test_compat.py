"""What is asked of Ultralytics before it runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from ultralytics import utils
from ultralytics.data import utils as data_utils
from ultralytics.data.utils import check_det_dataset

from tskd_yolo import compat, config
from tskd_yolo.data import drawn


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A checkout whose own ``datasets`` is what Ultralytics takes for its datasets folder."""
    ours = tmp_path / "checkout" / "datasets"
    ours.mkdir(parents=True)
    (ours / "demo.yaml").write_text((config.folder("datasets") / "demo.yaml").read_text())
    monkeypatch.setattr(config, "folder", lambda name: ours)
    for module in (utils, data_utils):
        monkeypatch.setattr(module, "DATASETS_DIR", ours)
    return ours


def test_a_set_prepared_from_a_checkout_lies_beside_it(checkout, monkeypatch):
    prepare = drawn.prepare
    monkeypatch.setattr(drawn, "prepare", lambda out: prepare(out, train=2, val=2))
    with compat.guarded():
        data = check_det_dataset(str(checkout / "demo.yaml"))
    assert data["path"] == checkout.parent.parent / "datasets" / "tskd-demo"
    assert [path.name for path in checkout.iterdir()] == ["demo.yaml"]
    assert utils.DATASETS_DIR == data_utils.DATASETS_DIR == checkout


def test_any_other_datasets_folder_is_left_as_it_is():
    assert compat.datasets_folder() == utils.DATASETS_DIR
