"""``tskd-yolo check``: whether data, teacher and student fit, what there is to gain, and what it costs to find out."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER, colorstr

from tskd_yolo import config, hashing
from tskd_yolo.check import data, forgotten, pair, report, verdict
from tskd_yolo.check.data import DataSet
from tskd_yolo.check.trial import ASIDE, Trial, devices, quiet
from tskd_yolo.check.verdict import Verdict
from tskd_yolo.config import DEFAULTS, ConfigError
from tskd_yolo.findings import Finding, refused
from tskd_yolo.train.checks import check as checked
from tskd_yolo.train.checks import mistyped

KEYS: dict[str, Any] = {"out": None}
"""Keys that a check has besides those of a run, with their defaults."""
NOT_READ = {*data.KEYS, "data", "cfg", "trust"}
"""Arguments that are about the data: where one is wrong, nothing is said of the data."""


@dataclass
class _Found:
    """What has been found so far."""

    values: Mapping[str, Any]
    findings: list[Finding] = field(default_factory=list)
    trial: Trial | None = None
    """A run that was not refused."""
    measured: bool = False
    """Whether it has taken its steps."""
    data: DataSet | None = None


def check(errors: list[str] | None = None, **arguments: Any) -> Verdict:
    """Checks what a run with these arguments would do, logs it, and writes it into a folder.

    Args:
        errors: Mistakes that are known already.
        **arguments: Those of :class:`tskd_yolo.Trainer`, and ``out``: the folder, by default the next
            ``runs/check/check``.

    Returns:
        The verdict, with its exit code.

    Raises:
        ConfigError: If ``out`` is not free; what is wrong with the rest is in the verdict.
        OSError: If nothing can be written there.
    """
    start = time.time()
    out = report.place(arguments.pop("out", None))
    found = _Found(config.with_variant(arguments))
    with tempfile.TemporaryDirectory(prefix="tskd-check-") as folder:
        _pair(found, Path(folder), errors or [])
        _steps(found)
        _data(found)
        summary = _summary(found, seconds=time.time() - start)
    out = report.write(out, summary)
    LOGGER.info(f"\n{colorstr('tskd-yolo check:')} {report.text(summary)}\n")
    for name in sorted(report.FILES):
        LOGGER.info(f"{out / name}")
    return verdict.decide(found.findings)


def _pair(found: _Found, folder: Path, errors: list[str]) -> None:
    """Settings, teacher, student and the data's YAML: everything that a run is refused for."""
    _tell("settings, teacher and student...")
    if found.values.get("resume"):
        errors = [*errors, "resume: there is nothing to check of a run that goes on; leave it out."]
    base, asked = {**DEFAULT_CFG_DICT, **DEFAULTS}, {k: v for k, v in found.values.items() if k != "resume"}
    try:
        with quiet():
            several = len(devices(asked)) > 1  # of which the trial takes the first
            if errors or several or mistyped(base, {k: v for k, v in asked.items() if k in ASIDE}):
                checked(base, asked, errors)
            found.trial = Trial(folder, **found.values)
    except ConfigError as error:
        found.findings += refused(error.problems)


def _steps(found: _Found) -> None:
    """The teacher's score, and a few steps: where nothing was refused."""
    trial = found.trial
    if trial is None:
        return
    _tell("the teacher on the validation images, and a few steps...")
    try:
        with quiet():
            trial.measure()
    except ConfigError as error:
        found.findings += refused(error.problems)
        return
    except torch.OutOfMemoryError:
        found.findings.append(
            Finding(
                "no", "memory", f"a step does not fit into it with batch={trial.batch_size}", "give a smaller batch"
            )
        )
        return
    found.measured = True
    found.findings += pair.sizes(trial)
    if trial.facts is None:
        found.findings.append(Finding("no", "terms", "drd=0 ded=0 crd=0, nothing is distilled", "leave one of them on"))
    else:
        found.findings += trial.facts.doubts
        if trial.args.task != "detect":
            found.findings.append(Finding("note", "labels", "that some were forgotten is found with detectors only"))
        elif trial.teacher_names:
            with quiet():
                found.findings += forgotten.look(trial)
    if trial.cost is not None:
        found.findings += verdict.of_cost(trial.cost, batch=trial.asked_batch)


def _data(found: _Found) -> None:
    if NOT_READ & {finding.about for finding in found.findings}:
        return
    trial = found.trial
    _tell("labels and images...")
    try:
        with quiet():
            values = {**found.values, "task": trial.args.task} if trial else found.values
            found.data = data.look(values, data=trial.data if trial else None, stride=_finest(trial))
    except ConfigError as error:
        found.findings += refused(error.problems)
    else:
        found.findings += found.data.findings


def _finest(trial: Trial | None) -> int:
    """The stride of the student's finest level, in pixels, where a student has been built."""
    if trial is None or trial.distiller is None:
        return data.FINEST
    return min(trial.distiller.readers.head.strides)


# What was found, as JSON takes it -------------------------------------------------------------------------------------


def _summary(found: _Found, *, seconds: float) -> dict[str, Any]:
    """All of it; no path and no host."""
    trial = found.trial if found.measured else None
    theirs = found.trial.teacher_names if found.trial else pair.teacher_names(found.values)
    matched: dict[str, Any] = {"pairs": {}, "lost": []}
    if found.data is not None:
        matched = pair.classes(
            theirs=theirs or {},
            names=found.data.names,
            mapping=found.trial.args.classes_map if found.trial else None,
            single=found.values.get("single_cls") is True,
        )
    if trial and theirs:  # a teacher without a head has no classes
        found.findings += pair.unknown(matched["pairs"])
    decided = verdict.decide(found.findings)
    found.findings = verdict.ordered(found.findings)
    return {
        "verdict": decided.word,
        "exit": decided.code,
        "sentence": decided.sentence,
        "findings": [finding.row() for finding in found.findings],
        "settings": _settings(found.values),
        "versions": hashing.versions(),
        "files": {key: _file(found.values.get(key)) for key in ("teacher", "model", "data")},
        "teacher": _network(trial, "teacher"),
        "student": _network(trial, "student"),
        "levels": pair.levels(trial) if trial else [],
        "exceptions": trial.facts.exceptions if trial and trial.facts else [],
        "classes": _classes(found, trial, matched["pairs"]),
        "lost": matched["lost"],
        "data": found.data.row() if found.data else None,
        "cost": trial.cost.row() if trial and trial.cost else None,
        "seconds": round(seconds, 1),
    }


def _settings(values: Mapping[str, Any]) -> dict[str, str]:
    """What was asked for; files by name."""
    named = {"model", "data", "project", "cfg", "pretrained"}
    told = {k: Path(str(v)).name if k in named else str(v) for k, v in sorted(values.items()) if v is not None}
    for key, listed in (("teacher", config.teachers), ("unlabelled", config.sources)):
        if key in told:
            told[key] = ", ".join(Path(str(file)).name for file in listed(values[key])) or told[key]
    if isinstance(values.get("classes_map"), (str, Path)):
        told["classes_map"] = Path(values["classes_map"]).name
    return told


def _file(path: Any) -> dict[str, str | None] | None:
    return pair.file(path) if path else None


def _network(trial: Trial | None, who: str) -> dict[str, Any] | None:
    """Name, sizes and score of one of the two; None where it was never run."""
    if trial is None or trial.facts is None:
        return None
    score = trial.facts.taught if who == "teacher" else trial.facts.known
    parameters, gflops = trial.facts.teacher if who == "teacher" else trial.facts.student
    return {
        "name": pair.file(trial.args.teacher if who == "teacher" else trial.args.model)["name"],
        "parameters": parameters,
        "GFLOPs": round(gflops, 2),
        "imgsz": trial.config.teacher_imgsz or trial.args.imgsz if who == "teacher" else trial.args.imgsz,
        "mAP50": score.get("metrics/mAP50(B)"),
        "mAP50-95": score.get("metrics/mAP50-95(B)"),
    }


def _classes(found: _Found, trial: Trial | None, partners: Mapping[str, str | None]) -> list[dict[str, Any]]:
    """Per class: what the teacher calls it, how much of it there is, how well both find it, and the headroom."""
    if found.data is None:
        return []
    scores = {"teacher": trial.facts.taught, "student": trial.facts.known} if trial and trial.facts else {}
    rows = []
    for index, row in enumerate(found.data.classes):
        ap = {who: _ap(score, index) for who, score in scores.items()}
        best, own = ap.get("teacher"), ap.get("student")
        rows.append(
            {
                **row,
                "teacher": partners.get(row["name"]),
                "teacher AP50-95": best,
                "student AP50-95": own,
                "headroom": None if best is None or own is None else best - own,
            }
        )
    return rows


def _ap(score: Mapping[str, Any], index: int) -> float | None:
    rows = score.get("classes") or []
    return rows[index]["AP50-95"] if index < len(rows) and rows[index] else None


def _tell(words: str) -> None:
    LOGGER.info(f"{colorstr('tskd-yolo check:')} {words}")
