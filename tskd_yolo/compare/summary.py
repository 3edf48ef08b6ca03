"""What the finished runs of a comparison say together: means, paired effects, verdicts, curves and images."""

from __future__ import annotations

import functools
import json
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tskd_yolo.compare import images, record
from tskd_yolo.compare.arms import STOCK, described
from tskd_yolo.compare.metrics import class_names
from tskd_yolo.compare.plan import Plan, Run
from tskd_yolo.compare.runs import curves, result_of
from tskd_yolo.compare.stats import Corrected, Effect, holm, paired, recovered, sentence
from tskd_yolo.compare.timing import Columns, stood_still, summary_of_time
from tskd_yolo.config import teachers

METRIC = "mAP50-95"
"""The metric that decides the verdicts."""
WEIGHTS = "best", "last"
KEYS = METRIC, "mAP50"

CORRECTION = (
    "Holm over the arms, for the verdicts; in tskd_against over the arms but tskd and plain. effect_on_misses, classes "
    "and every other metric are exploratory: not corrected, and without a verdict."
)
"""What is corrected and what is not."""

OWN_TEACHER = {"teacher", "teacher_imgsz", "classes_map"}
"""Settings by which an arm of the user's own has another teacher than the comparison, or sees it otherwise."""

Rows = Mapping[int, Any]
"""What the finished runs of one arm left, by seed."""


def summarise(plan: Plan, failed: Sequence[str]) -> dict[str, Any]:
    """Everything that the finished runs say, as JSON takes it; no path and no host."""
    results = {arm: _finished(plan, arm) for arm in plan.arms}
    finished = {str(Run(arm, seed)): row for arm, rows in results.items() for seed, row in rows.items()}
    teacher = result_of(plan.folder("teacher"))
    lines = all_curves(plan)
    clocks = {row.get("clock", "time") for row in finished.values()}
    clock = "process_time" if clocks == {"process_time"} else "time"
    arms = {arm: _summary_of_arm(arm, plan, results, lines, teacher, clock) for arm in plan.arms}
    seeds = record.changed_seeds(plan)
    _judge_arms(
        arms, results, plan.judged.weights,
        of=len(record.arms_ever(plan)) - 1, note=f" {seeds.capitalize()}." if seeds else "",
    )  # fmt: skip
    return {
        "verdicts": [arms[arm]["verdict"] for arm in plan.arms if arm != "plain"],
        "metric": METRIC,
        "judged": plan.judged._asdict(),
        "correction": CORRECTION,
        "settings": json.loads((plan.out / "settings.json").read_text(encoding="utf-8")),
        "seeds": plan.seeds,
        "plan": {"asked": record.plans(plan.out), "changed": seeds, "arms": record.arms_ever(plan)},
        "failed": list(failed),
        "hardware": _hardware(plan, results),
        **_uneven(plan, finished),
        "clock": clock,
        "stood_still": _stood_still(lines) if clock == "time" else {},
        "batches": _other_batches(plan, results),
        "teacher": teacher,
        "student": _student(plan, results),
        "latency": result_of(plan.folder("latency")),
        "paired": _pairing(results),
        "memory_format": _memory_formats(results),
        "resumed": [name for name, row in finished.items() if row["resumed"]],
        "left_out": {name: row["left_out"] for name, row in finished.items() if row["left_out"]},
        "arms": arms,
        "tskd_against": _tskd_against(
            results, plan.judged.weights, of=len({*record.arms_ever(plan)} - {"tskd", "plain"})
        ),
        "complete": len(results["plain"]) == len(plan.seeds) and not failed,
    }


def all_curves(plan: Plan) -> dict[str, dict[int, dict[str, list[float]]]]:
    """The columns of results.csv by arm and seed, of the finished runs."""
    return {arm: {seed: curves(plan.folder(Run(arm, seed))) for seed in _finished(plan, arm)} for arm in plan.arms}


def pictures(plan: Plan) -> images.Pictures | None:
    """Images on which plain training and the first distilled arm disagree, with the first seed that both have.

    None where no distilled arm shares a finished seed with plain training, or the teacher was not judged.
    """
    order = sorted((arm for arm in plan.arms if arm != "plain"), key=lambda arm: (arm != "tskd", arm in STOCK))
    arm = next((arm for arm in order if _finished(plan, arm)), None)
    if arm is None or result_of(plan.folder("teacher")) is None:
        return None
    seeds = [seed for seed in _finished(plan, arm) if seed in _finished(plan, "plain")]
    if not seeds:
        return None
    folders: dict[str, Run | str] = {"teacher": "teacher", "plain": Run("plain", seeds[0]), arm: Run(arm, seeds[0])}
    return images.disagreements(
        {who: plan.folder(name) / "seen.json" for who, name in folders.items()},
        data=plan.common["data"],
        names=class_names(plan.common["data"], bool(plan.common.get("single_cls"))),
        teacher=teachers(plan.own["teacher"])[0],
        imgsz=plan.argument("imgsz"),
        variant=plan.own["variant"],
        seed=seeds[0],
    )


def _finished(plan: Plan, arm: str) -> dict[int, Any]:
    results = {seed: result_of(plan.folder(Run(arm, seed))) for seed in plan.seeds}
    return {seed: row for seed, row in results.items() if row is not None}


# One arm --------------------------------------------------------------------------------------------------------------


def _summary_of_arm(
    arm: str,
    plan: Plan,
    results: Mapping[str, Rows],
    lines: Mapping[str, Mapping[int, Columns]],
    teacher: Any,
    clock: str,
) -> dict[str, Any]:
    """One arm: how it was trained, its rows, means, effects over plain training, and times."""
    rows, plain, weights = results[arm], results["plain"], plan.judged.weights
    values, base = _by_seed(rows, weights, METRIC), _by_seed(plain, weights, METRIC)
    effects = {
        which: {key: _effect(_by_seed(rows, which, key), _by_seed(plain, which, key)) for key in KEYS}
        for which in WEIGHTS
    }
    times = summary_of_time(rows, lines[arm], lines["plain"], clock)
    common = teacher and not OWN_TEACHER & plan.own_arms.get(arm, {}).keys()
    return {
        "trained": described(arm, plan.own_arms, isinstance(plan.own["teacher"], list)),
        "settings": record.told(plan, arm),
        "rows": [{**row, "to_plain": times["to_plain"]["seeds"].get(str(seed))} for seed, row in rows.items()],
        "mean": {
            which: {key: _mean_over_seeds([*_by_seed(rows, which, key).values()]) for key in KEYS} for which in WEIGHTS
        },
        "effect": dict(effects[weights]),
        "effects": effects,
        "effect_on_misses": _effect_on_misses(rows, plain, weights),
        "classes": _classes(rows, plain, weights),
        "recovered": recovered(values, base, teacher["last"][METRIC]) if common else None,
        "time": times,
    }


def _judge_arms(arms: dict[str, Any], results: Mapping[str, Rows], weights: str, *, of: int, note: str) -> None:
    """Puts the verdict of every arm, corrected over ``of`` arms, into its summary, with a note behind it."""
    values = {arm: _by_seed(rows, weights, METRIC) for arm, rows in results.items()}
    effects = {arm: paired(values[arm], values["plain"]) for arm in arms if arm != "plain"}
    for arm, corrected in holm(effects, of).items():
        arms[arm]["effect"][METRIC] = _judged(effects[arm], corrected)
        arms[arm]["verdict"] = sentence(arm, effects[arm], corrected, METRIC) + note


def _judged(effect: Effect | None, corrected: Corrected) -> dict[str, Any] | None:
    """An effect as JSON takes it, with what the correction left of it."""
    if effect is None:
        return None
    row = corrected.row()
    return {**effect.row(), "verdict": row.pop("verdict"), "corrected": row}


def _by_seed(rows: Rows, weights: str, *path: Any) -> dict[int, float]:
    """A figure of the best or last weights by seed, found by its keys; a seed that has none is left out."""
    found = {seed: row[weights] for seed, row in rows.items() if row[weights]}
    figures = {seed: functools.reduce(operator.getitem, path, figures) for seed, figures in found.items()}
    return {seed: figure for seed, figure in figures.items() if figure is not None}


def _mean_over_seeds(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _effect(treated: Mapping[int, float], plain: Mapping[int, float]) -> dict[str, Any] | None:
    effect = paired(treated, plain)
    return effect.row() if effect else None


def _effect_on_misses(rows: Rows, plain: Rows, weights: str) -> list[dict[str, Any]]:
    """Per number of false alarms: the mean miss rate, and the paired difference; there, less is better."""
    effects = []
    for place, entry in enumerate(_some(rows, weights, "misses")):
        mine, base = (_by_seed(who, weights, "misses", place, "miss") for who in (rows, plain))
        fewer = _effect(base, mine)  # turned round, so that above 0 helps
        miss = _mean_over_seeds(list(mine.values()))
        effects.append({"false_alarms": entry["false_alarms"], "miss": miss, "fewer": fewer})
    return effects


def _classes(rows: Rows, plain: Rows, weights: str) -> list[dict[str, Any]]:
    """Per class: means, and the paired difference to plain training, for both metrics."""
    classes = []
    for place, entry in enumerate(_some(rows, weights, "classes")):
        row = {"name": entry["name"], "truths": entry["truths"]}
        for key in ("AP50-95", "AP50"):
            mine, base = (_by_seed(who, weights, "classes", place, key) for who in (rows, plain))
            row[key] = {"mean": _mean_over_seeds(list(mine.values())), "effect": _effect(mine, base)}
        classes.append(row)
    return classes


def _some(rows: Rows, weights: str, key: str) -> list[Any]:
    """A list of any finished run: all runs have its entries in the same order."""
    return next((row[weights][key] for row in rows.values() if row[weights]), [])


# All arms -------------------------------------------------------------------------------------------------------------


def _student(plan: Plan, results: Mapping[str, Rows]) -> dict[str, Any] | None:
    """Name and size of the student, which is the same network in every arm."""
    row = next((row for rows in results.values() for row in rows.values()), None)
    return row and {"name": Path(plan.model).name, **{key: row[key] for key in ("parameters", "GFLOPs")}}


def _tskd_against(results: Mapping[str, Rows], weights: str, *, of: int) -> dict[str, Any]:
    """The effect of tskd over every other arm but plain training, corrected over ``of`` of them."""
    if "tskd" not in results:
        return {}
    tskd = _by_seed(results["tskd"], weights, METRIC)
    others = {arm: rows for arm, rows in results.items() if arm not in {"tskd", "plain"}}
    effects = {arm: paired(tskd, _by_seed(rows, weights, METRIC)) for arm, rows in others.items()}
    return {arm: _judged(effects[arm], corrected) for arm, corrected in holm(effects, of).items()}


def _pairing(results: Mapping[str, Rows]) -> dict[str, bool | None]:
    """Whether the arms of each seed started alike; None where no run wrote it down.

    ``weights``: of the student. ``images``: as the student saw them, augmented. ``files``: these images' names. An arm
    that learns from images without labels too has other batches, and is compared by its weights.
    """
    pairing: dict[str, bool | None] = {}
    for what in ("weights", "images", "files"):
        per_seed: dict[int, set[str]] = {}
        for rows in results.values():
            for seed, row in rows.items():
                if row["start"] and (what == "weights" or not row["settings"].get("unlabelled")):
                    per_seed.setdefault(seed, set()).add(row["start"][what])
        pairing[what] = all(len(v) == 1 for v in per_seed.values()) if per_seed else None
    return pairing


def _uneven(plan: Plan, finished: Mapping[str, Any]) -> dict[str, Any]:
    """What makes times of runs unequal: how many stood side by side, and what an earlier one had left in the cache."""
    return {
        "jobs": plan.jobs,
        "side_by_side": sorted({row.get("jobs", plan.jobs) for row in finished.values()} or {plan.jobs}),
        "found": {name: row["found"] for name, row in finished.items() if row.get("found")},
    }


def _stood_still(lines: Mapping[str, Mapping[int, Columns]]) -> dict[str, int]:
    """Runs in whose times the machine stood still, with the epoch."""
    found = {
        str(Run(arm, seed)): stood_still(columns) for arm, seeds in lines.items() for seed, columns in seeds.items()
    }
    return {run: epoch for run, epoch in found.items() if epoch is not None}


def _other_batches(plan: Plan, results: Mapping[str, Rows]) -> dict[str, int]:
    """Runs that trained with another batch than they were to: Ultralytics halves it where memory is short."""
    found = {}
    for arm, rows in results.items():
        asked = plan.settings_of(arm).get("batch", plan.argument("batch"))
        found.update(
            {str(Run(arm, seed)): row["batch"] for seed, row in rows.items() if row.get("batch", asked) != asked}
        )
    return found


def _memory_formats(results: Mapping[str, Rows]) -> dict[str, str]:
    """In which memory format each arm trained."""
    found = {
        arm: {row["start"]["memory_format"] for row in rows.values() if row["start"]} for arm, rows in results.items()
    }
    return {arm: ", ".join(sorted(formats)) for arm, formats in found.items() if formats}


def _hardware(plan: Plan, results: Mapping[str, Rows]) -> str:
    """What the runs were trained on."""
    devices = {row["device"] for rows in results.values() for row in rows.values()}
    return "; ".join(sorted(devices)) or record.hardware(plan.common.get("device"))
