"""Charts as inline SVG: readable without colour, without a script, and in a column of 360 pixels.

Every series has a colour (class ``s0`` ... ``s7``, defined by the page for its light and dark scheme) and a dash. From
the ninth on colours come again, with other dashes and with bars that are not filled. All text is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from markupsafe import Markup

WIDTH, HEIGHT = 360, 216
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 8, 34
LONGEST = 3
"""Length of a whisker, in longest bars, from which it is cut."""
DASHES = "", "6 3", "2 2", "8 3 2 3", "12 4", "4 2 1 2", "1 3", "10 2 2 2 2 2"
COLOURS = len(DASHES)
NOTHING = Markup('<p class="note">Nothing to draw.</p>')
"""Stands where a chart would be empty."""

Run = tuple[Sequence[float], Sequence[float]]
"""x and y of one line."""


class Series(NamedTuple):
    """A named family of lines, drawn thin, with their mean drawn thick; ``style`` picks colour and dash."""

    name: str
    style: int
    runs: Sequence[Run]


class Bar(NamedTuple):
    """One value with the bounds of its interval, if it has one."""

    style: int
    value: float
    low: float | None = None
    high: float | None = None


def lines(
    label: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    whole_x: bool = True,
) -> Markup:
    """Curves: thin lines for runs, a thick one for their mean over the x that all of them have.

    Args:
        label: What the chart shows, for a reader who does not see it.
        series: The families of lines.
        x_label, y_label: What stands at the axes.
        log_x: Whether x is logarithmic.
        whole_x: Whether only whole numbers are marked on x, as of epochs.
    """
    families = [(s.style, [_finite(run) for run in s.runs]) for s in series]
    points = [point for _, runs in families for run in runs for point in run]
    if not points:
        return NOTHING
    xs, ys = zip(*points)
    place_x = _Scale(min(xs), max(xs), LEFT, WIDTH - RIGHT, log=log_x)
    y_ticks = ticks(min(ys), max(ys))
    place_y = _Scale(min(y_ticks[0], *ys), max(y_ticks[-1], *ys), HEIGHT - BOTTOM, TOP)
    parts = [_grid(place_x, place_y, _ticks_x(xs, log_x, whole_x), y_ticks, x_label, y_label)]
    for style, runs in families:
        if len(runs) > 1:
            parts += [_path(run, place_x, place_y, f"{_colour(style)} thin", style) for run in runs]
            runs = [mean_line(runs)]
        parts += [_path(run, place_x, place_y, _colour(style), style) for run in runs]
    return _svg(label, HEIGHT, parts)


def bars(label: str, groups: Sequence[tuple[str, Sequence[Bar]]], *, x_label: str) -> Markup:
    """Horizontal bars from 0, in named groups, with whiskers for intervals; one that is cut ends in an arrow."""
    drawn = [bar for _, group in groups for bar in group]
    if not drawn:
        return NOTHING
    # Whiskers of two seeds are so long that beside them no bar could be seen.
    most = LONGEST * max(abs(bar.value) for bar in drawn) or math.inf
    marks, place = _bar_scale(drawn, most)
    parts: list[Markup] = []
    y = 4
    for name, group in groups:
        shown = name if len(name) <= 48 else name[:47] + "…"
        parts.append(Markup('<text x="4" y="{}" class="name">{}</text>').format(y + 11, shown))
        y += 16
        top = y - 1
        for bar in group:
            parts.append(_bar(bar, place, y, most))
            y += 13
        # Beside its bars only: the name stands where the axis is.
        parts.append(
            Markup('<line class="axis" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(_px(place(0)), top, y - 3)
        )
        y += 8
    axis = [
        Markup('<line class="grid" x1="{0}" x2="{0}" y1="4" y2="{1}"/><text x="{0}" y="{2}" class="mid">{3}</text>')
        .format(_px(place(m)), y, y + 13, number(m)) for m in marks
    ]  # fmt: skip
    title = Markup('<text x="{}" y="{}" class="mid">{}</text>').format(WIDTH // 2, y + 28, x_label)
    return _svg(label, y + 34, [*axis, *parts, title])


def _bar_scale(drawn: Sequence[Bar], most: float) -> tuple[list[float], _Scale]:
    """Ticks and scale of bars from 0 and of their whiskers, which are cut at ``most``."""
    values = [v for bar in drawn for v in (bar.value, bar.low, bar.high) if v is not None]
    values = [min(max(v, -most), most) for v in values]
    marks = ticks(min(0.0, *values), max(0.0, *values))
    return marks, _Scale(min(marks[0], *values), max(marks[-1], *values), 12, WIDTH - 12)


def _bar(bar: Bar, place: Callable[[float], float], y: int, most: float) -> Markup:
    start, end = sorted((place(0), place(bar.value)))
    parts = Markup('<rect class="{}" x="{}" y="{}" width="{}" height="9"/>').format(
        _colour(bar.style) + (" again" if bar.style >= COLOURS else ""), _px(start), y, _px(max(end - start, 0.5))
    )
    if bar.low is not None and bar.high is not None:
        left, right = place(max(bar.low, -most)), place(min(bar.high, most))
        start_cap = "m4 0l-4 3l4 3m-4 -3" if bar.low < -most else "v6m0 -3"
        end_cap = "m-4 -3l4 3l-4 3" if bar.high > most else "m0 -3v6"
        parts += Markup('<path class="whisker" d="M{} {}{}H{}{}"/>').format(
            _px(left), y + 1.5, start_cap, _px(right), end_cap
        )
    return parts


def legend(names: Sequence[tuple[str, int]], *, filled: bool = False) -> Markup:
    """Name of every series with its colour, and its dash or, where it is ``filled``, its bar."""
    entry = Markup('<li><svg width="34" height="12" aria-hidden="true">{}</svg>{}</li>')
    line = Markup('<path class="{}" d="M1 6H33" stroke-dasharray="{}"/>')
    marks = [_bar(Bar(style, 30), lambda v: v + 2, 1, 0) if filled else line.format(_colour(style), _dash(style))
             for _, style in names]  # fmt: skip
    items = [entry.format(mark, name) for mark, (name, _) in zip(marks, names)]
    return Markup('<ul class="legend">{}</ul>').format(Markup("").join(items))


def _colour(style: int) -> str:
    return f"s{style % COLOURS}"


def _dash(style: int) -> str:
    return DASHES[(style + style // COLOURS) % COLOURS]


def mean_line(runs: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """Mean line over the x that every run has."""
    tables = [dict(run) for run in runs]
    return [(x, sum(t[x] for t in tables) / len(tables)) for x in sorted(set.intersection(*(set(t) for t in tables)))]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers that enclose a range."""
    if high <= low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    raw = (high - low) / (count - 1)
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def number(value: float) -> str:
    """A number for an axis, short, with a real minus sign."""
    return f"{value:.4g}".replace("-", "−")


class _Scale:
    """From values to pixels."""

    def __init__(self, low: float, high: float, start: float, end: float, log: bool = False) -> None:
        self.of = math.log10 if log else float
        self.low, self.span = self.of(low), (self.of(high) - self.of(low)) or 1.0
        self.start, self.end = start, end

    def __call__(self, value: float) -> float:
        return self.start + (self.of(value) - self.low) / self.span * (self.end - self.start)


def _finite(run: Run) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in zip(*run) if math.isfinite(x) and math.isfinite(y)]


def _ticks_x(xs: Sequence[float], log: bool, whole: bool) -> list[float]:
    if log:
        first, last = math.ceil(math.log10(min(xs)) - 1e-9), math.floor(math.log10(max(xs)) + 1e-9)
        return [10.0**i for i in range(first, last + 1)]
    inside = [t for t in ticks(min(xs), max(xs)) if min(xs) <= t <= max(xs)]
    return [t for t in inside if t == int(t)] if whole else inside


def _grid(
    x: _Scale, y: _Scale, x_ticks: Sequence[float], y_ticks: Sequence[float], x_label: str, y_label: str
) -> Markup:
    row = Markup('<line class="grid" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/><text x="{3}" y="{4}" class="end">{5}</text>')
    column = Markup('<text x="{}" y="{}" class="mid">{}</text>')
    parts = [row.format(LEFT, WIDTH - RIGHT, _px(y(t)), LEFT - 5, _px(y(t) + 4), number(t)) for t in y_ticks]
    parts += [column.format(_px(x(t)), HEIGHT - BOTTOM + 14, number(t)) for t in x_ticks]
    parts.append(column.format((LEFT + WIDTH - RIGHT) // 2, HEIGHT - 4, x_label))
    parts.append(
        Markup('<text transform="translate(10 {}) rotate(-90)" class="mid">{}</text>').format(
            (TOP + HEIGHT - BOTTOM) // 2, y_label
        )
    )
    return Markup("").join(parts)


def _path(run: Sequence[tuple[float, float]], x: _Scale, y: _Scale, kind: str, index: int) -> Markup:
    if len(run) == 1:
        return Markup('<circle class="{}" cx="{}" cy="{}" r="3"/>').format(kind, _px(x(run[0][0])), _px(y(run[0][1])))
    way = "L".join(f"{_px(x(a))} {_px(y(b))}" for a, b in run)
    return Markup('<path class="{}" stroke-dasharray="{}" d="M{}"/>').format(kind, _dash(index), way)


def _px(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _svg(label: str, height: int, parts: Sequence[Markup]) -> Markup:
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, height, label, Markup("").join(parts)
    )
