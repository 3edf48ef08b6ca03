"""A first look without a GPU: plain training, ``distill_model`` and tskd-yolo on real NEU-DET at 128 px, 20 epochs.

    TSKD_NEU=/data/NEU-DET python benchmarks/screening.py teacher=neu_yolo11s_128.pt seeds=3 jobs=2 \
        runs=runs/screening out=benchmarks/results

``tskd-yolo compare`` with these settings; other keys (``drd=0.5``, ``arms=plain,tskd``, ...) go to it. It leaves
``screening_neu_128.json`` and ``.csv`` in ``out=``, or by another ``name=``, and its page in ``runs=``. It finds faults
and directions, and claims nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

from common import keep, public

from tskd_yolo import cli

SETTINGS = {
    "data": "neu.yaml",
    "model": "yolo11n.yaml",
    "arms": "plain,ultralytics,tskd",
    "seeds": "3",
    "epochs": "20",
    "imgsz": "128",
    "batch": "32",
    "device": "cpu",
}


def main(arguments: list[str]) -> int:
    given = {**SETTINGS, **dict(a.partition("=")[::2] for a in arguments)}
    runs, out = Path(given.pop("runs", "runs/screening")).resolve(), Path(given.pop("out", "benchmarks/results"))
    name = given.pop("name", "screening_neu_128")
    if code := cli.main(["compare", *(f"{key}={value}" for key, value in given.items()), f"out={runs}"]):
        return code
    keep(runs, out, name, "python benchmarks/screening.py " + public(arguments), given["device"])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
