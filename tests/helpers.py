"""Tiny data, tiny teachers and whole runs of a few steps, shared by the tests."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
import yaml

NAMES = ("crazing", "inclusion", "patches", "pitted_surface", "rolled-in_scale", "scratches")


def tiny_data(folder: Path, train: int = 8, val: int = 4) -> Path:
    """A drawn data set and its YAML."""
    from tskd_yolo.data.demo import prepare

    prepare(folder / "set", train=train, val=val, size=64)
    content = {"path": str(folder / "set"), "train": "images/train", "val": "images/val", "names": list(NAMES)}
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


def make_detector(
    file: Path, model: str = "yolo11s.yaml", names: Any = NAMES, seed: int = 7, train: bool = False
) -> Path:
    """A detector checkpoint with random weights, as Ultralytics saves one."""
    from ultralytics.nn.tasks import DetectionModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        detector = DetectionModel(model, nc=len(names), verbose=False)
        for module in detector.modules():  # statistics that are not those of a fresh batch norm
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    detector.names = dict(enumerate(names))
    detector.args = {}
    torch.save({"model": detector, "train_args": {"task": "detect", "imgsz": 64}, "epoch": -1}, file)
    return file


def settings(folder: Path, data: Path, **more: Any) -> dict[str, Any]:
    """Arguments of a run of two steps per epoch that writes into ``folder``."""
    base = dict(
        data=str(data), model="yolo11n.yaml", epochs=1, imgsz=64, batch=4, nbs=4, workers=0, device="cpu", plots=False,
        project=str(folder), name="run", exist_ok=True, warmup_epochs=0, optimizer="AdamW", lr0=0.002, seed=3,
    )  # fmt: skip
    return {**base, **more}


def rows(folder: Path) -> list[dict[str, float]]:
    """results.csv of the run in ``folder``, a dict of numbers per epoch."""
    with open(folder / "run" / "results.csv", encoding="utf-8") as file:
        return [{key.strip(): float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def weights(file: Path) -> dict[str, torch.Tensor]:
    """Tensors of the model in a checkpoint."""
    checkpoint = torch.load(file, map_location="cpu", weights_only=False)
    return (checkpoint.get("ema") or checkpoint["model"]).state_dict()
