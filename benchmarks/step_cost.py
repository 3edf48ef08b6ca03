"""What one training step costs, in time and memory: plain, with tskd-yolo, with Ultralytics' built-in distillation.

    python benchmarks/step_cost.py --pairs yolo11n:yolo11m,yolo26n:yolo26m,yolo11s:yolo11l --imgsz 224 --batch 16 \
        --device cpu --json benchmarks/results/step_cost_cpu.json
    python benchmarks/step_cost.py --sweep boxes --pairs yolo11n:yolo11m --json benchmarks/results/step_cost_boxes.json

A pair is student:teacher. The trainers are the real ones, set up on drawn images; a step is preprocessing, forward
pass, loss, backward pass and optimizer step on one fixed batch. Repetitions are interleaved, so that a machine that
slows down slows all alike; figures are medians: ``..._s`` seconds on the clock, on a CPU also ``..._process_s`` seconds
of processor time, which other work on the machine does not change much.

``teacher_forward_s`` is the teacher as tskd-yolo runs it (batch norms folded, raw head output, its dtype and memory
format), ``teacher_forward_stock_s`` as ``distill_model`` does (neither, and boxes decoded). The floor is student step +
teacher_forward; ``ratio_to_floor`` and ``ratio_to_builtin`` are ratios of medians. On a CPU our student runs in
channels_last and the engine's does not, so the same is also told of a plain student in channels_last:
``student_channels_last_step_s`` and the stricter ``ratio_to_floor_channels_last``. ``our_part_s`` is what our step
takes beyond that stricter floor, ``drd_step_s`` ... our step with one term only, ``terms_s`` those on by default,
forward and backward down to the student's tensors.

Memory is that of a process which does nothing else. On CUDA it is what its allocator held at most; on a CPU the most
that was resident during its first steps, less what was after the trainer was built, plus the teacher's weights.
``ratio_to_memory_floor`` is ours / (the plain step's + teacher's weights + those of the teacher's tensors that are kept
through the student's pass).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import yaml
from common import machine
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import LOGGER
from ultralytics.utils.torch_utils import autocast, unwrap_model

from tskd_yolo import Trainer
from tskd_yolo.config import DEFAULTS, TERMS
from tskd_yolo.data.drawn import NAMES, prepare
from tskd_yolo.distill.features import StudentOutputs
from tskd_yolo.losses import Response

PLAIN = ("student", "student_channels_last")
STEPS = (*PLAIN, "distill", "builtin", *TERMS)
VALUES = {"boxes": [1, 10, 100, 500], "batch": [4, 8, 16, 32], "imgsz": [128, 224, 320], "classes": [6, 80]}
WARM = 2


def main() -> None:
    options = arguments()
    LOGGER.setLevel("ERROR")
    if options.only:
        return print(json.dumps(held(options)))
    rows = []
    for pair in options.pairs.split(","):
        rows += sweep(pair, options) if options.sweep else [measure(pair, options)]
        print(json.dumps([r for r in rows if r["pair"] == pair]), flush=True)
    report = [{**row, "command": command(), "machine": machine(options.device)} for row in rows]
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", default="yolo11n:yolo11m,yolo26n:yolo26m,yolo11s:yolo11l")
    parser.add_argument("--imgsz", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--boxes", type=int, default=3, help="per image")
    parser.add_argument("--classes", type=int, default=len(NAMES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--amp", default="True", help="True, fp16, bf16 or False; CUDA only")
    parser.add_argument("--cuda-graphs", default="True", help="True or False; CUDA only")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--sweep", choices=VALUES)
    parser.add_argument("--values", help="of the sweep, i.e. 1,10")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=STEPS, help=argparse.SUPPRESS)
    return parser.parse_args()


def command() -> str:
    """As anyone can repeat it: files by their names."""
    return " ".join(["python", "benchmarks/step_cost.py", *(Path(a).name if "/" in a else a for a in sys.argv[1:])])


# Time -----------------------------------------------------------------------------------------------------------------


def measure(pair: str, options: argparse.Namespace) -> dict[str, Any]:
    """Time and memory of one pair."""
    with tempfile.TemporaryDirectory() as folder:
        trainers = {name: built(name, pair, Path(folder), options) for name in STEPS}
        found = timed(calls(trainers, fixed_batch(options)), options)
        terms = list(trainers["distill"].distiller.on)
    if not options.no_memory:
        del trainers
        found.update(memory(pair, options))
    graphs = {} if options.device == "cpu" else {"cuda_graphs": options.cuda_graphs == "True"}
    return {"pair": pair, "terms": terms, **graphs, **found, "settings": settings(options)}


def sweep(pair: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time of one pair against one setting, all its values in turn."""
    values = [int(v) for v in options.values.split(",")] if options.values else VALUES[options.sweep]
    cases, table = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for value in values:
            case = argparse.Namespace(**{**vars(options), options.sweep: value})
            if not cases or options.sweep != "boxes":  # boxes alone change nothing in a trainer
                place = Path(folder) / str(value)
                trainers = {name: built(name, pair, place, case) for name in (*PLAIN, "distill", "builtin")}
            cases[value] = case
            for name, call in calls(trainers, fixed_batch(case)).items():
                table[f"{value}:{name}"] = call
        seconds, on = clocked(table, options), list(trainers["distill"].distiller.on)
    rows = []
    for value, case in cases.items():
        own = {name.split(":")[1]: t for name, t in seconds.items() if name.startswith(f"{value}:")}
        found = {"terms": on, **figures(own), "settings": settings(case)}
        rows.append({"pair": pair, "sweep": options.sweep, "value": value, **found})
    if options.sweep == "boxes" and {10, 500} <= set(values):
        few, many = (rows[values.index(count)] for count in (10, 500))
        ratios = {
            f"ratio_500_to_10:{k}": round(many[k] / few[k], 4) for k in few if k.startswith(("our_part", "terms_"))
        }
        rows.append({"pair": pair, "sweep": "boxes", **ratios})
    return rows


def settings(options: argparse.Namespace) -> dict[str, Any]:
    return {k: getattr(options, k) for k in ("imgsz", "batch", "boxes", "classes", "device", "amp", "repeats")}


def calls(trainers: dict[str, Any], batch: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """What is timed, by name: each prepares itself and returns what the clock runs over."""
    found: dict[str, Callable[[], Any]] = {
        f"{name}_step": lambda trainer=trainer: lambda: step(trainer, batch) for name, trainer in trainers.items()
    }
    ours, stock = trainers["distill"], trainers["builtin"]
    images = DetectionTrainer.preprocess_batch(ours, dict(batch))["img"]
    found["teacher_forward"] = lambda: lambda: forward(ours, ours.distiller.teacher, images)
    found["teacher_forward_stock"] = lambda: lambda: forward(stock, stock.model.teacher_model, images)
    found["terms"] = lambda: terms(ours, batch)
    return found


def timed(table: dict[str, Callable[[], Any]], options: argparse.Namespace) -> dict[str, float]:
    return figures(clocked(table, options))


def clocked(table: dict[str, Callable[[], Any]], options: argparse.Namespace) -> dict[str, tuple[float, float | None]]:
    """Medians of seconds on the clock and, on a CPU, of the process, of interleaved calls."""
    cuda = options.device != "cpu"
    wait = torch.cuda.synchronize if cuda else lambda: None
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in table}
    for repeat in range(WARM + options.repeats):
        for name, ready in table.items():
            call = ready()
            wait()
            start = time.perf_counter(), time.process_time()
            call()
            wait()
            taken = time.perf_counter() - start[0], time.process_time() - start[1]
            if repeat >= WARM:
                times[name].append(taken)
    medians = {name: [statistics.median(column) for column in zip(*rows)] for name, rows in times.items()}
    return {name: (wall, None if cuda else process) for name, (wall, process) in medians.items()}


def figures(seconds: dict[str, tuple[float, float | None]]) -> dict[str, float]:
    """Medians and their ratios, by key."""
    found: dict[str, float] = {}
    for index, suffix in enumerate(("", "_process")):
        t = {name: both[index] for name, both in seconds.items()}
        if None in t.values():
            continue
        floor, strict = (t[f"{name}_step"] + t["teacher_forward"] for name in PLAIN)
        t["our_part"] = t["distill_step"] - strict
        found.update({f"{name}{suffix}_s": round(value, 5) for name, value in t.items()})
        found[f"ratio_to_floor{suffix}"] = round(t["distill_step"] / floor, 4)
        found[f"ratio_to_floor_channels_last{suffix}"] = round(t["distill_step"] / strict, 4)
        found[f"ratio_to_builtin{suffix}"] = round(t["distill_step"] / t["builtin_step"], 4)
    return found


# What is measured -----------------------------------------------------------------------------------------------------


def built(name: str, pair: str, folder: Path, options: argparse.Namespace) -> Any:
    """A trainer ready for its first step."""
    student, teacher = pair.split(":")
    names = [*NAMES, *(f"class{i}" for i in range(options.classes))][: options.classes]
    folder.mkdir(exist_ok=True, parents=True)
    data, checkpoint = drawn(folder, names), folder / "teacher.pt"
    if not checkpoint.exists():
        random_detector(checkpoint, f"{teacher}.yaml", names)
    amp = {"True": True, "False": False}.get(options.amp, options.amp)
    common = dict(
        data=str(data), model=f"{student}.yaml", epochs=1, imgsz=options.imgsz, batch=options.batch, nbs=options.batch,
        device=options.device, amp=amp, workers=0, plots=False, val=False, project=str(folder), name=name,
        optimizer="AdamW", exist_ok=True,
    )  # fmt: skip
    trainer: Any
    if name in PLAIN:
        trainer = DetectionTrainer(overrides=common)
    elif name == "builtin":
        trainer = DetectionTrainer(overrides={**common, "distill_model": str(checkpoint)})
    else:
        common["cuda_graphs"] = options.cuda_graphs == "True"
        alone = {t: (DEFAULTS[t] or 1) if t == name else 0 for t in TERMS} if name in TERMS else {}
        trainer = Trainer(**common, teacher=str(checkpoint), **alone)
    trainer._setup_train()
    if name == "student_channels_last":
        trainer.model.to(memory_format=torch.channels_last)
    trainer._model_train()
    trainer.optimizer.zero_grad()
    return trainer


def step(trainer: Any, batch: dict[str, Any]) -> None:
    """One training step as the engine takes it."""
    with autocast(trainer.amp, device=trainer.device.type):
        loss, _ = trainer.model(trainer.preprocess_batch(dict(batch)))
    trainer.scaler.scale(loss.sum()).backward()
    trainer.optimizer_step()


def forward(trainer: Any, model: Any, images: torch.Tensor) -> object:
    """A teacher's pass alone, under the run's autocast."""
    with torch.no_grad(), autocast(trainer.amp, device=trainer.device.type):
        return model(images)


def terms(trainer: Trainer, batch: dict[str, Any]) -> Callable[[], None]:
    """Our terms forward and backward, and nothing of the student: its tensors are cut off from their graph."""
    distiller, model = trainer.distiller, unwrap_model(trainer.model)
    with autocast(trainer.amp, device=trainer.device.type):
        ready = trainer.preprocess_batch(dict(batch))
        ours = distiller.attach(model, ready["img"])
        outputs = ours.read(model(ready["img"]))

    def call() -> None:
        with autocast(trainer.amp, device=trainer.device.type):
            values = ours.losses(apart(outputs), ready).values
            total = sum(term.guard.leave(values[term.name]) for term in distiller.active)
        trainer.scaler.scale(total).backward()
        trainer.optimizer.zero_grad()

    return call


def apart(outputs: StudentOutputs) -> StudentOutputs:
    """What terms read of a student, cut off from its graph."""
    responses = {branch: [Response(*leaves(r)) for r in levels] for branch, levels in outputs.responses.items()}
    return StudentOutputs(leaves(outputs.maps), responses, outputs.assigned)


def leaves(tree: Any) -> Any:
    """The same with every tensor cut off from its graph."""
    if isinstance(tree, dict):
        return {key: leaves(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [leaves(value) for value in tree]
    return tree.detach().requires_grad_()


def fixed_batch(options: argparse.Namespace) -> dict[str, Any]:
    """Random images with boxes of random place and size."""
    images, imgsz, boxes = options.batch, options.imgsz, options.boxes
    generator = torch.Generator().manual_seed(0)
    count = images * boxes
    centre = 0.25 + 0.5 * torch.rand(count, 2, generator=generator)
    size = 0.05 + 0.4 * torch.rand(count, 2, generator=generator)
    return {
        "img": torch.randint(0, 256, (images, 3, imgsz, imgsz), dtype=torch.uint8, generator=generator),
        "cls": torch.randint(0, options.classes, (count, 1), generator=generator).float(),
        "bboxes": torch.cat((centre, size), dim=1),
        "batch_idx": torch.arange(images).repeat_interleave(boxes).float(),
    }


def random_detector(file: Path, model: str, names: list[str]) -> None:
    """A checkpoint with random weights: a step costs the same whatever the weights."""
    detector = DetectionModel(model, nc=len(names), verbose=False)
    detector.names, detector.args = dict(enumerate(names)), {}
    torch.save({"model": detector, "train_args": {"task": "detect"}, "epoch": -1}, file)


def drawn(folder: Path, names: list[str]) -> Path:
    """A few drawn images: enough for the trainers to set themselves up."""
    file = folder / "data.yaml"
    if not file.exists():
        prepare(folder / "set", train=4, val=2, size=64)
        content = {"path": str(folder / "set"), "train": "images/train", "val": "images/val", "names": names}
        file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


# Memory ---------------------------------------------------------------------------------------------------------------


def memory(pair: str, options: argparse.Namespace) -> dict[str, Any]:
    """Peaks in MiB, each of a process of its own, and the ratios that are promised."""
    at_once = 1 if options.device == "cpu" else len(STEPS)  # CUDA's allocator counts what its own process holds
    with ThreadPoolExecutor(at_once) as pool:
        own = dict(zip(STEPS, pool.map(lambda name: child(name, pair, options), STEPS)))
    peaks = {name: own[name]["peak"] / 2**20 for name in STEPS}
    weights, kept = (own["distill"][k] / 2**20 for k in ("weights", "kept"))
    return {
        **{f"{name}_peak_mib": round(peak, 1) for name, peak in peaks.items()},
        "teacher_weights_mib": round(weights, 1),
        "teacher_kept_mib": round(kept, 1),
        "ratio_to_memory_floor": round(peaks["distill"] / (peaks["student"] + weights + kept), 4),
        "ratio_to_builtin_memory": round(peaks["distill"] / peaks["builtin"], 4),
    }


def child(name: str, pair: str, options: argparse.Namespace) -> dict[str, int]:
    """What a process reports that does only this."""
    given = [f"--{k}={getattr(options, k)}" for k in ("imgsz", "batch", "boxes", "classes", "device", "amp")]
    given.append(f"--cuda-graphs={options.cuda_graphs}")
    line = [sys.executable, __file__, "--only", name, "--pairs", pair, *given]
    # What is freed goes back to the system at once, so that what is resident is what is held.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(line, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def held(options: argparse.Namespace) -> dict[str, int]:
    """Builds one trainer, takes a few steps, and says in bytes how much was held at most."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = built(options.only, options.pairs, Path(folder), options)
    batch, cuda = fixed_batch(options), options.device != "cpu"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    else:
        forget_peak()
    before = resident("VmRSS")
    for _ in range(3):
        step(trainer, batch)
    teacher = teacher_of(trainer)
    weights = size(teacher.state_dict()) if teacher else 0
    peak = torch.cuda.max_memory_allocated() if cuda else resident("VmHWM") - before + weights
    return {"peak": peak, "weights": weights, "kept": kept(trainer, batch) if options.only == "distill" else 0}


def teacher_of(trainer: Any) -> Any:
    if isinstance(trainer, Trainer):
        return trainer.distiller.teacher.model
    return getattr(trainer.model, "teacher_model", None)


def kept(trainer: Trainer, batch: dict[str, Any]) -> int:
    """Bytes of the teacher's tensors that are kept through the student's pass."""
    with autocast(trainer.amp, device=trainer.device.type):
        trainer.preprocess_batch(dict(batch))
    step = unwrap_model(trainer.model).criterion
    found = size([*step.teacher.maps.values(), step.teacher.responses, step.teacher.level_scores])
    trainer.distiller.detach()
    return found


def size(tree: Any) -> int:
    """Bytes of the memory that tensors lie in, each counted once."""
    storages = [x.untyped_storage() for x in tensors(tree)]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


def tensors(tree: Any) -> list[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return [tree]
    if isinstance(tree, (dict, list, tuple)):
        return [x for y in (tree.values() if isinstance(tree, dict) else tree) for x in tensors(y)]
    return []


def forget_peak() -> None:
    """Starts the process's high-water mark anew, so that setting up does not count."""
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def resident(field: str) -> int:
    """Resident bytes of this process: now (``VmRSS``) or at most (``VmHWM``)."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(row for row in status.read_text(encoding="ascii").splitlines() if row.startswith(field))
        return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # elsewhere the peak is all there is
    return most if sys.platform == "darwin" else most * 1024


if __name__ == "__main__":
    main()
