"""Sources of maps: what their levels weigh, and where their gradient shares are measured."""

from __future__ import annotations

import pytest
import torch

from tests.distill.helpers import make, make_batch, make_student
from tskd_yolo.distill.matching import Pair
from tskd_yolo.distill.sources import AdaptedSource, EarlyStages, level_weights
from tskd_yolo.losses.fit import least_squares
from tskd_yolo.losses.standardize import centred, standardize


def test_a_level_where_the_teacher_finds_nothing_teaches_nothing(files):
    student, batch = make_student(), make_batch()
    for settings, silent in (({}, True), (dict(variant="paper"), False)):
        distiller = make(student, files["11s"], drd=1, ded=1, crd=0, **settings)
        for layers in distiller.teacher.head.cv3[1:]:
            layers[-1].bias.fill_(-50.0)
        step = distiller.attach(student, batch["img"])
        predictions = student(batch["img"])
        terms = step.losses(step.read(predictions), batch).values
        found = torch.autograd.grad(sum(terms.values()), predictions["feats"])
        assert found[0].norm() > 0
        assert [bool(g.norm() < 1e-9 * found[0].norm()) for g in found[1:]] == [silent, silent]
        distiller.detach()


def test_weights_of_levels_add_up_to_one():
    scores = torch.tensor([[6.0, 1.0], [2.0, 1.0]])
    assert torch.equal(level_weights(scores), torch.tensor([0.8, 0.2]))
    assert level_weights(torch.zeros(0, 2)).tolist() == [0, 0]


@pytest.mark.parametrize("width", [4, 8])
def test_as_many_of_a_wider_teachers_channels_are_no_namesakes(width):
    source = AdaptedSource("neck", [Pair(8, 8, 4, width, channel_step=width // 4)])
    source.build()
    own, theirs = torch.randn(2, 2, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    source.fit([own], [theirs])
    cells, rows = centred(own).flatten(0, 1), standardize(theirs).cells.flatten(0, 1)
    fits = [least_squares(cells, rows, same_width=same) for same in (True, False)]
    started = source.adapters[0].weight.flatten(1)
    assert [torch.allclose(started, each) for each in fits] == [width == 4, width == 8]


def test_shares_are_measured_at_the_last_stage_that_there_is():
    assert EarlyStages("stages", [Pair(4, 4, 8, 8), Pair(8, 8, 8, 8)]).measured_at == "stride8"
    assert EarlyStages("stages", [Pair(4, 4, 8, 8), Pair(16, 16, 8, 8)]).measured_at == "stride16"
