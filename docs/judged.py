"""What distillation gives a pre-trained student on test: ``finetune_neu_128.json``, and what the candidates before it
gave, ``finetune_first_neu_128.json`` and ``finetune_second_neu_128.json``."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any, cast

from results import (
    arms_table,
    class_table,
    corrected,
    effect,
    load,
    miss_table,
    model_name,
    percent,
    setting,
    table,
    told,
)

from tskd_yolo.compare.stats import Effect, interval, paired, points
from tskd_yolo.compare.timing import CURVE

PLAIN = {
    "plain": "plain training",
    "plain_same_time": "plain training for as long as tskd-yolo",
    "ultralytics": "Ultralytics `distill_model=`",
}
SHORT = {**PLAIN, "tskd": "tskd-yolo", "short": "tskd-yolo, 12 epochs instead of 20"}
ARMS = {
    **PLAIN,
    "tskd": "tskd-yolo",
    "without_ded": "tskd-yolo without DED",
    "without_crd": "tskd-yolo without CRD",
    "hints": "tskd-yolo, plain hints in the place of DED",
    "short": "tskd-yolo, 12 epochs instead of 20",
}
"""How the arms of benchmarks/finetune.py are called."""
SECOND = {**ARMS, "strong": "tskd-yolo, `ded=4`"}
"""Those of the second candidate."""
BRIEF = {arm: ARMS[arm] for arm in ("plain", "ultralytics", "tskd", "without_ded", "hints")}
"""Those that were asked in a schedule of six epochs."""
FIRST = {
    **PLAIN,
    "tskd": "tskd-yolo, `drd=1 ded=4`",
    "without_drd": "tskd-yolo, `ded=4`",
    "without_ded": "tskd-yolo, `drd=1 ded=4`, without DED",
    "without_crd": "tskd-yolo, `drd=1 ded=4`, without CRD",
    "drd": "DRD alone",
    "ded": "DED alone",
    "crd": "CRD alone",
    "hints": "tskd-yolo, `drd=1 ded=4`, plain hints in the place of DED",
    "short": "tskd-yolo, `drd=1 ded=4`, 12 epochs instead of 20",
}
"""How those of the first candidate are called."""
WEAK = {
    "plain": "plain training",
    "tskd": "tskd-yolo",
    "quarter": "with a quarter of the shares, `ded=0.025 crd=0.25`",
    "four": "with four times the shares, `ded=0.4 crd=4`",
    "strong": "with DED's share of a student from random weights, `ded=4`",
}
"""How the arms of benchmarks/weak.yaml are called."""
CACHED = {
    "plain": "plain training",
    "filled": "tskd-yolo, the run that fills the cache",
    "read": "tskd-yolo, a later run",
    "read_short": "tskd-yolo, a later run of 12 epochs",
}
"""How those of benchmarks/cached.yaml are called."""
WAY = {
    "plain": "plain training",
    "ultralytics": "Ultralytics `distill_model=`",
    "without_drd": "itself without DRD",
    "without_ded": "itself without DED",
    "without_crd": "itself without CRD",
    "hints": "itself with plain hints in the place of DED",
    "strong": "itself with `ded=4`",
}
"""Arms that tskd is held against on the way, where a comparison has them."""
VAL, TEST = "val, last weights", "test, `best.pt`"
GOAL, LEAST = 0.03, 0.02
"""What PROTOCOL.md asks of tskd over plain training in mAP50-95, and what it calls the least that is worth anything."""


def values() -> dict[str, str]:
    """Tables of Markdown, their setting, and what the pages tell of them."""
    found, on_val = (load(f"{name}_neu_128")["comparison"] for name in ("finetune", "tune_others"))  # the same pair
    arms, asked, rivals = found["arms"], found["settings"], found["tskd_against"]
    tskd = arms["tskd"]
    gain = effect(tskd["effect"]["mAP50-95"])
    return {
        "judged": arms_table(found, ARMS),
        "judged short": arms_table(found, SHORT),
        "judged setting": f"{setting(found, TEST)}, batch {asked['batch']}, "
        f"the pre-trained {model_name(asked['model'])}",
        "judged gain": told(gain),
        "judged gain of last": told(effect(tskd["effects"]["last"]["mAP50-95"])),
        "judged lead": _lead(found, "best"),
        "judged recovered": percent(tskd["recovered"]),
        "judged goal": _goal(gain),
        "judged same time": told(effect(rivals["plain_same_time"])),
        "judged rival": told(effect(rivals["ultralytics"])),
        "judged rival corrected": interval(corrected(rivals["ultralytics"])),
        "judged same time corrected": interval(corrected(rivals["plain_same_time"])),
        "judged without crd corrected": interval(corrected(rivals["without_crd"])),
        "judged crd alone corrected": interval(corrected(arms["without_ded"]["effect"]["mAP50-95"])),
        "judged crd alone": told(effect(arms["without_ded"]["effect"]["mAP50-95"])),
        "judged hints": told(effect(rivals["hints"])),
        **{f"judged without {term}": told(effect(rivals[f"without_{term}"])) for term in ("ded", "crd")},
        "judged way": _way(found),
        "judged 12 epochs": told(effect(arms["short"]["effect"]["mAP50-95"])),
        "judged 12 epochs time": f"{arms['short']['time']['of_plain']:.2f}",
        "judged on val": told(effect(on_val["arms"]["tskd"]["effect"]["mAP50-95"])),
        "judged lead on val": _lead(on_val, "last"),
        **_of_the_first_candidate(),
        **_of_the_second_candidate(),
        **_from_random_weights(),
        **_in_a_brief_schedule(),
        **_under_a_weak_teacher(),
        **_under_itself(),
        **_out_of_the_cache(),
        "judged classes": class_table(arms),
        "judged misses": miss_table(arms),
    }


def _of_the_first_candidate() -> dict[str, str]:
    report = load("finetune_first_neu_128")
    found = report["comparison"]
    arms, rivals = found["arms"], found["tskd_against"]
    return {
        "first device": _device(report),
        "first": arms_table(found, FIRST),
        "first drd alone": told(effect(arms["drd"]["effect"]["mAP50-95"])),
        "first rival corrected": interval(corrected(rivals["ultralytics"])),
        "first without crd corrected": interval(corrected(rivals["without_crd"])),
        "first hints": told(effect(rivals["hints"])),
        **{f"first without {term}": told(effect(rivals[f"without_{term}"])) for term in ("drd", "ded", "crd")},
    }


def _of_the_second_candidate() -> dict[str, str]:
    report = load("finetune_second_neu_128")
    found = report["comparison"]
    rivals, names = found["tskd_against"], ("ultralytics", "without_ded", "without_crd", "hints")
    return {
        "second": arms_table(found, SECOND),
        "second device": _device(report),
        "second rival corrected": interval(corrected(rivals["ultralytics"])),
        "second without_crd corrected": interval(corrected(rivals["without_crd"])),
        **{f"second {arm}": told(effect(rivals[arm])) for arm in (*names, "strong")},
    }


def _device(report: Mapping[str, Any]) -> str:
    name, beside = report["hardware"].split(" 80GB")[0], report["comparison"]["jobs"]
    return f"on an {name} in mixed precision, {beside} runs side by side"


def _lead(found: Mapping[str, Any], weights: str) -> str:
    """By how many points of mAP50-95 the teacher is ahead of plain training."""
    return points(found["teacher"]["last"]["mAP50-95"] - found["arms"]["plain"]["mean"][weights]["mAP50-95"])


def _way(found: Mapping[str, Any], stretch: int = 5) -> str:
    """How far tskd is ahead on the validation images, averaged over stretches of epochs, in points of mAP50-95."""
    spans = [(start, start + stretch) for start in range(0, found["settings"]["epochs"], stretch)]
    rows = []
    for arm in (arm for arm in WAY if arm in found["arms"]):
        rows.append([WAY[arm], *(_ahead(_over(found, "tskd", *span), _over(found, arm, *span)) for span in spans)])
    return table(["ahead of", *(f"epochs {start + 1} to {end}" for start, end in spans)], rows)


def _over(found: Mapping[str, Any], arm: str, start: int, end: int) -> dict[int, float]:
    """The mean of a run's curve over a stretch, for each seed."""
    curves = found["curves"][arm].items()
    return {int(seed): fmean(run["metrics/mAP50-95(B)"][start:end]) for seed, run in curves}


def _ahead(ours: Mapping[int, float], theirs: Mapping[int, float]) -> str:
    return told(cast(Effect, paired(ours, theirs)))  # None only where no seed has both


def _from_random_weights() -> dict[str, str]:
    """The same questions of a student from random weights, on val, by its last weights: as it is now, and with DRD."""
    found, before = (load(f"tune_random_{name}neu_128")["comparison"] for name in ("", "first_"))
    rivals = found["tskd_against"]
    return {
        "random": _random_table(found, ARMS),
        "random first": _random_table(before, FIRST),
        "random setting": f"{setting(found, VAL)}, under the same teacher",
        "random first seeds": str(len(before["seeds"])),
        "random without drd": told(effect(before["tskd_against"]["without_drd"])),
        "random without ded": told(effect(rivals["without_ded"])),
        "random way": _way(found),
    }


def _random_table(found: Mapping[str, Any], names: Mapping[str, str]) -> str:
    arms, rivals, rows = found["arms"], found["tskd_against"], []
    for arm in (arm for arm in names if arm in arms):
        score = f"{arms[arm]['mean']['last']['mAP50-95']:.3f}"
        over = "" if arm == "plain" else told(effect(arms[arm]["effect"]["mAP50-95"]))
        rows.append([names[arm], score, over, told(effect(rivals[arm])) if arm in rivals else ""])
    return table(["from random weights", "mAP50-95", "over plain, 95 % interval", "tskd-yolo over it"], rows)


def _in_a_brief_schedule() -> dict[str, str]:
    """Three tenths of the schedule, on test."""
    found = load("finetune_brief_neu_128")["comparison"]
    rivals = found["tskd_against"]
    return {
        "brief": arms_table(found, BRIEF),
        "brief setting": f"{setting(found, TEST)}, the last {found['settings']['close_mosaic']} epochs without mosaic",
        "brief way": _way(found, stretch=2),
        "brief time": f"{found['arms']['tskd']['time']['of_plain']:.2f}",
        "brief gain": told(effect(found["arms"]["tskd"]["effect"]["mAP50-95"])),
        **{f"brief {arm}": told(effect(row)) for arm, row in rivals.items()},
        **{f"brief {arm} corrected": interval(corrected(row)) for arm, row in rivals.items()},
    }


def _under_a_weak_teacher() -> dict[str, str]:
    """What a teacher that is behind does, and did with the first share of DED, on val, by last weights."""
    before, found = (load(f"tune_weak_{name}neu_128")["comparison"] for name in ("first_", ""))
    arms, last = found["arms"], "last"
    plain = arms["plain"]["mean"][last]["mAP50-95"]
    rows = [
        [name, f"{arms[arm]['mean'][last]['mAP50-95']:.3f}"]
        + (["", ""] if arm == "plain" else [told(effect(arms[arm]["effect"]["mAP50-95"])), _verdict(arms[arm])])
        for arm, name in WEAK.items()
    ]
    rows.append(["teacher", f"{found['teacher']['last']['mAP50-95']:.3f}", "", ""])
    return {
        "weak": table(["under a teacher that is behind", "mAP50-95", "over plain, 95 % interval", "verdict"], rows),
        "weak setting": setting(found, VAL),
        "weak first": told(effect(before["arms"]["tskd"]["effect"]["mAP50-95"])),
        "weak behind": points(plain - found["teacher"]["last"]["mAP50-95"]),
    }


def _verdict(arm: Mapping[str, Any]) -> str:
    return str(arm["effect"]["mAP50-95"]["verdict"])


def _under_itself() -> dict[str, str]:
    """What a student gains under an earlier run of its own, on test, by its best and by its last weights."""
    found, ahead = (load(f"finetune_{name}_neu_128")["comparison"] for name in ("self", "cached"))
    plain, tskd, better = found["arms"]["plain"], found["arms"]["tskd"], ahead["arms"]["filled"]
    by_last = [{row["seed"]: row["last"]["mAP50-95"] for row in arm["rows"]} for arm in (tskd, plain, better)]
    by_best = [{row["seed"]: row["best"]["mAP50-95"] for row in arm["rows"]} for arm in (tskd, better)]
    teacher, alone, taught = found["teacher"]["last"], plain["mean"]["best"], tskd["mean"]["best"]
    return {
        "self setting": setting(found, TEST),
        "self gain": told(effect(tskd["effect"]["mAP50-95"])),
        "self gain of last": _ahead(*by_last[:2]),
        "self better teacher": told(effect(better["effect"]["mAP50-95"])),
        "self better teacher last": _ahead(by_last[2], by_last[1]),
        "self teachers": _ahead(by_best[1], by_best[0]),
        "self teachers last": _ahead(by_last[2], by_last[0]),
        "self scores": ", ".join(f"{row['mAP50-95']:.3f}" for row in (alone, taught, teacher)),
        "self lead": points(teacher["mAP50-95"] - alone["mAP50-95"]),
    }


def _out_of_the_cache() -> dict[str, str]:
    """How soon a student is where plain training ends, on test, when its teacher's outputs are kept."""
    found, before = (load(f"finetune_{name}_neu_128")["comparison"] for name in ("cached_again", "cached"))
    arms, rows = found["arms"], []
    soon = {arm: _soon(arms[arm]["time"]["to_plain"]) for arm in CACHED}
    for arm, name in CACHED.items():
        row = arms[arm]
        over = "" if arm == "plain" else told(effect(row["effect"]["mAP50-95"]))
        score, time = f"{row['mean']['best']['mAP50-95']:.3f}", f"{row['time']['of_plain']:.2f}"
        rows.append([name, score, over, time, soon[arm]])
    head = ["", "mAP50-95", "over plain, 95 % interval", "time ÷ plain", "time to plain's accuracy ÷ plain's time"]
    return {
        "cached": table(head, rows),
        "cached setting": f"{setting(found, TEST)}, by the processor's clock",
        **{f"cached {arm}": when for arm, when in soon.items() if arm != "plain"},
        "cached first": f"{_first(found['curves']['read'], found['curves']['plain']):.2f}",
        "cached before": _soon(before["arms"]["read"]["time"]["to_plain"]),
        "cached before time": f"{before['arms']['read']['time']['of_plain']:.2f}",
    }


def _first(arm: Mapping[str, Any], plain: Mapping[str, Any]) -> float:
    """The part of plain training's time after which an arm's curve has, once, what plain training ends with; the mean
    over the seeds.
    """
    shares = []
    for seed, run in plain.items():
        pairs = zip(arm[seed][CURVE], arm[seed]["process_time"], strict=True)
        shares.append(next(time for score, time in pairs if score >= run[CURVE][-1]) / run["process_time"][-1])
    return fmean(shares)


def _soon(time: Mapping[str, Any]) -> str:
    """The mean over the seeds, or in how many of them plain training's accuracy was reached at all."""
    return f"{time['mean']:.2f}" if time["mean"] is not None else f"in {time['reached']} of {len(time['seeds'])} seeds"


def _goal(gain: Effect) -> str:
    if gain.mean >= GOAL:
        return f"the goal of {points(GOAL, sign=True)} is reached"
    least = "reached" if gain.mean >= LEAST else "missed as well"
    return (
        f"the goal of {points(GOAL, sign=True)} is missed by {points(GOAL - gain.mean)}, the least that is worth "
        f"anything, {points(LEAST, sign=True)}, is {least}"
    )
