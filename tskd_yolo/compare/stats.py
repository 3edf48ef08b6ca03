"""Does it help? Paired differences over seeds, their interval, the correction over arms, and the verdict in words."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
ROUNDED = 1e-5
"""Unit of the last digit of the figures that are compared."""
LEAD = 0.01
"""By how much a teacher has to be ahead for the way to it to be told."""


@dataclass(frozen=True)
class Effect:
    """A paired difference over seeds: its mean, the bounds of its 95 % interval (None from one seed), and the seeds."""

    mean: float
    low: float | None
    high: float | None
    seeds: int

    @property
    def p(self) -> float | None:
        """The two-sided p value of the paired t test; None from one seed."""
        if self.low is None or self.high is None:
            return None
        if self.high == self.low:
            return 0.0 if self.mean else 1.0
        error = (self.high - self.low) / 2 / _quantile(CONFIDENCE, self.seeds)
        return float(2 * stats.t.sf(abs(self.mean) / error, self.seeds - 1))

    def at(self, confidence: float) -> tuple[float, float] | None:
        """The bounds of the interval of another confidence; None from one seed."""
        if self.low is None or self.high is None:
            return None
        half = (self.high - self.low) / 2 * _quantile(confidence, self.seeds) / _quantile(CONFIDENCE, self.seeds)
        return self.mean - half, self.mean + half

    def row(self) -> dict[str, Any]:
        """As JSON takes it, with its own p value: nothing else that was looked at is taken into account."""
        return {**asdict(self), "p": self.p}


@dataclass(frozen=True)
class Corrected:
    """What is left of an effect that is one of several.

    Args:
        p: Adjusted p value.
        low, high: Bounds of the interval of ``confidence``; None where there is none.
        confidence: That of the step at which Holm's procedure decided about this effect, so the interval lies on one
            side of 0 exactly where there is a verdict. Of all corrected intervals together it is the side of 0 that is
            guaranteed with 95 %, not the length.
        of: Size of the family.
        verdict: ``helps``, ``hurts`` or ``no evidence``.
    """

    p: float
    low: float | None
    high: float | None
    confidence: float
    of: int
    verdict: str

    def row(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)


def holm(effects: Mapping[str, Effect | None], of: int | None = None) -> dict[str, Corrected]:
    """Corrects effects for being several: where none is true, a verdict on any of them comes up in 5 % at most.

    With p values ``p_1 <= ... <= p_m`` the adjusted one is ``max over j <= k of min(1, (m - j + 1) p_j)``, and there is
    a verdict where it is below 0.05. The effects may depend on each other, as those of arms do that share their plain
    runs. (S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6(2),
    1979.)

    Args:
        effects: By name; one that is None, or of one seed, counts with a p value of 1.
        of: Size of the family, where more was looked at than is given here.
    """
    of = max(of or 0, len(effects))
    p = {name: 1.0 if effect is None or effect.p is None else effect.p for name, effect in effects.items()}
    found: dict[str, Corrected] = {}
    adjusted, divisor = 0.0, of
    for rank, name in enumerate(sorted(p, key=p.__getitem__)):
        if adjusted < 1 - CONFIDENCE:  # the procedure goes on to this one
            divisor = of - rank
        adjusted = max(adjusted, min(1.0, (of - rank) * p[name]))
        found[name] = _corrected(effects[name], adjusted, 1 - (1 - CONFIDENCE) / divisor, of)
    return {name: found[name] for name in effects}


def _corrected(effect: Effect | None, p: float, confidence: float, of: int) -> Corrected:
    low, high = (effect and effect.at(confidence)) or (None, None)
    decided = effect is not None and p < 1 - CONFIDENCE
    verdict = ("helps" if effect.mean > 0 else "hurts") if effect and decided else "no evidence"
    return Corrected(p, low, high, confidence, of, verdict)


@functools.cache
def _quantile(confidence: float, seeds: int) -> float:
    """By which the standard error of a mean over seeds is multiplied for its interval: of Student's t."""
    return float(stats.t.ppf((1 + confidence) / 2, seeds - 1))


def paired(treated: Mapping[int, float], plain: Mapping[int, float]) -> Effect | None:
    """Mean difference over the seeds that both have, with the paired t interval; None without a common seed.

    A seed counts where both figures are finite: one that is not would be all of the mean.

    ``d_s = treated_s - plain_s``; the interval is ``mean(d) +- t(0.975, n - 1) sd(d) / sqrt(n)``, which presumes that
    the differences are about normally distributed.
    """
    differences = np.array([treated[s] - plain[s] for s in sorted(set(treated) & set(plain))], float)
    differences = differences[np.isfinite(differences)]
    if not len(differences):
        return None
    mean, n = float(differences.mean()), len(differences)
    if n == 1:
        return Effect(mean, None, None, 1)
    spread = float(differences.std(ddof=1))
    if mean:  # differences that are alike to the last digit of figures that are rounded are no proof
        spread = max(spread, ROUNDED)
    half = _quantile(CONFIDENCE, n) * spread / n**0.5
    return Effect(mean, mean - half, mean + half, n)


def recovered(treated: Mapping[int, float], plain: Mapping[int, float], teacher: float) -> float | None:
    """Share of the distance from plain training to the teacher; None where the teacher is not a point ahead: a share of
    next to nothing says nothing.
    """
    seeds = set(treated) & set(plain)
    if not seeds:
        return None
    base = float(np.mean([plain[s] for s in seeds]))
    gain = float(np.mean([treated[s] for s in seeds])) - base
    return gain / (teacher - base) if teacher - base >= LEAD else None


def points(value: float | None, sign: bool = False) -> str:
    """A share of 1 in points: 0.179 is 17.9; a dash for None."""
    if value is None:
        return "–"
    rounded = round(100 * value, 1) + 0.0  # no minus before a zero
    return f"{rounded:{'+' if sign and rounded else ''}.1f}".replace("-", "−")


def interval(effect: Effect | Corrected | None) -> str:
    """``+0.4 to +3.4``, or a dash."""
    if effect is None or effect.low is None:
        return "–"
    return f"{_bound(effect.low)} to {_bound(effect.high)}"


def _bound(value: float | None) -> str:
    """Points; of a bound next to 0 as many digits as show its side, because the verdict depends on that."""
    told = points(value, sign=True)
    if value is None or told != "0.0":
        return told
    digits = next((digits for digits in (2, 3) if round(100 * value, digits)), 1)
    return f"{100 * value:+.{digits}f}".replace("-", "−") if digits > 1 else told


def probability(p: float | None) -> str:
    """A p value with two digits, or as many as tell it from 0.05: ``0.031``, ``0.0496``, ``< 0.001``, or a dash."""
    if p is None:
        return "–"
    limit = round(1 - CONFIDENCE, 9)
    told = (f"{p:.{digits}g}" for digits in range(2, 17))
    return "< 0.001" if p < 0.001 else next(text for text in told if (float(text) < limit) == (p < limit))


def sentence(
    arm: str,
    effect: Effect | None,
    corrected: Corrected | None = None,
    metric: str = "mAP50-95",
    against: str = "plain",
) -> str:
    """The verdict on one arm, with the number of seeds, the interval, and the correction over arms.

    Args:
        arm: Its name.
        effect: Its effect.
        corrected: What :func:`holm` left of it; by default the arm is the only one.
        metric, against: What is told.
    """
    if effect is None:
        return f"{arm}: no evidence: it shares no finished seed with {against}."
    gain = f"{points(effect.mean, sign=True)} points of {metric} over {against}"
    if effect.low is None:
        return f"{arm}: no evidence: {gain} with 1 seed, and one seed gives no interval; run 5 or more."
    told = corrected or holm({arm: effect})[arm]
    parts = [f"95 % interval {interval(effect)}, {effect.seeds} seeds"]
    if told.of > 1:
        p = probability(told.p)
        parts.append(f"corrected for {told.of} arms {interval(told)}, p {p if p.startswith('<') else '= ' + p}")
    if told.verdict == "no evidence":
        parts.append("the interval holds 0" if told.of == 1 else "the corrected interval holds 0")
    return f"{arm}: {told.verdict}: {gain} ({'; '.join(parts)})."
