"""The whole way in minutes, on drawn images: a teacher, three students, one table, one picture.

The first student trains plainly, the second with the teacher, the third with the teacher and few labels: those of every
tenth image, while it sees all images. It shows how the pieces fit and that they work. The images are drawn and the runs
short: the figures say nothing about steel.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from tskd_yolo.config import ConfigError
from tskd_yolo.files import write_json

TEACHER, STUDENT = "yolo11s.yaml", "yolo11n.yaml"
IMGSZ, BATCH, TRAIN, VAL = 96, 8, 288, 80
EPOCHS = {"teacher": 18, "plain": 14, "distilled": 14, "few labels": 60}
"""Of the last one a pass over the few images that have labels, half of each batch."""
EVERY = 10
"""One image of so many has labels for the last one."""


def demo(out: str | Path = "runs/demo", seed: int = 0) -> Path:
    """Runs the demonstration; a run that is finished is not repeated, so an interrupted demonstration goes on.

    Args:
        out: Folder that receives everything; delete it to start over.
        seed: Seed of the drawn images and of every run.

    Returns:
        The folder, absolute.

    Raises:
        ConfigError: If the seed is none, or the folder was begun with another one.
    """
    from ultralytics.utils import LOGGER

    from tskd_yolo.data.drawn import NAMES, prepare

    start, folder = time.time(), Path(out).resolve()
    _begin(folder, seed)
    LOGGER.info(f"\n[1/6] Drawing {TRAIN} + {VAL} images of hot-rolled steel with six kinds of defect")
    prepare(folder / "data", train=TRAIN, val=VAL, size=128, seed=seed)
    data = _data_sets(folder, NAMES)
    rows = []
    for step, (who, what) in enumerate(
        {
            "teacher": f"Training the teacher, {TEACHER}",
            "plain": f"Training the student without it, {STUDENT}",
            "distilled": f"Training the same student with it, {STUDENT}: tskd-yolo",
            "few labels": f"The same with the labels of {len(range(0, TRAIN, EVERY))} of the {TRAIN} images",
        }.items(),
        start=2,
    ):
        LOGGER.info(f"\n[{step}/6] {what}, {EPOCHS[who]} epochs (the log is in {_folder(folder, who)})")
        rows.append(_train(who, folder, data["few" if who == "few labels" else "all"], seed))
    LOGGER.info("\n[6/6] The table and the picture")
    picture = _picture(folder, NAMES)
    table = _table(rows)
    (folder / "table.md").write_text(table + "\n", encoding="utf-8")
    LOGGER.info(
        f"\n{table}\n\nOne run each on drawn images: a demonstration, no evidence.\n\n"
        f"table       {folder / 'table.md'}\npicture     {picture}\nstudent     {_weights(folder, 'distilled')}\n"
        f"all runs    {folder}\ntime        {(time.time() - start) / 60:.1f} minutes\n\n"
        f"Your own:   tskd-yolo train data=FILE.yaml teacher=FILE.pt model=yolo11n.yaml epochs=100\n"
    )
    return folder


def _begin(folder: Path, seed: Any) -> None:
    """Makes the folder and writes the seed into its ``demo.json``: runs of another one are not shown as this one's."""
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise ConfigError([f"seed: must be a whole number from 0 to {2**32 - 1}, got {seed!r}; i.e. seed=1."])
    if folder.exists() and not folder.is_dir():
        raise ConfigError([f"out: {folder} is a file; give a folder."])
    file, known = folder / "demo.json", seed
    if file.exists():
        try:
            known = json.loads(file.read_text(encoding="utf-8"))["seed"]
        except (ValueError, TypeError, KeyError):
            raise ConfigError([f"out: {file} was not made by a demonstration; give another folder."]) from None
    elif folder.exists() and any(folder.iterdir()):
        raise ConfigError([f"out: {folder} is there and holds no demonstration; give another folder."])
    if known != seed:
        raise ConfigError(
            [f"seed: the runs in {folder} have seed={known}, got {seed}; give seed={known}, or another folder (out=)."]
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, {"seed": seed})


def _data_sets(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """Data YAMLs: one of all images, one in which few have labels and the others are ``unlabelled``."""
    images = [f"images/train/{image.name}" for image in sorted((folder / "data" / "images" / "train").iterdir())]
    few = images[::EVERY]
    for name, listed in {"few": few, "rest": [image for image in images if image not in few]}.items():
        (folder / "data" / f"{name}.txt").write_text("".join(f"./{image}\n" for image in listed), encoding="utf-8")
    common = {"path": str(folder / "data"), "val": "images/val", "names": list(names)}
    own = {"all": {"train": "images/train"}, "few": {"train": "few.txt", "unlabelled": "rest.txt"}}
    files = {"all": folder / "demo.yaml", "few": folder / "few.yaml"}
    for name, file in files.items():
        file.write_text(yaml.safe_dump({**common, **own[name]}), encoding="utf-8")
    return files


def _folder(folder: Path, who: str) -> Path:
    return folder / who.replace(" ", "-")


def _weights(folder: Path, who: str) -> Path:
    return _folder(folder, who) / "weights" / "last.pt"


def _train(who: str, folder: Path, data: Path, seed: int) -> dict[str, Any]:
    """Trains one of the four and measures its last weights; a finished one is read from its folder."""
    from ultralytics import YOLO
    from ultralytics.utils.torch_utils import get_flops, get_num_params

    from tskd_yolo.train.trainer import Trainer

    run = _folder(folder, who)
    result = run / "demo.json"
    if result.exists():
        return json.loads(result.read_text(encoding="utf-8"))
    model = YOLO(TEACHER if who == "teacher" else STUDENT)
    extra: dict[str, Any] = {}
    if who in {"distilled", "few labels"}:
        extra = {"trainer": Trainer, "teacher": str(_weights(folder, "teacher"))}
    if who == "few labels":
        extra["val"] = False  # so many short epochs would spend their time on it
    model.train(
        data=str(data), epochs=EPOCHS[who], imgsz=IMGSZ, batch=BATCH, nbs=BATCH, seed=seed, workers=2, plots=False,
        verbose=False, close_mosaic=EPOCHS[who] // 3, project=str(folder), name=run.name, exist_ok=True, **extra,
    )  # fmt: skip
    trained = YOLO(_weights(folder, who))
    metrics = trained.val(
        data=str(data), imgsz=IMGSZ, plots=False, verbose=False, project=str(run), name="val", exist_ok=True
    )
    row = {
        "model": who,
        "parameters": get_num_params(trained.model),
        "GFLOPs": round(get_flops(trained.model, IMGSZ), 2),
        "mAP50": round(float(metrics.box.map50), 3),
        "mAP50-95": round(float(metrics.box.map), 3),
    }
    result.write_text(json.dumps(row), encoding="utf-8")
    return row


def _table(rows: list[dict[str, Any]]) -> str:
    head = f"| {'model':<10} | {'parameters':>10} | {'GFLOPs':>6} | {'mAP50':>6} | {'mAP50-95':>8} |"
    rule = "|---|---:|---:|---:|---:|"
    body = [
        f"| {r['model']:<10} | {r['parameters']:>10,} | {r['GFLOPs']:>6.2f} "
        f"| {r['mAP50']:>6.3f} | {r['mAP50-95']:>8.3f} |"
        for r in rows
    ]
    return "\n".join([head, rule, *body])


def _picture(folder: Path, names: tuple[str, ...], count: int = 6, scale: int = 2) -> Path:
    """Validation images in rows: the truth and what each network finds, side by side."""
    from ultralytics import YOLO
    from ultralytics.utils.plotting import Annotator, colors

    files = sorted((folder / "data" / "images" / "val").glob("*.png"))
    labels = {f: _truth(folder / "data" / "labels" / "val" / f"{f.stem}.txt") for f in files}
    files = [f for f in files if labels[f]][:count]
    answers = {who: YOLO(_weights(folder, who)) for who in EPOCHS}

    def tile(file: Path, boxes: list[tuple[int, float, list[float]]]) -> np.ndarray:
        image: Any = cv2.resize(
            np.asarray(cv2.imread(str(file))), None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC
        )
        annotator = Annotator(image, line_width=1, font_size=9)
        for index, score, share in boxes:
            corners = [s * image.shape[1 - i % 2] for i, s in enumerate(share)]
            annotator.box_label(corners, names[index] + (f" {score:.1f}" if score < 1 else ""), colors(index, bgr=True))
        return np.pad(annotator.result(), ((2, 2), (2, 2), (0, 0)), constant_values=255)

    rows = []
    for file in files:
        tiles = [tile(file, [(c, 1.0, box) for c, box in labels[file]])]
        for model in answers.values():
            result: Any = model.predict(str(file), imgsz=IMGSZ, conf=0.25, save=False, verbose=False)
            found = result[0].boxes
            tiles.append(
                tile(file, [(int(c), float(s), b.tolist()) for c, s, b in zip(found.cls, found.conf, found.xyxyn)])
            )
        rows.append(np.hstack(tiles))
    heads = np.full((26, rows[0].shape[1], 3), 255, np.uint8)
    titles = ("truth", *answers)
    for i, title in enumerate(titles):
        x = i * rows[0].shape[1] // len(titles) + 8
        cv2.putText(heads, title, (x, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (0, 0, 0), 1, cv2.LINE_AA)
    file = folder / "picture.png"
    cv2.imwrite(str(file), np.vstack([heads, *rows]))
    return file


def _truth(label: Path) -> list[tuple[int, list[float]]]:
    """Class and corners (shares of the image) of every box in a label file."""
    boxes = []
    for line in label.read_text(encoding="utf-8").splitlines():
        index, x, y, w, h = line.split()
        cx, cy, dx, dy = float(x), float(y), float(w) / 2, float(h) / 2
        boxes.append((int(index), [cx - dx, cy - dy, cx + dx, cy + dy]))
    return boxes
