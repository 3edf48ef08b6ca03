"""What is distilled for which pair of teacher and student, read off the networks themselves."""

from __future__ import annotations

from typing import Any

from results import table
from ultralytics.nn.tasks import DetectionModel, OBBModel, PoseModel, RTDETRDetectionModel, SegmentationModel
from ultralytics.utils import LOGGER

from tskd_yolo.compat import swapped
from tskd_yolo.distill.features import ENTRY_STAGE, towers
from tskd_yolo.distill.matching import Match
from tskd_yolo.distill.teacher import Teacher

PAIRS = [
    ("yolo11n", "yolo11n"),
    ("yolov8n", "yolo11n"),
    ("yolov5n", "yolov9t"),
    ("yolo12n", "yolov8n"),
    ("yolov10n", "yolo12n"),
    ("yolo26n", "yolo11n"),
    ("yolo11n", "yolo26n"),
    ("yolo26n", "yolov10n"),
    ("rtdetr-l", "yolo11n"),
    ("rtdetr-resnet50", "yolo26n"),
    ("yolov8n-p2", "yolo11n"),
    ("yolo11n", "yolo26n-p2"),
    ("yolov8n-p6", "yolo26n"),
    ("yolov3-tiny", "yolo11n"),
    ("yolov8n-seg", "yolo11n-seg"),
    ("yolo11n-pose", "yolo26n-pose"),
    ("yolo26n-obb", "yolo26n-obb"),
]
"""Teacher and student."""
HEAD = "teacher", "student", "DRD: levels", "DED: stages", "CRD: branches", "CRD: boxes", "left out"


def text() -> str:
    """A table of Markdown."""
    with swapped(LOGGER, "disabled", True):  # it would tell of every network that is built
        rows = [[*pair, *_distilled(*pair)] for pair in PAIRS]
    return table(HEAD, rows, words=len(HEAD))


_KINDS = {"seg": SegmentationModel, "pose": PoseModel, "obb": OBBModel}


def _built(name: str) -> Any:
    kind: Any = RTDETRDetectionModel if name.startswith("rtdetr") else DetectionModel
    return _KINDS.get(name.rpartition("-")[2], kind)(f"{name}.yaml", nc=3, verbose=False)


def _distilled(teacher: str, student: str) -> list[str]:
    """The cells of a pair."""
    learner = _built(student)
    frozen = Teacher(_built(teacher), like=learner, names=learner.names)
    match = Match(student=learner, teacher=frozen.model, entry_stage=ENTRY_STAGE)
    left_out = [f"levels {_list(match.unpaired)}"] if match.unpaired else []
    left_out += [f"stages {_list(match.unpaired_stages)}"] if match.unpaired_stages else []
    left_out += [f"branch {', '.join(match.untaught)}"] if match.untaught else []
    branches = ", ".join(match.branches) + (" (by queries)" if match.queries else "")
    cells = [_list(match.strides), _list(match.stages.strides), branches, _boxes(match)]
    return [*cells, "; ".join(left_out)]


def _list(strides: list[int]) -> str:
    return ", ".join(map(str, strides))


def _boxes(match: Match) -> str:
    """How boxes are compared."""
    if match.queries:
        return "GIoU at assigned locations"
    bins = {head.reg_max for head in (match.head, match.teacher_head) if towers(head)}
    return "distributions, GIoU" if bins == {match.head.reg_max} and match.head.reg_max > 1 else "GIoU"
