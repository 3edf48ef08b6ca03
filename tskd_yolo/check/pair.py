"""What of a teacher and a student belongs together: classes by name, levels by stride, and the files they are in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ultralytics.utils.checks import check_model_file_from_stem

from tskd_yolo import compat, files
from tskd_yolo.check.trial import Trial
from tskd_yolo.config import ConfigError, teachers
from tskd_yolo.distill import teacher
from tskd_yolo.distill.classes import match, of_all
from tskd_yolo.findings import Finding

APART = 1.5
"""How many times the size that it sees a teacher may have been trained at, or the other way round: its objects are of
other sizes by as much."""


def classes(
    *, theirs: Mapping[int, str], names: Mapping[int, str], mapping: Any = None, single: bool = False
) -> dict[str, Any]:
    """Which class of the teacher is which of the data's.

    Args:
        theirs, names, mapping, single: As :func:`tskd_yolo.distill.classes.match` takes them.

    Returns:
        ``pairs``: per class of the data the teacher's names for it, None where it has none; ``lost``: the teacher's
        classes that the data does not have.
    """
    matched = match(theirs, names, mapping, single)
    called = [", ".join(str(theirs[output]) for output in outputs) or None for outputs in matched.members]
    return {"pairs": dict(zip(matched.names, called, strict=True)), "lost": matched.lost}


def unknown(pairs: Mapping[str, str | None]) -> list[Finding]:
    """What is to be said of the data's classes that the teacher does not know, from ``pairs`` of :func:`classes`."""
    alone = [name for name, theirs in pairs.items() if theirs is None]
    remedy = "give classes_map= if it calls them otherwise"
    if pairs and len(alone) == len(pairs):
        reason = "the teacher knows none of them, so CRD is off and only features are taught"
        return [Finding("warning", "classes", reason, f"{remedy}, or another teacher")]
    if alone:
        return [Finding("note", "classes", f"the teacher does not know {', '.join(alone)}", remedy)]
    return []


def teacher_names(values: Mapping[str, Any]) -> dict[int, str] | None:
    """The classes of teachers that a run was refused with; None where they cannot be loaded."""
    given = values.get("teacher")
    if not isinstance(given, (str, Path, list, tuple)):
        return None
    try:
        with compat.guarded(trust=values.get("trust") is True):
            return of_all(teacher.load(path).names for path in teachers(given))
    except ConfigError:  # told by the run already
        return None


def levels(trial: Trial) -> list[dict[str, int]]:
    """The levels of the neck that are compared, finest first; strides in pixels of each network's own image."""
    if trial.distiller is None:
        return []
    return [
        {
            "stride": pair.stride,
            "teacher_stride": pair.teacher_stride,
            "channels": pair.student,
            "teacher_channels": pair.teacher,
            "compared": pair.compared,
        }
        for pair in trial.distiller.pairs("neck") or trial.distiller.match.neck(all_channels=True)
    ]


def sizes(trial: Trial) -> list[Finding]:
    """What speaks against the size at which the teachers see the images."""
    sees, found = trial.config.teacher_imgsz or trial.args.imgsz, []
    for name, trained in trial.trained_at:
        if not isinstance(trained, int) or max(trained, sees) < APART * min(trained, sees):
            continue
        larger = f"add teacher_imgsz={trained // 32 * 32}, or " if trained > sees else ""
        who = "the teacher" if len(trial.trained_at) == 1 else name
        words = f"{who} was trained at {trained} px and sees {sees} px here"
        found.append(Finding("warning", "sizes", words, f"{larger}train it at this size"))
    return found


def file(path: Any) -> dict[str, str | None]:
    """Name and content of a file, or of several; of an official name, or of a YAML that comes with Ultralytics, the
    name.
    """
    named = [check_model_file_from_stem(each) for each in teachers(path)]
    found = [compat.own_yaml(each) or Path(each) for each in named]
    digests = [files.digest(each)[:16] for each in found if each.is_file()]
    return {"name": ", ".join(each.name for each in found), "sha256": ", ".join(digests) or None}
