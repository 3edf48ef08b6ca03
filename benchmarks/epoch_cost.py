"""What a whole epoch costs: seconds per epoch of plain training and of tskd-yolo, data, validation and saving included.

    TSKD_NEU=/data/NEU-DET python benchmarks/epoch_cost.py teacher=neu_yolo11s_128.pt data=neu.yaml imgsz=128 batch=32 \
        runs=3 out=benchmarks/results/epoch_cost.json

Short runs of both take turns, each in a process of its own. Per run the first epoch is left out; figures are medians
over all other epochs, on the clock and (``..._process``) of the processor. An epoch is split into ``step`` (from one
batch's start to its end: passes, losses, optimizer), ``data`` (waiting for the next batch and what the engine does
between batches), ``validation`` and ``saving``; ``start`` is what passes from the trainer's making to its first epoch.
``ratio_overhead`` is what an epoch costs more than a plain one, over what its steps do: 1 where the step is all.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import machine, public
from ultralytics.cfg import parse_key_value_pair
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import LOGGER

from tskd_yolo import Trainer, settings_files

ARMS = "plain", "tskd"
PARTS = "epoch", "step", "data", "validation", "saving"
OWN = {"out", "runs", "arm", "teacher"}


class Clock:
    """Callbacks of the engine that read both clocks."""

    def __init__(self) -> None:
        self.begun = self.now()
        self.marks: dict[str, tuple[float, float]] = {}
        self.epochs: list[dict[str, list[float]]] = []
        self.start: list[float] = []

    @staticmethod
    def now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    def mark(self, name: str) -> None:
        self.marks[name] = self.now()

    def since(self, name: str) -> list[float]:
        return [b - a for a, b in zip(self.marks[name], self.now())]

    def add(self, part: str, seconds: list[float]) -> None:
        row = self.epochs[-1]
        row[part] = [a + b for a, b in zip(row.get(part, [0.0, 0.0]), seconds)]

    def watch(self, trainer: Any) -> None:
        """Hangs itself on the engine's callbacks, and around validation and saving."""
        trainer.add_callback("on_train_start", lambda _: self._begin())
        trainer.add_callback("on_train_epoch_start", lambda _: self._epoch())
        trainer.add_callback("on_train_batch_start", lambda _: self.mark("step"))
        trainer.add_callback("on_train_batch_end", lambda _: self._batch())
        trainer.add_callback("on_fit_epoch_end", lambda _: self._end())
        trainer.validate = self._timed("validation", trainer.validate)
        trainer.save_model = self._timed("saving", trainer.save_model)

    def _begin(self) -> None:
        self.start = [b - a for a, b in zip(self.begun, self.now())]

    def _epoch(self) -> None:
        self.epochs.append({})
        self.mark("epoch")

    def _end(self) -> None:
        self.epochs[-1].setdefault("epoch", self.since("epoch"))  # the engine says it again when all is done

    def _batch(self) -> None:
        self.add("step", self.since("step"))
        self.add("steps", [1.0, 1.0])

    def _timed(self, part: str, call: Any) -> Any:
        def wrapped() -> Any:
            self.mark(part)
            try:
                return call()
            finally:
                self.add(part, self.since(part))

        return wrapped


def main(arguments: list[str]) -> None:
    given = {k: str(v) for k, v in (parse_key_value_pair(a) for a in arguments)}
    if "arm" in given:
        return run(given)
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    for i in range(int(given.get("runs", 3))):
        for arm in ARMS if i % 2 == 0 else ARMS[::-1]:
            found[arm].append(child(arm, arguments))
            print(arm, found[arm][-1], flush=True)
    command = "python benchmarks/epoch_cost.py " + public(arguments)
    report = {"command": command, **machine(given.get("device", "cpu")), **table(found)}
    print(json.dumps(report, indent=1))
    if out := given.get("out"):
        Path(out).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def child(arm: str, arguments: list[str]) -> dict[str, Any]:
    """One run in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "clock.json"
        line = [sys.executable, __file__, *(a for a in arguments if not a.startswith(("out=", "runs="))), f"arm={arm}"]
        subprocess.run([*line, f"out={out}", f"project={folder}"], check=True, stdout=subprocess.DEVNULL)
        return json.loads(out.read_text(encoding="utf-8"))


def run(given: dict[str, str]) -> None:
    """Trains one arm and writes what its clock has seen."""
    LOGGER.setLevel("ERROR")
    extra = {k: parse_key_value_pair(f"{k}={v}")[1] for k, v in given.items() if k not in OWN}
    common: dict[str, Any] = {
        **dict(data="neu.yaml", model="yolo11n.yaml", epochs=3, imgsz=128, batch=32, device="cpu", plots=False),
        **{"name": given["arm"], "seed": 0, **extra},
    }
    settings_files.resolve(common)
    clock = Clock()
    plain = given["arm"] == "plain"
    trainer: Any = DetectionTrainer(overrides=common) if plain else Trainer(**common, teacher=given["teacher"])
    clock.watch(trainer)
    trainer.train()
    Path(given["out"]).write_text(json.dumps({"start": clock.start, "epochs": clock.epochs}), encoding="utf-8")


def table(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians per arm, and whether the overhead is that of the step."""
    rows: dict[str, dict[str, float]] = {arm: {} for arm in ARMS}
    for arm, runs in found.items():
        epochs = [epoch for one in runs for epoch in one["epochs"][1:]]
        for index, suffix in enumerate(("", "_process")):
            for epoch in epochs:
                epoch.setdefault("data", [0.0, 0.0])[index] = epoch["epoch"][index] - sum(
                    epoch[part][index] for part in ("step", "validation", "saving")
                )
            for part in PARTS:
                rows[arm][part + suffix] = round(statistics.median(e[part][index] for e in epochs), 4)
            rows[arm]["start" + suffix] = round(statistics.median(one["start"][index] for one in runs), 4)
        rows[arm]["steps_per_epoch"] = epochs[0]["steps"][0]
    ratios = {}
    for suffix in ("", "_process"):
        more = {part: rows["tskd"][part + suffix] - rows["plain"][part + suffix] for part in ("epoch", "step")}
        ratios["ratio_overhead" + suffix] = round(more["epoch"] / more["step"], 4)
        ratios["ratio_epoch" + suffix] = round(rows["tskd"]["epoch" + suffix] / rows["plain"]["epoch" + suffix], 4)
    return {"seconds": rows, **ratios}


if __name__ == "__main__":
    main(sys.argv[1:])
