"""What is odd but can be trained on: a student comes out, and the user is told; see :mod:`tests.train.cases`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import logged, tiny_data
from tests.train.cases import WARN, WORKS, arguments, of, words
from tests.train.model_files import files_in
from tskd_yolo.cli import main

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Callable[[Any], Any]:
    return files_in(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("tiny"), train=4, val=2)


@pytest.fixture(scope="module")
def runs() -> dict[Any, list[str]]:
    """What was said in the runs so far: cases that differ in their words only share one."""
    return {}


@of(WARN, WORKS)
def test_what_is_odd_is_trained_on_and_said(case, file, tiny, runs, tmp_path, tmp_path_factory, monkeypatch):
    key = str(case.values), case.data
    if key not in runs:
        monkeypatch.chdir(tmp_path)
        data = case.data(tmp_path_factory.mktemp("data")) if case.data else tiny
        values = arguments(case, folder=tmp_path, data=data, place=file)
        with logged() as runs[key]:
            assert main(words(values)) == 0
        assert (tmp_path / values["name"] / "weights" / "best.pt").is_file()
    lines = runs[key]
    assert all(part in "\n".join(lines) for part in case.says), lines
    if case.outcome == WARN:
        assert any(line.startswith("WARNING") and case.says[0] in line for line in lines)
