"""What speaks for or against a run: one finding is one reason, how much it weighs, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

LEVELS = "note", "warning", "no"
"""From what is only worth knowing to what a run should not be started with."""


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Args:
        level: One of :data:`LEVELS`.
        about: What it is about, such as ``teacher`` or ``labels``.
        reason: What was found, in words without a full stop.
        remedy: What to do about it; empty where there is nothing to do.
    """

    level: str
    about: str
    reason: str
    remedy: str = ""

    def __post_init__(self) -> None:
        """Bytes of a file's name that are no text become their numbers: nothing could print or write them."""
        object.__setattr__(self, "reason", self.reason.encode("utf-8", "backslashreplace").decode("utf-8"))

    def __str__(self) -> str:
        return f"{self.about}: {'; '.join(filter(None, (self.reason, self.remedy)))}."

    def row(self) -> dict[str, str]:
        """As JSON takes it."""
        return asdict(self)


def refused(problems: Iterable[str]) -> list[Finding]:
    """Findings of what a :class:`tskd_yolo.config.ConfigError` says: ``about: reason; remedy.``"""
    findings = []
    for problem in problems:
        about, _, words = problem.rstrip(".").partition(": ")
        reason, _, remedy = words.rpartition("; ")
        findings.append(Finding("no", about, reason or remedy, remedy if reason else ""))
    return findings
