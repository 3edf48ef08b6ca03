"""How much the terms count while a student overtakes its teacher."""

from __future__ import annotations

import pytest
import torch

from tests.distill.helpers import NAMES, make, make_student
from tskd_yolo.distill.lead import Lead, best

TEACHER = [0.2, 0.4, 0.1]


def lead(*validations, teacher=TEACHER, margin=0.2) -> Lead:
    watched = Lead(teacher, margin)
    for scores in validations:
        watched.see(scores)
    return watched


def test_a_student_behind_its_teacher_changes_nothing():
    watched = lead([0.1, 0.4, 0.1], [0.2, 0.3, 0.05])
    assert watched.factor == 1 and watched.classes is None and watched.news(NAMES) is None


def test_each_class_gives_way_by_its_own_lead():
    watched = lead([0.22, 0.3, 0.12])  # ahead by a tenth, behind, ahead by a fifth: 0.5, 1, 0
    assert watched.factor == pytest.approx(0.5)
    assert watched.classes.tolist() == pytest.approx([1, 2, 0], abs=1e-5)


def test_a_teacher_without_any_ap_is_left_at_once():
    watched = lead([0.01, 0.02, 0.003], teacher=[0.0, 0.0, 0.0])
    assert watched.factor == 0 and watched.classes is None
    assert lead([0.0, 0.0, 0.0], teacher=[0.0, 0.0, 0.0]).factor == 1


def test_three_validations_are_averaged_and_older_ones_forgotten():
    swings = [[0.4, 0.8, 0.2], [0.24, 0.4, 0.1], [0.16, 0.4, 0.1], [0.2, 0.4, 0.1]]
    assert lead(*swings[:1]).factor == 0 and lead(*swings).factor == pytest.approx(1)


def test_classes_without_a_score_count_in_full():
    watched = lead([0.22, None, 0.9], teacher=[0.2, 0.4, None])
    assert watched.factor == pytest.approx(0.5) and watched.classes.tolist() == pytest.approx([1, 2, 2])
    assert lead([0.9] * 3, teacher=[None] * 3).factor == 1


def test_what_changes_is_said_once_and_by_class():
    watched = lead([0.25, 0.4, 0.1])
    news = watched.news(NAMES)
    assert "count 0.67" in news and f"not in {NAMES[0]}" in news and watched.news(NAMES) is None
    watched.see([0.6, 0.9, 0.5])
    assert watched.news(NAMES).endswith("the terms have given way")
    for _ in range(3):
        watched.see([0.1, 0.1, 0.1])
    assert watched.news(NAMES).endswith("the terms count in full")


def test_it_goes_on_from_its_state():
    watched, again = lead([0.22, 0.3, 0.12]), Lead(TEACHER, 0.2)
    watched.news(NAMES)
    again.restore(watched.state())
    assert again.news(NAMES) is None and torch.equal(again.values, watched.values)
    watched.see([0.2, 0.5, 0.1])
    again.see([0.2, 0.5, 0.1])
    assert torch.equal(again.values, watched.values)


def test_of_several_teachers_the_best_counts_in_each_class():
    rows = [[{"AP50-95": a}, None, {"AP50-95": 0.3}] for a in (0.1, 0.2)]
    taught = [{"classes": row} for row in rows]
    assert best(taught, [[0, 1, 2], [0, 1]], 3) == [0.2, None, 0.3]
    assert best([{}, {}], [[0, 1, 2], [0]], 3) == [None] * 3


def test_all_terms_are_multiplied_and_a_resumed_run_knows(detector):
    distiller = make(make_student(), detector("yolo11s.yaml"))
    before = {term.name: distiller.factor_of(term.name) for term in distiller.terms}
    distiller.lead = lead([0.22, 0.3, 0.12])
    assert all(distiller.factor_of(name) == pytest.approx(0.5 * value) for name, value in before.items())
    restored = make(make_student(), detector("yolo11s.yaml"))
    restored.lead = Lead(TEACHER, 0.2)
    restored.restore(distiller.state())
    assert restored.common_factor == pytest.approx(0.5)
