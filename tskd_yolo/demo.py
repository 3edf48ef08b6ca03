"""The whole way in minutes, on drawn images: a teacher, a plain student, a distilled student, one table, one picture.

It shows how the pieces fit and that they work. The images are drawn and the runs short: the figures say nothing about
steel.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

TEACHER, STUDENT = "yolo11s.yaml", "yolo11n.yaml"
IMGSZ, BATCH, TRAIN, VAL = 96, 8, 288, 80
EPOCHS = {"teacher": 18, "plain": 14, "distilled": 14}


def demo(out: str | Path = "runs/demo", seed: int = 0) -> Path:
    """Runs the demonstration; a run that is finished is not repeated, so an interrupted demonstration goes on.

    Args:
        out: Folder that receives everything; delete it to start over.
        seed: Seed of the drawn images and of every run.

    Returns:
        The folder, absolute.
    """
    from ultralytics.utils import LOGGER

    from tskd_yolo.data.drawn import NAMES, prepare

    start, folder = time.time(), Path(out).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    LOGGER.info(f"\n[1/5] Drawing {TRAIN} + {VAL} images of hot-rolled steel with six kinds of defect")
    prepare(folder / "data", train=TRAIN, val=VAL, size=128, seed=seed)
    data = folder / "demo.yaml"
    content = {"path": str(folder / "data"), "train": "images/train", "val": "images/val", "names": list(NAMES)}
    data.write_text(yaml.safe_dump(content), encoding="utf-8")
    say = "\n[{}/5] {}, {} epochs (the log is in {})"
    rows = []
    for step, (who, what) in enumerate(
        {
            "teacher": f"Training the teacher, {TEACHER}",
            "plain": f"Training the student without it, {STUDENT}",
            "distilled": f"Training the same student with it, {STUDENT}: tskd-yolo",
        }.items(),
        start=2,
    ):
        LOGGER.info(say.format(step, what, EPOCHS[who], folder / who))
        rows.append(_train(who, folder, data, seed))
    LOGGER.info("\n[5/5] The table and the picture")
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


def _weights(folder: Path, who: str) -> Path:
    return folder / who / "weights" / "last.pt"


def _train(who: str, folder: Path, data: Path, seed: int) -> dict[str, Any]:
    """Trains one of the three and measures its last weights; a finished one is read from its folder."""
    from ultralytics import YOLO
    from ultralytics.utils.torch_utils import get_flops, get_num_params

    from tskd_yolo.train.trainer import Trainer

    result = folder / who / "demo.json"
    if result.exists():
        return json.loads(result.read_text(encoding="utf-8"))
    model = YOLO(TEACHER if who == "teacher" else STUDENT)
    extra: dict[str, Any] = {}
    if who == "distilled":
        extra = {"trainer": Trainer, "teacher": str(_weights(folder, "teacher"))}
    model.train(
        data=str(data), epochs=EPOCHS[who], imgsz=IMGSZ, batch=BATCH, nbs=BATCH, seed=seed, workers=2, plots=False,
        verbose=False, close_mosaic=EPOCHS[who] // 3, project=str(folder), name=who, exist_ok=True, **extra,
    )  # fmt: skip
    trained = YOLO(_weights(folder, who))
    metrics = trained.val(
        data=str(data), imgsz=IMGSZ, plots=False, verbose=False, project=str(folder / who), name="val", exist_ok=True
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
    head = f"| {'model':<9} | {'parameters':>10} | {'GFLOPs':>6} | {'mAP50':>6} | {'mAP50-95':>8} |"
    rule = "|---|---:|---:|---:|---:|"
    body = [
        f"| {r['model']:<9} | {r['parameters']:>10,} | {r['GFLOPs']:>6.2f} "
        f"| {r['mAP50']:>6.3f} | {r['mAP50-95']:>8.3f} |"
        for r in rows
    ]
    return "\n".join([head, rule, *body])


def _picture(folder: Path, names: tuple[str, ...], count: int = 6, scale: int = 2) -> Path:
    """Validation images in rows: truth, teacher, plain, distilled side by side."""
    from ultralytics import YOLO
    from ultralytics.utils.plotting import Annotator, colors

    files = sorted((folder / "data" / "images" / "val").glob("*.png"))
    labels = {f: _truth(folder / "data" / "labels" / "val" / f"{f.stem}.txt") for f in files}
    files = [f for f in files if labels[f]][:count]
    answers = {who: YOLO(_weights(folder, who)) for who in ("teacher", "plain", "distilled")}

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
    for i, title in enumerate(("truth", *answers)):
        x = i * rows[0].shape[1] // 4 + 8
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
