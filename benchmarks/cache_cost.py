"""What an epoch costs with teacher_cache: plain training, live distillation, and the cache's first and later passes.

    python benchmarks/cache_cost.py --pair yolo11n:yolo11m --imgsz 224 --json benchmarks/results/cache_cost_cpu.json

A pair is student:teacher. The trainers are the real ones, set up on drawn images; an epoch is every batch out of
the trainer's own loader, drawn anew, with preprocessing, forward pass, loss, backward pass and optimizer step, and
without validation. ``same_format`` is plain training in the memory format of ours. Epochs of all are interleaved, so
that a machine that slows down slows all alike. Figures are means over epochs, in seconds of the process (``cpu``) and
of the clock (``wall``); ``ratio`` is against plain training. As in a long run, one step in 48 of those after the first
pass measures gradient shares. ``items`` is what the loader alone takes for an image, out of a set of ``--loaded``
images, most of which are not among those read last.
``terms`` are the terms of one batch, live and out of the cache, and their relative error.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from common import machine
from step_cost import random_detector, step
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import LOGGER

from tskd_yolo import Trainer
from tskd_yolo.compare.trainers import PlainTrainer
from tskd_yolo.data.drawn import NAMES, prepare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", default="yolo11n:yolo11m")
    parser.add_argument("--teacher", type=Path, help="a trained checkpoint instead of random weights")
    parser.add_argument("--imgsz", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--loaded", type=int, default=256)
    parser.add_argument("--views", type=int, default=1)
    parser.add_argument("--later", type=int, default=4, help="epochs after the first pass over the views")
    parser.add_argument("--cache", default="disk")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    LOGGER.setLevel("WARNING")
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), options)
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Times the epochs of one pair."""
    student, teacher = options.pair.split(":")
    checkpoint = options.teacher or folder / "teacher.pt"
    if options.teacher is None:
        random_detector(checkpoint, f"{teacher}.yaml", list(NAMES))
    common = dict(
        data=str(drawn(folder, options.images)), model=f"{student}.yaml", epochs=100, imgsz=options.imgsz,
        batch=options.batch, nbs=options.batch, device=options.device, workers=0, plots=False, val=False,
        project=str(folder), optimizer="AdamW", close_mosaic=0,
    )  # fmt: skip
    ours = dict(common, teacher=str(checkpoint))
    trainers: dict[str, DetectionTrainer] = {
        "plain": DetectionTrainer(overrides={**common, "name": "plain"}),
        "same_format": PlainTrainer(overrides={**common, "name": "same_format"}),
        "live": Trainer(**ours, name="live"),
        "cached": Trainer(**ours, name="cached", teacher_cache=options.cache, views=options.views),
    }
    for trainer in trainers.values():
        trainer._setup_train()
        trainer._model_train()
        trainer.optimizer.zero_grad()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in [*trainers, "first"]}
    for number in range(options.views + options.later):
        for name, trainer in trainers.items():
            if isinstance(trainer, Trainer) and number == options.views:
                trainer.distiller.meter.steps = 25  # past the first steps, which are measured more often
            spent = timed(lambda trainer=trainer, number=number: epoch(trainer, number))
            if number >= options.views or name == "cached":
                times["first" if number < options.views else name].append(spent)
    cached = trainers["cached"].distiller.cache
    assert cached.computed == options.views * options.images  # the teacher saw each view once
    means = {name: [statistics.mean(column) for column in zip(*t)] for name, t in times.items()}
    return {
        "pair": options.pair,
        "epoch": {
            name: {"cpu": round(cpu, 3), "wall": round(wall, 3), "ratio": ratios(cpu, wall, means["plain"])}
            for name, (cpu, wall) in means.items()
        },
        "items": loading(folder, options, common),
        "record_bytes": cached.layout.size,
        "terms": terms(trainers["cached"]),
        "command": " ".join(
            ["python", "benchmarks/cache_cost.py", *(Path(a).name if "/" in a else a for a in sys.argv[1:])]
        ),
        "settings": {k: v.name if isinstance(v, Path) else v for k, v in vars(options).items() if k != "json"},
        "machine": machine(options.device),
    }


def ratios(cpu: float, wall: float, plain: list[float]) -> dict[str, float]:
    """Against plain training."""
    return {"cpu": round(cpu / plain[0], 3), "wall": round(wall / plain[1], 3)}


def epoch(trainer: DetectionTrainer, number: int) -> None:
    """One pass over the loader."""
    trainer.epoch = number
    trainer.run_callbacks("on_train_epoch_start")
    for batch in trainer.train_loader:
        step(trainer, batch)


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the process and of the clock."""
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.process_time() - cpu, time.perf_counter() - wall


def loading(folder: Path, options: argparse.Namespace, common: dict[str, Any]) -> dict[str, float]:
    """Seconds of the process for one image out of the loader alone: as it is, and as a view."""
    from tskd_yolo.data.views import Views

    settings = {**common, "data": str(drawn(folder / "loaded", options.loaded)), "name": "loading"}
    trainer = DetectionTrainer(overrides=settings)
    trainer.model = random_student(common["model"])
    found = {}
    for name in ("plain", "view"):
        dataset = trainer.build_dataset(trainer.data["train"], "train", options.batch)
        if name == "view":
            dataset = Views(dataset, options.views, 0)
        order = torch.randperm(options.loaded, generator=torch.Generator().manual_seed(0)).tolist()
        cpu, _ = timed(lambda dataset=dataset, order=order: [dataset[i] for i in order])
        found[name] = round(cpu / len(order), 6)
    return found


def random_student(model: str) -> Any:
    """Whatever has strides."""
    from ultralytics.nn.tasks import DetectionModel

    return DetectionModel(model, nc=len(NAMES), verbose=False)


def terms(trainer: Trainer) -> dict[str, dict[str, float]]:
    """The terms of one batch, live and out of the cache."""
    batch = trainer.preprocess_batch(next(iter(trainer.train_loader)))
    found = {}
    for name, views in (("live", None), ("cached", batch)):
        step = trainer.distiller.attach(trainer.model, batch["img"], views)
        with torch.no_grad():
            values = step.losses(step.read(trainer.model(batch["img"])), batch).values
        trainer.distiller.detach()
        found[name] = {term: float(value) for term, value in values.items()}
    found["error"] = {t: abs(found["cached"][t] / found["live"][t] - 1) for t in found["live"]}
    return found


def drawn(folder: Path, images: int) -> Path:
    """Drawn images of the size of NEU-DET's, and their data file."""
    prepare(folder / "set", train=images, val=4, size=200)
    content = {"path": str(folder / "set"), "train": "images/train", "val": "images/val", "names": list(NAMES)}
    file = folder / "data.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


if __name__ == "__main__":
    main()
