"""The claim, on a GPU: pre-trained students at 640 px under teachers trained to convergence, with paired seeds.

    TSKD_NEU=/data/NEU-DET python benchmarks/claim.py device=0 runs=runs/claim out=benchmarks/results

    11n   yolo11n from yolo11l, 100 epochs: plain, plain for tskd's time, distill_model, tskd, each term alone; 5 seeds
    26n   yolo26n from yolo26l, the same without the terms
    best  the headline: yolo11s from yolo11l, the largest YOLO11 below the published 19.7 M parameters

All start from COCO's weights, which Ultralytics finds in its weights folder or downloads. ``stages=11n,best`` runs some
of them. Whatever is finished is not run again, whatever was interrupted goes on: the same command, the same ``runs=``.
Each stage leaves ``claim_STAGE.json`` and ``claim_STAGE.csv`` in ``out=`` when all of its runs are through, its page in
``runs=``. Other keys (``epochs=``, ``jobs=4``, ``crd=9``, ...) go to the comparisons, and ``teacher_epochs=`` to the
teachers.

Judged as PROTOCOL.md says: teachers learn on train and are chosen on val, as best.pt of every run is; best.pt is judged
on the test split, which the protocol lets choose nothing, with seeds 10 to 14. The seeds that chose the settings are
refused.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

from common import JUDGING_SEEDS, keep, public, refuse_seeds
from ultralytics import YOLO
from ultralytics.cfg import parse_key_value_pair

from tskd_yolo import config, settings_files
from tskd_yolo.compare.runner import compare

OWN = {"runs", "out", "stages", "teacher_epochs"}


class Stage(NamedTuple):
    """One comparison."""

    student: str
    teacher: str
    arms: str


ALL = "plain,plain_same_time,ultralytics,tskd"
STAGES = {
    "11n": Stage("yolo11n.pt", "yolo11l.pt", f"{ALL},ded,crd"),
    "26n": Stage("yolo26n.pt", "yolo26l.pt", ALL),
    "best": Stage("yolo11s.pt", "yolo11l.pt", "plain,tskd"),
}


def main(arguments: list[str]) -> int:
    given = dict(parse_key_value_pair(a) for a in arguments)
    names = str(given.get("stages", ",".join(STAGES))).split(",")
    if unknown := [name for name in names if name not in STAGES]:
        sys.exit(f"stages: {', '.join(unknown)} is none; choose from {', '.join(STAGES)}.")
    if fixed := [key for key in ("model", "teacher", "arms") if key in given]:
        sys.exit(f"{', '.join(fixed)}: a stage names its own; drop it here, or take finetune.py.")
    runs, out = Path(given.get("runs", "runs/claim")).resolve(), Path(given.get("out", "benchmarks/results"))
    training = {
        **{"data": "neu3.yaml", "epochs": 100, "imgsz": 640, "batch": 32, "seeds": JUDGING_SEEDS, "split": "test"},
        **{k: v for k, v in given.items() if k not in OWN},
    }
    refuse_seeds(training["seeds"], of="test")
    settings_files.resolve(training)
    failed = 0
    for name in names:
        stage = STAGES[name]
        teacher = trained(stage.teacher, runs, training, given.get("teacher_epochs", 300))
        settings = {**training, "model": stage.student, "teacher": str(teacher)}
        if lost := compare(arms=stage.arms, out=str(runs / name), **settings):
            failed += lost
            continue
        keep(runs / name, out, f"claim_{name}", "python benchmarks/claim.py " + public(arguments), "0")
    return failed


def trained(model: str, runs: Path, training: dict[str, Any], epochs: Any) -> Path:
    """A teacher by plain training on the train split; an interrupted one goes on."""
    folder = runs / "teachers" / f"{Path(model).stem}-{training['imgsz']}"
    best, last = (folder / "weights" / name for name in ("best.pt", "last.pt"))
    known = {k: training[k] for k in ("data", "imgsz", "batch", "device", "workers") if k in training}
    if not last.exists():
        place = {"project": str(folder.parent), "name": folder.name, "exist_ok": True}
        YOLO(model).train(epochs=epochs, seed=0, **known, **place)
    elif (begun := YOLO(last)).ckpt["epoch"] >= 0:  # a finished one is stripped of it
        begun.train(resume=True)
    return best


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]) > 0)
    except config.ConfigError as error:
        sys.exit(str(error))
