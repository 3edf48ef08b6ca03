"""What was measured, read from benchmarks/results, and tables of Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from tskd_yolo.compare.stats import Effect, interval, points

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
METRICS = "mAP50", "mAP50-95"


def load(name: str) -> Any:
    """A file of benchmarks/results."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def table(head: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """A table of Markdown; the first ``words`` columns are words, the others numbers, which are not broken."""
    rule = ["---" if place < words else "---:" for place in range(len(head))]
    body = [[*row[:words], *(cell.replace(" ", "\u00a0") for cell in row[words:])] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))


def effect(row: Mapping[str, Any]) -> Effect:
    """A paired difference as a comparison's file has it."""
    return Effect(**{key: row[key] for key in ("mean", "low", "high", "seeds")})


def told(gain: Effect) -> str:
    """Points with their interval."""
    return f"{points(gain.mean, sign=True)} ({interval(gain)})"


def scores(row: Mapping[str, Any]) -> str:
    """Both metrics, as a table has them."""
    return " / ".join(f"{row[key]:.3f}" for key in METRICS)


def setting(
    found: Mapping[str, Any], judged: str, data: str = "NEU-DET in three splits", seeds: str | None = None
) -> str:
    """Where a comparison on a CPU was made, and what it was judged by."""
    asked, seeds = found["settings"], seeds or f"{len(found['seeds'])} seeds"
    return f"{data}, {judged}, {seeds}; {asked['imgsz']} px, {asked['epochs']} epochs, on a CPU"


def by_seed(found: Mapping[str, Any], arm: str) -> dict[int, Mapping[str, Any]]:
    """The runs of an arm."""
    return {row["seed"]: row for row in found["arms"][arm]["rows"]}


def last_and_best(rows: Mapping[int, Any]) -> str:
    """mAP50-95 of last weights and of the best epoch, means over the seeds."""
    return " / ".join(f"{mean(row[w]['mAP50-95'] for row in rows.values()):.3f}" for w in ("last", "best"))


def gains(taught: Mapping[int, Any], plain: Mapping[int, Any], weights: str) -> str:
    """Points of mAP50-95, the mean and those of the seeds, where seeds are too few for an interval."""
    found = [taught[seed][weights]["mAP50-95"] - plain[seed][weights]["mAP50-95"] for seed in plain]
    return f"{points(mean(found), sign=True)} ({', '.join(points(gain, sign=True) for gain in found)})"


def arms_table(found: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Arms judged on test by ``best.pt``, with the teacher below them."""
    over = "mAP50-95 over plain, 95 % interval"
    head = [" / ".join(METRICS), "test", over, "corrected interval", "verdict", "time ÷ plain"]
    rows = [[name, *_row(found, arm)] for arm, name in names.items()]
    teacher = scores(found["teacher"]["last"])
    return table(head, [*rows, ["teacher", teacher, *[""] * (len(head) - 2)]])


def _row(found: Mapping[str, Any], arm: str) -> Sequence[str]:
    row = found["arms"][arm]
    figures = scores(row["mean"]["best"])
    time = f"{row['time']['of_plain']:.2f}"
    if arm == "plain":
        return [figures, "", "", "", time]
    gain = row["effect"]["mAP50-95"]
    return [figures, told(effect(gain)), interval(corrected(gain)), gain["verdict"], time]


def corrected(row: Mapping[str, Any]) -> Effect:
    """A difference with the interval that is corrected over all of its table."""
    return Effect(row["mean"], row["corrected"]["low"], row["corrected"]["high"], row["seeds"])


def class_table(arms: Mapping[str, Any]) -> str:
    """AP50-95 of plain training and of tskd-yolo by class."""
    rows = []
    for plain, tskd in zip(arms["plain"]["classes"], arms["tskd"]["classes"], strict=True):
        means = [f"{who['AP50-95']['mean']:.3f}" for who in (plain, tskd)]
        gain = told(effect(tskd["AP50-95"]["effect"]))
        rows.append([plain["name"].replace("_", " "), str(plain["truths"]), *means, gain])
    return table(["class", "defects", "plain", "tskd-yolo", "gain in AP50-95"], rows)


def miss_table(arms: Mapping[str, Any]) -> str:
    """The share of missed defects at given false alarms per image."""
    rows = []
    for plain, tskd in zip(*(arms[arm]["effect_on_misses"] for arm in ("plain", "tskd")), strict=True):
        fewer = effect(tskd["fewer"])
        shares = [percent(who["miss"]) for who in (plain, tskd)]
        rows.append([f"{plain['false_alarms']:g}", *shares, f"{points(fewer.mean)} points ({interval(fewer)})"])
    return table(["false alarms per image", "plain misses", "tskd-yolo misses", "fewer"], rows)


def model_name(file: str) -> str:
    """``YOLO11n`` of ``yolo11n.pt``, of ``yolo11n.yaml`` and of either with a hash behind it."""
    return file.partition(".")[0].replace("yolo", "YOLO")


def percent(share: float) -> str:
    """A share in per cent."""
    return f"{100 * share:.0f} %"
