"""The same question elsewhere: other students, longer runs, larger images, small defects."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from results import (
    METRICS,
    arms_table,
    by_seed,
    corrected,
    effect,
    gains,
    last_and_best,
    load,
    model_name,
    scores,
    setting,
    table,
    told,
)

from tskd_yolo.compare.stats import holm, interval, paired

STUDENTS = "yolo26n", "yolov8n"
PAIR = "plain", "tskd"
DRAWN = "drawn steel with small defects"
SMALL = {
    "plain": "plain training",
    "tskd": "tskd-yolo",
    "without_ded": "tskd-yolo without DED",
    "hints": "tskd-yolo, plain hints in the place of DED",
}


def values() -> dict[str, str]:
    """Tables of Markdown, their settings, and the figures that the text tells."""
    directions = {"long": "tune_long_neu_128", "large": "tune_neu_224", "larger": "tune_neu_160"}
    found = {key: text for prefix, name in directions.items() for key, text in _direction(prefix, name).items()}
    return {**_students(), **found, **_small(), **_small_on_test()}


def _students() -> dict[str, str]:
    """A table of Markdown of other students under the same teacher, on test, by ``best.pt``, and its setting.

    Two looks, after three seeds and after five, so the verdict on the second is corrected for being one of two.
    """
    looks = [[load(f"finetune_{name}_{part}neu_128")["comparison"] for part in ("", "more_")] for name in STUDENTS]
    head = ["student", "seeds", *(f"{who}, {' / '.join(METRICS)}" for who in ("plain", "tskd-yolo"))]
    head += ["mAP50-95 over plain, 95 % interval", "verdict", "time ÷ plain"]
    rows = []
    for found in looks:
        name = model_name(found[0]["settings"]["model"])
        rows += [[name, *_look(*found[: number + 1])] for number in range(len(found))]
    first, more = looks[0]
    return {
        "students": table(head, rows),
        "students setting": setting(first, "test, `best.pt`", seeds="3 seeds, then 5"),
        "students teacher": f"{first['teacher']['last']['mAP50-95']:.3f}",
        "students later teacher": f"{more['teacher']['last']['mAP50-95']:.3f}",
    }


def _look(*found: Mapping[str, Any]) -> list[str]:
    """A row of what several files of the same question have, from its number of seeds on."""
    plain, tskd = ({seed: row for each in found for seed, row in by_seed(each, arm).items()} for arm in PAIR)
    means = [{key: fmean(row["best"][key] for row in arm.values()) for key in METRICS} for arm in (plain, tskd)]
    gain = paired(*({seed: row["best"]["mAP50-95"] for seed, row in arm.items()} for arm in (tskd, plain)))
    assert gain is not None, "every seed has both"
    time = [sum(row["process_seconds"] for row in arm.values()) for arm in (tskd, plain)]
    verdict = holm({"": gain}, of=2)[""].verdict
    return [str(gain.seeds), *map(scores, means), told(gain), verdict, f"{time[0] / time[1]:.2f}"]


def _direction(prefix: str, name: str) -> dict[str, str]:
    """Scores and gains of a comparison on val with two seeds: too few for an interval that says anything."""
    found = load(name)["comparison"]
    plain, tskd = (by_seed(found, arm) for arm in PAIR)
    return {
        f"{prefix} plain": last_and_best(plain),
        f"{prefix} tskd": last_and_best(tskd),
        f"{prefix} teacher": f"{found['teacher']['last']['mAP50-95']:.3f}",
        **{f"{prefix} gain of {weights}": gains(tskd, plain, weights) for weights in ("last", "best")},
    }


def _small() -> dict[str, str]:
    """Drawn steel with small defects, on val, by last weights, and what DED adds there."""
    found = load("tune_small_drawn_128")["comparison"]
    rows = []
    for arm, words in SMALL.items():
        row = found["arms"][arm]
        over = "" if arm == "plain" else told(effect(row["effect"]["mAP50-95"]))
        rows.append([words, scores(row["mean"]["last"]), over])
    head = [" / ".join(METRICS), "val", "mAP50-95 over plain, 95 % interval"]
    teacher = [["teacher", scores(found["teacher"]["last"]), ""]]
    return {
        "small": table(head, [*rows, *teacher]),
        "small setting": setting(found, "val, last weights", DRAWN),
        **{f"small over {arm}": told(effect(rival)) for arm, rival in found["tskd_against"].items()},
    }


def _small_on_test() -> dict[str, str]:
    """The same on images that were drawn to judge, by ``best.pt``."""
    found = load("finetune_small_drawn_128")["comparison"]
    rivals = found["tskd_against"]
    return {
        "small judged": arms_table(found, SMALL),
        "small judged setting": setting(found, "test, `best.pt`", DRAWN),
        "small judged gain": told(effect(found["arms"]["tskd"]["effect"]["mAP50-95"])),
        **{f"small judged over {arm}": told(effect(rival)) for arm, rival in rivals.items()},
        **{f"small judged over {arm} corrected": interval(corrected(rival)) for arm, rival in rivals.items()},
    }
