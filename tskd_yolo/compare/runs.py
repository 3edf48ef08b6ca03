"""What the folder of one run says: how far it has come, what it found, and its curves."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils import LOGGER

from tskd_yolo import compat
from tskd_yolo.files import replace, write_json


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
    for file in run.glob("weights/*.pt"):
        if file.name in {"last.pt", "best.pt"}:
            compat.strip(file)
    return "trained"


def result_of(run: Path) -> Any:
    """What a finished job left; None where there is none."""
    file = run / "result.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def prepare_to_resume(run: Path) -> None:
    """Remembers what the parts of a run so far took, and cuts off the line that a kill has left unfinished."""
    write_json(run / "resumed.json", {"seconds": history(run)[1], "rows": [[r["epoch"], r["time"]] for r in rows(run)]})
    file = run / "results.csv"
    if file.exists():
        text = file.read_bytes()
        replace(file, text[: text.rfind(b"\n") + 1])


def history(run: Path) -> tuple[int, float, bool]:
    """Epochs trained, seconds that training took over all its parts, and whether it was interrupted."""
    found, file = rows(run), run / "resumed.json"
    before: Any = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"seconds": 0.0, "rows": []}
    new = [row["time"] for row in found if [row["epoch"], row["time"]] not in before["rows"]]
    # Each part of a run counts its time from 0.
    return len({row["epoch"] for row in found}), before["seconds"] + (new[-1] if new else 0.0), file.exists()


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
    """The columns of results.csv; an epoch that was repeated after an interruption stands once."""
    found = {int(row["epoch"]): row for row in rows(run)}
    return {k: [row[k] for _, row in sorted(found.items())] for k in next(iter(found.values()), {})}
