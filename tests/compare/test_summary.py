"""What the finished runs of a comparison say together."""

from __future__ import annotations

import json

import pytest

from tskd_yolo.compare.report import comparison_page
from tskd_yolo.compare.summary import summarise
from tskd_yolo.files import write_json


def test_the_summary_holds_means_paired_effects_shares_and_words(plan):
    summary = summarise(plan, failed=[])
    tskd = summary["arms"]["tskd"]
    assert tskd["mean"]["last"]["mAP50-95"] == pytest.approx(0.165)
    effect = tskd["effect"]["mAP50-95"]
    assert effect["mean"] == pytest.approx(0.055) and effect["verdict"] == "helps" and effect["seeds"] == 3
    half = 4.302653 * 0.005 / 3**0.5
    assert (effect["low"], effect["high"]) == pytest.approx((0.055 - half, 0.055 + half), abs=1e-6)
    assert tskd["recovered"] == pytest.approx(0.055 / 0.19)
    assert tskd["verdict"].startswith("tskd: helps: +5.5 points") and "corrected for 2 arms" in tskd["verdict"]
    assert effect["corrected"]["of"] == 2 and effect["corrected"]["p"] == pytest.approx(2 * effect["p"])
    assert 0 < effect["corrected"]["low"] < effect["low"], "the corrected interval is wider"
    assert summary["arms"]["ultralytics"]["effect"]["mAP50-95"]["verdict"] == "no evidence"
    assert tskd["classes"][2]["AP50-95"]["effect"]["mean"] == pytest.approx(0.055)
    assert tskd["effect_on_misses"][0]["fewer"]["mean"] == pytest.approx(0.055), "fewer misses help"
    assert summary["tskd_against"]["ultralytics"]["mean"] == pytest.approx(0.055 - (-0.01 / 3))
    assert summary["paired"] == {"weights": True, "images": True, "files": True} and summary["complete"]


def test_what_is_not_corrected_has_no_verdict(plan):
    summary = summarise(plan, failed=[])
    arm = summary["arms"]["tskd"]
    exploratory = [arm["effect"]["mAP50"], arm["classes"][2]["AP50"]["effect"], arm["effect_on_misses"][0]["fewer"]]
    assert all(effect["low"] > 0 and "verdict" not in effect for effect in exploratory)
    assert "exploratory" in summary["correction"]
    assert summary["tskd_against"]["ultralytics"]["corrected"]["of"] == 1, "a family of its own"
    write_json(plan.out / "plan.json", [{"seeds": [0, 1, 2], "arms": [*plan.arms, "ded", "crd"]}])
    against = summarise(plan, failed=[])["tskd_against"]
    assert list(against) == ["ultralytics"] and against["ultralytics"]["corrected"]["of"] == 3, "asked for earlier"


def test_an_arm_with_other_batches_is_compared_by_weights(plan):
    file = plan.out / "tskd-1" / "result.json"
    row = json.loads(file.read_text())
    row["start"] |= {"images": "other", "files": "others"}
    row["settings"] = {"unlabelled": ["folder"]}
    file.write_text(json.dumps(row))
    assert summarise(plan, failed=[])["paired"] == {"weights": True, "images": True, "files": True}


def test_arms_that_did_not_start_alike_are_told(plan):
    file = plan.out / "tskd-1" / "result.json"
    row = json.loads(file.read_text())
    row["start"] |= {"images": "other", "memory_format": "contiguous"}
    file.write_text(json.dumps(row))
    summary = summarise(plan, failed=[])
    assert summary["paired"] == {"weights": True, "images": False, "files": True}
    assert summary["memory_format"]["tskd"] == "channels_last, contiguous"
    words = " ".join(comparison_page(summary, curves={}, pictures=None).split())
    assert "saw the same first images in the same order, but NOT all in the same augmentation (hashes" in words
    assert "NOT all train in the same memory format: plain channels_last, tskd channels_last, contiguous" in words
    summary["settings"]["teacher_cache"] = "ram"
    assert "with teacher_cache the arms that distil draw their own" in comparison_page(
        summary, curves={}, pictures=None
    )


def test_a_seed_that_failed_is_left_out_of_the_pairs(plan):
    (plan.out / "tskd-1" / "result.json").unlink()
    summary = summarise(plan, failed=["tskd-1"])
    assert summary["arms"]["tskd"]["effect"]["mAP50-95"]["seeds"] == 2
    assert not summary["complete"] and summary["failed"] == ["tskd-1"]


def test_what_makes_times_unequal_is_told(plan):
    for name, more in {"tskd-1": {"found": 0.25, "jobs": 8}, "tskd-2": {"found": 0.0, "jobs": 1}}.items():
        file = plan.out / name / "result.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"clock": "time", **more}))
    summary = summarise(plan, failed=[])
    assert summary["found"] == {"tskd-1": 0.25} and summary["side_by_side"] == [1, 8]
    words = " ".join(comparison_page(summary, curves={}, pictures=None).split())
    assert "had left beside the labels made up 25 % of the first epoch of tskd-1. The time that it took" in words
    assert "1 or 8 runs stood side by side, which makes times uneven: those of runs with another number do" in words


def test_a_term_that_was_left_out_is_told(plan):
    file = plan.out / "tskd-1" / "result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"left_out": {"drd": 0.031, "ded": 1.0}}))
    summary = summarise(plan, failed=[])
    assert summary["left_out"] == {"tskd-1": {"drd": 0.031, "ded": 1.0}}
    page = comparison_page(summary, curves={}, pictures=None)
    assert "tskd-1 drd in 3.1 % of the steps, tskd-1 ded in 100 % of the steps." in page
