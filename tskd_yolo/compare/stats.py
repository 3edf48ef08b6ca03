"""Does it help? Paired differences over seeds, their interval, and the verdict in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Effect:
    """A paired difference over seeds: its mean, the bounds of its 95 % interval (None from one seed), and the seeds."""

    mean: float
    low: float | None
    high: float | None
    seeds: int

    @property
    def verdict(self) -> str:
        """``helps`` where the whole interval is above 0, ``hurts`` where it is below, ``no evidence`` otherwise."""
        if self.low is None or self.high is None:
            return "no evidence"
        return "helps" if self.low > 0 else "hurts" if self.high < 0 else "no evidence"

    def row(self) -> dict[str, Any]:
        """As JSON takes it, with the verdict."""
        return {**asdict(self), "verdict": self.verdict}


def paired(treated: Mapping[int, float], plain: Mapping[int, float]) -> Effect | None:
    """Mean difference over the seeds that both have, with the paired t interval; None without a common seed.

    ``d_s = treated_s - plain_s``; the interval is ``mean(d) +- t(0.975, n - 1) sd(d) / sqrt(n)``, which presumes that
    the differences are about normally distributed.
    """
    seeds = sorted(set(treated) & set(plain))
    if not seeds:
        return None
    differences = np.array([treated[s] - plain[s] for s in seeds], float)
    mean, n = float(differences.mean()), len(seeds)
    if n == 1:
        return Effect(mean, None, None, 1)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * differences.std(ddof=1) / np.sqrt(n))
    return Effect(mean, mean - half, mean + half, n)


def recovered(treated: Mapping[int, float], plain: Mapping[int, float], teacher: float) -> float | None:
    """Share of the distance from plain training to the teacher; None where the teacher is not ahead."""
    seeds = set(treated) & set(plain)
    if not seeds:
        return None
    base = float(np.mean([plain[s] for s in seeds]))
    gain = float(np.mean([treated[s] for s in seeds])) - base
    return gain / (teacher - base) if teacher > base else None


def points(value: float | None, sign: bool = False) -> str:
    """A share of 1 in points: 0.179 is 17.9; a dash for None."""
    if value is None:
        return "–"
    rounded = round(100 * value, 1) + 0.0  # no minus before a zero
    return f"{rounded:{'+' if sign and rounded else ''}.1f}".replace("-", "−")


def interval(effect: Effect | None) -> str:
    """``+0.4 to +3.4``, or a dash."""
    if effect is None or effect.low is None:
        return "–"
    return f"{points(effect.low, sign=True)} to {points(effect.high, sign=True)}"


def sentence(arm: str, effect: Effect | None, metric: str = "mAP50-95", against: str = "plain") -> str:
    """The verdict on one arm, with the number of seeds and the interval."""
    if effect is None:
        return f"{arm}: no evidence: it shares no finished seed with {against}."
    gain = f"{points(effect.mean, sign=True)} points of {metric} over {against}"
    if effect.low is None:
        return f"{arm}: no evidence: {gain} with 1 seed, and one seed gives no interval; run 5 or more."
    span = f"95 % interval {interval(effect)}, {effect.seeds} seeds"
    why = {"helps": "", "hurts": "", "no evidence": "; the interval holds 0"}[effect.verdict]
    return f"{arm}: {effect.verdict}: {gain} ({span}{why})."
