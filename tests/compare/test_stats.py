"""Paired statistics against scipy and by hand, and the words that come of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tskd_yolo.compare.stats import Effect, interval, paired, points, recovered, sentence

PLAIN = {0: 0.160, 1: 0.173, 2: 0.150}


def test_the_interval_is_that_of_the_paired_t_test():
    treated = {0: 0.203, 1: 0.190, 2: 0.185}
    effect = paired(treated, PLAIN)
    reference = stats.ttest_rel(list(treated.values()), list(PLAIN.values())).confidence_interval(0.95)
    assert (effect.low, effect.high) == pytest.approx((reference.low, reference.high))
    assert effect.mean == pytest.approx(0.095 / 3) and effect.seeds == 3


def test_two_seeds_by_hand():
    # d = 1, 3: mean 2, sd sqrt(2), t(0.975, 1) = 12.7062, half = 12.7062 * sqrt(2) / sqrt(2)
    effect = paired({0: 2.0, 1: 5.0}, {0: 1.0, 1: 2.0})
    assert (effect.mean, effect.low, effect.high) == pytest.approx((2.0, 2 - 12.7062, 2 + 12.7062), abs=1e-4)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=12))
@settings(max_examples=50, deadline=None)
def test_the_interval_holds_the_mean_and_swapped_arms_mirror_it(pairs):
    a, b = ({i: pair[k] for i, pair in enumerate(pairs)} for k in (0, 1))
    one, other = paired(a, b), paired(b, a)
    assert one.low <= one.mean <= one.high
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-12)
    opposite = {"helps": "hurts", "hurts": "helps", "no evidence": "no evidence"}
    assert other.verdict == opposite[one.verdict]


def test_only_seeds_that_both_have_are_paired():
    assert paired({0: 1.0, 7: 9.0}, {0: 0.5, 1: 0.0}) == Effect(0.5, None, None, 1)
    assert paired({0: 1.0}, {1: 1.0}) is None


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.001, 0.03, "helps"), (-0.03, -0.001, "hurts"), (-0.01, 0.03, "no evidence"), (0.0, 0.0, "no evidence"),
     (None, None, "no evidence")],
)  # fmt: skip
def test_the_verdict_is_where_the_whole_interval_lies(low, high, verdict):
    assert Effect(0.01, low, high, 3).verdict == verdict


def test_the_words_name_seeds_and_interval():
    helps = sentence("tskd", Effect(0.019, 0.004, 0.034, 5))
    assert helps == "tskd: helps: +1.9 points of mAP50-95 over plain (95 % interval +0.4 to +3.4, 5 seeds)."
    hurts = sentence("drd", Effect(-0.02, -0.03, -0.01, 3))
    assert hurts.startswith("drd: hurts: −2.0 points") and "−3.0 to −1.0, 3 seeds" in hurts
    unclear = sentence("ded", Effect(0.01, -0.01, 0.03, 3))
    assert unclear.startswith("ded: no evidence: +1.0 points") and "the interval holds 0" in unclear


def test_one_seed_gives_no_verdict_and_says_why():
    said = sentence("tskd", Effect(0.3, None, None, 1))
    assert said.startswith("tskd: no evidence: +30.0 points") and "one seed gives no interval" in said
    assert sentence("tskd", None).startswith("tskd: no evidence: it shares no finished seed")
    assert interval(None) == interval(Effect(0.3, None, None, 1)) == "–"


def test_the_share_of_the_way_to_the_teacher():
    assert recovered({0: 0.3, 1: 0.5}, {0: 0.2, 1: 0.4}, teacher=0.5) == pytest.approx(0.5)
    assert recovered({0: 0.1}, {0: 0.2}, teacher=0.4) == pytest.approx(-0.5)
    assert recovered({0: 0.3}, {0: 0.2}, teacher=0.2) is None, "a teacher that is not ahead has nothing to give"
    assert recovered({}, {0: 0.2}, teacher=0.5) is None


def test_points_have_one_decimal_a_real_minus_and_no_signed_zero():
    assert [points(v, sign=True) for v in (0.0123, -0.0123, -0.00001, 0.0, None)] == ["+1.2", "−1.2", "0.0", "0.0", "–"]
    assert points(0.1794) == "17.9" and not np.isnan(float(points(0.5)))
