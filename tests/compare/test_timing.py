"""What training took, and when an arm is as good as plain training ends up."""

from __future__ import annotations

import math

import pytest

from tskd_yolo.compare.summary import all_curves, summarise
from tskd_yolo.compare.timing import CURVE, mean_over_minutes, reached, summary_of_time, to_plain


@pytest.mark.parametrize(
    ("curve", "level", "time"),
    [
        ([1, 2, 3, 4], 3, 30),
        ([3, 2, 3, 4], 3, 30),  # what is lost again does not count
        ([3, 3, 3, 3], 3, 10),
        ([1, 2, 3, 2], 3, None),
        ([1, math.nan, 3, 4], 1, 30),
        ([], 1, None),
    ],
)
def test_a_level_is_reached_when_it_is_not_lost_again(curve, level, time):
    assert reached(curve, [10, 20, 30, 40], level) == time


def run(*values, pace=10.0):
    return {CURVE: list(values), "time": [pace * (i + 1) for i in range(len(values))]}


def test_the_time_is_a_share_of_plain_trainings():
    plain = run(0.1, 0.2, 0.3)
    assert to_plain(run(0.1, 0.3, 0.4, pace=12), plain) == pytest.approx(24 / 30)
    assert to_plain(run(0.1, 0.2, 0.29), plain) is None
    assert to_plain(plain, plain) == 1
    assert to_plain({}, plain) is None and to_plain(plain, {}) is None


def test_the_mean_is_of_all_seeds_or_none():
    rows = {seed: {"epochs": 3, "seconds": 30.0 + seed, "process_seconds": 60.0} for seed in (0, 1)}
    plain = {0: run(0.1, 0.2, 0.3), 1: run(0.1, 0.2, 0.3)}
    both = summary_of_time(rows, {0: run(0.1, 0.3, 0.3), 1: run(0.3, 0.3, 0.3)}, plain)
    assert both["to_plain"] == {"seeds": {"0": 2 / 3, "1": 1 / 3}, "reached": 2, "mean": pytest.approx(0.5)}
    assert both["seconds"] == 30.5 and both["process_seconds"] == 60
    one = summary_of_time(rows, {0: run(0.1, 0.3, 0.3), 1: run(0.1, 0.2, 0.2)}, plain)
    assert one["to_plain"] == {"seeds": {"0": 2 / 3, "1": None}, "reached": 1, "mean": None}


def test_the_curve_over_minutes_is_a_mean_over_seeds():
    minutes, values = mean_over_minutes({0: run(0.1, 0.3, 0.5), 1: run(0.3, 0.5, pace=30), 2: {}})
    assert minutes == pytest.approx([20 / 60, 40 / 60]) and values == pytest.approx([0.2, 0.4])
    assert mean_over_minutes({}) == ([], [])


def test_times_stand_in_rows_and_means(plan):
    summary = summarise(plan, failed=[])
    time = summary["arms"]["tskd"]["time"]
    assert (time["seconds"], time["process_seconds"], time["epochs"]) == (60, 90, 3)
    other = summary["arms"]["ultralytics"]["time"]["to_plain"]
    assert (other["seeds"]["1"], other["seeds"]["2"], other["mean"]) == (None, 1, None)
    assert [row["to_plain"] for row in summary["arms"]["ultralytics"]["rows"]] == list(other["seeds"].values())
    assert all_curves(plan)["tskd"][0]["process_time"] == [30, 60, 90]
