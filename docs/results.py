"""What was measured, read from benchmarks/results, and tables of Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def load(name: str) -> Any:
    """A file of benchmarks/results."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def table(head: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """A table of Markdown; the first ``words`` columns are words, the others numbers, which are not broken."""
    rule = ["---" if place < words else "---:" for place in range(len(head))]
    body = [[*row[:words], *(cell.replace(" ", "\u00a0") for cell in row[words:])] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))
