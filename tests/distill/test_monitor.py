"""What a run's record says of the terms, and what the first-epoch check compares."""

from __future__ import annotations

import pytest
import torch

from tests.distill.helpers import NAMES, make, make_batch, make_student, step


def alone(numbers: list[float]) -> list[float]:
    return numbers


def test_columns_name_where_a_share_is_measured(files):
    student = make_student()
    distiller = make(student, files["11s"], balance="share", drd=0.05, ded=4.0, crd=1.0)
    step(distiller, student, make_batch())
    columns = distiller.monitor.columns()
    assert [key for key in columns if key.startswith("share/")] == [
        "share/drd(neck)", "share/ded(stride16)", "share/crd(neck)",
    ]  # fmt: skip
    asked = {"drd(neck)": 0.05, "ded(stride16)": 4.0, "crd(neck)": 1.0}
    for where, share in asked.items():
        assert columns[f"share/{where}"] == pytest.approx(share, rel=1e-2)
        assert -1 <= columns[f"cosine/{where}"] <= 1
    assert distiller.monitor.short_shares() == {}


def test_a_factor_that_is_cut_is_counted_and_its_share_told(files):
    student, batch = make_student(), make_batch()
    distiller = make(student, files["11s"], balance="share", cap=0.01, drd=0, crd=0, ded=4.0)
    for _ in range(3):
        step(distiller, student, batch)
    distiller.monitor.nonfinite(alone)
    columns = distiller.monitor.columns()
    assert distiller.monitor.clipped() == {"ded": 1.0} and columns["clipped/ded"] == 1.0
    reached, asked = distiller.monitor.short_shares()["ded"]
    assert asked == 4.0 and reached == pytest.approx(columns["share/ded(stride16)"], abs=1e-5) and reached < 0.4
    distiller.monitor.nonfinite(alone)
    assert distiller.monitor.clipped() == {}  # counted per epoch


def test_during_the_ramp_a_share_is_short_of_the_ramp_only(files):
    student = make_student()
    distiller = make(student, files["11s"], balance="share")
    distiller.factor = 0.05
    step(distiller, student, make_batch())
    assert distiller.monitor.short_shares() == {}


def test_a_term_that_was_switched_off_stands_in_every_later_row(files):
    student, batch = make_student(), make_batch()
    distiller = make(student, files["11s"], balance="share")
    step(distiller, student, batch)
    (ded,) = [term for term in distiller.terms if term.key == "ded"]
    before = ded.parts

    def broken(**given):
        return [part._replace(function=lambda *t: t[0].sum() * float("nan")) for part in before(**given)]

    ded.parts = broken
    step(distiller, student, batch)[0].sum().backward()
    found = distiller.monitor.nonfinite(alone)
    assert found == {"ded": (1, 2, True)} and "ded" not in distiller.on
    for _ in range(2):
        columns = distiller.monitor.columns()
        assert columns["left_out/ded"] == 1.0 and columns["share/ded(stride16)"] == 0
        assert columns["left_out/crd"] == 0.0
        step(distiller, student, batch)
        assert distiller.monitor.nonfinite(alone) == {}
    resumed = make(make_student(), files["11s"], balance="share")
    resumed.restore(distiller.state())
    assert resumed.monitor.columns()["left_out/ded"] == 1.0


def test_the_first_epoch_check_looks_at_adapters_that_are_on(files):
    student = make_student()
    distiller = make(student, files["11s"])
    step(distiller, student, make_batch())
    assert any("have not moved" in problem for problem in distiller.monitor.first_epoch_problems(alone, 1))
    with torch.no_grad():
        distiller.learned["stages"][0].weight.add_(1)
    assert distiller.monitor.first_epoch_problems(alone, 1) == []
    del distiller.on["ded"]  # whose adapters these are
    assert any("have not moved" in problem for problem in distiller.monitor.first_epoch_problems(alone, 1))


@pytest.mark.slow
@pytest.mark.parametrize(("reached", "wrong"), [(2, False), (1, False), (0, True)])
def test_queries_need_a_box_in_one_process_only(reached, wrong, files, detector):
    student = make_student()
    distiller = make(student, detector("rtdetr-resnet50.yaml", names=NAMES), drd=0, ded=0)
    step(distiller, student, make_batch())
    problems = distiller.monitor.first_epoch_problems(lambda values: [float(reached)] * len(values), 2)
    assert [told for told in problems if told.startswith("crd")] == ["crd is zero on 2 of 2 processes"] * wrong
