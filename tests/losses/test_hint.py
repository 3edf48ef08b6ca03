"""Plain hints: a squared difference of standardised maps."""

from __future__ import annotations

import pytest
import torch

from tests.losses import reference
from tests.losses.test_drd import pair, random_boxes
from tskd_yolo.losses.hint import Hint
from tskd_yolo.losses.standardize import standardize


def test_it_is_the_squared_difference_of_standardised_maps():
    maps = pair()
    expected = (reference.standardize(maps["student"]) - reference.standardize(maps["teacher"])).square().mean()
    torch.testing.assert_close(Hint()(**maps, boxes=random_boxes(3, 2)), expected)
    assert Hint()(student=maps["teacher"], teacher=maps["teacher"], boxes=random_boxes(0, 2)).item() == pytest.approx(0)


def test_boxes_change_nothing_and_only_student_and_adapter_learn():
    maps, adapter = pair(), torch.nn.Parameter(torch.randn(16, 8))
    student, teacher = torch.randn(2, 8, 20, 20, requires_grad=True), maps["teacher"].requires_grad_()
    values = [
        Hint()(student=standardize(student, adapter), teacher=teacher, boxes=random_boxes(count, 2)) for count in (0, 9)
    ]
    assert torch.equal(*values)
    values[0].backward()
    assert student.grad.any() and adapter.grad.any() and teacher.grad is None
