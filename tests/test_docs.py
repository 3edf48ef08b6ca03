"""The documentation: what is generated is up to date, no measured figure is typed by hand, links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from tskd_yolo.config import DEFAULTS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
GENERATED = re.compile(r"<!-- generated: (.+?) -->(.*?)<!-- /generated -->", re.DOTALL)
NO_PROSE = [
    GENERATED,
    re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE),  # code and formulas
    re.compile(r"^    .*$", re.MULTILINE),
    re.compile(r"\$`.*?`\$|`[^`]*`"),
    re.compile(r"<[^>]*>|\]\([^)]*\)"),
]
FIGURE = re.compile(r"\d+\.\d+|\d+ ?%|\d+ points|\d+ times")
"""What a measured figure looks like."""
NOT_MEASURED = re.compile(r"Python 3\.10|AGPL-3\.0|0\.01, 0\.1 (?:or|and) 1 false alarms")


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.soak  # .ci/run makes the pages too, and finds what has changed
def test_what_is_generated_is_up_to_date():
    result = python(str(DOCS / "generate.py"), "--check")
    assert result.returncode == 0, f"run python docs/generate.py\n{result.stdout}{result.stderr}"


def test_the_readme_and_the_recipe_tell_generated_results():
    names = [name for name, _ in GENERATED.findall((ROOT / "README.md").read_text(encoding="utf-8"))]
    assert "judged short" in names
    assert "# generated: recipe" in (ROOT / "cfg" / "neu.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_mark_inside_a_sentence_does_not_begin_a_line(page):
    # There Markdown takes a comment for a block of its own, and the paragraph is broken.
    assert re.findall(r"^ *<!-- generated: [^>]+ -->.+$", page.read_text(encoding="utf-8"), re.MULTILINE) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_measured_figure_is_typed_by_hand(page):
    prose = page.read_text(encoding="utf-8")
    for pattern in NO_PROSE:
        prose = pattern.sub("", prose)
    assert FIGURE.findall(NOT_MEASURED.sub("", prose)) == []


def test_the_settings_page_tells_every_key_and_default():
    page = (DOCS / "settings.md").read_text(encoding="utf-8")
    (table,) = [text for name, text in GENERATED.findall(page) if name == "settings"]
    rows = [[cell.strip(" `") for cell in row.split("|")[1:3]] for row in table.strip().splitlines()[2:]]
    assert {key: yaml.safe_load(default or "null") for key, default in rows} == DEFAULTS


def test_the_readme_is_short_and_its_links_lead_to_files():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130
    links = re.findall(r"\]\(([^)#]+)[^)]*\)|src=\"([^\"]+)\"", text)
    files = [link for pair in links for link in pair if link and not link.startswith("http")]
    assert len(files) > 15 and [file for file in files if not (ROOT / file).is_file()] == []


def test_every_page_is_in_the_navigation():
    listed = re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2])
    assert sorted(listed) == sorted(page.relative_to(DOCS).as_posix() for page in PAGES[1:])


@pytest.fixture
def hooks() -> ModuleType:
    for library in ("latex2mathml", "mkdocs"):  # the extra "docs"
        pytest.importorskip(library)
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_formulas_become_mathml(hooks):
    html = hooks.on_page_markdown("so $`x_1`$ and\n\n```math\n\\frac{a}{b}\n```\n")
    assert html.count("<math") == 2 and "<msub>" in html and "<mfrac>" in html and "$" not in html


@pytest.mark.parametrize(
    "tag",
    [
        '<script src="https://a.b/c.js">',
        '<img alt="" src="//a.b/c.png">',
        '<link rel="stylesheet" href="https://a.b/c">',
    ],
)
def test_a_page_that_loads_from_outside_fails_the_build(hooks, tag):
    from types import SimpleNamespace

    page = SimpleNamespace(file=SimpleNamespace(src_uri="a.md"))
    with pytest.raises(Exception, match=r"a\.md loads something from outside"):
        hooks.on_post_page(f"<p>{tag}</p>", page)
    same = '<a href="https://a.b"></a><img src="a.png"><link rel="canonical" href="https://a.b/">'
    assert hooks.on_post_page(same, page) == same
