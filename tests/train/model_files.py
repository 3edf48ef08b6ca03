"""Checkpoints of every kind that a user may give: right ones, wrong ones, and files that are none."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from ultralytics.utils.checks import check_yaml

from tests.helpers import NAMES, make_detector


def model_file(kind: str, model_yaml: Any, task: str) -> Callable[[Path], Any]:
    """A checkpoint with random weights of one of Ultralytics' models."""

    def make(file: Path) -> None:
        from ultralytics.nn import tasks

        model = getattr(tasks, kind)(model_yaml, verbose=False)
        model.args, model.task = {}, task
        torch.save({"model": model.half(), "train_args": {}, "epoch": -1}, file)

    return make


def yolo11() -> str:
    """Ultralytics' YAML of the family."""
    return Path(check_yaml("yolo11.yaml")).read_text(encoding="utf-8")


def truncated(file: Path) -> None:
    whole = make_detector(file, "yolo11n.yaml").read_bytes()
    file.write_bytes(whole[: len(whole) * 2 // 3])


def image(file: Path) -> None:
    Image.new("RGB", (64, 64)).save(file, format="png")


def scripted(file: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), file)


def fused(file: Path) -> None:
    content = torch.load(make_detector(file, "yolo11n.yaml"), weights_only=False)
    content["model"].eval().fuse(verbose=False)
    torch.save(content, file)


def built_in(file: Path) -> None:
    """What last.pt holds in the middle of a run of Ultralytics' own distillation."""
    from ultralytics.cfg import get_cfg
    from ultralytics.nn.distill_model import DistillationModel
    from ultralytics.utils.torch_utils import ModelEMA

    content = torch.load(make_detector(file, "yolo11n.yaml"), weights_only=False)
    content["model"].args = get_cfg(overrides={"imgsz": 64})
    both = DistillationModel(teacher_model=deepcopy(content["model"]), student_model=content["model"])
    torch.save({**content, "model": None, "ema": ModelEMA(both).ema}, file)


def finished(file: Path) -> None:
    make_detector(file, "yolo11n.yaml")


def plain_run(file: Path) -> None:
    content = torch.load(make_detector(file, "yolo11n.yaml"), weights_only=False)
    torch.save({**content, "epoch": 3, "train_args": {"epochs": 10}}, file)


RTDETR = {  # as small as one can be
    "nc": 6,
    "backbone": [[-1, 1, "Conv", [8, 3, 2]] for _ in range(5)],
    "head": [[[2, 3, 4], 1, "RTDETRDecoder", ["nc", 32, 20, 4, 2, 1]]],
}

FILES: dict[str, Callable[[Path], Any]] = {
    "teacher.pt": lambda file: make_detector(file, "yolo11n.yaml"),
    "student.pt": lambda file: make_detector(file, "yolo11n.yaml", seed=3),
    "folder": Path.mkdir,
    "folder.pt": Path.mkdir,
    "empty.pt": Path.touch,
    "cut.pt": truncated,
    "image.pt": image,
    "words.pt": lambda file: file.write_text("garbage\n" * 50),
    "set.yaml": lambda file: file.write_text("nc: 2\n"),
    "yolo11-typo.yaml": lambda file: file.write_text(yolo11().replace("C2PSA", "C3PSA")),
    "foreign.pt": lambda file: torch.save({"model": torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1))}, file),
    "tensors.pt": lambda file: torch.save({"weight": torch.zeros(2)}, file),
    "list.pt": lambda file: torch.save([1, 2], file),
    "model.onnx": Path.touch,
    "model.engine": Path.touch,
    "model.torchscript": scripted,
    "scripted.pt": scripted,
    "model.safetensors": Path.touch,
    "weights.bin": Path.touch,
    "seg.pt": model_file("SegmentationModel", "yolo11n-seg.yaml", "segment"),
    "cls.pt": model_file("ClassificationModel", "yolo11n-cls.yaml", "classify"),
    "pose.pt": model_file("PoseModel", "yolo11n-pose.yaml", "pose"),
    "obb.pt": model_file("OBBModel", "yolo11n-obb.yaml", "obb"),
    "rtdetr.pt": model_file("RTDETRDetectionModel", RTDETR, "detect"),
    "p2.pt": lambda file: make_detector(file, "yolov8n-p2.yaml"),
    "two.pt": lambda file: make_detector(file, "yolo11n.yaml", names=("crazing", "inclusion")),
    "others.pt": lambda file: make_detector(file, "yolo11n.yaml", names=("cat", "dog", "cow", "hen", "ox", "ant")),
    "turned.pt": lambda file: make_detector(file, "yolo11n.yaml", names=NAMES[::-1]),
    "fused.pt": fused,
    "built_in.pt": built_in,
    "finished.pt": finished,
    "plain_run.pt": plain_run,
    "with blank ü/teacher 教.pt": make_detector,
}


def files_in(folder: Path) -> Callable[[Any], Any]:
    """Puts paths in ``folder`` into a value, and makes the files that it names, once."""

    def place(value: Any) -> Any:
        if not isinstance(value, str) or "{f}/" not in value:
            return value
        path = folder / value.removeprefix("{f}/")
        if not path.exists() and path.name != "nowhere.pt":
            path.parent.mkdir(exist_ok=True)
            FILES[value.removeprefix("{f}/")](path)
        return str(path)

    return place
