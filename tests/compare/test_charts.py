"""Charts: what is drawn is where it belongs, and every name is text."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import pytest

from tskd_yolo.compare import charts
from tskd_yolo.compare.charts import Bar, Series


def parsed(markup):
    return ET.fromstring(str(markup))


def paths(svg, kind):
    return [p for p in svg.iter("path") if p.get("class") == kind]


def points(path):
    return [tuple(map(float, pair.split())) for pair in path.get("d")[1:].split("L")]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.25, 0.5, 0.75, 1]), (0, 100, [0, 25, 50, 75, 100]),
     (-0.03, 0.05, [-0.04, -0.02, 0, 0.02, 0.04, 0.06]), (0, 0, [-0.5, -0.25, 0, 0.25, 0.5])],
)  # fmt: skip
def test_ticks_are_round_and_enclose_the_range(low, high, expected):
    assert charts.ticks(low, high) == pytest.approx(expected)


def test_seeds_are_thin_and_their_mean_over_common_epochs_thick():
    series = Series("plain", 2, [([1, 2, 3], [0.0, 2.0, 4.0]), ([1, 2], [2.0, 4.0])])
    svg = parsed(charts.lines("label", [series], x_label="epoch", y_label="loss"))
    assert len(paths(svg, "s2 thin")) == 2
    (thick,) = paths(svg, "s2")
    ends = [points(p) for p in paths(svg, "s2 thin")]
    assert len(points(thick)) == 2
    for i in range(2):  # in the middle between the two seeds
        assert points(thick)[i][1] == pytest.approx((ends[0][i][1] + ends[1][i][1]) / 2, abs=0.1)
    assert svg.get("role") == "img" and svg.get("aria-label") == "label"


def test_a_higher_value_stands_higher_and_everything_is_inside():
    svg = parsed(charts.lines("l", [Series("a", 0, [([1, 5], [0.1, 0.9])])], x_label="", y_label=""))
    (start, end) = points(paths(svg, "s0")[0])
    assert end[1] < start[1] and start[0] < end[0]
    assert all(0 <= x <= charts.WIDTH and 0 <= y <= charts.HEIGHT for x, y in (start, end))


def test_nan_one_point_and_nothing_are_drawn_as_what_they_are():
    assert "Nothing to draw" in charts.lines("l", [Series("a", 0, [([1], [math.nan])])], x_label="", y_label="")
    assert "Nothing to draw" in charts.lines("l", [], x_label="", y_label="")
    assert "Nothing to draw" in charts.bars("l", [("a", [])], x_label="")
    assert "<circle" in charts.lines("l", [Series("a", 0, [([1], [0.5])])], x_label="", y_label="")
    one = charts.lines("l", [Series("a", 0, [([1, 2, 3], [0.5, math.inf, 0.6])])], x_label="", y_label="")
    assert len(points(paths(parsed(one), "s0")[0])) == 2


def test_bars_start_at_zero_and_whiskers_span_the_interval():
    svg = parsed(charts.bars("l", [("up", [Bar(0, 2.0, 1.0, 3.0)]), ("down", [Bar(1, -2.0)])], x_label="points"))
    up, down = svg.iter("rect")
    zero = float(up.get("x"))
    assert float(down.get("x")) + float(down.get("width")) == pytest.approx(zero, abs=0.11)
    (whisker,) = (p for p in svg.iter("path") if p.get("class") == "whisker")
    left, right = float(whisker.get("d")[1:].split()[0]), float(whisker.get("d").split("H")[1].split("m")[0])
    assert (left + right) / 2 == pytest.approx(zero + float(up.get("width")), abs=0.2)


def test_a_whisker_that_is_too_long_is_cut_with_an_arrow():
    svg = parsed(charts.bars("l", [("a", [Bar(0, 1.0, -50.0, 52.0), Bar(1, 0.5, 0.2, 0.8)])], x_label="points"))
    cut, whole = (p.get("d") for p in svg.iter("path") if p.get("class") == "whisker")
    assert cut.count("l") == 4 and "l" not in whole
    assert max(float(r.get("width")) for r in svg.iter("rect")) > charts.WIDTH / 10, "the bar can be seen"
    assert charts.bars("l", [("a", [Bar(0, 0.0, -1.0, 1.0)])], x_label="")


def test_every_text_is_escaped():
    evil = '</svg><script>alert("x")</script>&'
    made = [
        charts.lines(evil, [Series(evil, 0, [([1, 2], [1, 2])])], x_label=evil, y_label=evil),
        charts.bars(evil, [(evil, [Bar(0, 1.0)])], x_label=evil),
        charts.legend([(evil, 0)]),
    ]
    for markup in made:
        parsed(markup)
        assert "<script" not in markup and "&lt;script" in markup


def test_a_long_name_is_cut_in_a_chart():
    assert "x" * 60 not in charts.bars("l", [("x" * 60, [Bar(0, 1.0)])], x_label="")


def test_more_arms_than_colours_are_told_apart():
    names = [(f"arm {i}", i) for i in range(12)]
    marks = [(p.get("class"), p.get("stroke-dasharray")) for p in parsed(charts.legend(names)).iter("path")]
    assert len(set(marks)) == 12 and {kind for kind, _ in marks} == {f"s{i}" for i in range(8)}
    bars = [("a", [Bar(1, 1.0), Bar(9, 1.0)])]
    drawn = [charts.bars("l", bars, x_label=""), charts.legend(names[1::8], filled=True)]
    assert all([r.get("class") for r in parsed(d).iter("rect")] == ["s1", "s1 again"] for d in drawn)


def test_minutes_are_marked_between_whole_numbers_too():
    series = [Series("a", 0, [([0.1, 0.9], [0.1, 0.9])])]
    whole, all_of_them = (
        len([t for t in parsed(charts.lines("l", series, x_label="", y_label="", whole_x=w)).iter("text")])
        for w in (True, False)
    )
    assert all_of_them > whole
