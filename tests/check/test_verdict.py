"""The worst finding gives the verdict."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.check.helpers import COST
from tskd_yolo.check import verdict
from tskd_yolo.findings import Finding

NOTE, WARNING, NO = (Finding(level, "x", level, "do") for level in ("note", "warning", "no"))


@pytest.mark.parametrize(
    ("findings", "word", "code", "said"),
    [
        ([], "go", 0, "go: data, teacher and student fit"),
        ([NOTE], "go", 0, "go: "),
        ([NOTE, WARNING], "go with a warning", 1, "go with a warning: 1 warning, nothing that forbids this run"),
        ([WARNING, NO, WARNING], "no", 2, "no: 1 reason not to start this run, 2 warnings"),
        ([NO, NO], "no", 2, "no: 2 reasons not to start this run"),
    ],
)
def test_the_worst_finding_decides(findings, word, code, said):
    found = verdict.decide(findings)
    assert (found.word, found.code) == (word, code) and found.sentence.startswith(said)
    assert found.sentence.startswith(word)


def test_the_worst_stands_first_and_each_once():
    assert verdict.ordered([NOTE, NO, WARNING, NOTE, NO]) == [NO, WARNING, NOTE]


def test_memory_that_is_short_is_told():
    assert verdict.of_cost(COST, batch=4) == []
    (smaller,) = verdict.of_cost(COST, batch=8)
    assert "batch=8 does not fit into the memory, batch=4 does; give batch=4" in str(smaller)
    (full,) = verdict.of_cost(replace(COST, peak=950), batch=-1)
    assert "a step takes" in str(full) and full.level == "warning"
