"""Whole-number arithmetic, against exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tskd_yolo.rounding import ceil_div


@pytest.mark.parametrize(("a", "b", "quotient"), [(0, 3, 0), (1, 3, 1), (3, 3, 1), (4, 3, 2), (-1, 3, 0), (-4, 3, -1)])
def test_division_rounds_up(a, b, quotient):
    assert ceil_div(a, b) == quotient


@settings(max_examples=50)
@given(st.integers(), st.integers(min_value=1))
def test_numbers_of_any_size_are_divided_exactly(a, b):
    assert ceil_div(a, b) == math.ceil(Fraction(a, b))
