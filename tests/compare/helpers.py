"""What the tests of comparisons ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.helpers import make_detector, settings, tiny_data


def make_files(root: Path) -> Path:
    """A folder with ``teacher.pt`` and ``tiny.yaml``."""
    make_detector(root / "teacher.pt")
    tiny_data(root, train=8, val=4)
    return root


def asked(files: Path, out: Path, **more: Any) -> dict[str, Any]:
    """Arguments of a comparison of tiny runs."""
    base = settings(out, files / "tiny.yaml", teacher=str(files / "teacher.pt"))
    for key in ("project", "name", "exist_ok", "seed"):
        del base[key]
    return {**base, "out": str(out), "arms": "plain,tskd", "seeds": 1, **more}


def words(values: dict[str, Any]) -> list[str]:
    """The same as words of the command line."""
    return ["compare", *(f"{key}={value}".replace(" ", "") for key, value in values.items())]
