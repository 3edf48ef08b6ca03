"""What training took, and how soon an arm is as good as plain training ends up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

CURVE = "metrics/mAP50-95(B)"
"""The column of results.csv that is followed, on the validation images."""
SECONDS = {"time": "seconds", "process_time": "process_seconds"}
"""The clocks, by their columns of results.csv, and what a finished run calls its whole time by each.

A run on a CPU is timed by the processor's clock: other work, or a machine that slept, does not change it. Elsewhere the
processor waits for the device, and the clock on the wall is the only one.
"""
STOOD = 10.0
"""So many times the usual time of an epoch, and the machine stood still in it."""

Columns = Mapping[str, Sequence[float]]
"""Columns of a run's results.csv."""


def reached(curve: Sequence[float], times: Sequence[float], level: float) -> float | None:
    """The time from which on a curve stays at a level or above it; None where it ends below.

    Args:
        curve: Values, ``(E,)``; NaN is below any level.
        times: When each was reached, ``(E,)``.
        level: The level.
    """
    below = [place for place, value in enumerate(curve) if not value >= level]
    first = below[-1] + 1 if below else 0
    return times[first] if first < len(curve) else None


def to_plain(columns: Columns, plain: Columns, clock: str = "time") -> float | None:
    """The share of plain training's whole time after which an arm has for good what plain training ends with.

    That is ``t / T``: t is the time on the clock from which on the arm's mAP50-95 on the validation images is at least
    what plain training of the same seed has after its last epoch, T the time that plain training took. None where the
    arm does not get there, or a run left no curve.
    """
    if not columns.get(CURVE) or not plain.get(CURVE):
        return None
    time = reached(columns[CURVE], columns[clock], plain[CURVE][-1])
    return None if time is None else time / plain[clock][-1]


def epochs_for(time: Mapping[str, Any], plain: Mapping[str, Any], clock: str) -> int:
    """How many epochs of plain training take as long as another run did, at least 1.

    Args:
        time: What the other run left.
        plain: What plain training of the same seed left: its pace.
        clock: By which both are timed.
    """
    return max(1, round(time[SECONDS[clock]] / plain[SECONDS[clock]] * plain["epochs"]))


def stood_still(columns: Columns) -> int | None:
    """The epoch in which the machine stood still, by the clock on the wall; None where all took about as long."""
    taken = np.diff([0.0, *columns.get("time", ())])
    if len(taken) < 3 or taken.max() <= STOOD * np.median(taken):
        return None
    return int(columns["epoch"][int(taken.argmax())])


def summary_of_time(
    rows: Mapping[int, Any], curves: Mapping[int, Columns], plain: Mapping[int, Columns], clock: str = "time"
) -> Any:
    """Means over the finished seeds of an arm, and its way to plain training's accuracy by seed.

    The mean share is None where an arm does not get there in every seed: it would be that of the lucky ones.

    Args:
        rows: What the finished runs left, by seed.
        curves, plain: Columns of the arm and of plain training, by seed.
        clock: By which shares of plain training's time are told.
    """
    shares = {seed: to_plain(curves[seed], plain[seed], clock) for seed in rows if seed in plain}
    got = [share for share in shares.values() if share is not None]
    both = [(curves[seed][clock][-1], plain[seed][clock][-1]) for seed in shares if curves[seed] and plain[seed]]
    return {
        **{key: _mean([row[key] for row in rows.values()]) for key in ("epochs", "seconds", "process_seconds")},
        "of_plain": sum(mine for mine, _ in both) / sum(theirs for _, theirs in both) if both else None,
        "to_plain": {
            "seeds": {str(seed): share for seed, share in shares.items()},
            "reached": len(got),
            "mean": _mean(got) if len(got) == len(shares) else None,
        },
    }


def mean_over_minutes(curves: Mapping[int, Columns], clock: str = "time") -> tuple[list[float], list[float]]:
    """Minutes and mAP50-95 after each epoch that all runs of an arm have, both as means over these."""
    runs = [columns for columns in curves.values() if columns.get(CURVE)]
    epochs = min((len(columns[CURVE]) for columns in runs), default=0)
    minutes, values = ([float(np.mean([c[key][e] for c in runs])) for e in range(epochs)] for key in (clock, CURVE))
    return [minute / 60 for minute in minutes], values


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
