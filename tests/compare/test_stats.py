"""Paired statistics against scipy and by hand, and the words that come of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tskd_yolo.compare.stats import Effect, holm, interval, paired, points, probability, recovered, sentence

PLAIN = {0: 0.160, 1: 0.173, 2: 0.150}


def test_the_interval_is_that_of_the_paired_t_test():
    treated = {0: 0.203, 1: 0.190, 2: 0.185}
    effect = paired(treated, PLAIN)
    reference = stats.ttest_rel(list(treated.values()), list(PLAIN.values()))
    assert (effect.low, effect.high) == pytest.approx(tuple(reference.confidence_interval(0.95)))
    assert effect.at(0.99) == pytest.approx(tuple(reference.confidence_interval(0.99)))
    assert effect.p == pytest.approx(reference.pvalue)
    assert effect.mean == pytest.approx(0.095 / 3) and effect.seeds == 3


def test_two_seeds_by_hand():
    # d = 1, 3: mean 2, sd sqrt(2), t(0.975, 1) = 12.7062, half = 12.7062 * sqrt(2) / sqrt(2)
    effect = paired({0: 2.0, 1: 5.0}, {0: 1.0, 1: 2.0})
    assert (effect.mean, effect.low, effect.high) == pytest.approx((2.0, 2 - 12.7062, 2 + 12.7062), abs=1e-4)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=12))
@settings(max_examples=50)
def test_the_interval_holds_the_mean_and_swapped_arms_mirror_it(pairs):
    a, b = ({i: pair[k] for i, pair in enumerate(pairs)} for k in (0, 1))
    one, other = paired(a, b), paired(b, a)
    assert one.low <= one.mean <= one.high
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-12)
    opposite = {"helps": "hurts", "hurts": "helps", "no evidence": "no evidence"}
    assert holm({"a": other})["a"].verdict == opposite[holm({"a": one})["a"].verdict]


def test_only_seeds_that_both_have_are_paired():
    assert paired({0: 1.0, 7: 9.0}, {0: 0.5, 1: 0.0}) == Effect(0.5, None, None, 1)
    assert paired({0: 1.0}, {1: 1.0}) is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_figure_that_is_none_takes_no_verdict_from_others(bad):
    plain = {0: 0.5, 1: 0.5, 2: 0.5}
    arms = {"bad": {0: bad, 1: bad, 2: bad}, "good": {0: 0.6, 1: 0.61, 2: 0.6}, "in_part": {0: bad, 1: 0.6, 2: 0.6}}
    effects = {arm: paired(figures, plain) for arm, figures in arms.items()}
    assert effects["bad"] is None and effects["in_part"].seeds == 2
    assert holm(effects)["good"].verdict == "helps"


@pytest.mark.parametrize(
    ("mean", "half", "verdict"),
    [(0.02, 0.019, "helps"), (-0.02, 0.019, "hurts"), (0.01, 0.02, "no evidence"), (0.0, 0.0, "no evidence"),
     (0.01, None, "no evidence")],
)  # fmt: skip
def test_of_one_arm_the_verdict_is_where_the_interval_lies(mean, half, verdict):
    effect = Effect(mean, *((None, None) if half is None else (mean - half, mean + half)), 3)
    (found,) = holm({"arm": effect}).values()
    assert found.verdict == verdict and found.of == 1
    assert half is None or (found.low, found.high) == pytest.approx((effect.low, effect.high))


def with_p(p: float, sign: int = 1, seeds: int = 5) -> Effect:
    """An effect with this p value."""
    mean = sign * 0.01
    half = 0.01 / stats.t.isf(p / 2, seeds - 1) * stats.t.isf(0.025, seeds - 1)
    return Effect(mean, mean - half, mean + half, seeds)


def test_holm_by_hand():
    # 4 x 0.01, 3 x 0.03, 2 x 0.04 raised to the one before it, 1 x 0.2; of six 6 x 0.01, 5 x 0.03, 4 x 0.04, 3 x 0.2
    found = holm(
        {"c": with_p(0.04), "a": with_p(0.01, -1), "d": with_p(0.2), "b": with_p(0.03), "none": None}, of=4 + 1
    )
    assert [found[k].p for k in "abcd"] == pytest.approx([0.05, 0.12, 0.12, 0.4])
    found = holm({"c": with_p(0.04), "a": with_p(0.01, -1), "d": with_p(0.2), "b": with_p(0.03)})
    assert list(found) == ["c", "a", "d", "b"]
    assert [found[k].p for k in "abcd"] == pytest.approx([0.04, 0.09, 0.09, 0.2])
    assert [found[k].verdict for k in "abcd"] == ["hurts", *["no evidence"] * 3]
    assert [1 - found[k].confidence for k in "abcd"] == pytest.approx([0.05 / 4, *[0.05 / 3] * 3])


@given(st.lists(st.tuples(st.floats(1e-6, 0.99), st.sampled_from([-1, 1])), min_size=1, max_size=8), st.integers(0, 10))
@settings(max_examples=60)
def test_corrected_interval_and_verdict_agree(effects, more):
    found = holm({str(i): with_p(p, sign) for i, (p, sign) in enumerate(effects)}, of=len(effects) + more)
    for i, (p, _) in enumerate(effects):
        told = found[str(i)]
        side = "helps" if told.low > 0 else "hurts" if told.high < 0 else "no evidence"
        assert told.verdict == side and p - 1e-9 <= told.p <= 1 and told.of == len(effects) + more


@pytest.mark.slow
def test_six_arms_that_do_nothing_get_a_verdict_in_5_percent():
    random, comparisons = np.random.default_rng(0), 1000
    wrong = {"corrected": 0, "alone": 0}
    for _ in range(comparisons):
        plain, *arms = (dict(enumerate(seeds)) for seeds in random.normal(0, 0.01, (7, 5)))
        effects = {str(i): paired(arm, plain) for i, arm in enumerate(arms)}
        wrong["corrected"] += any(told.verdict != "no evidence" for told in holm(effects).values())
        wrong["alone"] += any(effect.low > 0 or effect.high < 0 for effect in effects.values())
    assert wrong["corrected"] / comparisons <= 0.06, "0.05 but for the noise of 1000 comparisons"
    assert wrong["alone"] / comparisons > 0.15, "without the correction the simulation shows what was wrong"


def test_rounded_words_do_not_contradict_the_verdict():
    assert probability(0.04963) == "0.0496" and probability(0.0500001) == "0.05"
    assert interval(Effect(0.002, 0.0004, 0.004, 5)) == "+0.04 to +0.4"
    assert (
        interval(Effect(0.002, -0.00002, 0.004, 5)) == "−0.002 to +0.4" and interval(Effect(0, 0, 0, 5)) == "0.0 to 0.0"
    )


def test_differences_alike_to_the_last_digit_are_no_proof():
    least = paired({0: 0.35123, 1: 0.35123}, {0: 0.35122, 1: 0.35122})
    assert sentence("x", least).startswith("x: no evidence") and paired({0: 0.4, 1: 0.5}, {0: 0.4, 1: 0.5}).p == 1
    assert sentence("x", paired({0: 0.45, 1: 0.35}, {0: 0.40, 1: 0.30})).startswith("x: helps")


def test_the_words_name_seeds_and_interval():
    helps = sentence("tskd", Effect(0.019, 0.004, 0.034, 5))
    assert helps == "tskd: helps: +1.9 points of mAP50-95 over plain (95 % interval +0.4 to +3.4, 5 seeds)."
    hurts = sentence("drd", Effect(-0.02, -0.03, -0.01, 3))
    assert hurts.startswith("drd: hurts: −2.0 points") and "−3.0 to −1.0, 3 seeds" in hurts
    unclear = sentence("ded", Effect(0.01, -0.01, 0.03, 3))
    assert unclear.startswith("ded: no evidence: +1.0 points") and "the interval holds 0" in unclear


def test_the_words_name_what_the_correction_leaves():
    effects = {"tskd": with_p(0.03), "ded": with_p(0.0001), "none": None}
    told = {arm: sentence(arm, effects[arm], corrected) for arm, corrected in holm(effects).items()}
    assert told["ded"] == (
        "ded: helps: +1.0 points of mAP50-95 over plain "
        "(95 % interval +0.8 to +1.2, 5 seeds; corrected for 3 arms +0.7 to +1.3, p < 0.001)."
    )
    assert told["tskd"] == (
        "tskd: no evidence: +1.0 points of mAP50-95 over plain (95 % interval +0.2 to +1.8, 5 seeds; "
        "corrected for 3 arms −0.1 to +2.1, p = 0.06; the corrected interval holds 0)."
    )
    assert [probability(p) for p in (None, 0.0004, 0.0312, 1.0)] == ["–", "< 0.001", "0.031", "1"]


def test_one_seed_gives_no_verdict_and_says_why():
    said = sentence("tskd", Effect(0.3, None, None, 1))
    assert said.startswith("tskd: no evidence: +30.0 points") and "one seed gives no interval" in said
    assert sentence("tskd", None).startswith("tskd: no evidence: it shares no finished seed")
    assert interval(None) == interval(Effect(0.3, None, None, 1)) == "–"


def test_the_share_of_the_way_to_the_teacher():
    assert recovered({0: 0.3, 1: 0.5}, {0: 0.2, 1: 0.4}, teacher=0.5) == pytest.approx(0.5)
    assert recovered({0: 0.1}, {0: 0.2}, teacher=0.4) == pytest.approx(-0.5)
    assert recovered({0: 0.3}, {0: 0.2}, teacher=0.2) is None, "a teacher that is not ahead has nothing to give"
    assert recovered({0: 0.3}, {0: 0.2}, teacher=0.205) is None, "a share of next to nothing"
    assert recovered({}, {0: 0.2}, teacher=0.5) is None


def test_points_have_one_decimal_a_real_minus_and_no_signed_zero():
    assert [points(v, sign=True) for v in (0.0123, -0.0123, -0.00001, 0.0, None)] == ["+1.2", "−1.2", "0.0", "0.0", "–"]
    assert points(0.1794) == "17.9" and not np.isnan(float(points(0.5)))
