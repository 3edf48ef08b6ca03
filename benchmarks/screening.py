"""Plain training, Ultralytics' built-in distillation and tskd-yolo from the same start, on real NEU-DET: one table.

    python benchmarks/screening.py teacher=neu_yolo11s_128.pt arms=plain,ultralytics,tskd seeds=0 \
        epochs=20 imgsz=128 batch=32 runs=runs/screening out=benchmarks/results/screening.json

Every arm starts from the same random weights (the seed's), sees the same images in the same order and is judged on
its last weights. Keys of tskd-yolo and of Ultralytics that are given besides (drd=0.5, ...) go to the tskd arm, and
``name=`` names it. A finished arm is not run again (delete its folder to repeat it), an interrupted one goes on.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import ultralytics
from ultralytics.cfg import parse_key_value_pair
from ultralytics.utils import NUM_THREADS

from tskd_yolo import __version__, config
from tskd_yolo.arm import train

OWN = {"teacher", "model", "arms", "seeds", "epochs", "imgsz", "batch", "runs", "out", "data", "name", "device"}


def main(arguments: list[str]) -> None:
    given = {k: str(v) for k, v in (parse_key_value_pair(a) for a in arguments)}
    extra = {k: parse_key_value_pair(f"{k}={v}")[1] for k, v in given.items() if k not in OWN}
    data = {"data": given.get("data", "neu.yaml")}
    config.resolve(data)
    common = {
        **data,
        "epochs": int(given.get("epochs", 20)),
        "imgsz": int(given.get("imgsz", 128)),
        "batch": int(given.get("batch", 32)),
        "device": given.get("device", "cpu"),
        "plots": False,
    }
    runs = Path(given.get("runs", "runs/screening")).resolve()
    rows = []
    for seed in str(given.get("seeds", "0")).strip("()").replace(" ", "").split(","):
        for arm in given.get("arms", "plain,ultralytics,tskd").strip("()").replace(" ", "").split(","):
            settings = extra if arm == "tskd" else {}
            name = given.get("name", arm) if arm == "tskd" else arm
            rows.append(
                run(arm, name, int(seed), given["teacher"], given.get("model", "yolo11n.yaml"), common, settings, runs)
            )
            print(table(rows), flush=True)
    if out := given.get("out"):
        report = {"command": "python benchmarks/screening.py " + public(arguments), **machine(), "rows": rows}
        Path(out).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def run(
    arm: str, name: str, seed: int, teacher: str, model: str, common: dict, settings: dict, runs: Path
) -> dict[str, Any]:
    """Trains one arm, goes on with it, or reads what it left, and returns its row."""
    folder = runs / f"{name}-{seed}"
    result = folder / "result.json"
    if result.exists():
        found = json.loads(result.read_text(encoding="utf-8"))
    else:
        own = {"teacher": str(Path(teacher).resolve()), **settings}
        found = train(arm=arm, seed=seed, folder=str(folder), model=model, common=common, own=own, seconds=None)
    if "last" not in found:  # left by this script before it shared the runs of tskd-yolo compare
        return found
    last = found["last"]
    return {
        "arm": name,
        "seed": seed,
        "settings": settings,
        "mAP50": round(last["mAP50"], 4),
        "mAP50-95": round(last["mAP50-95"], 4),
        "mAP50_per_class": {c["name"]: round(c["AP50"], 4) for c in last["classes"] if c["AP50"] is not None},
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = ["| arm | seed | mAP50 | mAP50-95 |", "|---|---|---|---|"]
    return "\n".join(
        [*lines, *(f"| {r['arm']} | {r['seed']} | {r['mAP50']:.3f} | {r['mAP50-95']:.3f} |" for r in rows)]
    )


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


def _lines(file: str) -> list[str]:
    return Path(file).read_text(encoding="utf-8").splitlines() if Path(file).exists() else []


if __name__ == "__main__":
    main(sys.argv[1:])
