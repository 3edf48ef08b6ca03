"""Tiny data, tiny teachers and whole runs of a few steps, shared by the tests."""

from __future__ import annotations

import contextlib
import csv
import logging
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml

DEVICE = os.environ.get("TSKD_TEST_DEVICE", "cpu")
"""On which the runs of the tests train: 0 for the first GPU."""
NAMES = ("crazing", "inclusion", "patches", "pitted_surface", "rolled-in_scale", "scratches")


def tiny_data(folder: Path, train: int = 8, val: int = 4) -> Path:
    """A drawn data set and its YAML."""
    from tskd_yolo.data.drawn import prepare

    prepare(folder / "set", train=train, val=val, size=64)
    content = {"path": str(folder / "set"), "train": "images/train", "val": "images/val", "names": list(NAMES)}
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


def scanned_data(folder: Path, train: int = 8, val: int = 4) -> None:
    """The same in a new folder, with the label caches that Ultralytics would write into it on the first run."""
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.data.utils import check_det_dataset

    folder.mkdir()
    data = check_det_dataset(str(tiny_data(folder, train, val)))
    for split in ("train", "val"):
        YOLODataset(img_path=data[split], data=data, imgsz=64, augment=False)


def copied_data(data: Path, folder: Path) -> Path:
    """A copy of a data set and of what lies in it, in ``folder``, and its YAML there."""
    shutil.copytree(data.parent / "set", folder / "set", ignore=shutil.ignore_patterns("*.cache"))
    content = {**yaml.safe_load(data.read_text(encoding="utf-8")), "path": str(folder / "set")}
    copy = folder / data.name
    copy.write_text(yaml.safe_dump(content), encoding="utf-8")
    return copy


def make_detector(
    file: Path, model: str = "yolo11s.yaml", names: Any = NAMES, seed: int = 7, channels: int = 3
) -> Path:
    """A checkpoint with random weights, as Ultralytics saves one; of a detector, or of what the YAML's name says."""
    kind, task = model_kind(model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        detector = kind(model, ch=channels, nc=len(names), verbose=False)
        for module in detector.modules():  # statistics that are not those of a fresh batch norm
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    detector.names = dict(enumerate(names))
    detector.args = {}
    torch.save({"model": detector, "train_args": {"task": task, "imgsz": 64}, "epoch": -1}, file)
    return file


def model_kind(model: str) -> tuple[Any, str]:
    """What makes the network of a model YAML, by its name, and its task."""
    from ultralytics.nn import tasks

    kinds = {
        "segment": tasks.SegmentationModel,
        "pose": partial(tasks.PoseModel, data_kpt_shape=KEY_POINTS),
        "obb": tasks.OBBModel,
        "detect": tasks.RTDETRDetectionModel if "rtdetr" in model else tasks.DetectionModel,
    }
    task = tasks.guess_model_task(model) or "detect"
    return kinds[task], task


KEY_POINTS = 2, 3
"""Shape of the key points that :func:`task_data` has."""
TURN = 0.6
"""Angle of the rotated boxes that :func:`task_data` has, in radians."""


def task_data(folder: Path, task: str, train: int = 4, val: int = 2) -> Path:
    """The drawn data set with labels of a task, and its YAML: what lies in the boxes, and not exactly the defects."""
    file = tiny_data(folder, train, val)
    for label in (folder / "set" / "labels").rglob("*.txt"):
        lines = [_as_task(task, *map(float, line.split())) for line in label.read_text().splitlines()]
        label.write_text("".join(" ".join(f"{number:.6g}" for number in line) + "\n" for line in lines))
    if task == "pose":
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        content |= {"kpt_shape": list(KEY_POINTS), "flip_idx": [1, 0]}
        file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


def _as_task(task: str, index: float, x: float, y: float, w: float, h: float) -> list[float]:
    """The numbers of a label: a polygon, two key points, or the corners of a rotated box."""
    if task == "pose":
        return [int(index), x, y, w, h, x - w / 4, y, 2, x + w / 4, y, 2]
    if task == "segment":
        corners = [(-w / 2, 0), (0, -h / 2), (w / 2, 0), (0, h / 2)]
    else:
        cos, sin, w, h = math.cos(TURN), math.sin(TURN), w * 0.7, h * 0.4
        turned = [(-w / 2, -h / 2), (w / 2, -h / 2), (w / 2, h / 2), (-w / 2, h / 2)]
        corners = [(a * cos - b * sin, a * sin + b * cos) for a, b in turned]
    return [int(index), *(min(max(c, 0), 1) for a, b in corners for c in (x + a, y + b))]


TIMM = {"test_resnet": (48, 192, 96), "test_convnext": (32, 48, 64)}
"""timm's smallest models, with the channels of their maps of stride 8, 16 and 32."""


def timm_yaml(folder: Path, name: str = "test_resnet") -> Path:
    """The YAML of a tiny detector with a timm backbone: one of ours, with another model in it."""
    from tskd_yolo.config import folder as place

    text = (place("cfg") / "models" / "timm-resnet18.yaml").read_text(encoding="utf-8").replace("resnet18", name)
    for before, after in zip((128, 256, 512), TIMM[name], strict=True):
        text = text.replace(f"Index, [{before},", f"Index, [{after},")
    file = folder / f"timm-{name}.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def timm_file(file: Path, name: str = "test_resnet") -> Path:
    """A checkpoint of timm's with random weights."""
    import timm
    from safetensors.torch import save_file

    with torch.random.fork_rng():
        torch.manual_seed(4)
        tensors = timm.create_model(name).state_dict()
    save_file({key: value.contiguous() for key, value in tensors.items()}, file)
    return file


def settings(folder: Path, data: Path, **more: Any) -> dict[str, Any]:
    """Arguments of a run of two steps per epoch that writes into ``folder``."""
    base = dict(
        data=str(data), model="yolo11n.yaml", epochs=1, imgsz=64, batch=4, nbs=4, workers=0, device=DEVICE, plots=False,
        project=str(folder), name="run", exist_ok=True, warmup_epochs=0, optimizer="AdamW", lr0=0.002, seed=3,
        amp=DEVICE == "cpu",  # with float16 on CUDA the first ten steps only look for the scale of the loss
    )  # fmt: skip
    # All terms are tested, that which is off by default too; a teacher without a head brings it.
    terms = {} if str(more.get("teacher", "timm:")).startswith("timm:") else {"drd": 1}
    return {**base, **terms, **more}


def trained(folder: Path, data: Path, **more: Any) -> Any:
    """Runs the trainer to its end and returns it."""
    from tskd_yolo import Trainer

    trainer = Trainer(**settings(folder, data, **more))
    trainer.train()
    return trainer


@contextlib.contextmanager
def without_end() -> Iterator[None]:
    """Inside, a run is through after its last epoch: its checkpoints are neither stripped nor validated again.

    That takes half of the time of a run of two steps, and is what most tests do not look at.
    """
    from tskd_yolo import Trainer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "final_eval", lambda self: None)
        yield


def rows(folder: Path) -> list[dict[str, float]]:
    """results.csv of the run in ``folder``, a dict of numbers per epoch."""
    with open(folder / "run" / "results.csv", encoding="utf-8") as file:
        return [{key.strip(): float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def weights(file: Path) -> dict[str, torch.Tensor]:
    """Tensors of the model in a checkpoint."""
    checkpoint = torch.load(file, map_location="cpu", weights_only=False)
    return (checkpoint.get("ema") or checkpoint["model"]).state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of weights are equal to the bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Kept(NamedTuple):
    """A run that keeps teacher outputs: for how many views the teacher was asked, in all; its weights at the end."""

    asked: int
    weights: dict[str, torch.Tensor]


def kept_runs(folder: Path, data: Path, runs: Sequence[dict[str, Any]]) -> list[Kept]:
    """Runs one after the other beside the same data, whose records of one view of each image they share."""
    from tskd_yolo import Trainer

    found = []
    for number, given in enumerate(runs):
        shared = dict(views=1, close_mosaic=0, teacher_cache="disk", val=False)
        trainer, asked = Trainer(**settings(folder / str(number), data, **shared, **given)), []
        trainer.add_callback("on_train_epoch_end", lambda t, asked=asked: asked.append(t.distiller.cache.computed))
        trainer.train()
        assert asked == asked[:1] * given["epochs"], "the teacher was asked in the first epoch only"
        found.append(Kept(asked[0], weights(folder / str(number) / "run" / "weights" / "last.pt")))
    return found


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.getMessage()}")


@contextlib.contextmanager
def logged() -> Iterator[list[str]]:
    """Inside, lines that Ultralytics' logger writes, each after its level."""
    from ultralytics.utils import LOGGER

    listener = _Lines()
    LOGGER.addHandler(listener)
    try:
        yield listener.lines
    finally:
        LOGGER.removeHandler(listener)


def finished_run(plan: Any, arm: str, seed: int, value: float, names: Any = NAMES, **more: Any) -> None:
    """What an arm leaves when it is through, with ``value`` as its mAP50-95, without having trained anything."""
    from tskd_yolo.files import write_json

    folder = plan.out / f"{arm}-{seed}"
    folder.mkdir(parents=True)
    figures = made_up(value, names)
    witness = {"weights": f"w{seed}", "images": f"i{seed}", "files": f"f{seed}", "memory_format": "channels_last"}
    row = {"arm": arm, "seed": seed, "settings": {}, "last": figures, "best": figures, "parameters": 2591010,
           "GFLOPs": 6.4, "epochs": 3, "seconds": 60.0, "process_seconds": 90.0, "resumed": False, "device": "CPU",
           "left_out": {}, "start": witness, **more}  # fmt: skip
    write_json(folder / "result.json", row)
    head = ["epoch", "time", "process_time", "train/box_loss", "val/box_loss", "metrics/mAP50-95(B)"]
    head += ["train/drd_loss", "train/ded_loss"] if arm == "tskd" else []
    lines = [[e, 20 * e, 30 * e, 3 / e, 3.5 / e, value * e / 3, 0.4 / e, 0.2 / e][: len(head)] for e in (1, 2, 3)]
    (folder / "results.csv").write_text("\n".join(",".join(map(str, row)) for row in [head, *lines]) + "\n")
    write_json(folder / "seen.json", seen_on(plan, hits=arm == "tskd"))


def made_up(value: float, names: Any = NAMES) -> dict[str, Any]:
    """Figures of a validation that nobody made."""
    at = [{"false_alarms": f, "miss": 1 - value, "threshold": 0.4} for f in (0.01, 0.1, 1.0)]
    rows = [{"name": n, "truths": 5, "AP50": value * 1.5, "AP50-95": value + i / 100, "misses": at}
            for i, n in enumerate(names)]  # fmt: skip
    return {"images": 4, "truths": 30, "mAP50": value * 1.5, "mAP50-95": value, "precision": 0.5, "recall": 0.4,
            "misses": at, "classes": rows}  # fmt: skip


def seen_on(plan: Any, hits: bool) -> list[dict[str, Any]]:
    """The drawn validation images with one defect each, which is found or not."""
    folder = Path(yaml.safe_load(Path(plan.common["data"]).read_text())["path"])
    files = sorted(str(f.relative_to(folder)) for f in (folder / "images" / "val").iterdir())
    box = [0.1, 0.2, 0.6, 0.9]
    return [{"file": f, "truth": [[0, *box]], "found": [[0, 0.8, hits, *box]]} for f in files]


def finished_teacher(plan: Any, value: float, names: Any = NAMES) -> None:
    """What the beginning of a comparison leaves, judging the teacher, and the latencies."""
    from tskd_yolo.compare.record import begin
    from tskd_yolo.files import write_json

    plan.out.mkdir(parents=True, exist_ok=True)
    begin(plan)
    for name in ("teacher", "latency", "logs"):
        (plan.out / name).mkdir(parents=True, exist_ok=True)
    figures = {"name": "teacher.pt", "last": made_up(value, names), "parameters": 9430114, "GFLOPs": 21.6}
    write_json(plan.out / "teacher" / "result.json", figures)
    write_json(plan.out / "teacher" / "seen.json", seen_on(plan, hits=True))
    timed = {"imgsz": 64, "teacher_imgsz": 64, "runs": 50, "milliseconds": {"student": 4.2, "teacher": 11.9}}
    write_json(plan.out / "latency" / "result.json", timed)


def launched(parent: Any) -> dict[str, Any]:
    """What Ultralytics gives the processes of a distributed run of a trainer: its class, its arguments."""
    from ultralytics.utils.dist import ddp_cleanup, generate_ddp_file
    from ultralytics.utils.patches import torch_load

    file = generate_ddp_file(parent)
    try:
        return torch_load(Path(file).with_suffix(".pt"), map_location="cpu")
    finally:
        ddp_cleanup(parent, file)
