"""Imports run one way, losses/ knows no detector, sizes hold: read from the source, not from what runs."""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

import tskd_yolo

PACKAGE = Path(tskd_yolo.__file__).parent
TESTS = Path(__file__).parent
MODULES = {
    ".".join(["tskd_yolo", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
BOTTOM = {
    "arguments",
    "config",
    "settings_files",
    "files",
    "backbones",
    "compat",
    "confidence",
    "findings",
    "guards",
    "hashing",
    "data",
    "rng",
    "rounding",
}
MAY_IMPORT = {
    "cli": {"autolabel", "average", "check", "compare", "train", "demo", *BOTTOM},
    "autolabel": {"compare", "train", "distill", *BOTTOM},
    "average": BOTTOM,
    "demo": {"train", "data", "config", "files"},
    "check": {"compare", "train", "distill", *BOTTOM},
    "compare": {"train", "distill", "losses", *BOTTOM},
    "train": {"distill", *BOTTOM},
    "distill": {"losses", *BOTTOM},
    "losses": {"rounding"},
    "confidence": {"files", "hashing"},
    "compat": {"files", "config", "guards", "backbones", "settings_files"},
    "backbones": {"config", "rng"},
    "guards": {"config"},
    "hashing": {"files"},
    "data": {"config", "files", "findings", "rng", "rounding"},
    "files": set(),
    "findings": set(),
    "rng": set(),
    "rounding": set(),
    "config": set(),
    "arguments": {"compat", "config", "settings_files"},
    "settings_files": {"config"},
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


@pytest.mark.slow
def test_ultralytics_is_not_imported_before_it_is_needed():
    modules = [
        "tskd_yolo",
        "tskd_yolo.config",
        "tskd_yolo.arguments",
        "tskd_yolo.cli",
        "tskd_yolo.data.convert.command",
    ]
    modules += ["tskd_yolo.data.sets", "tskd_yolo.losses"]
    code = "import importlib, sys\nfor name in sys.argv[1:]:\n    importlib.import_module(name)\n"
    code += "    print(name, 'ultralytics' in sys.modules)"
    line = [sys.executable, "-c", code, *modules]
    result = subprocess.run(line, cwd=PACKAGE.parent, capture_output=True, text=True)
    assert result.stdout.splitlines() == [f"{module} False" for module in modules], result.stderr


# Sizes ----------------------------------------------------------------------------------------------------------------

FUNCTION_LINES, FUNCTION_BRANCHES, CLASS_LINES, MODULE_LINES = 40, 10, 250, 400
"""At most. A function's lines are those of code: neither its docstring nor comments nor blank lines."""
BRANCHES = ast.If, ast.For, ast.While, ast.ExceptHandler, ast.With, ast.IfExp
NO_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER,
}  # fmt: skip


def docstring(node: ast.AST) -> ast.Expr | None:
    """The statement of a module, class or function that is its docstring."""
    first = node.body[0] if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and node.body else None
    return first if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) else None


def code_lines(text: str) -> set[int]:
    """Numbers of the lines of a source that hold code."""
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            found.update(range(token.start[0], token.end[0] + 1))
    for node in map(docstring, ast.walk(ast.parse(text))):
        if node is not None:
            found.difference_update(range(node.lineno, node.end_lineno + 1))
    return found


def too_large(text: str) -> list[str]:
    """What of a module's source is above the sizes, one sentence each."""
    code, found = code_lines(text), []
    if (count := len(text.splitlines())) > MODULE_LINES:
        found.append(f"the module has {count} lines")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef) and (count := node.end_lineno - node.lineno + 1) > CLASS_LINES:
            found.append(f"class {node.name} has {count} lines")
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = len(code.intersection(range(node.lineno, node.end_lineno + 1)))
            branches = sum(isinstance(inner, BRANCHES) for inner in ast.walk(node))
            if lines > FUNCTION_LINES or branches > FUNCTION_BRANCHES:
                found.append(f"{node.name}() has {lines} lines of code and {branches} branches")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_no_function_class_or_module_is_too_large(module):
    assert too_large(MODULES[module].read_text(encoding="utf-8")) == []


def test_sizes_are_counted_without_docstrings_and_comments():
    body = [*["    x = 1"] * 39, "    # a comment", "", *["    if x: pass"] * 10]
    whole = ["def f():", '    """Two', '    lines."""', *body[:41]]
    assert too_large("\n".join(whole)) == []
    assert too_large("\n".join([*whole, "    x = 2"])) == ["f() has 41 lines of code and 0 branches"]
    assert too_large("\n".join(["def f(x):", *body[-10:]])) == []
    assert too_large("\n".join(["def f(x):", *body[-10:], "    return x if x else 2"])) == [
        "f() has 12 lines of code and 11 branches"
    ]
    long = ["class A:", *["    x = 1"] * 250]
    assert too_large("\n".join(long)) == ["class A has 251 lines"] and too_large("\n".join(long[:-1])) == []
    assert too_large("x = 1\n" * 401) == ["the module has 401 lines"] and too_large("x = 1\n" * 400) == []


# Tests ----------------------------------------------------------------------------------------------------------------


def test_names_of_tests_have_at_most_60_characters():
    names = [
        node.name
        for file in TESTS.rglob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    assert len(names) > 400 and [name for name in names if len(name) > 60] == []


def test_every_module_has_a_test_file_of_its_name():
    own = {path.relative_to(PACKAGE) for path in MODULES.values() if not path.stem.startswith("__")}
    there = {path.relative_to(TESTS) for path in TESTS.rglob("test_*.py")}
    assert {str(path) for path in own if path.with_name(f"test_{path.name}") not in there} == set()
