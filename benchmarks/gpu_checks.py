"""What only a GPU can show, in one command: our part of a step never waits for the device, and what a step costs there.

    python benchmarks/gpu_checks.py --json benchmarks/results/gpu_checks.json

First each pair is trained for some steps with ``torch.cuda.set_sync_debug_mode("warn")`` around everything that is
ours: the teacher's pass, the terms, the guards, and the way back from the terms to the student's tensors. The detection
loss is the host's own and waits; it runs outside. Then ``step_cost.py`` at 640 px, batch 32, under AMP. The exit code
is 1 if anything waited.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import step_cost
import torch
from common import machine
from ultralytics.utils import LOGGER
from ultralytics.utils.torch_utils import autocast, unwrap_model

BOXES, WAITS = (0, 1, 500), "called a synchronizing CUDA operation"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", default="yolo11n:yolo11m,yolo26n:yolo26m,yolo11s:yolo11l")
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--amp", default="True")
    parser.add_argument("--cuda-graphs", default="True")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no CUDA device was found; this script has nothing to show without one.")
    LOGGER.setLevel("ERROR")
    found = [waits(pair, options) for pair in options.pairs.split(",")]
    print(json.dumps(found), flush=True)
    command = "python benchmarks/gpu_checks.py " + " ".join(Path(a).name if "/" in a else a for a in sys.argv[1:])
    report = {"command": command, "machine": machine("0"), "sync": found, "step_cost": costs(options)}
    options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    sys.exit(any(row["waited"] for row in found))


def waits(pair: str, options: argparse.Namespace) -> dict[str, Any]:
    """Which counts of boxes made our part wait, and where."""
    settings = argparse.Namespace(**vars(options), boxes=3, classes=6, device="0")
    waited = {}
    with tempfile.TemporaryDirectory() as folder:
        trainer = step_cost.built("distill", pair, Path(folder), settings)
    for boxes in BOXES:
        settings.boxes = boxes
        batch = step_cost.fixed_batch(settings)
        step_cost.step(trainer, batch)  # warm: libraries choose their algorithms
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ours(trainer, batch)
        places = sorted({f"{Path(w.filename).name}:{w.lineno}" for w in caught if WAITS in str(w.message)})
        if places:
            waited[boxes] = places
    return {"pair": pair, "boxes": BOXES, "waited": waited}


def ours(trainer: Any, batch: dict[str, Any]) -> None:
    """Everything of a step that is ours, watched."""
    distiller, model = trainer.distiller, unwrap_model(trainer.model)
    on_device = {k: v.to(trainer.device) for k, v in batch.items()}
    images = on_device["img"].float() / 255
    with autocast(trainer.amp, device="cuda"):
        with watched():
            step = distiller.attach(model, images)
        predictions = model(images)
        outputs, detached = step_cost.apart(step.read(predictions)), step_cost.leaves(predictions)
        with watched():
            losses = step.losses(outputs, {**on_device, "img": images})
            vector, _ = distiller.add(predictions_sum(detached), {}, losses, len(images))
        distiller.detach()
    with watched():
        trainer.scaler.scale(vector.sum()).backward()
    trainer.optimizer.zero_grad()


def predictions_sum(predictions: Any) -> torch.Tensor:
    """A detection loss that waits for nothing, so that the meter has something to measure against."""
    return torch.stack([x.float().square().mean() for x in step_cost.tensors(predictions)]).sum().expand(3)


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Waiting for the device is warned of inside."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def costs(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of ``step_cost.py`` on this device."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cost.json"
        given = [f"--{k}={getattr(options, k)}" for k in ("pairs", "imgsz", "batch", "amp")]
        given.append(f"--cuda-graphs={options.cuda_graphs}")
        script = str(Path(__file__).with_name("step_cost.py"))
        subprocess.run([sys.executable, script, *given, "--device", "0", "--json", str(file)], check=True)
        return json.loads(file.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
