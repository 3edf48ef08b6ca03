"""The teachers of the tests of one step."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distill.helpers import NAMES


@pytest.fixture(scope="session")
def files(detector) -> dict[str, Path]:
    """A YOLO11s and a YOLO26s that know the classes of the student."""
    return {kind: detector(f"yolo{kind}.yaml", NAMES) for kind in ("11s", "26s")}
