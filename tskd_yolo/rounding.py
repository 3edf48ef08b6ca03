"""Whole-number arithmetic."""

from __future__ import annotations


def ceil_div(a: int, b: int) -> int:
    """``a / b`` rounded up, for ``b`` above 0."""
    return -(-a // b)
