"""What is asked of Ultralytics before it runs."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from ultralytics import utils
from ultralytics.data import utils as data_utils
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import check_det_dataset, load_dataset_cache_file

from tests.helpers import tiny_data
from tskd_yolo import compat, config, files
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


# Label caches ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path) -> Path:
    """A data set whose labels nobody has read yet."""
    return tiny_data(tmp_path, train=4, val=2)


def test_an_own_label_cache_is_read_as_it_was_written(own):
    data = check_det_dataset(str(own))
    YOLODataset(img_path=data["train"], data=data, imgsz=64, augment=False)
    file = own.parent / "set" / "labels" / "train.cache"
    ours, theirs = compat.read_cache(file), load_dataset_cache_file(file)
    assert ours.keys() == theirs.keys() and ours["hash"] == theirs["hash"] and len(ours["labels"]) == 4
    for a, b in zip(ours["labels"], theirs["labels"], strict=True):
        assert all(np.array_equal(a[key], b[key]) for key in ("cls", "bboxes")) and a["im_file"] == b["im_file"]


def test_a_label_cache_that_another_run_removed_stops_nobody(own, monkeypatch):
    data = check_det_dataset(str(own))
    file = own.parent / "set" / "labels" / "train.cache"
    file.write_bytes(b"stale")
    monkeypatch.setattr(Path, "exists", lambda self, real=Path.exists: self.name == file.name or real(self))

    def scan() -> None:
        YOLODataset(img_path=data["train"], data=data, imgsz=64, augment=False)
        assert len(compat.read_cache(file)["labels"]) == 4
        file.unlink()

    with compat.guarded():
        scan()
        scan()
    with pytest.raises(FileNotFoundError, match="train.cache"):  # as the engine does it
        scan()


def test_labels_that_cannot_be_kept_are_read_all_the_same(own, monkeypatch, caplog):
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "replace", full)
    data = check_det_dataset(str(own))
    with compat.guarded():
        found = YOLODataset(img_path=data["train"], data=data, imgsz=64, augment=False)
    assert len(found.labels) == 4 and not (own.parent / "set" / "labels" / "train.cache").exists()
    assert "train.cache cannot be written (No space left on device): the next run reads all labels again" in caplog.text
