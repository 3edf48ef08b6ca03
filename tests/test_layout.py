"""Imports run one way, and losses/ knows torch and torchvision only: read from the source, not from what runs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tskd_yolo

PACKAGE = Path(tskd_yolo.__file__).parent
MODULES = {
    ".".join(["tskd_yolo", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
BOTTOM = {"config", "files", "compat", "guards", "hashing", "data", "rng", "rounding"}
MAY_IMPORT = {
    "cli": {"compare", "train", "demo", *BOTTOM},
    "demo": {"train", "data"},
    "compare": {"train", "distill", "losses", *BOTTOM},
    "train": {"distill", *BOTTOM},
    "distill": {"losses", *BOTTOM},
    "losses": {"rounding"},
    "compat": {"files", "config", "guards"},
    "guards": {"config"},
    "hashing": {"files"},
    "data": {"config", "rng"},
    "files": set(),
    "rng": set(),
    "rounding": set(),
    "config": set(),
}
"""Of every package, and every module that stands alone, what it may import besides itself."""


def imported(module: str) -> set[str]:
    """Full names of all modules that a module imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return found


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_the_modules_that_the_rules_speak_of_are_there():
    assert {room(module) for module in MODULES} == {*MAY_IMPORT, "", "__main__"}
    assert "tskd_yolo.compat" in imported("tskd_yolo.distill.teacher") and "torch" in imported("tskd_yolo.losses.drd")


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) == "losses"])
def test_a_loss_knows_torch_and_torchvision_and_no_detector(module):
    for name in imported(module):
        top = name.split(".")[0]
        ours = name == "tskd_yolo.rounding" or name.startswith("tskd_yolo.losses")
        known = top in {"torch", "torchvision"} or top in sys.stdlib_module_names or ours
        assert known, f"{module} imports {name}"


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) in MAY_IMPORT])
def test_imports_run_one_way(module):
    allowed = MAY_IMPORT[room(module)] | {room(module), ""}  # the package itself: the version, and names to import
    for name in imported(module):
        if name.split(".")[0] == "tskd_yolo":
            assert room(name) in allowed, f"{module} imports {name}"


def test_there_is_no_circle():
    def below(name: str, way: tuple[str, ...] = ()) -> None:
        assert name not in way, " -> ".join([*way, name])
        for other in MAY_IMPORT.get(name, ()):
            below(other, (*way, name))

    for name in MAY_IMPORT:
        below(name)


@pytest.mark.parametrize(
    "module", ["tskd_yolo", "tskd_yolo.cli", "tskd_yolo.config", "tskd_yolo.data.voc", "tskd_yolo.losses"]
)
def test_ultralytics_is_not_imported_before_it_is_needed(module):
    code = f"import {module}, sys; sys.exit('ultralytics' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent).returncode == 0
