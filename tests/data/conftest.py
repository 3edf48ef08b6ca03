"""A Pascal VOC folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.helpers import VocFolder


@pytest.fixture
def folder(tmp_path: Path) -> VocFolder:
    return VocFolder(tmp_path)
