"""What every measurement leaves beside its figures: the command, the machine, versions and commit; and the seeds."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import ultralytics
from ultralytics.utils import NUM_THREADS

from tskd_yolo import __version__, files

TUNING_SEEDS, JUDGING_SEEDS = [*range(5)], [*range(10, 15)]
"""Of PROTOCOL.md: those that choose settings, on val, and those that judge them, on test."""


def refuse_seeds(seeds: int | list[int], *, of: str) -> None:
    """Ends with a sentence where a split is given seeds that are kept for the other.

    Args:
        seeds: A number of seeds, from 0 on, or a list.
        of: ``val`` or ``test``.
    """
    asked = {*range(seeds)} if isinstance(seeds, int) else {*seeds}
    purpose, other = ("judge", TUNING_SEEDS) if of == "test" else ("choose", JUDGING_SEEDS)
    if wrong := sorted(asked & {*other}):
        mine = JUDGING_SEEDS if of == "test" else TUNING_SEEDS
        does = "choose" if of == "test" else "judge"
        sys.exit(
            f"seeds: {', '.join(map(str, wrong))} {does} settings and must not {purpose} them, too; give others, such "
            f"as seeds={mine}."
        )


def public(arguments: list[str]) -> str:
    """The command as anyone can repeat it: files by their names, a run's weights with the name of the run, and a data
    set of few labels with its share.
    """
    return " ".join(re.sub(r"[^=,\[\]]*/[^,\[\]]*", _name, argument) for argument in arguments)


def _name(path: re.Match[str]) -> str:
    parts = Path(path[0]).parts
    count = 2 if parts[-1] == "labelled.yaml" else 1
    if parts[-2:-1] == ("weights",) and parts[-1] in {"best.pt", "last.pt"}:
        count = 3
    return "/".join(part for part in parts[-count:] if part != "/")


def _commit() -> str:
    """That of these scripts, with a word where files differ from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


COMMIT = _commit()
"""Asked for at the start: a measurement takes hours."""


def machine(device: str = "cpu") -> dict[str, Any]:
    """What the figures were made on and with.

    Args:
        device: On which they were made.
    """
    cpu = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    return {
        "hardware": torch.cuda.get_device_name()
        if device != "cpu"
        else f"{cpu}, {NUM_THREADS} thread(s), as Ultralytics sets on a CPU",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "ultralytics": ultralytics.__version__,
            "tskd-yolo": __version__,
        },
        "commit": COMMIT,
    }


def keep(comparison: Path, out: Path, name: str, command: str, device: str = "cpu") -> None:
    """What a comparison in its folder says, as ``NAME.json`` and ``NAME.csv``, with what it was made on and by."""
    found = json.loads((comparison / "compare.json").read_text(encoding="utf-8"))
    report = {"command": command, **machine(device), "comparison": found}
    out.mkdir(parents=True, exist_ok=True)
    files.replace(out / f"{name}.json", (json.dumps(report, indent=1) + "\n").encode("utf-8"))
    files.replace(out / f"{name}.csv", (comparison / "compare.csv").read_bytes())


def _lines(file: str) -> list[str]:
    return Path(file).read_text(encoding="utf-8").splitlines() if Path(file).exists() else []
