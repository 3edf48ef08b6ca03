"""Findings as sentences, and what a refused run says as findings."""

from __future__ import annotations

from tskd_yolo.findings import Finding, refused


def test_a_finding_is_one_sentence_with_its_remedy():
    assert str(Finding("warning", "labels", "two boxes are odd", "look at them")) == (
        "labels: two boxes are odd; look at them."
    )
    assert str(Finding("note", "labels", "one is")) == "labels: one is."
    row = {"level": "note", "about": "labels", "reason": "one is", "remedy": ""}
    assert Finding("note", "labels", "one is").row() == row


def test_what_a_run_is_refused_for_has_reason_and_remedy():
    found = refused(["teacher: it knows 2 classes (a; b); train another.", "epochs: must be at least 1, got 0."])
    assert [f.level for f in found] == ["no", "no"]
    assert found[0] == Finding("no", "teacher", "it knows 2 classes (a; b)", "train another")
    assert found[1] == Finding("no", "epochs", "must be at least 1, got 0", "")
