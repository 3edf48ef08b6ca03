"""Writes what is generated in the documentation: every measured figure, the settings, the charts.

    python docs/generate.py            writes what is out of date, and names it
    python docs/generate.py --check    writes nothing; exit code 1 where something is out of date

Generated text stands between marks, ``<!-- generated: NAME -->`` and ``<!-- /generated -->`` in Markdown and
``# generated: NAME`` and ``# /generated`` in YAML; NAME is one of those in ``measured.py``. Charts are files in
``docs/assets/charts``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

import charts
import measured
from results import ROOT

MARKS = re.compile(r"(?P<start><!-- generated: (?P<name>.+?) -->)(?P<text>.*?)(?P<end><!-- /generated -->)", re.DOTALL)
YAML_MARKS = re.compile(r"(?P<start># generated: (?P<name>.+?)\n)(?P<text>.*?)(?P<end># /generated\n)", re.DOTALL)


def main(arguments: list[str]) -> int:
    changed = outdated()
    for file, text in changed.items():
        print(f"{file.relative_to(ROOT)} {'is out of date' if '--check' in arguments else 'written'}")
        if "--check" not in arguments:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    return int(bool(changed) and "--check" in arguments)


def outdated() -> dict[Path, str]:
    """The files that are not what they should be, with what they should be."""
    values = measured.values()
    texts = {file: filled(file, values) for file in marked()}
    texts.update({ROOT / "docs" / "assets" / "charts" / name: text for name, text in charts.files().items()})
    return {file: text for file, text in texts.items() if not file.exists() or file.read_text("utf-8") != text}


def marked() -> list[Path]:
    """The files that may hold marks."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "cfg").glob("*.yaml"))]


def filled(file: Path, values: Mapping[str, str]) -> str:
    """The text of a file with everything between its marks as it should be.

    Raises:
        SystemExit: If a mark has a name that is none.
    """

    def fill(mark: re.Match[str]) -> str:
        if mark["name"] not in values:
            sys.exit(f"{file.relative_to(ROOT)}: nothing is called {mark['name']!r}; see docs/measured.py.")
        value = values[mark["name"]]
        if file.suffix == ".yaml":
            value += "\n"
        elif "\n" in value:
            value = f"\n\n{value}\n\n"
        return mark["start"] + value + mark["end"]

    return (YAML_MARKS if file.suffix == ".yaml" else MARKS).sub(fill, file.read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
