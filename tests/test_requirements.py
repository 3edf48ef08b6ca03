"""What the package imports and what pyproject.toml requires are the same, read from the source."""

from __future__ import annotations

import ast
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import tskd_yolo

pytestmark = pytest.mark.slow

PACKAGE = Path(tskd_yolo.__file__).parent
PROJECT = (PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8")
DISTRIBUTIONS = packages_distributions()


def normal(name: str) -> str:
    """A distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def required(table: str) -> dict[str, str]:
    """The requirements in a list of pyproject.toml, with what its comment says of each."""
    (block,) = re.findall(rf"^{table} = \[\n(.*?)^\]", PROJECT, re.DOTALL | re.MULTILINE)
    lines = [re.fullmatch(r' *"([\w.-]+)[^"]*",(?: # (.+))?', line) for line in block.splitlines()]
    assert all(lines), f"{table}: a line holds something else than one requirement"
    return {normal(line[1]): line[2] or "" for line in lines if line}


def imported(*, anywhere: bool) -> dict[str, str]:
    """Top names of all foreign packages that ours imports when it is imported, or anywhere, and where."""
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree) if anywhere else tree.body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            found |= {name.partition(".")[0]: file.relative_to(PACKAGE).as_posix() for name in names}
    return {name: file for name, file in found.items() if name not in {*sys.stdlib_module_names, "tskd_yolo"}}


def distributions(name: str) -> set[str]:
    """Which distributions an imported name may come from; where none is installed, one of that name."""
    return {normal(found) for found in DISTRIBUTIONS.get(name, [name])}


@pytest.mark.parametrize("anywhere", [False, True])
def test_what_is_imported_is_required(anywhere):
    listed = {*required("dependencies"), *(required("all") if anywhere else ())}
    missing = {name: file for name, file in imported(anywhere=anywhere).items() if not distributions(name) & listed}
    assert not missing


@pytest.mark.parametrize("table", ["dependencies", "all"])
def test_what_is_required_is_imported_or_says_why(table):
    used = set().union(*map(distributions, imported(anywhere=True)))
    assert [name for name, reason in required(table).items() if name not in used and not reason] == []
    assert [name for name, reason in required(table).items() if name in used and reason] == []


def test_the_imports_are_seen():
    assert imported(anywhere=True).keys() >= {"torch", "ultralytics", "cv2", "yaml", "ray", "onnxruntime"}
    assert "ray" not in imported(anywhere=False)
