"""Charts of the measured figures as SVG files that follow the reader's light or dark scheme."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import judged
from markupsafe import Markup
from measured import ARMS, pair_name, teacher_name
from results import effect, load

from tskd_yolo.compare.charts import DASHES, Bar, Series, bars, lines
from tskd_yolo.compare.timing import mean_over_minutes

STYLE = """
svg { background: var(--page); --page: #fff; --text: #1b1f24; --soft: #4d5560; --line: #c9ced6;
  --s0: #3d4550; --s1: #0a66b5; --s2: #b34700; --s3: #00754f; }
@media (prefers-color-scheme: dark) { svg { --page: #14171b; --text: #e8eaed; --soft: #aeb5bf; --line: #434a54;
  --s0: #d0d5db; --s1: #62b0ff; --s2: #ff9d5c; --s3: #45cf9b; } }
text { font: 11px system-ui, sans-serif; fill: var(--soft); }
text.name { font-size: 12px; fill: var(--text); stroke: var(--page); stroke-width: 4px; paint-order: stroke; }
text.mid { text-anchor: middle; }
text.end { text-anchor: end; }
path, line { fill: none; }
path { stroke-width: 2; stroke-linejoin: round; }
.thin { stroke-width: .8; opacity: .55; }
.grid { stroke: var(--line); stroke-width: .7; }
.axis { stroke: var(--text); stroke-width: 1.2; }
path.whisker { stroke: var(--text); stroke-width: 1.3; }
""" + "".join(f".s{i} {{ stroke: var(--s{i}); }} rect.s{i} {{ fill: var(--s{i}); stroke: none; }}\n" for i in range(4))

MARGIN, ROW, WIDTH = 8, 17, 480
"""Around a chart, of a legend's line, and of the chart as it is shown, in pixels."""
NAMES, JUDGED = ({arm: name.replace("`", "") for arm, name in names.items()} for names in (ARMS, judged.ARMS))


def files() -> dict[str, str]:
    """Every chart, by its file's name."""
    found, asked = load("screening_neu_128")["comparison"], load("finetune_neu_128")["comparison"]
    return {
        "judged-curves.svg": curves(asked, NAMES),
        "judged-gain.svg": gain(asked, JUDGED),
        "cached-minutes.svg": minutes(load("finetune_cached_again_neu_128")["comparison"], judged.CACHED),
        "screening-curves.svg": curves(found, NAMES, teacher_name(found)),
        "screening-gain.svg": gain(found, NAMES),
        "screening-classes.svg": classes(found),
        "cosines.svg": cosines(found),
        "step-cost.svg": step_cost(),
    }


def curves(found: Mapping[str, Any], names: Mapping[str, str], teacher: str = "") -> str:
    """mAP50-95 over the epochs, every seed and the mean; and the teacher's, measured on the same images."""
    series = [Series(name, i, _runs(found, arm, "metrics/mAP50-95(B)")) for i, (arm, name) in enumerate(names.items())]
    if teacher:
        epochs, top = series[0].runs[0][0], found["teacher"]["last"]["mAP50-95"]
        series.append(Series(f"teacher, {teacher}", 3, [((epochs[0], epochs[-1]), (top, top))]))
    label = "mAP50-95 on the validation images over epochs: thin lines are seeds, thick ones their mean"
    return finished(lines(label, series, x_label="epoch", y_label="mAP50-95"), [(s.name, s.style) for s in series])


def minutes(found: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """mAP50-95 over the minutes of training, the mean of the seeds."""
    means = [mean_over_minutes(found["curves"][arm], found["clock"]) for arm in names]
    series = [Series(name, i, [mean]) for i, (name, mean) in enumerate(zip(names.values(), means, strict=True))]
    chart = lines(
        "mAP50-95 on the validation images over minutes of training",
        series,
        x_label="minutes of training",
        y_label="mAP50-95",
        whole_x=False,
    )
    return finished(chart, [(s.name, s.style) for s in series])


def _runs(found: Mapping[str, Any], arm: str, column: str) -> list[tuple[Sequence[float], Sequence[float]]]:
    return [(run["epoch"], run[column]) for run in found["curves"][arm].values()]


def gain(found: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Points over plain training, with the interval."""
    groups = [
        (name, [_bar(2 if arm == "tskd" else 1, found["arms"][arm]["effect"]["mAP50-95"])])
        for arm, name in names.items()
        if arm != "plain"
    ]
    label = "Points of mAP50-95 over plain training, with 95 % intervals"
    return finished(bars(label, groups, x_label="points of mAP50-95 over plain training, 95 % interval"))


def _bar(style: int, row: Mapping[str, Any]) -> Bar:
    told = effect(row)
    low, high = (None if bound is None else 100 * bound for bound in (told.low, told.high))
    return Bar(style, 100 * told.mean, low, high)


def classes(found: Mapping[str, Any]) -> str:
    """Points over plain training of every class."""
    groups = []
    for place, entry in enumerate(found["arms"]["plain"]["classes"]):
        rows = {i: found["arms"][arm]["classes"][place] for i, arm in enumerate(ARMS) if arm != "plain"}
        groups.append((entry["name"].replace("_", " "), [_bar(i, row["AP50-95"]["effect"]) for i, row in rows.items()]))
    legend = [(name, i) for i, (arm, name) in enumerate(NAMES.items()) if arm != "plain"]
    label = "Points of AP50-95 over plain training per class, with 95 % intervals"
    return finished(bars(label, groups, x_label="points of AP50-95 over plain training, 95 % interval"), legend)


def cosines(found: Mapping[str, Any]) -> str:
    """Whether each term works with the detection loss or against it, over the epochs."""
    columns = {"DED": "cosine/ded(stride16)", "CRD": "cosine/crd(neck)"}
    series = [Series(term, i, _runs(found, "tskd", column)) for i, (term, column) in enumerate(columns.items(), 1)]
    label = "Cosine of each term's gradient with the detection loss's over epochs"
    return finished(lines(label, series, x_label="epoch", y_label="cosine"), [(s.name, s.style) for s in series])


def step_cost() -> str:
    """Seconds of a training step, and its floor."""
    kinds = {
        "floor: plain step + teacher": lambda row: row["student_step_s"] + row["teacher_forward_s"],
        "tskd-yolo": lambda row: row["distill_step_s"],
        "distill_model=": lambda row: row["builtin_step_s"],
    }
    styles = {"floor: plain step + teacher": 0, "tskd-yolo": 2, "distill_model=": 1}
    groups = [
        (pair_name(row["pair"]), [Bar(styles[name], of(row)) for name, of in kinds.items()])
        for row in load("step_cost_cpu")
    ]
    return finished(bars("Seconds of a training step", groups, x_label="seconds per step"), list(styles.items()))


def finished(svg: Markup, legend: Sequence[tuple[str, int]] = ()) -> str:
    """A chart as a file: with its style, a margin and its legend."""
    found = re.fullmatch(r'<svg class="chart" viewBox="0 0 (\d+) (\d+)"( .*?)>(.*)</svg>', str(svg), re.DOTALL)
    assert found is not None
    width, height, rest, content = int(found[1]), int(found[2]), found[3], found[4]
    axes = "".join(re.findall(AXIS, content))  # behind the names, which stand over it
    content = axes + re.sub(AXIS, "", content)
    total = height + ROW * len(legend) + (MARGIN if legend else 0)
    mark = BAR if "<rect" in content else LINE
    entries = [_entry(mark, name, style, height + MARGIN + ROW * row) for row, (name, style) in enumerate(legend)]
    box = f"{-MARGIN} {-MARGIN} {width + 2 * MARGIN} {total + 2 * MARGIN}"
    size = f'width="{WIDTH}" height="{round(WIDTH * (total + 2 * MARGIN) / (width + 2 * MARGIN))}"'
    start = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" {size}{rest}>'
    return "\n".join([start, f"<style>{STYLE}</style>", content, *entries, "</svg>", ""])


AXIS = r'<line class="axis"[^>]*/>'
LINE = Markup('<path class="s{0}" stroke-dasharray="{1}" d="M44 {2}H78"/>')
BAR = Markup('<rect class="s{0}" x="62" y="{3}" width="16" height="9"/>')


def _entry(mark: Markup, name: str, style: int, y: int) -> str:
    text = Markup('<text class="name" x="86" y="{}">{}</text>').format(y + 4, name)
    return mark.format(style, DASHES[style % len(DASHES)], y, y - 5) + text
