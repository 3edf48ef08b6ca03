"""Text, JSON and page of a check: written both or not at all, class names are text, and the page fits a telephone."""

from __future__ import annotations

import html
import json
import os
import re
from pathlib import Path

import pytest

from tests.check.helpers import COST, EMPTY, summary
from tests.compare import test_report as pages
from tskd_yolo.check import report
from tskd_yolo.config import ConfigError


def test_a_page_loads_and_runs_nothing_and_names_are_text():
    text = report.check_page(summary())
    tags = pages.Tags(text).tags
    assert not {tag for tag, _ in tags} & {"script", "link", "img", "iframe"} and "default-src 'none'" in text
    assert "<script>" not in text and "&lt;script&gt;alert(1)&lt;/script&gt;" in text and "{{ 7 * 7 }}" in text
    assert "<b>odd" not in text and "&lt;t&gt;.pt" in text and "&lt;a&gt;.png" in text
    words = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text.split("<main")[1]))
    first = words.index("go with a warning : 1 warning, nothing that forbids this run. ")
    assert first < words.index("What to do: look.") < words.index("Classes and headroom") < words.index("Memory and")
    for part in ("9,430,114", "60 the same file, 1 nearly the same picture; the first of them", "0.91", "−"):
        assert part in words, part
    for tag, attributes in tags:
        if tag == "th":
            assert attributes["scope"] in {"row", "col"}
        if attributes.get("class") == "scroll":
            assert attributes["tabindex"] == "0" and attributes["aria-label"]


@pytest.mark.parametrize("more", [EMPTY, {**EMPTY, "verdict": "no", "sentence": "no: 1 reason"}])
def test_a_check_that_knows_nothing_has_a_page_too(more):
    found = summary(**more)
    assert "Nothing speaks against" in report.check_page(found) and report.text(found) == found["sentence"] + "\n"


def test_the_text_tells_verdict_reasons_remedies_and_tables():
    text = report.text(summary())
    assert (
        text.startswith("go with a warning: 1 warning") and "warning  labels: <b>odd</b>.\n           -> look." in text
    )
    assert "stride 8 from the teacher's 16: 64 channels with 64 of 128" in text and "unpaired  levels" in text
    assert "the teacher's <i> have no partner in the data" in text
    assert "10 steps and a validation: 23.0 s an epoch, 38.3 min for the run" in text
    assert "with teacher_cache, once every view is kept: 18.0 s an epoch, 33.3 min for the run" in text


def test_a_cost_without_a_cache_says_so():
    assert "not possible with these settings" in report.cost_lines({**COST.row(), "cached_run": None})[-1]


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.0123, "12 ms"), (1.0, "1.0 s"), (119, "119.0 s"), (300, "5.0 min"), (9000, "2.5 h")]
)
def test_a_time_is_told_in_a_unit_that_fits(seconds, words):
    assert report.span(seconds) == words


# Files ----------------------------------------------------------------------------------------------------------------


def test_the_default_folder_counts_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("check", "check-2", "check-3"):
        assert report.place(None) is None
        out = report.write(None, summary())
        assert out == tmp_path / "runs" / "check" / name
        assert {file.name for file in out.iterdir()} == report.FILES
    assert sorted(p.name for p in (tmp_path / "runs" / "check").iterdir()) == ["check", "check-2", "check-3"]


def test_a_place_that_cannot_be_written_is_told_at_once(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        report.place(tmp_path / "file" / "x" / "check")
    assert report.place(tmp_path / "new" / "check") == tmp_path / "new" / "check"
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "nothing stays of the trial"


def test_checks_that_end_together_have_a_folder_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    counted, told = report.increment_path, []

    def late(path):
        told.append(counted(path))
        if len(told) == 1:
            report.write(None, summary(seconds=2.0))  # another check ends before this one takes its number
        return told[0] if len(told) == 1 else counted(path)

    monkeypatch.setattr(report, "increment_path", late)
    report.write(None, summary(seconds=1.0))
    seconds = {
        place.name: json.loads((place / "check.json").read_text())["seconds"]
        for place in (tmp_path / "runs" / "check").iterdir()
    }
    assert sorted(seconds.values()) == [1.0, 2.0] and sorted(seconds) == ["check", "check-2"]


def test_an_earlier_check_is_replaced_and_anything_else_is_not(tmp_path):
    for seconds in (1.0, 2.0):
        report.write(tmp_path / "out", summary(seconds=seconds))
        assert json.loads((tmp_path / "out" / "check.json").read_text())["seconds"] == seconds
    (tmp_path / "out" / "mine.txt").touch()
    with pytest.raises(ConfigError, match="out is there and holds no check"):
        report.place(tmp_path / "out")
    with pytest.raises(ConfigError):
        report.place(tmp_path / "out" / "mine.txt")


@pytest.mark.parametrize("failing", ["check.json", "check.html", "out"])
def test_both_files_are_written_or_neither(failing, tmp_path, monkeypatch):
    report.write(tmp_path / "out", summary(seconds=1.0))
    put = {name: getattr(os, name) for name in ("replace", "rename")}

    def full(name):
        def move(source, target):
            if Path(target).name == failing and Path(target).parent != Path(source):
                raise OSError(28, "No space left on device")
            put[name](source, target)

        return move

    for name in put:
        monkeypatch.setattr(os, name, full(name))
    with pytest.raises(OSError):
        report.write(tmp_path / "out", summary(seconds=2.0))
    assert json.loads((tmp_path / "out" / "check.json").read_text())["seconds"] == 1.0
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


# In a browser ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pages.in_chromium
@pytest.mark.parametrize("width", [360, 1200])
def test_a_browser_shows_the_page_without_scrolling_sideways(width, tmp_path):
    probe = f"<script>{Path(pages.__file__).with_name('probe.js').read_text()}</script></body>"
    text = re.sub(r"<meta http-equiv[^>]+>", "", report.check_page(summary())).replace("</body>", probe)
    frame = f'<iframe style="width: {width}px; height: 900px; border: 0" srcdoc="{html.escape(text)}"></iframe>'
    file = tmp_path / "page.html"
    file.write_text(f"<!doctype html><meta charset='utf-8'><title></title>{frame}", encoding="utf-8")
    dom = pages.chromium(tmp_path, "--window-size=1300,1000", "--dump-dom", file.as_uri()).decode("utf-8")
    found = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", dom, re.S)[1]))
    assert found["inner"] == width and found["wide"] <= width, found
    assert found["focused"] == found["reached"] > 4, found
