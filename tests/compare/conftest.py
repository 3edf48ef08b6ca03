"""A comparison that is finished."""

from __future__ import annotations

import pytest

from tests.compare.helpers import asked
from tests.helpers import finished_run, finished_teacher
from tskd_yolo.compare.plan import Plan, checked
from tskd_yolo.compare.record import begin


@pytest.fixture
def plan(files, tmp_path, at_hand) -> Plan:
    """A comparison whose runs are made up, and finished."""
    plan = checked(asked(files, tmp_path / "out", arms="plain,tskd,ultralytics", seeds=3))
    plan.out.mkdir()
    finished_teacher(plan, 0.30)
    for seed, base in enumerate((0.10, 0.12, 0.11)):
        finished_run(plan, "plain", seed, base)
        finished_run(plan, "tskd", seed, base + (0.05, 0.06, 0.055)[seed])
        finished_run(plan, "ultralytics", seed, base + (0.05, -0.06, 0.0)[seed])
    begin(plan)
    return plan
