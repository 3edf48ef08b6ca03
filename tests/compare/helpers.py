"""What the tests of comparisons ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.helpers import settings


def asked(data: Path, teacher: Path, out: Path, /, **more: Any) -> dict[str, Any]:
    """Arguments of a comparison of tiny runs."""
    base = settings(out, data, teacher=str(teacher))
    for key in ("project", "name", "exist_ok", "seed"):
        del base[key]
    return {**base, "out": str(out), "arms": "plain,tskd", "seeds": 1, **more}


def words(values: dict[str, Any]) -> list[str]:
    """The same as words of the command line."""
    return ["compare", *(f"{key}={value}".replace(" ", "") for key, value in values.items())]
