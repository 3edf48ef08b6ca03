"""What a detector is worth on a data set: mAP, COCO's metrics, and what it misses at a fixed number of false alarms."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ultralytics.data.utils import check_det_dataset
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.utils.ops import scale_boxes

from tskd_yolo.files import relative

FALSE_ALARMS = 0.01, 0.1, 1.0
"""False alarms per image at which the miss rate is told."""
DRAWN_AT = 1.0
"""False alarms per image to which a network is set where its detections are drawn and compared image by image."""
COCO_NAMES = (
    "AP", "AP50", "AP75", "AP small", "AP medium", "AP large",
    "AR 1", "AR 10", "AR 100", "AR small", "AR medium", "AR large",
)  # fmt: skip


class Image(NamedTuple):
    """What is on one image and what was found on it.

    Shapes:
        truth ``(G,)`` and found ``(D,)`` classes; boxes ``(G, 4)`` and ``(D, 4)`` corners in pixels of the image;
        score ``(D,)``; hit ``(D,)``: whether a detection has a defect of its class to itself, at an IoU of 0.5.
    Units:
        file is relative to the data set's folder; size is (height, width) in pixels.
    """

    file: str
    size: tuple[int, int]
    truth: np.ndarray
    truth_boxes: np.ndarray
    found: np.ndarray
    found_boxes: np.ndarray
    score: np.ndarray
    hit: np.ndarray


class Judge(DetectionValidator):
    """Ultralytics' validator, which also keeps what it saw on every image, in :attr:`images`."""

    images: list[Image]
    data: Any
    names: Any

    def init_metrics(self, model: Any) -> None:
        """Starts anew."""
        super().init_metrics(model)
        self.images = []

    def update_metrics(self, preds: list[dict[str, Any]], batch: dict[str, Any]) -> None:
        """Keeps the batch's detections and annotations, at the size of the original images."""
        super().update_metrics(preds, batch)
        for index, prediction in enumerate(preds):
            truth = self._prepare_batch(index, batch)
            found = self._prepare_pred(prediction)
            boxes: Any = scale_boxes(truth["imgsz"], truth["bboxes"].clone(), truth["ori_shape"], truth["ratio_pad"])
            self.images.append(
                Image(
                    file=relative(truth["im_file"], self.data["path"]),
                    size=(int(truth["ori_shape"][0]), int(truth["ori_shape"][1])),
                    truth=truth["cls"].cpu().numpy().astype(int),
                    truth_boxes=boxes.reshape(-1, 4).cpu().numpy(),
                    found=found["cls"].cpu().numpy().astype(int),
                    found_boxes=self.scale_preds(found, truth)["bboxes"].cpu().numpy(),
                    score=found["conf"].float().cpu().numpy(),
                    hit=self._process_batch(found, truth)["tp"][:, 0],
                )
            )


def class_names(data: str, single_cls: bool = False) -> dict[int, str]:
    """The classes that a network of this data set knows."""
    return {0: "item"} if single_cls else check_det_dataset(data)["names"]


def judge(model: Any, folder: Path, **arguments: Any) -> Judge:
    """Validates a checkpoint (a path) or a detector (a module) with Ultralytics' arguments; plots go to ``folder``."""
    args = {"rect": True, "plots": False, "verbose": False, **arguments, "mode": "val", "task": "detect"}
    validator = Judge(args={**args, "model": str(model)} if isinstance(model, (str, Path)) else args, save_dir=folder)
    validator(model=str(model) if isinstance(model, (str, Path)) else model)
    return validator


def miss_rates(
    *, score: np.ndarray, hit: np.ndarray, truths: int, images: int, at: Sequence[float] = FALSE_ALARMS
) -> list[dict[str, float | None]]:
    """Share of defects missed where the threshold lets through a given number of false alarms per image.

    ``miss(f) = 1 - hits(t) / truths`` at the lowest threshold ``t`` with ``false(t) / images <= f``. A threshold is one
    of the scores: detections of equal score come and go together. (As in Dollar et al., "Pedestrian detection: an
    evaluation of the state of the art", IEEE TPAMI 34(4), 2012, without the mean over f.)

    Args:
        score: Scores of all detections on all images, ``(D,)``.
        hit: Whether each detection is right, ``(D,)``.
        truths: Number of annotated defects.
        images: Number of images.
        at: The values of f.

    Returns:
        Per f: ``false_alarms`` (f), ``miss`` (None without any defect) and ``threshold`` (None: above every score).
    """
    order = np.argsort(-score, kind="stable")
    score, hit = score[order], hit[order].astype(bool)
    false, right = np.cumsum(~hit), np.cumsum(hit)
    thresholds = np.flatnonzero(np.append(score[1:] != score[:-1], True)) if len(score) else np.zeros(0, int)
    rows: list[dict[str, float | None]] = []
    for f in at:
        allowed = thresholds[false[thresholds] <= f * images + 1e-9]
        hits = int(right[allowed[-1]]) if len(allowed) else 0
        threshold = float(score[allowed[-1]]) if len(allowed) else None
        rows.append({"false_alarms": f, "miss": 1 - hits / truths if truths else None, "threshold": threshold})
    return rows


def misses(images: Sequence[Image], of: int | None = None, at: Sequence[float] = FALSE_ALARMS) -> list[dict[str, Any]]:
    """:func:`miss_rates` over all classes with one threshold, or of one class with its own."""

    def joined(name: str, label: str) -> np.ndarray:
        parts = [getattr(i, name) if of is None else getattr(i, name)[getattr(i, label) == of] for i in images]
        return np.concatenate(parts) if parts else np.zeros(0)

    truths = len(joined("truth", "truth"))
    return miss_rates(
        score=joined("score", "found"), hit=joined("hit", "found"), truths=truths, images=len(images), at=at
    )


def findings(validator: Judge) -> dict[str, Any]:
    """The figures of one validation, over all and per class, as JSON takes them."""
    box, images = validator.metrics.box, validator.images
    place = {int(c): i for i, c in enumerate(box.ap_class_index)}
    classes = []
    for index, name in sorted(validator.names.items()):
        i = place.get(index)
        classes.append(
            {
                "name": str(name),
                "truths": int(sum((image.truth == index).sum() for image in images)),
                "AP50": None if i is None else round(float(box.ap50[i]), 5),
                "AP50-95": None if i is None else round(float(box.ap[i]), 5),
                "misses": misses(images, of=index),
            }
        )
    return {
        "images": len(images),
        "truths": int(sum(len(image.truth) for image in images)),
        "mAP50": round(float(box.map50), 5),
        "mAP50-95": round(float(box.map), 5),
        "precision": round(float(box.mp), 5),
        "recall": round(float(box.mr), 5),
        "misses": misses(images),
        "classes": classes,
    }


def seen(images: Sequence[Image]) -> list[dict[str, Any]]:
    """Per image its defects and what is found with the threshold at :data:`DRAWN_AT`; corners as shares of the image.

    ``truth`` rows are (class, x1, y1, x2, y2), ``found`` rows (class, score, hit, x1, y1, x2, y2).
    """
    threshold = misses(images, at=[DRAWN_AT])[0]["threshold"]
    rows = []
    for image in images:
        scale = np.array([image.size[1], image.size[0]] * 2)
        truth = [[int(c), *_shares(b / scale)] for c, b in zip(image.truth, image.truth_boxes)]
        found = [
            [int(c), round(float(s), 3), bool(h), *_shares(b / scale)]
            for c, s, h, b in zip(image.found, image.score, image.hit, image.found_boxes)
            if threshold is not None and float(s) >= threshold
        ]
        rows.append({"file": image.file, "truth": truth, "found": found})
    return rows


def _shares(box: np.ndarray) -> list[float]:
    return [round(float(v), 4) for v in box]


def coco(images: Sequence[Image]) -> dict[str, float | None]:
    """COCO's twelve metrics by pycocotools, of any data set; None where nothing of that size is annotated."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, found = _coco_rows(images)
    categories = sorted({row["category_id"] for row in truth + found})
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO()
        api.dataset = {
            "info": {},
            "images": [{"id": n} for n in range(1, len(images) + 1)],
            "annotations": truth,
            "categories": [{"id": c} for c in categories],
        }
        api.createIndex()
        if not truth:
            return dict.fromkeys(COCO_NAMES, None)
        if not found:  # pycocotools has no answer to an empty list
            found = [{"image_id": 1, "category_id": truth[0]["category_id"], "bbox": [0, 0, 0, 0], "score": 0.0}]
        evaluation = COCOeval(api, api.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: None if v < 0 else round(float(v), 5) for name, v in zip(COCO_NAMES, evaluation.stats)}


def _coco_rows(images: Sequence[Image]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """COCO's rows of annotations and of detections; images, classes and annotations count from 1."""
    truth: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for number, image in enumerate(images, start=1):
        for label, box in zip(image.truth, _ltwh(image.truth_boxes)):
            row = {"id": len(truth) + 1, "image_id": number, "category_id": int(label) + 1, "bbox": box}
            truth.append({**row, "area": box[2] * box[3], "iscrowd": 0})
        for label, score, box in zip(image.found, image.score, _ltwh(image.found_boxes)):
            found.append({"image_id": number, "category_id": int(label) + 1, "bbox": box, "score": float(score)})
    return truth, found


def _ltwh(boxes: np.ndarray) -> list[list[float]]:
    return np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1).astype(float).tolist()
