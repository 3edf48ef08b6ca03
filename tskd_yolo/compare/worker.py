"""The worker of a comparison: a process that trains and judges one arm, judges the teacher, or measures latencies.

A job comes as one line of JSON on standard input, which then stays open: when it closes, whoever ordered the job is
gone, and so is the job.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ultralytics import YOLO
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils.torch_utils import get_flops, get_num_params

from tskd_yolo import compat
from tskd_yolo.compare.metrics import class_names, findings, judge, seen
from tskd_yolo.compare.record import clock, hardware, named
from tskd_yolo.compare.runs import found as found_before
from tskd_yolo.compare.runs import history, left_out, prepare_to_resume, progress, started
from tskd_yolo.compare.trainers import DistilledTrainer, PlainTrainer
from tskd_yolo.config import sources, teachers
from tskd_yolo.distill import classes, teacher
from tskd_yolo.files import write_json

JUDGED_WITH = "imgsz", "batch", "device", "workers", "single_cls", "classes", "iou", "max_det", "nms", "agnostic_nms"
"""The training arguments that validation takes too."""
ELSEWHERE = "data", "device", "cache"
"""Arguments that may be others when a comparison goes on: data may have moved, and memory be short."""
AGAIN = "teacher", "unlabelled", "distill_model", "trust"
"""Of an arm's settings those that an interrupted run is given again: files may have moved, and trust it takes from no
checkpoint."""
WARM, TIMED = 5, 50
"""Passes before the clock runs, and passes timed, of an exported network."""


def main() -> None:
    """Runs the job on standard input."""
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_caller, daemon=True).start()
    kinds: dict[str, Callable[..., Any]] = {"train": train, "teacher": judge_teacher, "latency": latency}
    with compat.guarded(trust=os.environ.get("ULTRALYTICS_SAFE_LOAD") == "0"):
        kinds[job.pop("kind")](**job)


def _end_with_the_caller() -> None:
    # Not by sys.stdin: a loader's process that is forked meanwhile would wait for its lock forever.
    while os.read(sys.stdin.fileno(), 1024):
        continue
    if os.name == "posix" and os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGTERM)  # loaders and ranks too
    os._exit(1)


# One arm --------------------------------------------------------------------------------------------------------------


def train(
    *,
    arm: str,
    seed: int,
    folder: str,
    model: str,
    common: dict[str, Any],
    settings: dict[str, Any],
    judged: Sequence[str],
    epochs: int | None,
    jobs: int,
) -> dict[str, Any]:
    """Trains one arm, or goes on where it was interrupted, judges it, and writes ``result.json`` and ``seen.json``.

    Args:
        arm: Name of the arm.
        seed: Seed of weights, order and augmentation.
        folder: The run's folder.
        model: The student.
        common: Ultralytics' training arguments, the same for every arm.
        settings: What this arm is trained with besides: our keys, if it distils.
        judged: The split that judges, and of which weights it is shown what they see, ``last`` or ``best``.
        epochs: How many, for ``plain_same_time``; None where the settings say so.
        jobs: How many runs stand side by side.
    """
    run, (split, weights) = Path(folder), judged
    _train(seed, run, model, common, settings if epochs is None else {**settings, "epochs": epochs})
    found = {
        name: judge_checkpoint(run / "weights" / f"{name}.pt", run, common, split)
        for name in ("last", "best")
        if (run / "weights" / f"{name}.pt").exists()
    }
    trained, spent, resumed = history(run)
    result = {
        "arm": arm,
        "seed": seed,
        "settings": _named(settings),
        **{name: found[name]["findings"] if name in found else None for name in ("last", "best")},
        "parameters": found["last"]["parameters"],
        "GFLOPs": found["last"]["GFLOPs"],
        "epochs": trained,
        "batch": found["last"]["batch"],
        "clock": clock(common.get("device")),
        "seconds": round(spent.wall, 1),
        "process_seconds": round(spent.process, 1),
        "resumed": resumed,
        **{"left_out": left_out(run, settings), "found": found_before(run), "jobs": jobs},
        "device": hardware(common.get("device")),
        "start": started(run),
    }
    write_json(run / "seen.json", found.get(weights, found["last"])["seen"])
    write_json(run / "result.json", result)
    return result


def _named(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without the teacher's file, and with the names of other places: a result goes elsewhere."""
    found = {key: named(value) for key, value in settings.items() if key not in {"teacher", "distill_model"}}
    if places := sources(found.get("unlabelled")):
        found["unlabelled"] = [Path(place).name for place in places]
    return found


def _train(seed: int, run: Path, model: str, common: dict[str, Any], settings: dict[str, Any]) -> None:
    trainer = DistilledTrainer if "teacher" in settings else PlainTrainer
    state = progress(run)
    if state == "trained":
        return
    if state == "interrupted":
        prepare_to_resume(run)
        more = {key: common[key] for key in ELSEWHERE if key in common}
        more |= {key: settings[key] for key in AGAIN if settings.get(key)}
        YOLO(run / "weights" / "last.pt").train(trainer=trainer, resume=True, save_dir=str(run), **more)
        return
    shutil.rmtree(run, ignore_errors=True)
    YOLO(model).train(
        trainer=trainer, **{**common, **settings},
        seed=seed, project=str(run.parent), name=run.name, exist_ok=True,
    )  # fmt: skip


# Judging --------------------------------------------------------------------------------------------------------------


def _judged_with(common: Mapping[str, Any], split: str) -> dict[str, Any]:
    return {**{k: common[k] for k in ("data", *JUDGED_WITH) if k in common}, "split": split}


def judge_checkpoint(file: Path, folder: Path, common: Mapping[str, Any], split: str) -> dict[str, Any]:
    """The figures of a checkpoint on a split, its size, and what it sees on every image."""
    validator = judge(file, folder, **_judged_with(common, split))
    network, content = load_checkpoint(str(file))
    return {
        "findings": findings(validator),
        "seen": seen(validator.images),
        "batch": content["train_args"]["batch"],
        "parameters": get_num_params(network),
        "GFLOPs": round(get_flops(network, common.get("imgsz", 640)), 2),
    }


def judge_teacher(*, folder: str, common: dict[str, Any], own: dict[str, Any], split: str) -> dict[str, Any]:
    """The teacher's figures, with its classes brought to those of the data set; of several those of the best."""
    run = Path(folder)
    run.mkdir(parents=True, exist_ok=True)
    files = teachers(own["teacher"])
    judged = [_judge_teacher(run, file, common, own, split) for file in files]
    best = max(range(len(files)), key=lambda number: judged[number][0]["last"]["mAP50-95"])
    result, images = judged[best]
    if len(files) > 1:
        others = ", ".join(row["name"] for row, _ in judged)
        result = {**result, "name": f"{result['name']} (the best of {others})", "number": best}
    write_json(run / "seen.json", images)
    write_json(run / "result.json", result)
    return result


def _judge_teacher(
    run: Path, file: str, common: dict[str, Any], own: dict[str, Any], split: str
) -> tuple[dict[str, Any], Any]:
    """The figures of one teacher, and what it sees on every image."""
    single = bool(common.get("single_cls"))
    names, loaded = class_names(common["data"], single), teacher.load(file)
    brought = classes.match(loaded.names, names, classes.read(own["classes_map"]), single=single)
    frozen = teacher.Teacher(loaded, like=loaded, names=names, classes=brought)
    size = own["teacher_imgsz"] or common.get("imgsz", 640)
    frozen.measure(size)
    validator = judge(frozen.detector(), run, **_judged_with({**common, "imgsz": size}, split))
    result = {
        "name": frozen.name,
        "imgsz": size,
        "last": findings(validator),
        "parameters": frozen.params,
        "GFLOPs": round(frozen.gflops, 2),
    }
    return result, seen(validator.images)


# Latency --------------------------------------------------------------------------------------------------------------


def latency(*, folder: str, networks: dict[str, str], imgsz: int, teacher_imgsz: int) -> dict[str, Any]:
    """Median time of one image, of each network's size, through the exported ONNX files, one thread of the CPU, taking
    turns.
    """
    run = Path(folder)
    run.mkdir(parents=True, exist_ok=True)
    missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        note = {
            "note": f"not measured: {' and '.join(missing)} not installed; pip install {' '.join(missing)} adds it."
        }
        write_json(run / "result.json", note)
        return note
    sizes = {"student": imgsz, "teacher": teacher_imgsz}
    sessions = {name: _session(run, name, file, sizes[name]) for name, file in networks.items()}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for turn in range(WARM + TIMED):
        for name, (session, feed) in sessions.items():
            start = time.perf_counter()
            session.run(None, feed)
            times[name] += [time.perf_counter() - start] if turn >= WARM else []
    result = {
        "imgsz": imgsz,
        "teacher_imgsz": teacher_imgsz,
        "runs": TIMED,
        "milliseconds": {name: round(1000 * statistics.median(t), 3) for name, t in times.items()},
    }
    write_json(run / "result.json", result)
    return result


def _session(folder: Path, name: str, file: str, imgsz: int) -> tuple[Any, dict[str, Any]]:
    """An exported network with an image of zeros; the export never lies beside the user's own file."""
    import numpy as np
    import onnxruntime

    copy = folder / f"{name}.pt"
    shutil.copyfile(file, copy)
    simplify = importlib.util.find_spec("onnxslim") is not None
    exported = YOLO(copy).export(format="onnx", imgsz=imgsz, simplify=simplify, device="cpu")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(exported), options, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    return session, {entry.name: np.zeros(entry.shape, np.float32)}
