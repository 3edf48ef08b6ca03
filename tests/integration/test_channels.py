"""Grey and RGB mixed: a student of one and a teacher of the other, in whole runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.helpers import copied_data, logged, rows, settings
from tskd_yolo import Trainer
from tskd_yolo.config import ConfigError

pytestmark = pytest.mark.slow


def in_channels(data: Path, folder: Path, channels: int) -> Path:
    """The data set with ``channels:`` in its YAML."""
    copy = copied_data(data, folder)
    copy.write_text(copy.read_text() + yaml.safe_dump({"channels": channels}))
    return copy


@pytest.mark.parametrize(("ours", "theirs"), [(1, 3), (3, 1)], ids=["grey student", "grey teacher"])
@pytest.mark.parametrize("kind", ["yolo11n.yaml", "yolov8n-rtdetr.yaml"])
def test_grey_and_rgb_teach_each_other(ours, theirs, kind, tmp_path, few, detector, no_end):
    given = dict(teacher=str(detector(kind, channels=theirs)), data=in_channels(few, tmp_path, ours), crd=0)
    with logged() as lines:
        trainer = Trainer(**{**settings(tmp_path, **given), "teacher_cache": "ram", "views": 1})
        trainer.train()
    (row,) = rows(tmp_path)
    assert row["train/drd_loss"] > 0 and row["train/ded_loss"] > 0
    assert trainer.model.yaml["channels"] == ours
    assert any(f"images    of {ours} channel(s) are brought to the teacher's {theirs}" in line for line in lines)


def test_other_channels_are_refused(tmp_path, few, teacher):
    data = in_channels(few, tmp_path, 4)
    with pytest.raises(
        ConfigError, match="teacher: it takes images of 3 channels and the data has 4; only grey and RGB"
    ):
        Trainer(**settings(tmp_path, data, teacher=str(teacher)))
    assert not (tmp_path / "run").exists()
