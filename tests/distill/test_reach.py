"""What a term can reach where layers are frozen, decided before the first step."""

from __future__ import annotations

import pytest
import torch

from tests.distill.helpers import make, make_batch, make_student, step
from tskd_yolo.distill.reach import leave_out_unreachable


def frozen(student, layers) -> None:
    for layer in layers:
        student.model[layer].requires_grad_(False)


def test_a_term_is_left_out_where_all_that_it_teaches_is_frozen(files):
    student, batch = make_student(), make_batch()
    distiller = make(student, files["11s"])
    frozen(student, range(6))
    assert leave_out_unreachable(distiller, student) == []
    frozen(student, [6])
    assert leave_out_unreachable(distiller, student) == ["ded"] and list(distiller.on) == ["drd", "crd"]
    items = step(distiller, student, batch)[1]
    assert items["ded_loss"] == 0 and items["drd_loss"] > 0 and items["crd_loss"] > 0
    assert leave_out_unreachable(distiller, student) == []


def test_a_run_that_goes_on_with_less_frozen_teaches_more(files):
    student, batch = make_student(), make_batch()
    distiller = make(student, files["11s"], balance="share")
    frozen(student, range(7))
    assert leave_out_unreachable(distiller, student) == ["ded"]
    step(distiller, student, batch)
    distiller.switch_off(["crd"])
    student = make_student()
    resumed = make(student, files["11s"], balance="share")
    drawn = {name: value.clone() for name, value in resumed.learned.state_dict().items()}
    resumed.restore(distiller.state())
    assert list(resumed.on) == ["drd", "ded"], "what was not finite stays off"
    items = step(resumed, student, batch)[1]
    assert items["ded_loss"] > 0 and items["drd_loss"] > 0 and items["crd_loss"] == 0
    solved = {name: value.clone() for name, value in resumed.learned.state_dict().items()}
    assert not any(torch.equal(solved[name], drawn[name]) for name in drawn if name.startswith("stages"))
    resumed.learned.load_state_dict(drawn)
    step(resumed, student, batch)
    assert all(torch.equal(value, drawn[name]) for name, value in resumed.learned.state_dict().items()), "once"


def test_with_all_but_the_head_frozen_only_responses_teach(files):
    student, batch = make_student(), make_batch()
    distiller = make(student, files["11s"], balance="share")
    before = {name: value.clone() for name, value in student.state_dict().items()}
    frozen(student, range(23))
    assert leave_out_unreachable(distiller, student) == ["drd", "ded"] and list(distiller.on) == ["crd"]
    assert student.training and all(torch.equal(before[k], v) for k, v in student.state_dict().items())
    vector, items = step(distiller, student, batch)
    vector.sum().backward()
    assert items["crd_loss"] > 0 and items["drd_loss"] == items["ded_loss"] == 0
    columns = distiller.monitor.columns()
    assert columns["share/crd(towers)"] == pytest.approx(1, abs=0.02)  # what was asked for, measured where it reaches


def test_where_only_last_layers_learn_shares_are_of_outputs(files):
    student, batch = make_student(), make_batch()
    distiller = make(student, files["11s"], balance="share", drd=0, ded=0)
    student.requires_grad_(False)
    for tower in (student.model[-1].cv2, student.model[-1].cv3):
        for layers in tower:
            layers[-1].requires_grad_(True)
    assert leave_out_unreachable(distiller, student) == []
    step(distiller, student, batch)[0].sum().backward()
    assert distiller.monitor.columns()["share/crd(outputs)"] > 0
    assert student.model[-1].cv3[0][-1].weight.grad.any()


def test_with_everything_frozen_nothing_is_left(files):
    student = make_student()
    distiller = make(student, files["11s"])
    student.requires_grad_(False)
    assert leave_out_unreachable(distiller, student) == ["drd", "ded", "crd"] and not distiller.on
