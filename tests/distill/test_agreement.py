"""How much the terms count, by what the teacher's answers are worth beside the labels."""

from __future__ import annotations

import pytest
import torch

from tests.distill.helpers import make, make_batch, make_student, step
from tskd_yolo.distill.agreement import Agreement, watched


def after(*cosines: float) -> Agreement:
    agreement = Agreement()
    for cosine in cosines:
        agreement.see(torch.tensor(cosine))
    return agreement


@pytest.mark.parametrize(
    ("cosines", "factor"),
    [
        ([], 1),
        ([0.3, 0.4, 0.25], 1),  # three fifths of the largest and more
        ([0.4, 0.12], 0.5**5),
        ([0.3, 0.4, 0.1, 0.2], (0.5 / 0.6) ** 5),  # it comes back
        ([0.4, -0.1], 0),
        ([0.01, -0.02, 0.15, 0.02], 1),  # a network that knows nothing
    ],
)
def test_terms_count_less_where_answers_and_labels_part(cosines, factor):
    assert float(after(*cosines).factor) == pytest.approx(factor, rel=1e-5)


@pytest.mark.parametrize(
    ("epochs", "images", "beginning"),
    [(4, 1200, 2), (20, 1200, 10), (60, 1200, 10), (100, 6000, 2.5), (100, 120_000, 0.125), (300, 0, 10)],
)
def test_the_beginning_of_a_run(epochs, images, beginning):
    assert watched(epochs, images) == beginning


def test_after_the_beginning_the_factor_stays():
    agreement = after(0.4, 0.16)
    agreement.settle()
    agreement.see(torch.tensor(0.4))
    assert float(agreement.factor) == pytest.approx((0.4 / 0.6) ** 5) and not agreement.gone


def test_what_counts_next_to_nothing_then_is_gone():
    agreement = after(0.4, 0.16)
    assert agreement.news() is not None
    agreement.see(torch.tensor(0.08))
    assert float(agreement.factor) > 0 and not agreement.gone
    agreement.settle()
    assert agreement.factor == 0 and agreement.gone
    news = agreement.news()
    assert news is not None and news.endswith("the terms have given way") and agreement.news() is None
    again = Agreement()
    again.restore(agreement.state())
    again.settle()
    assert again.gone and again.news() is None


def test_what_changes_is_said_once():
    agreement = after(0.4)
    assert agreement.news() is None
    agreement.see(torch.tensor(0.16))
    news = agreement.news()
    assert "a cosine of 0.16" in news and "had 0.40" in news and "count 0.13 of" in news
    agreement.see(torch.tensor(0.1))
    assert agreement.news() is None, "next to nothing has changed"


def test_it_goes_on_from_its_state():
    agreement, again = after(0.4, 0.2), Agreement()
    agreement.news()
    again.restore(agreement.state())
    assert float(again.factor) == pytest.approx(float(agreement.factor)) and again.news() is None
    again.see(torch.tensor(0.32))
    assert float(again.factor) == pytest.approx(1)


@pytest.mark.slow
def test_every_term_gives_way_by_it(files):
    student = make_student()
    distiller = make(student, files["11s"], balance="share", drd=0.5, ded=4.0, crd=1.0)
    step(distiller, student, make_batch())
    distiller.agreement.factor = torch.tensor(0.03)
    columns = distiller.monitor.columns()
    shares = {key: columns[f"share/{key}"] for key in ("drd(neck)", "ded(stride16)", "crd(neck)")}
    assert shares == pytest.approx({"drd(neck)": 0.015, "ded(stride16)": 0.12, "crd(neck)": 0.03}, rel=1e-2)
    assert distiller.monitor.short_shares() == {}, "they are as small as they are meant to be"


def test_each_measurement_is_seen_and_a_resumed_run_goes_on(files):
    student, batch = make_student(), make_batch()
    distiller = make(student, files["11s"], balance="share")
    for _ in range(2):
        step(distiller, student, batch)
    cosine = distiller.meter.gradients["crd:one2many"].cosine
    assert float(distiller.agreement.cosine) == pytest.approx(float(cosine)) != 0
    resumed = make(make_student(), files["11s"], balance="share")
    resumed.restore(distiller.state())
    assert resumed.agreement.state() == distiller.agreement.state()


@pytest.mark.parametrize("given", [{"give_way": 0}, {"crd": 0}])
def test_without_answers_or_wish_nothing_gives_way(files, given):
    assert make(make_student(), files["11s"], **given).agreement is None
