"""What is odd but can be trained on: a student comes out, and the user is told; see :mod:`tests.train.cases`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.helpers import logged
from tests.train.cases import WARN, WORKS, arguments, of, words
from tests.train.model_files import files_in
from tskd_yolo.cli import main

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def file(tmp_path_factory) -> Callable[[Any], Any]:
    return files_in(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="session")
def runs() -> dict[Any, list[str]]:
    """What was said in the runs so far: cases that differ in their words only share one."""
    return {}


@of(WARN, WORKS)
def test_what_is_odd_is_trained_on_and_said(case, file, few, runs, tmp_path, tmp_path_factory, monkeypatch, no_end):
    key = str(case.values), case.data
    if key not in runs:
        monkeypatch.chdir(tmp_path)
        data = case.data(tmp_path_factory.mktemp("data")) if case.data else few
        values = arguments(case, folder=tmp_path, data=data, place=file)
        with logged() as runs[key]:
            assert main(words(values)) == 0
        assert (tmp_path / values["name"] / "weights" / "best.pt").is_file()
    lines = runs[key]
    assert all(part in "\n".join(lines) for part in case.says), lines
    if case.outcome == WARN:
        assert any(line.startswith("WARNING") and case.says[0] in line for line in lines)
