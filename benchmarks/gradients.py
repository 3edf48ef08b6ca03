"""The gradient of each part of the three terms on the student at weight 1, and whether it agrees with the labels'.

    python benchmarks/gradients.py teacher=neu_yolo11s_128.pt student=yolo11n.yaml json=FILE.json
    python benchmarks/gradients.py teacher=neu_yolo11s_128.pt student=runs/tskd/weights/last.pt drd=0 ded=0.1 json=...

Of every part: its value, the norm of its gradient on the neck features of all levels, or on the maps of the backbone's
stages for what is called ``stages.``, and the cosine of that gradient with the detection loss's in the same place, as
means over ``batches=3`` batches of the training set of ``data=``, without mosaic. A part is what a term is the sum of
(DRD's pixels and instances, ...), the term's mean over levels or stages where it is taken on each.
Adapters are as they are drawn at the start of a run: for a trained student only parts without one mean anything. Of a
dual head each branch has its parts. ``clipped`` is the norm of the gradient on all of the student's parameters of what
plain training and a run with these weights go down along: Ultralytics clips it at 10. ``layers`` is the same of each
layer of the student that has parameters, by its number. The weights are ``drd=1 ded=4 crd=1`` unless given.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import machine, public
from torch import Tensor
from ultralytics import YOLO
from ultralytics.cfg import get_cfg, smart_value
from ultralytics.data import build_dataloader, build_yolo_dataset
from ultralytics.data.utils import check_det_dataset
from ultralytics.nn.tasks import DetectionModel

from tskd_yolo import config, settings_files
from tskd_yolo.distill.distiller import Distiller
from tskd_yolo.distill.features import StudentOutputs, TeacherOutputs
from tskd_yolo.distill.sources import level_weights
from tskd_yolo.distill.step import boxes_of
from tskd_yolo.distill.teacher import Teacher, load
from tskd_yolo.distill.terms import ResponseTerm
from tskd_yolo.losses.boxes import Boxes, covered

WEIGHTS = {"drd": 1.0, "ded": 4.0, "crd": 1.0}
KEYS = {"teacher", "student", "data", "imgsz", "batch", "batches", "seed", "json", *WEIGHTS}


def main(arguments: list[str]) -> None:
    given = dict(a.partition("=")[::2] for a in arguments)
    if unknown := given.keys() - KEYS:
        sys.exit(f"{', '.join(sorted(unknown))}: is not an argument; choose from {', '.join(sorted(KEYS))}.")
    if "teacher" not in given:
        sys.exit("teacher: missing; give teacher=FILE.pt.")
    seed, size, batch = int(given.get("seed", 0)), int(given.get("imgsz", 128)), int(given.get("batch", 32))
    settings = {"data": given.get("data", "neu.yaml")}
    settings_files.resolve(settings)
    data = check_det_dataset(settings["data"])
    torch.manual_seed(seed)
    student = _student(given.get("student", "yolo11n.yaml"), data)
    teacher = Teacher(load(Path(given["teacher"])), like=student, names=data["names"], responses=True)
    weights = {term: smart_value(given[term]) if term in given else weight for term, weight in WEIGHTS.items()}
    checked = config.build({**config.DEFAULTS, **weights, "teacher": given["teacher"]})
    distiller = Distiller(student=student, teacher=teacher, config=checked, seed=seed)
    args = get_cfg(overrides={"imgsz": size, "task": "detect", "mosaic": 0.0})
    dataset = build_yolo_dataset(args, data["train"], batch, data, mode="train", stride=32)
    loader = build_dataloader(dataset, batch, 0, shuffle=True)
    found: dict[str, list[tuple[float, float, float]]] = {}
    norms: dict[str, list[list[float]]] = {}
    batches = [batch for batch, _ in zip(loader, range(int(given.get("batches", 3))), strict=False)]
    for batch in batches:
        for name, measured in gradients(student, distiller, batch).items():
            found.setdefault(name, []).append(measured)
    for batch in batches:  # afterwards: the first whole step solves the adapters by least squares
        for name, norm in clipped(student, distiller, batch).items():
            norms.setdefault(name, []).append(norm)
    layers = {name: [sum(x) / len(x) for x in zip(*rows, strict=True)] for name, rows in norms.items()}
    rows = {
        name: {
            key: float(f"{sum(x) / len(x):.4g}")
            for key, x in zip(("value", "norm", "cosine"), zip(*v, strict=True), strict=True)
        }
        for name, v in found.items()
    }
    report = {
        "command": "python benchmarks/gradients.py " + public(arguments),
        **machine(),
        "parts": rows,
        "clipped": {name: round(sum(math.hypot(*row) for row in x) / len(x), 1) for name, x in norms.items()},
        "layers": {name: [round(x, 1) for x in row] for name, row in layers.items()},
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


def gradients(student: Any, distiller: Distiller, batch: dict[str, Any]) -> dict[str, tuple[float, float, float]]:
    """Value, gradient norm and cosine per part, ``detection`` among them, for one batch of uint8 images."""
    batch = {**batch, "img": batch["img"].float() / 255}
    step = distiller.attach(student, batch["img"])
    assert step.teacher is not None
    teacher, predictions = step.teacher, student(batch["img"])
    outputs = step.read(predictions)
    distiller.detach()
    boxes = boxes_of(batch, images=len(batch["img"]), size=(batch["img"].shape[2], batch["img"].shape[3]))
    loss, _ = student.init_criterion()(predictions, batch)
    at_neck = {"detection": loss.sum() / len(batch["img"]), **_drd(distiller, outputs, teacher, boxes)}
    responses = [term for term in distiller.terms if isinstance(term, ResponseTerm)]
    for term in responses:
        branch = outputs.responses[term.branch]
        parts = term.module.terms(student=branch, teacher=teacher.responses[term.branch], tails=term.tails)
        at_neck.update({name if len(responses) == 1 else f"{term.branch}.{name}": v for name, v in parts.items()})
    at_stages = {"detection": at_neck["detection"], **_ded(distiller, outputs, teacher, boxes)}
    found = _measured(at_neck, list(outputs.maps["neck"]))
    stages = _measured(at_stages, list(outputs.maps["stages"])) if len(at_stages) > 1 else {}
    return {**found, **{f"stages.{name}": row for name, row in stages.items()}}


def _measured(parts: dict[str, Tensor], inputs: list[Tensor]) -> dict[str, tuple[float, float, float]]:
    gradients = {name: _gradient(value, inputs) for name, value in parts.items()}
    return {
        name: (
            float(value.detach()),
            float(gradients[name].norm()),
            float(F.cosine_similarity(gradients[name], gradients["detection"], dim=0)),
        )
        for name, value in parts.items()
    }


def clipped(student: Any, distiller: Distiller, batch: dict[str, Any]) -> dict[str, list[float]]:
    """By layer, the norm of the gradient on its parameters in a step of plain training, and in one with the terms."""
    batch = {**batch, "img": batch["img"].float() / 255}
    found = {}
    for name in ("plain", "tskd"):
        student.zero_grad()
        student.criterion = None
        if name == "tskd":
            distiller.attach(student, batch["img"])
        student(batch)[0].sum().backward()
        layers = [[p.grad for p in layer.parameters() if p.grad is not None] for layer in student.model]
        found[name] = [float(torch.nn.utils.get_total_norm(layer)) for layer in layers if layer]
    return found


def _maps(distiller: Distiller, name: str, outputs: StudentOutputs, teacher: TeacherOutputs) -> list[tuple[Any, Any]]:
    """Student's and teacher's standardised maps of a source."""
    source = distiller.source(name)
    return list(zip(outputs.adapted(source), map(source.teacher_map, teacher.maps[name]), strict=True))


def _ded(distiller: Distiller, outputs: StudentOutputs, teacher: TeacherOutputs, boxes: Boxes) -> dict[str, Tensor]:
    """The parts of DED, as means over the backbone's stages; none where it is off."""
    if "ded" not in distiller.on:
        return {}
    found = []
    for loss, (ours, theirs) in zip(
        distiller.learned["ded"], _maps(distiller, "stages", outputs, teacher), strict=True
    ):
        found.append(loss.terms(student=ours, teacher=theirs, masks=covered(boxes, *theirs.size)))
    return {name: torch.stack([terms[name] for terms in found]).mean() for name in found[0]}


def _drd(distiller: Distiller, outputs: StudentOutputs, teacher: TeacherOutputs, boxes: Boxes) -> dict[str, Tensor]:
    """The parts of DRD, as means over levels by the teacher's class scores there; none where it is off."""
    if "drd" not in distiller.on:
        return {}
    found = []
    maps = _maps(distiller, "neck", outputs, teacher)
    for loss, (ours, theirs) in zip(distiller.learned["drd"], maps, strict=True):
        found.append(loss.terms(student=ours, teacher=theirs, boxes=boxes))
    weights = level_weights(teacher.level_scores)
    return {name: (weights * torch.stack([terms[name] for terms in found])).sum() for name in found[0]}


def _gradient(value: Tensor, inputs: list[Tensor]) -> Tensor:
    found = torch.autograd.grad(value, inputs, retain_graph=True, allow_unused=True, materialize_grads=True)
    return torch.cat([x.flatten() for x in found])


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except config.ConfigError as error:
        sys.exit(str(error))
