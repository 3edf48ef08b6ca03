"""How hard each part of the three terms pulls on the student's neck at weight 1, and whether towards the labels.

    python benchmarks/pulls.py teacher=neu_yolo11s_128.pt student=yolo11n.yaml json=benchmarks/results/pulls_start.json
    python benchmarks/pulls.py teacher=neu_yolo11s_128.pt student=runs/tskd/weights/last.pt json=...

Of every part: its value, the norm of its gradient on the neck features of all levels, and the cosine of that gradient
with the detection loss's, as means over ``batches=3`` batches of the training set of ``data=``, without mosaic. A
part is what a term is the sum of (DRD's pixels and instances, ...), the mean over levels where it is taken per level.
Adapters are as they are drawn at the start of a run: for a trained student only parts without one mean anything. Of a
dual head each branch has its parts. ``clipped`` is the norm of the gradient on all of the student's parameters of what
plain training and a run with the default weights go down along: Ultralytics clips it at 10.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import machine, public
from torch import Tensor
from ultralytics import YOLO
from ultralytics.cfg import get_cfg
from ultralytics.data import build_dataloader, build_yolo_dataset
from ultralytics.data.utils import check_det_dataset
from ultralytics.nn.tasks import DetectionModel

from tskd_yolo import config
from tskd_yolo.distiller import Distiller, boxes_of
from tskd_yolo.losses.maps import pair
from tskd_yolo.losses.regions import masks
from tskd_yolo.teacher import Teacher, load

KEYS = {"teacher", "student", "data", "imgsz", "batch", "batches", "seed", "json"}


def main(arguments: list[str]) -> None:
    given = dict(a.partition("=")[::2] for a in arguments)
    if unknown := given.keys() - KEYS:
        sys.exit(f"{', '.join(sorted(unknown))}: is not an argument; choose from {', '.join(sorted(KEYS))}.")
    if "teacher" not in given:
        sys.exit("teacher: missing; give teacher=FILE.pt.")
    seed, size, batch = int(given.get("seed", 0)), int(given.get("imgsz", 128)), int(given.get("batch", 32))
    settings = {"data": given.get("data", "neu.yaml")}
    config.resolve(settings)
    data = check_det_dataset(settings["data"])
    torch.manual_seed(seed)
    student = _student(given.get("student", "yolo11n.yaml"), data)
    teacher = Teacher(load(Path(given["teacher"])), like=student, names=data["names"], responses=True)
    checked = config.build({**config.DEFAULTS, "teacher": given["teacher"]})
    distiller = Distiller(student=student, teacher=teacher, config=checked, seed=seed)
    args = get_cfg(overrides={"imgsz": size, "task": "detect", "mosaic": 0.0})
    dataset = build_yolo_dataset(args, data["train"], batch, data, mode="train", stride=32)
    loader = build_dataloader(dataset, batch, 0, shuffle=True)
    found: dict[str, list[tuple[float, float, float]]] = {}
    norms: dict[str, list[float]] = {}
    for images, _ in zip(loader, range(int(given.get("batches", 3))), strict=False):
        for name, measured in pulls(student, distiller, images).items():
            found.setdefault(name, []).append(measured)
        for name, norm in clipped(student, distiller, images).items():
            norms.setdefault(name, []).append(norm)
    rows = {
        name: {
            key: round(sum(x) / len(x), 4)
            for key, x in zip(("value", "norm", "cosine"), zip(*v, strict=True), strict=True)
        }
        for name, v in found.items()
    }
    report = {
        "command": "python benchmarks/pulls.py " + public(arguments),
        **machine(),
        "parts": rows,
        "clipped": {name: round(sum(x) / len(x), 1) for name, x in norms.items()},
    }
    print(json.dumps(report, indent=1))
    if out := given.get("json"):
        Path(out).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _student(name: str, data: dict[str, Any]) -> Any:
    """The student as it stands at the start of a run, or as a checkpoint has it."""
    model = (
        YOLO(name, verbose=False).model if name.endswith(".pt") else DetectionModel(name, nc=data["nc"], verbose=False)
    )
    model.args = get_cfg()
    return model.float().train().requires_grad_(True)


def pulls(student: Any, distiller: Distiller, batch: dict[str, Any]) -> dict[str, tuple[float, float, float]]:
    """Value, gradient norm and cosine per part, ``detection`` among them, for one batch of uint8 images."""
    batch = {**batch, "img": batch["img"].float() / 255}
    said = distiller.ask(batch["img"])
    distiller.reader.arm()
    predictions = student(batch["img"])
    read = distiller.reader.read(predictions)
    distiller.reader.disarm()
    levels = [read[stride] for stride in distiller.strides]
    loss, _ = student.init_criterion()(predictions, batch)
    parts = {"detection": loss.sum() / len(batch["img"])}
    parts.update(_features(distiller, levels, said.maps, batch))
    for branch in distiller.branches:
        terms = distiller.learned["crd"][branch].terms(
            student=[level.responses[branch] for level in levels],
            teacher=said.responses[branch],
            tails=[distiller.teacher.tails(stride, branch) for stride in distiller.strides],
        )
        parts.update({name if len(distiller.branches) == 1 else f"{branch}.{name}": v for name, v in terms.items()})
    neck = [level.features for level in levels]
    gradients = {name: _gradient(value, neck) for name, value in parts.items()}
    return {
        name: (
            float(value.detach()),
            float(gradients[name].norm()),
            float(F.cosine_similarity(gradients[name], gradients["detection"], dim=0)),
        )
        for name, value in parts.items()
    }


def clipped(student: Any, distiller: Distiller, batch: dict[str, Any]) -> dict[str, float]:
    """Norm of the gradient on the student's parameters of a step of plain training, and of one with the terms."""
    batch = {**batch, "img": batch["img"].float() / 255}
    found = {}
    for name in ("plain", "tskd"):
        student.zero_grad()
        student.criterion = None
        if name == "tskd":
            distiller.arm(student, batch["img"])
        student(batch)[0].sum().backward()
        found[name] = float(torch.nn.utils.get_total_norm([p.grad for p in student.parameters() if p.grad is not None]))
    return found


def _features(distiller: Distiller, levels: list[Any], maps: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
    """The parts of DRD and DED, as means over levels."""
    size = (batch["img"].shape[2], batch["img"].shape[3])
    boxes = boxes_of(batch, images=len(batch["img"]), size=size)
    parts: dict[str, Tensor] = {}
    for stride, level, wanted in zip(distiller.strides, levels, maps, strict=True):
        ours, theirs = pair(distiller._brought(stride, level.features), distiller._wanted(wanted))
        regions = masks(boxes, *level.features.shape[2:])
        found = distiller.learned["ded"].terms(student=ours, teacher=theirs, masks=regions)
        found.update(distiller.learned["drd"][str(stride)].terms(student=ours, teacher=theirs, boxes=boxes))
        for name, value in found.items():
            parts[name] = parts.get(name, 0) + value / len(levels)
    return parts


def _gradient(value: Tensor, inputs: list[Tensor]) -> Tensor:
    found = torch.autograd.grad(value, inputs, retain_graph=True, allow_unused=True, materialize_grads=True)
    return torch.cat([x.flatten() for x in found])


if __name__ == "__main__":
    main(sys.argv[1:])
