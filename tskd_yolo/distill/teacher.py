"""The teacher: loaded, verified, folded, frozen, and run once per batch."""

from __future__ import annotations

import functools
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn.distill_model import DistillationModel
from ultralytics.nn.modules.head import Detect
from ultralytics.nn.tasks import DetectionModel, yaml_model_load
from ultralytics.utils import LOGGER
from ultralytics.utils.torch_utils import get_flops, get_num_params

from tskd_yolo import compat
from tskd_yolo.config import ConfigError
from tskd_yolo.distill.features import HeadReader, Level, StageReader, towers
from tskd_yolo.losses.crd import Tails

FAMILIES = {"YOLOv8": "yolov8.yaml", "YOLO11": "yolo11.yaml", "YOLO12": "yolo12.yaml", "YOLO26": "yolo26.yaml"}


def load(path: str | Path, *, key: str = "teacher") -> Any:
    """Loads a detector checkpoint as it was trained, on the CPU and in float32.

    An official name, such as ``yolo11l.pt``, is fetched as Ultralytics fetches ``model=``. Of an interrupted run of
    Ultralytics' built-in distillation the student becomes the teacher, and that is said.

    Args:
        path: The file.
        key: The argument it was given with, for messages.

    Raises:
        ConfigError: If the file is missing, cannot be read, or holds no plain detector.
    """
    model: Any = compat.load(path, key=key)[0]
    if isinstance(model, DistillationModel):
        if key != "teacher":  # Ultralytics would train on with its wrapper
            raise ConfigError(
                [f"{key}: {path} is an interrupted run of distill_model=; finish it and give its best.pt."]
            )
        LOGGER.warning(f"{key} {path} is an interrupted run of distill_model=; its student is used.")
        model.student_model.pt_path = model.pt_path
        model = model.student_model
    kind: Any = type(model)
    if kind is not DetectionModel or not isinstance(model.model[-1], Detect):
        found = f"{kind.__name__} for '{getattr(model, 'task', 'unknown')}'"
        raise ConfigError([f"{key}: {path} is of type {found}; give a YOLOv8, 11, 12 or 26 detector."])
    return model


@functools.lru_cache
def _official(name: str) -> tuple:
    return _fingerprint(yaml_model_load(FAMILIES[name]))


def _fingerprint(model_yaml: dict[str, Any]) -> tuple:
    """What all widths of a family have in common: which modules are wired how, and the form of the head."""
    rows = tuple((str(row[0]), str(row[2])) for row in [*model_yaml["backbone"], *model_yaml["head"]])
    return rows, model_yaml.get("reg_max", 16), bool(model_yaml.get("end2end"))


def family(model_yaml: dict[str, Any]) -> str | None:
    """``YOLOv8``, ``YOLO11``, ``YOLO12`` or ``YOLO26``, whatever the width; None for any other architecture."""
    return next((name for name in FAMILIES if _official(name) == _fingerprint(model_yaml)), None)


def _plain(name: Any) -> str:
    return str(name).strip().casefold()


def mismatches(*, student_yaml: dict[str, Any], teacher: Any, names: dict[int, str]) -> list[str]:
    """Why this teacher cannot teach this student these classes, one sentence each; empty if it can."""
    found = []
    yamls = {"model": student_yaml, "teacher": teacher.yaml}
    families = [family(model_yaml) for model_yaml in yamls.values()]
    for (role, model_yaml), name in zip(yamls.items(), families, strict=True):
        if name is None:
            stem = Path(model_yaml.get("yaml_file") or "custom").stem
            found.append(f"{role}: its architecture ({stem}) is not a plain YOLOv8, 11, 12 or 26 detector; use one.")
    if None not in families and families[0] != families[1]:
        found.append(
            f"teacher: a {families[1]} cannot teach a {families[0]} yet; use a student and a teacher of one family."
        )
    ours, theirs = sorted(map(_plain, names.values())), sorted(map(_plain, teacher.names.values()))
    if ours != theirs:
        found.append(
            f"teacher: it knows {len(theirs)} classes ({_short(teacher.names)}) and the data has {len(ours)} "
            f"({_short(names)}); train the teacher on the same class list."
        )
    return found


def _short(names: dict[int, str], most: int = 6) -> str:
    shown = ", ".join(str(n) for n in list(names.values())[:most])
    return shown + (", ..." if len(names) > most else "")


class Teacher:
    """A frozen detector that answers with its levels: batch norms folded, channels last, raw head output, no gradient.

    It belongs to no module tree, so nothing trains it, counts it, copies it or saves it.

    Args:
        model: The loaded detector; it is changed in place.
        like: The student, for its device.
        names: The student's classes; the teacher's class outputs are brought into their order.
        responses: Whether the head's responses are wanted.
    """

    def __init__(self, model: Any, *, like: nn.Module, names: dict[int, str], responses: bool) -> None:
        self.name = Path(getattr(model, "pt_path", None) or "teacher").name
        self.params, self.gflops = get_num_params(model), 0.0
        head = model.model[-1]
        head.fuse = lambda: None  # folding a dual head would drop one of its branches
        try:
            model.fuse(verbose=False)
        finally:
            del head.fuse
        self.reordered = _reorder(model, names)
        device = next(like.parameters()).device
        self.layout = torch.contiguous_format if device.type == "mps" else torch.channels_last
        """The cheapest memory format whose answers are right: Ultralytics found channels_last wrong on MPS."""
        self.model = model.to(device, memory_format=self.layout).requires_grad_(False).eval()
        head.training = True  # only the head's own flag: raw output, nothing decoded, no box suppressed
        self.head = head
        self.reader = HeadReader(head, responses=responses)
        self.stages = StageReader(model)
        self._print = self._fingerprint()

    def cast(self, dtype: torch.dtype) -> None:
        """Holds the weights in the dtype that autocast would bring them to at every pass."""
        self.model.to(dtype)
        self._print = self._fingerprint()

    def unmoved(self) -> bool:
        """Whether every weight and statistic is what it was."""
        return self._fingerprint() == self._print

    def _fingerprint(self) -> list[float]:
        return torch.stack([v.double().abs().sum() for v in self.model.state_dict().values()]).tolist()

    def __call__(self, images: Tensor) -> dict[int, Level]:
        """Levels by stride for a batch of images ``(N, 3, H, W)``."""
        self.reader.arm()
        try:
            with torch.no_grad():
                return self.reader.read(self.model(images.to(self._dtype, memory_format=self.layout)))
        finally:
            self.reader.disarm()

    def with_stages(self, images: Tensor) -> tuple[dict[int, Level], list[Tensor]]:
        """Levels by stride, and what :attr:`stages` keeps of the backbone's stages, in the same pass."""
        self.stages.arm()
        try:
            return self(images), self.stages.read()
        finally:
            self.stages.disarm()

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def tails(self, stride: int, branch: str) -> Tails:
        """The rest of the head after the stage where the student's activations enter, on one level."""
        level = self.reader.strides.index(stride)
        box, score = (tower[level][self.reader.stage + 1 :] for tower in towers(self.head)[branch])
        return Tails(box, score)

    def detector(self) -> Any:
        """A copy that decodes its boxes, for validation."""
        return deepcopy(self.model).float().eval()

    def measure(self, imgsz: int) -> None:
        """Counts the floating point operations of one image, in billions."""
        self.gflops = get_flops(self.detector(), imgsz)


def _reorder(model: Any, names: dict[int, str]) -> bool:
    """Brings the teacher's class outputs into the order of ``names``, once, by its last convolutions' rows."""
    left = dict(model.names)
    order = []
    for _, name in sorted(names.items()):  # each output once, the exact spelling first
        same = [i for i, other in left.items() if other == name] or [i for i in left if _plain(left[i]) == _plain(name)]
        order.append(same[0])
        del left[same[0]]
    if order == sorted(order):
        return False
    for _, tower in towers(model.model[-1]).values():
        for layers in tower:
            last = layers[-1]
            last.weight.data, last.bias.data = last.weight.data[order], last.bias.data[order]
    model.names = dict(names)
    return True
