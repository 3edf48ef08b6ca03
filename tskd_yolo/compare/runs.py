"""What the folder of one run says: how far it has come, what it found, and its curves."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils import LOGGER

from tskd_yolo import compat
from tskd_yolo.config import TERMS
from tskd_yolo.files import replace, write_json
from tskd_yolo.train import checkpoints


class Spent(NamedTuple):
    """Seconds that training took: on the clock, and of the processor in the process that trained, all its threads."""

    wall: float
    process: float


def progress(run: Path) -> str:
    """How far a run has come: ``trained``, ``interrupted`` (it can go on), or ``nothing`` that is of use.

    The engine strips the optimizer from its checkpoints when it is through. A run that was interrupted between its
    last epoch and that cannot be resumed: it is stripped here.
    """
    last = run / "weights" / "last.pt"
    if not last.exists():
        return "nothing"
    try:
        checkpoint: Any = load_checkpoint(str(last))[1]
    except Exception as error:  # cut off while it was written, which ends in many types of exception
        LOGGER.warning(f"{last} cannot be read ({error}): the run starts anew.")
        return "nothing"
    if checkpoint.get("optimizer") is None:
        return "trained"
    if checkpoint["epoch"] + 1 < checkpoint["train_args"]["epochs"]:
        return "interrupted"
    if (best := last.with_name("best.pt")).exists():
        compat.strip(best)
    checkpoints.finish(last)
    return "trained"


def result_of(run: Path) -> Any:
    """What a finished job left; None where there is none."""
    file = run / "result.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def prepare_to_resume(run: Path) -> None:
    """Remembers what the parts of a run so far took, and cuts off the line that a kill has left unfinished."""
    before = {_key(row): list(taken) for row, taken in zip(rows(run), spent(run))}
    write_json(run / "resumed.json", before)
    file = run / "results.csv"
    if file.exists():
        text = file.read_bytes()
        replace(file, text[: text.rfind(b"\n") + 1])


def history(run: Path) -> tuple[int, Spent, bool]:
    """Epochs trained, what training took over all its parts, and whether it was interrupted."""
    taken = spent(run)
    return len({row["epoch"] for row in rows(run)}), taken[-1] if taken else Spent(0.0, 0.0), _resumed(run).exists()


def spent(run: Path) -> list[Spent]:
    """What training took up to each line of results.csv: each part of a run counts its time from 0."""
    file = _resumed(run)
    known: Any = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    before = Spent(*max(known.values())) if known else Spent(0.0, 0.0)
    return [
        Spent(*known[_key(row)])
        if _key(row) in known
        else Spent(before.wall + row["time"], before.process + row["process_time"])
        for row in rows(run)
    ]


def _resumed(run: Path) -> Path:
    return run / "resumed.json"


def _key(row: Mapping[str, float]) -> str:
    """A line of results.csv: of an epoch that was repeated there are two, of different times."""
    return f"{row['epoch']:g} {row['time']}"


def rows(run: Path) -> list[dict[str, float]]:
    """The whole lines of results.csv, also while it grows and where a kill has cut one off."""
    file = run / "results.csv"
    if not file.exists():
        return []
    text = file.read_text(encoding="utf-8")
    head, *lines = list(csv.reader(text[: text.rfind("\n") + 1].splitlines())) or [[]]
    keys = [key.strip() for key in head]
    whole = [line for line in lines if len(line) == len(keys) and all(value.strip() for value in line)]
    return [dict(zip(keys, map(float, line))) for line in whole]


def curves(run: Path) -> dict[str, list[float]]:
    """The columns of results.csv, with times from the very start of a run; an epoch that was repeated stands once."""
    found = {
        int(row["epoch"]): {**row, "time": taken.wall, "process_time": taken.process}
        for row, taken in zip(rows(run), spent(run))
    }
    return {k: [row[k] for _, row in sorted(found.items())] for k in next(iter(found.values()), {})}


def started(run: Path) -> Any:
    """From what a run started, as its witness wrote it down; None where there was none."""
    file = run / "start.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def found(run: Path) -> float | None:
    """The share of the first epoch's views that an earlier run had left in the cache; None without one."""
    return next(iter(curves(run).get("found", [])), None)


def left_out(run: Path, settings: Mapping[str, Any]) -> dict[str, float]:
    """Terms that have a weight and were left out all the same: of which part of the run, by name.

    Args:
        run: The run's folder.
        settings: What it was trained with; a term without a weight is none of these.
    """
    found = {}
    for term in TERMS:
        shares = curves(run).get(f"left_out/{term}", [])
        if settings.get(term) and any(shares):
            found[term] = sum(shares) / len(shares)
    return found
