"""Teachers that are sure of something, and images without labels."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.autolabel.helpers import certain


@pytest.fixture(scope="session")
def sure(shared, detector) -> Path:
    """A teacher with random weights that finds something in every image."""
    return shared("sure.pt", lambda file: certain(detector("yolo11n.yaml"), file))


@pytest.fixture(scope="session")
def sure_too(shared, detector) -> Path:
    """Another one."""
    return shared("sure-too.pt", lambda file: certain(detector("yolo11n.yaml"), file, seed=6))


@pytest.fixture
def pictures(data, tmp_path) -> Path:
    """A folder of six images, one of them below another folder."""
    folder = tmp_path / "pictures"
    (folder / "images").mkdir(parents=True)
    for number, file in enumerate(sorted((data.parent / "set" / "images" / "train").iterdir())[:6]):
        shutil.copy(file, folder / ("images" if number == 5 else ".") / file.name)
    return folder


@pytest.fixture
def watched(monkeypatch) -> Callable[[], list[int]]:
    """How many images a teacher has looked at, in all."""
    from tskd_yolo import confidence

    look, seen = confidence.look, []

    def watching(*args, **kwargs):
        real = look(*args, **kwargs)
        return lambda images: seen.append(len(images)) or real(images)

    monkeypatch.setattr(confidence, "look", watching)
    return lambda: seen
