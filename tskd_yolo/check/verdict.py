"""The verdict over all findings: go, go with a warning, or no."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tskd_yolo.check.trial import Cost
from tskd_yolo.findings import LEVELS, Finding

FULL = 0.9
"""Share of the memory from which a run may not get through: a batch with more boxes takes more."""
GB = 1e9


class Verdict(NamedTuple):
    """One word, the exit code that goes with it, and a sentence."""

    word: str
    code: int
    sentence: str


def decide(findings: Sequence[Finding]) -> Verdict:
    """The verdict that the worst finding gives."""
    count = {level: sum(finding.level == level for finding in findings) for level in LEVELS}
    warnings = f"{count['warning']} warning{'' if count['warning'] == 1 else 's'}"
    if count["no"]:
        reasons = f"{count['no']} reason{'' if count['no'] == 1 else 's'}"
        return Verdict("no", 2, f"no: {reasons} not to start this run" + (f", {warnings}" if count["warning"] else ""))
    if count["warning"]:
        return Verdict("go with a warning", 1, f"go with a warning: {warnings}, nothing that forbids this run")
    return Verdict("go", 0, "go: data, teacher and student fit")


def ordered(findings: Sequence[Finding]) -> list[Finding]:
    """The worst first, each once."""
    return sorted(dict.fromkeys(findings), key=lambda finding: -LEVELS.index(finding.level))


def of_cost(cost: Cost, *, batch: object) -> list[Finding]:
    """What speaks against a run by its memory.

    Args:
        cost: What was measured.
        batch: The images of a step that were asked for.
    """
    found = []
    if isinstance(batch, int) and 0 < cost.batch < batch:
        found.append(
            Finding(
                "warning", "memory", f"batch={batch} does not fit into the memory, batch={cost.batch} does",
                f"give batch={cost.batch}, or a smaller imgsz",
            )
        )  # fmt: skip
    if cost.peak > FULL * cost.of:
        found.append(
            Finding(
                "warning", "memory", f"a step takes {cost.peak / GB:.1f} GB of {cost.of / GB:.1f} GB that there are",
                "give a smaller batch: images with more boxes take more",
            )
        )  # fmt: skip
    return found
