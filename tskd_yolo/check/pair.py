"""What of a teacher and a student belongs together: classes by name, levels by stride, and the files they are in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ultralytics.utils.checks import check_model_file_from_stem

from tskd_yolo import compat, files
from tskd_yolo.check.trial import Trial
from tskd_yolo.config import ConfigError
from tskd_yolo.distill import teacher
from tskd_yolo.distill.matching import folded
from tskd_yolo.findings import Finding

SHRUNK = 1.5
"""How many times the size that it sees a teacher may have been trained at: its objects are smaller by as much."""


def classes(*, theirs: Mapping[int, str], names: Mapping[int, str]) -> dict[str, Any]:
    """Which class of the teacher is which of the data's.

    Args:
        theirs: The teacher's classes.
        names: The data's.

    Returns:
        ``pairs``: per class of the data the teacher's name for it, None where it has none; ``lost``: the teacher's
        classes that the data does not have.
    """
    left = list(theirs.values())
    pairs: dict[str, str | None] = {}
    for key in (str, folded):  # the exact spelling first
        for name in names.values():
            same = next((other for other in left if key(other) == key(name)), None)
            if pairs.get(str(name)) is None:
                pairs[str(name)] = None if same is None else str(same)
                left = [other for other in left if other is not same]
    return {"pairs": pairs, "lost": [str(name) for name in left]}


def teacher_names(values: Mapping[str, Any]) -> dict[int, str] | None:
    """The classes of a teacher that a run was refused with; None where it cannot be loaded."""
    path = values.get("teacher")
    if not isinstance(path, (str, Path)):
        return None
    try:
        with compat.guarded(trust=values.get("trust") is True):
            return dict(teacher.load(path).names)
    except ConfigError:  # told by the run already
        return None


def levels(trial: Trial) -> list[dict[str, int]]:
    """The levels of the neck that are compared, finest first; strides in pixels of each network's own image."""
    if trial.distiller is None:
        return []
    return [
        {
            "stride": pair.stride,
            "teacher_stride": pair.teacher_stride or pair.stride,
            "channels": pair.student,
            "teacher_channels": pair.teacher,
            "compared": pair.compared,
        }
        for pair in trial.distiller.pairs("neck") or trial.distiller.match.neck(all_channels=True)
    ]


def sizes(trial: Trial) -> list[Finding]:
    """What speaks against the size at which the teacher sees the images."""
    trained, sees = trial.teacher_trained_at, trial.config.teacher_imgsz or trial.args.imgsz
    if not isinstance(trained, int) or trained < SHRUNK * sees:
        return []
    return [
        Finding(
            "warning", "sizes", f"the teacher was trained at {trained} px and sees {sees} px here",
            f"add teacher_imgsz={trained // 32 * 32}, or train it at this size",
        )
    ]  # fmt: skip


def file(path: Any) -> dict[str, str | None]:
    """Name and content of a file; of an official name, or of a YAML that comes with Ultralytics, the name."""
    found = Path(check_model_file_from_stem(str(path)))
    return {"name": found.name, "sha256": files.digest(found)[:16] if found.is_file() else None}
