"""Runs in which layers are frozen: what cannot be taught is left out before the first step, or the run is refused."""

from __future__ import annotations

import pytest

from tests.helpers import rows, settings
from tskd_yolo import ConfigError, Trainer

pytestmark = pytest.mark.slow


@pytest.fixture
def given(data, teacher, no_end) -> dict:
    return {"data": data, "teacher": str(teacher)}


def test_training_the_head_alone_goes_on_with_responses(tmp_path, given, caplog):
    Trainer(**settings(tmp_path, **given, freeze=23, epochs=2)).train()
    log = "".join(record.message for record in caplog.records)
    assert [f"{term} is left out: freeze=23" in log for term in ("drd", "ded", "crd")] == [True, True, False]
    first, last = rows(tmp_path)
    assert last["train/crd_loss"] > 0 and last["share/crd(towers)"] > 0.5
    assert first["train/drd_loss"] == first["train/ded_loss"] == 0 and "share/drd(neck)" not in first


def test_where_no_term_can_reach_anything_the_run_is_refused(tmp_path, given):
    with pytest.raises(ConfigError, match="freezes every layer that the terms would teach"):
        Trainer(**settings(tmp_path, **given, freeze=23, crd=0)).train()
    assert not (tmp_path / "run").exists()
