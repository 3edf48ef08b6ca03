"""Teachers of the protocol: plain Ultralytics training on train, whose best epoch is chosen on val.

    TSKD_NEU=/data/NEU-DET python benchmarks/teachers.py name=t224 model=yolo11n.pt imgsz=224 epochs=60
    TSKD_NEU=/data/NEU-DET python benchmarks/teachers.py name=nine model=yolo11n.pt imgsz=128 epochs=40 more=a,b,c
    TSKD_NEU=/data/NEU-DET python benchmarks/teachers.py name=soup of=t128,t128_1,t128_2

``bf16=True`` computes in bfloat16 on a processor that can, at half the time of a step; Ultralytics has that on CUDA
alone. ``more=`` adds classes that no image has. ``of=`` trains nothing, it averages teachers as ``tskd-yolo average``
does. Other keys go to Ultralytics. The same command goes on with what was interrupted. The teacher is
``RUNS/NAME/weights/best.pt``; ``results/teachers.json`` gets a row of its scores on val, at the size at which it was
trained.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from common import machine, public
from ultralytics import YOLO
from ultralytics.cfg import parse_key_value_pair
from ultralytics.data.utils import check_det_dataset
from ultralytics.engine import trainer

from tskd_yolo import config, files, settings_files
from tskd_yolo.average import average

SETTINGS = {"data": "neu3.yaml", "model": "yolo11n.pt", "imgsz": 128, "epochs": 80, "batch": 32, "seed": 0}
OURS = {"cos_lr": True, "plots": False, "device": "cpu", "exist_ok": True}


def main(arguments: list[str]) -> None:
    given: dict[str, Any] = dict(parse_key_value_pair(a) for a in arguments)
    name = str(given.pop("name", ""))
    if not name:
        sys.exit("name: missing; give name=WORD, under which the teacher and its row are found.")
    runs, out = Path(given.pop("runs", "runs/teachers")).resolve(), Path(given.pop("out", "benchmarks/results"))
    of = [word for word in str(given.pop("of", "")).split(",") if word]
    more = [word for word in str(given.pop("more", "")).split(",") if word]
    if not isinstance(bf16 := given.pop("bf16", False), bool):
        sys.exit(f"bf16: must be True or False, got {bf16!r}.")
    settings = {**SETTINGS, **OURS, **given}
    settings_files.resolve(settings)
    row = {key: public([str(settings[key])]) if key in {"data", "model"} else settings[key] for key in SETTINGS}
    settings["data"] = _with_classes(settings["data"], more, runs / f"{name}.yaml") if more else settings["data"]
    if of:
        mean = runs / name / "weights" / "best.pt"
        average(model=[runs / each / "weights" / "best.pt" for each in of], out=mean.with_name("mean.pt"))
        mean.with_name("mean.pt").replace(mean)
    else:
        asked = {**given, **row, "more": more, "bf16": bf16}
        refuse_others(runs / name / "asked.json", json.loads(json.dumps(asked, default=str)))
        train(settings, runs / name, bf16)
    made = {"of": of, "data": row["data"], "imgsz": row["imgsz"]} if of else {**row, "more": more}
    scores = YOLO(runs / name / "weights" / "best.pt").val(
        **{key: settings[key] for key in ("data", "imgsz", "batch", "device")}, split="val", plots=False,
        project=str(runs), name=f"{name}-val", exist_ok=True,
    )  # fmt: skip
    keep(out / "teachers.json", name, {
        **made, "val": {"mAP50": float(scores.box.map50), "mAP50-95": float(scores.box.map)},
        "command": "python benchmarks/teachers.py " + public(arguments), **machine(settings["device"]),
    })  # fmt: skip


def refuse_others(file: Path, asked: dict[str, Any]) -> None:
    """Ends with a sentence where the teacher of this name was begun with other settings; else remembers these."""
    begun = file.exists() and file.with_name("weights").exists()
    known = json.loads(file.read_text(encoding="utf-8")) if begun else asked
    if other := sorted(key for key in {*known, *asked} if known.get(key) != asked.get(key)):
        sys.exit(f"{', '.join(other)}: {file.parent.name} was begun with others; take them, or give another name=.")
    file.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(file, asked)


def train(settings: dict[str, Any], run: Path, bf16: bool) -> None:
    """Trains, goes on, or does nothing where ``best.pt`` is that of a finished run."""
    last = run / "weights" / "last.pt"
    if (run / "done").exists():
        return
    model = YOLO(last if last.exists() else settings["model"])
    if bf16:
        trainer.autocast = lambda _, device: torch.autocast(device, torch.bfloat16)
        model.add_callback("on_train_start", lambda of: of.model.to(memory_format=torch.channels_last))
    if last.exists():
        model.train(resume=True)
    else:
        plain = {key: value for key, value in settings.items() if key != "model"}
        model.train(**plain, project=str(run.parent), name=run.name)
    (run / "done").touch()


def _with_classes(data: str, more: list[str], file: Path) -> str:
    """A data YAML with further classes."""
    known = check_det_dataset(data)
    names = [*known["names"].values(), *more]
    content = {"path": str(known["path"]), **{k: str(known[k]) for k in ("train", "val")}, "names": names}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return str(file)


def keep(file: Path, name: str, row: dict[str, Any]) -> None:
    """Adds a teacher's row, or replaces it."""
    rows = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    file.parent.mkdir(parents=True, exist_ok=True)
    files.replace(file, (json.dumps({**rows, name: row}, indent=1) + "\n").encode("utf-8"))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except config.ConfigError as error:
        sys.exit(str(error))
