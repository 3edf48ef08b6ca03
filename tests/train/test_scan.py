"""What the scan of a data set finds wrong is refused or counted; see also :mod:`tests.train.cases`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from ultralytics.cfg import get_cfg
from ultralytics.data import build_yolo_dataset
from ultralytics.data.base import BaseDataset
from ultralytics.data.utils import check_det_dataset

from tests.helpers import logged
from tests.train.cases import labelled, odd, without
from tskd_yolo.config import ConfigError
from tskd_yolo.train.scan import scan_before_launch, scanned


def scan(file: Any, mode: str = "train") -> Any:
    data = check_det_dataset(str(file))
    args = get_cfg(overrides={"data": str(file), "imgsz": 64})
    return scanned(mode, lambda: build_yolo_dataset(args, data[mode], 4, data, mode=mode, rect=mode == "val"))


def test_a_sound_set_is_read_and_nothing_is_said(data):
    with logged() as lines:
        assert len(scan(data)) == 8
    assert not [line for line in lines if line.startswith("WARNING")]


def test_what_is_left_out_or_teaches_nothing_is_counted(tmp_path):
    file = odd(tmp_path)
    with logged() as lines:
        train, val = scan(file), scan(file, "val")
    assert (len(train), len(val)) == (4, 2)
    said = [line.rpartition("\ufe0f ")[2] for line in lines if line.startswith("WARNING")]
    said = [line for line in said if line.startswith(("train: ", "val: "))]  # one of Ultralytics' own comes in between
    assert said[0].startswith("train: 4 images are left out: 2 with non-norm") and len(said) == 4
    assert said[1:] == [
        "train: 2 boxes that were there twice are counted once.",
        "train: 2 boxes have no area; they teach nothing.",
        "val: 1 boxes have no area; nothing can find them, so they lower the recall.",
    ]


@pytest.mark.parametrize(
    ("spoil", "mode", "words"),
    [
        (
            labelled("9 .5 .5 .2 .2"),
            "train",
            "labels of 1 train images name classes beyond the 6 of the set",
        ),
        (labelled("6 .5 .5 .2 .2", split="val"), "val", "is class 6 in that of strip_0000.png; correct the labels or"),
        (without("images/val/*"), "val", "data: the val images could not be read ("),
    ],
)
def test_what_cannot_be_trained_on_is_refused(spoil: Callable, mode: str, words: str, tmp_path):
    with pytest.raises(ConfigError) as caught:
        scan(spoil(tmp_path), mode)
    (sentence,) = caught.value.problems
    assert words in sentence and sentence.startswith("data: ") and "\n" not in sentence


def test_before_a_launch_both_splits_are_read(tmp_path):
    file = labelled("6 .5 .5 .2 .2", split="val")(tmp_path)
    data = check_det_dataset(str(file))
    args = get_cfg(overrides={"data": str(file), "imgsz": 64, "batch": 2})
    with pytest.raises(ConfigError, match="1 val images name classes beyond the 6"):
        scan_before_launch(args, data)


def test_before_a_launch_no_image_is_read_into_memory(data, monkeypatch):
    args = get_cfg(overrides={"data": str(data), "imgsz": 64, "batch": 2, "cache": "ram"})
    monkeypatch.setattr(BaseDataset, "cache_images", lambda *_: pytest.fail("each process does it again"))
    scan_before_launch(args, check_det_dataset(str(data)))
    assert args.cache == "ram"


def test_before_a_launch_there_are_images_without_labels(data, tmp_path):
    args = get_cfg(overrides={"data": str(data), "imgsz": 64, "batch": 2})
    args.unlabelled = [str(tmp_path)]
    with pytest.raises(ConfigError, match=f"unlabelled: there is no image in {tmp_path}; give"):
        scan_before_launch(args, check_det_dataset(str(data)))
