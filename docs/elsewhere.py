"""The same question elsewhere: other students, longer and larger runs, small defects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import mean
from typing import Any

from results import METRICS, by_seed, effect, gains, last_and_best, load, model_name, scores, setting, table, told

from tskd_yolo.compare.stats import Effect, holm, paired

STUDENTS = "yolo26n", "yolov8n"
FURTHER = {"long": "60 epochs at 128 px", "224": "20 epochs at 224 px"}
SMALL = {
    "plain": "plain training",
    "tskd": "tskd-yolo",
    "without_ded": "tskd-yolo without DED",
    "hints": "tskd-yolo, plain hints in the place of DED",
}


def values() -> dict[str, str]:
    """Tables of Markdown, their settings, and the figures that the text tells."""
    return {**_students(), **_further(), **_small()}


def _students() -> dict[str, str]:
    """Students of other families under the same teacher, on test: the seeds of the first look, and all."""
    looks = {name: [load(f"finetune_{name}{more}_neu_128")["comparison"] for more in ("", "_more")] for name in STUDENTS}
    head = ["student", *(f"{who}, {' / '.join(METRICS)}" for who in ("plain", "tskd-yolo")), "time ÷ plain"]
    head += ["mAP50-95 over plain, 95 % interval", "verdict", "first three seeds"]
    rows = []
    for name, (first, more) in looks.items():
        runs = {arm: [*by_seed(first, arm).values(), *by_seed(more, arm).values()] for arm in ("plain", "tskd")}
        gain = _gain(runs["tskd"], runs["plain"], "best")
        time = _time(runs["tskd"]) / _time(runs["plain"])
        figures = [scores(_mean(runs[arm], "best")) for arm in ("plain", "tskd")]
        before = told(effect(first["arms"]["tskd"]["effect"]["mAP50-95"]))
        verdict = holm({name: gain})[name].verdict
        rows.append([model_name(f"{name}.pt"), *figures, f"{time:.2f}", told(gain), verdict, before])
    found = looks[STUDENTS[0]][0]
    return {
        "students": table(head, rows),
        "students setting": setting(found, "test, `best.pt`").replace(", 3 seeds;", ", 5 seeds;"),
        "students teacher": f"{found['teacher']['last']['mAP50-95']:.3f}",
    }


def _further() -> dict[str, str]:
    """Longer and larger runs, on val, with two seeds: too few for an interval that says anything."""
    head = ["", "plain, last / best epoch", "tskd-yolo, last / best epoch", "teacher", "over plain by last weights"]
    head += ["by the best epoch"]
    rows = []
    for name, words in FURTHER.items():
        found = load(f"tune_{'long_neu_128' if name == 'long' else 'neu_224'}")["comparison"]
        plain, tskd = (by_seed(found, arm) for arm in ("plain", "tskd"))
        teacher = f"{found['teacher']['last']['mAP50-95']:.3f}"
        over = [gains(tskd, plain, weights) for weights in ("last", "best")]
        rows.append([words, last_and_best(plain), last_and_best(tskd), teacher, *over])
    return {"further": table(head, rows)}


def _small() -> dict[str, str]:
    """Drawn steel with small defects, on val, by last weights, and what DED adds there."""
    found = load("tune_small_drawn_128")["comparison"]
    runs = {arm: list(by_seed(found, arm).values()) for arm in SMALL}
    rows = []
    for arm, words in SMALL.items():
        over = "" if arm == "plain" else told(_gain(runs[arm], runs["plain"], "last"))
        rows.append([words, scores(_mean(runs[arm], "last")), over])
    head = [" / ".join(METRICS), "val", "mAP50-95 over plain, 95 % interval"]
    teacher = [["teacher", scores(found["teacher"]["last"]), ""]]
    return {
        "small": table(head, [*rows, *teacher]),
        "small setting": setting(found, "val, last weights", "drawn steel with small defects"),
        **{f"small over {arm}": told(_gain(runs["tskd"], runs[arm], "last")) for arm in ("without_ded", "hints")},
    }


def _gain(treated: Iterable[Mapping[str, Any]], plain: Iterable[Mapping[str, Any]], weights: str) -> Effect:
    """The paired difference in mAP50-95 of runs that have their seeds in common."""
    found = paired(*({row["seed"]: row[weights]["mAP50-95"] for row in rows} for rows in (treated, plain)))
    if found is None:
        raise ValueError("the runs have no seed in common")
    return found


def _mean(rows: Iterable[Mapping[str, Any]], weights: str) -> dict[str, float]:
    return {key: mean(row[weights][key] for row in rows) for key in METRICS}


def _time(rows: Iterable[Mapping[str, Any]]) -> float:
    """Mean seconds of the processor."""
    return mean(row["process_seconds"] for row in rows)
