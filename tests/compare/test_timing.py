"""What training took, and when an arm is as good as plain training ends up."""

from __future__ import annotations

import json
import math

import pytest

from tskd_yolo.compare.report import comparison_page
from tskd_yolo.compare.summary import all_curves, summarise
from tskd_yolo.compare.timing import (
    CURVE,
    epochs_for,
    mean_over_minutes,
    reached,
    stood_still,
    summary_of_time,
    to_plain,
)


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
    times = [pace * (i + 1) for i in range(len(values))]
    return {CURVE: list(values), "time": times, "epoch": list(range(1, len(values) + 1))}


def test_the_time_is_a_share_of_plain_trainings():
    plain = run(0.1, 0.2, 0.3)
    assert to_plain(run(0.1, 0.3, 0.4, pace=12), plain) == pytest.approx(24 / 30)
    assert to_plain(run(0.1, 0.2, 0.29), plain) is None
    assert to_plain(plain, plain) == 1
    assert to_plain({}, plain) is None and to_plain(plain, {}) is None


def test_a_pause_is_told_and_the_processors_clock_knows_none():
    plain, slept = run(0.1, 0.2, 0.3, 0.3), run(0.1, 0.3, 0.4, 0.4)
    plain["process_time"], slept["process_time"] = plain["time"], slept["time"]
    slept["time"] = [10, 1020, 1030, 1040]
    assert to_plain(slept, plain) == pytest.approx(1020 / 40) and to_plain(slept, plain, "process_time") == 0.5
    assert stood_still(slept) == 2 and stood_still(plain) is None and stood_still({}) is None
    assert stood_still({**plain, "time": [900, 910, 920, 930]}) == 1
    minutes, _ = mean_over_minutes({0: slept}, "process_time")
    assert minutes == pytest.approx([10 / 60, 20 / 60, 30 / 60, 40 / 60])


def test_plain_training_gets_the_epochs_that_take_as_long():
    plain = {"epochs": 20, "seconds": 200.0, "process_seconds": 100.0}
    tskd = {"epochs": 20, "seconds": 900.0, "process_seconds": 162.0}
    assert (epochs_for(tskd, plain, "process_time"), epochs_for(tskd, plain, "time")) == (32, 90)
    assert epochs_for({"process_seconds": 0.1}, plain, "process_time") == 1


def test_the_mean_is_of_all_seeds_or_none():
    rows = {seed: {"epochs": 3, "seconds": 30.0 + seed, "process_seconds": 60.0} for seed in (0, 1)}
    plain = {0: run(0.1, 0.2, 0.3), 1: run(0.1, 0.2, 0.3)}
    both = summary_of_time(rows, {0: run(0.1, 0.3, 0.3), 1: run(0.3, 0.3, 0.3)}, plain)
    assert both["to_plain"] == {"seeds": {"0": 2 / 3, "1": 1 / 3}, "reached": 2, "mean": pytest.approx(0.5)}
    assert both["seconds"] == 30.5 and both["process_seconds"] == 60 and both["of_plain"] == 1
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


@pytest.mark.parametrize("clock", ["process_time", "time"])
def test_the_page_says_by_which_clock_and_what_to_doubt(plan, clock):
    for arm in plan.arms:
        for seed in plan.seeds:
            file = plan.out / f"{arm}-{seed}" / "result.json"
            file.write_text(
                json.dumps(
                    {**json.loads(file.read_text()), "clock": clock, "batch": 1 if seed else plan.argument("batch")}
                )
            )
    file = plan.out / "tskd-1" / "results.csv"
    file.write_text(file.read_text().replace("\n2,40,", "\n2,4000,").replace("\n3,60,", "\n3,4020,"))
    summary = summarise(plan, failed=[])
    assert summary["clock"] == clock and summary["arms"]["tskd"]["time"]["of_plain"] == (1 if clock != "time" else 23)
    words = " ".join(comparison_page(summary, curves=all_curves(plan), pictures=None).split())
    assert ("÷ plain and the time to plain's accuracy are by the clock on the wall" in words) == (clock == "time")
    assert ("stood still:</strong> an epoch took more than 10 times as long as usual in tskd-1 (epoch 2)" in words) == (
        clock == "time"
    )
    assert set(summary["batches"]) == {f"{arm}-{s}" for arm in plan.arms for s in (1, 2)}
    assert "smaller batch than they were to: plain-1 1, plain-2 1, tskd-1 1" in words
