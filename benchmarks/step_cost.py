"""What one training step costs: plain, with tskd-yolo, with Ultralytics' built-in distillation, and the teacher alone.

    python benchmarks/step_cost.py --pairs yolo11n:yolo11s,yolo11n:yolo11m,yolo26n:yolo26m --imgsz 224 --batch 16 \
        --device cpu --json benchmarks/results/step_cost_cpu.json

A pair is student:teacher. The three trainers are the real ones, set up on drawn images; a step is preprocessing,
forward pass, loss, backward pass and optimizer step on one fixed batch with three boxes per image. Repetitions are
interleaved, so that a machine that slows down slows all alike; figures are medians in seconds. The teacher's forward
pass is that of the teacher as tskd-yolo runs it: batch norms folded, raw head output, same dtype and memory format.
The floor is student step + teacher forward pass; ``ratio_to_floor`` and ``ratio_to_builtin`` are ratios of medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from screening import machine
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import LOGGER
from ultralytics.utils.torch_utils import autocast

from tskd_yolo import Trainer
from tskd_yolo.data.demo import NAMES, prepare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", default="yolo11n:yolo11s,yolo11n:yolo11m,yolo26n:yolo26m")
    parser.add_argument("--imgsz", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    LOGGER.setLevel("WARNING")
    rows = []
    for pair in options.pairs.split(","):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(pair, Path(folder), options))
        print(json.dumps({k: v for k, v in rows[-1].items() if k not in {"machine", "settings"}}), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def measure(pair: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Times one pair."""
    student, teacher = pair.split(":")
    checkpoint = random_detector(folder / "teacher.pt", f"{teacher}.yaml")
    data = drawn(folder)
    common = dict(
        data=str(data), model=f"{student}.yaml", epochs=1, imgsz=options.imgsz, batch=options.batch, nbs=options.batch,
        device=options.device, workers=0, plots=False, val=False, project=str(folder), optimizer="AdamW",
    )  # fmt: skip
    trainers: dict[str, DetectionTrainer] = {
        "student_step_s": DetectionTrainer(overrides={**common, "name": "plain"}),
        "distill_step_s": Trainer(**common, name="tskd", teacher=str(checkpoint)),
        "builtin_step_s": DetectionTrainer(overrides={**common, "name": "builtin", "distill_model": str(checkpoint)}),
    }
    batch = fixed_batch(options.batch, options.imgsz)
    calls: dict[str, Callable[[], object]] = {}
    for name, trainer in trainers.items():
        trainer._setup_train()
        trainer._model_train()
        trainer.optimizer.zero_grad()
        calls[name] = lambda trainer=trainer: step(trainer, batch)
    ours = trainers["distill_step_s"]
    images = ours.preprocess_batch(dict(batch))["img"]
    ours.distiller.disarm(ours.model)
    calls["teacher_forward_s"] = lambda: forward(ours, images)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(options.repeats + 2):  # two rounds to warm up
        for name, call in calls.items():
            seconds = timed(call, ours.device)
            if repeat >= 2:
                times[name].append(seconds)
    medians = {name: statistics.median(t) for name, t in times.items()}
    order = "student_step_s", "teacher_forward_s", "distill_step_s", "builtin_step_s"
    floor = medians["student_step_s"] + medians["teacher_forward_s"]
    return {
        "pair": pair,
        **{name: round(medians[name], 5) for name in order},
        "ratio_to_floor": round(medians["distill_step_s"] / floor, 4),
        "ratio_to_builtin": round(medians["distill_step_s"] / medians["builtin_step_s"], 4),
        "settings": {
            "imgsz": options.imgsz,
            "batch": options.batch,
            "device": options.device,
            "repeats": options.repeats,
        },
        "machine": machine(),
    }


def step(trainer: DetectionTrainer, batch: dict[str, Any]) -> None:
    """One training step as the engine takes it."""
    with autocast(trainer.amp, device=trainer.device.type):
        loss, _ = trainer.model(trainer.preprocess_batch(dict(batch)))
    trainer.scaler.scale(loss.sum()).backward()
    trainer.optimizer_step()


def forward(trainer: Trainer, images: torch.Tensor) -> object:
    """The teacher's pass alone, under the run's autocast."""
    with autocast(trainer.amp, device=trainer.device.type):
        return trainer.distiller.teacher(images)


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, until the device is done."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start


def fixed_batch(images: int, imgsz: int, boxes: int = 3) -> dict[str, Any]:
    """Random images with boxes of random place and size."""
    generator = torch.Generator().manual_seed(0)
    count = images * boxes
    centre = 0.25 + 0.5 * torch.rand(count, 2, generator=generator)
    size = 0.05 + 0.4 * torch.rand(count, 2, generator=generator)
    return {
        "img": torch.randint(0, 256, (images, 3, imgsz, imgsz), dtype=torch.uint8, generator=generator),
        "cls": torch.randint(0, len(NAMES), (count, 1), generator=generator).float(),
        "bboxes": torch.cat((centre, size), dim=1),
        "batch_idx": torch.arange(images).repeat_interleave(boxes).float(),
    }


def random_detector(file: Path, model: str) -> Path:
    """A checkpoint with random weights: a step costs the same whatever the weights."""
    detector = DetectionModel(model, nc=len(NAMES), verbose=False)
    detector.names, detector.args = dict(enumerate(NAMES)), {}
    torch.save({"model": detector, "train_args": {"task": "detect"}, "epoch": -1}, file)
    return file


def drawn(folder: Path) -> Path:
    """A few drawn images: enough for the trainers to set themselves up."""
    prepare(folder / "set", train=4, val=2, size=64)
    file = folder / "data.yaml"
    file.write_text(
        yaml.safe_dump(
            {"path": str(folder / "set"), "train": "images/train", "val": "images/val", "names": list(NAMES)}
        ),
        encoding="utf-8",
    )
    return file


if __name__ == "__main__":
    main()
