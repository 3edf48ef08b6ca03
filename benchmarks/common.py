"""What every measurement leaves beside its figures: the command, the machine, versions and commit."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch
import ultralytics
from ultralytics.utils import NUM_THREADS

from tskd_yolo import __version__


def public(arguments: list[str]) -> str:
    """The command as anyone can repeat it: files by their names."""
    return " ".join(f"{a.split('=', 1)[0]}={Path(a.split('=', 1)[1]).name}" if "/" in a else a for a in arguments)


def machine() -> dict[str, Any]:
    """What the figures were made on and with."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    cpu = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    return {
        "hardware": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{cpu}, {NUM_THREADS} thread(s), as Ultralytics sets on a CPU",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "ultralytics": ultralytics.__version__,
            "tskd-yolo": __version__,
        },
        "commit": commit.strip(),
    }


def keep(comparison: Path, out: Path, name: str, command: str) -> None:
    """What a comparison in its folder says, as ``NAME.json`` and ``NAME.csv``, with what it was made on and by."""
    found = json.loads((comparison / "compare.json").read_text(encoding="utf-8"))
    report = {"command": command, **machine(), "comparison": found}
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    shutil.copy(comparison / "compare.csv", out / f"{name}.csv")


def _lines(file: str) -> list[str]:
    return Path(file).read_text(encoding="utf-8").splitlines() if Path(file).exists() else []
