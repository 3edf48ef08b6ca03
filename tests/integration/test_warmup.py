"""A run so small that an epoch is a step: the first-epoch check waits for one that can move anything."""

from __future__ import annotations

import pytest

from tests.helpers import rows, settings
from tskd_yolo import Trainer

pytestmark = pytest.mark.slow


def test_a_first_step_at_warmups_zero_rate_is_no_failure(tmp_path, few, teacher, caplog, no_end):
    Trainer(**settings(tmp_path, few, teacher=str(teacher), epochs=3, warmup_epochs=3.0, amp=False)).train()
    assert len(rows(tmp_path)) == 3 and rows(tmp_path)[0]["lr/pg0"] == 0
    assert caplog.text.count("first-epoch check passed") == 1
