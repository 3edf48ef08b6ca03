"""The same run twice is the same to the last bit: what a comparison of two commits rests on."""

from __future__ import annotations

import pytest
import torch

from tests.helpers import rows, settings, weights
from tskd_yolo import Trainer

pytestmark = pytest.mark.slow
CLOCK = {"time", "process_time"}


@pytest.mark.soak
@pytest.mark.parametrize("more", [{}, dict(variant="paper")], ids=["default", "paper"])
def test_two_runs_of_one_seed_are_equal_to_the_bit(tmp_path, data, detector, more, no_end):
    given = {"data": data, "teacher": str(detector("yolo11n.yaml"))}
    for name in ("one", "two"):
        Trainer(**settings(tmp_path / name, **given, **more, epochs=2, val=False)).train()
    one, two = (
        [{k: v for k, v in row.items() if k not in CLOCK} for row in rows(tmp_path / n)] for n in ("one", "two")
    )
    assert one == two and len(one) == 2
    first, second = (weights(tmp_path / name / "run" / "weights" / "last.pt") for name in ("one", "two"))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
