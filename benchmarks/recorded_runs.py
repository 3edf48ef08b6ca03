"""Do two commits train the same students? Short runs on drawn images, recorded to the last bit.

    python benchmarks/recorded_runs.py record out=FILE.json [tree=.] [started=FOLDER]
    python benchmarks/recorded_runs.py compare a=OLD.json b=NEW.json
    python benchmarks/recorded_runs.py commits a=COMMIT b=COMMIT

``record`` trains with the package of one working tree, ``compare`` ends with code 1 where two records differ, and
``commits`` does both with two commits, each in a clone of its own.

Recorded are every column of results.csv but the time, and a hash of the student's weights: DFL and YOLO26 heads,
``variant=default`` and ``paper``, with and without ``teacher_cache``, ``balance=fixed``, and runs that go on from
checkpoints which the first of two commits has written. The same seed on the same machine gives the same bits.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve()
RUNS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {"variant": "paper", "balance": "fixed", "drd": 1, "ded": 1, "crd": 1},
    "cache": {"teacher_cache": "disk", "views": 2},
    "fixed": {"balance": "fixed", "ramp": 1.5, "fade": 0.3},
}
FAMILIES = {"11": ("yolo11n.yaml", "yolo11s.yaml"), "26": ("yolo26n.yaml", "yolo26s.yaml")}
RESUMED = "default", "paper", "fixed"
NAMES = "crazing", "inclusion", "patches", "pitted_surface", "rolled-in_scale", "scratches"


def drawn(folder: Path) -> None:
    """Images of noise with boxes, and random teachers, by torch and Pillow only: the same for every commit."""
    import yaml
    from PIL import Image
    from ultralytics.nn.tasks import DetectionModel

    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 8), ("val", 4)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for i in range(count):
            pixels = torch.randint(0, 255, (64, 64, 3), generator=generator, dtype=torch.uint8).numpy()
            Image.fromarray(pixels).save(folder / "images" / split / f"{i}.png")
            boxes = torch.rand(i % 4, 4, generator=generator) * 0.3 + torch.tensor([0.35, 0.35, 0.1, 0.1])
            rows = [f"{j % 6} " + " ".join(f"{v:.5f}" for v in box) for j, box in enumerate(boxes.tolist())]
            (folder / "labels" / split / f"{i}.txt").write_text("\n".join(rows))
    content = {"path": str(folder), "train": "images/train", "val": "images/val", "names": list(NAMES)}
    (folder / "data.yaml").write_text(yaml.safe_dump(content))
    for family, (_, teacher) in FAMILIES.items():
        torch.manual_seed(7)
        detector = DetectionModel(teacher, nc=len(NAMES), verbose=False)
        detector.names, detector.args = dict(enumerate(NAMES)), {}
        content = {"model": detector, "train_args": {"task": "detect", "imgsz": 64}, "epoch": -1}
        torch.save(content, folder / f"teacher{family}.pt")


def train(work: Path, name: str, family: str, more: dict[str, Any], stop: bool = False) -> Path:
    """One run of three epochs, or the first of them; its folder."""
    from tskd_yolo import Trainer

    model, _ = FAMILIES[family]
    trainer = Trainer(
        data=str(work / "data.yaml"), model=model, teacher=str(work / f"teacher{family}.pt"), epochs=3, imgsz=64,
        batch=4, nbs=4, workers=0, device="cpu", plots=False, project=str(work / "runs"), name=name, exist_ok=True,
        warmup_epochs=0, optimizer="AdamW", lr0=0.002, seed=3, close_mosaic=1, **more,
    )  # fmt: skip
    if stop:
        trainer.add_callback("on_fit_epoch_end", _interrupt)
    try:
        trainer.train()
    except KeyboardInterrupt:
        pass
    return work / "runs" / name


def _interrupt(trainer: Any) -> None:
    raise KeyboardInterrupt


def resumed(folder: Path, work: Path, family: str) -> Path:
    """Goes on with a run that was interrupted after its first epoch."""
    from tskd_yolo import Trainer

    Trainer(resume=True, model=str(folder / "weights" / "last.pt"), teacher=str(work / f"teacher{family}.pt")).train()
    return folder


def found(folder: Path) -> dict[str, Any]:
    """The columns of a run's results.csv as they stand there, and a hash of its last weights."""
    header, *lines = (folder / "results.csv").read_text().splitlines()
    columns = list(zip(header.split(","), *(line.split(",") for line in lines), strict=True))
    content = torch.load(folder / "weights" / "last.pt", map_location="cpu", weights_only=False)
    hashed = hashlib.sha256()
    for key, value in (content.get("ema") or content["model"]).state_dict().items():
        hashed.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        hashed.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return {"columns": {key.strip(): values for key, *values in columns if key.strip() != "time"},
            "weights": hashed.hexdigest()}  # fmt: skip


def record(out: str, tree: str = ".", started: str | None = None) -> int:
    """Trains all runs with the package in ``tree``; ``started`` holds, or is given, the interrupted ones."""
    sys.path.insert(0, str(Path(tree).resolve()))
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(started or temporary).resolve()
        if not (work / "data.yaml").exists():
            work.mkdir(parents=True, exist_ok=True)
            drawn(work)
        for family in FAMILIES:
            for name, more in RUNS.items():
                run = f"{name}-{family}"
                rows[run] = found(train(work, run, family, more))
                shutil.rmtree(work / "runs" / run)
                if name not in RESUMED or (family == "26" and name != "default"):
                    continue
                kept = work / "started" / run
                if not kept.exists():
                    train(work / ".", f"started-{run}", family, more, stop=True)
                    shutil.move(work / "runs" / f"started-{run}", kept)
                copy = work / "runs" / f"resumed-{run}"
                shutil.copytree(kept, copy)
                rows[f"resumed-{run}"] = found(resumed(copy, work, family))
                shutil.rmtree(copy)
    Path(out).write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def compare(a: str, b: str) -> int:
    """Says in which columns two records differ, and by how much."""
    old, new = (json.loads(Path(file).read_text()) for file in (a, b))
    differs = 0
    for run in sorted({*old, *new}):
        if run not in old or run not in new:
            print(f"{run}: only in one of the two")
            differs += 1
            continue
        mine, other = old[run]["columns"], new[run]["columns"]
        for key in [k for k in {**mine, **other} if mine.get(k) != other.get(k)]:
            print(f"{run}: {key}: {mine.get(key)} -> {other.get(key)}")
            differs += 1
        same = old[run]["weights"] == new[run]["weights"]
        print(f"{run}: {len(mine)} columns, weights {'equal' if same else 'DIFFER'}")
        differs += not same
    print("equal" if not differs else f"{differs} differences")
    return int(differs > 0)


def commits(a: str, b: str) -> int:
    """Records two commits in clones of the repository, the second going on with what the first has begun."""
    root = HERE.parents[1]
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        for side, commit in (("a", a), ("b", b)):
            clone = work / side
            subprocess.run(["git", "clone", "--quiet", str(root), str(clone)], check=True)
            subprocess.run(["git", "checkout", "--quiet", commit], cwd=clone, check=True)
            command = [sys.executable, str(HERE), "record", f"out={work / side}.json", f"tree={clone}"]
            subprocess.run([*command, f"started={work / 'started'}"], check=True, cwd=work)
        return compare(f"{work / 'a'}.json", f"{work / 'b'}.json")


if __name__ == "__main__":
    os.environ.setdefault("YOLO_OFFLINE", "1")
    os.environ.setdefault("YOLO_AUTOINSTALL", "0")
    kinds = {"record": record, "compare": compare, "commits": commits}
    sys.exit(kinds[sys.argv[1]](**dict(word.split("=", 1) for word in sys.argv[2:])))
