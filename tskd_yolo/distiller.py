"""Teacher, adapters and losses of one run. One call per batch gives the named terms."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tskd_yolo.balance import Fixed
from tskd_yolo.config import TERMS, Config
from tskd_yolo.features import STAGE, HeadReader, Level, strides, towers
from tskd_yolo.losses import CRD, DED, DRD
from tskd_yolo.losses.crd import adapter
from tskd_yolo.losses.ded import PaperDED
from tskd_yolo.losses.drd import PaperDRD
from tskd_yolo.losses.maps import standardised
from tskd_yolo.losses.regions import Boxes, masks
from tskd_yolo.teacher import Teacher


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Whatever is drawn inside, the run's random numbers go on as if nothing had happened."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


class Distiller:
    """Compares a student with its teacher, on every level that both have.

    It is armed before the student's forward pass (the teacher runs then, while no student graph holds memory), and
    asked for its terms after it. Between the two it stands in for the student's criterion; at any other time the
    student is a plain model. Everything that learns is in :attr:`learned`, and nothing of it in the student.

    Args:
        student: The plain detector that is trained.
        teacher: The frozen teacher.
        config: The checked settings.
        seed: Seed of the adapters' and graph units' first weights.
    """

    def __init__(self, *, student: Any, teacher: Teacher, config: Config, seed: int) -> None:
        self.teacher, self.config = teacher, config
        self.on = {term: weight for term, weight in config.weights.items() if weight > 0}
        self.balance = Fixed(self.on)
        head = student.model[-1]
        self.strides = [s for s in strides(head) if s in teacher.reader.strides]
        self.unpaired = sorted(set(strides(head)) ^ set(teacher.reader.strides))
        self.widths = {s: (_neck_width(head, s), _neck_width(teacher.head, s)) for s in self.strides}
        self.branches = [b for b in towers(head) if b in towers(teacher.head)] if "crd" in self.on else []
        self.untaught = [b for b in towers(head) if "crd" in self.on and b not in self.branches]
        stage = 0 if config.variant == "paper" else STAGE
        self.reader = HeadReader(head, responses="crd" in self.on, stage=stage)
        teacher.reader.stage = stage
        device = next(student.parameters()).device
        with undisturbed():
            torch.manual_seed(seed)
            self.learned = self._modules(head).to(device)
        self._target: dict[int, Level] = {}
        self._base: Any = None
        self._size = (0, 0)
        self._positives: dict[str, Tensor] = {}
        self._handles: list[Any] = []

    def _modules(self, head: Any) -> Any:
        """Adapters and graph units, by term and level."""
        paper = self.config.variant == "paper"
        modules: Any = nn.ModuleDict()
        if "drd" in self.on or "ded" in self.on:
            modules["neck"] = nn.ModuleDict({str(s): adapter(*pair, bias=paper) for s, pair in self.widths.items()})
        if "drd" in self.on:
            trained = self.config.graph == "trained"
            modules["drd"] = nn.ModuleDict(
                {str(s): PaperDRD(c) if paper else DRD(c, trained=trained) for s, (_, c) in self.widths.items()}
            )
        if "ded" in self.on:
            modules["ded"] = PaperDED() if paper else DED()
        if "crd" in self.on:
            modules["crd"] = nn.ModuleDict(
                {b: CRD(self._tower_widths(head, b), self.config.variant) for b in self.branches}
            )
        return modules

    def _tower_widths(self, head: Any, branch: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        """(student, teacher) width of the box and of the class tower, per level."""
        widths = []
        for stride in self.strides:
            ours, theirs = (_stage_widths(h, branch, stride, self.reader.stage) for h in (head, self.teacher.head))
            widths.append(((ours[0], theirs[0]), (ours[1], theirs[1])))
        return widths

    # One step ---------------------------------------------------------------------------------------------------------

    def arm(self, student: Any, images: Tensor) -> None:
        """Runs the teacher on a batch and stands ready for the student's pass on the same images ``(N, 3, H, W)``."""
        self.disarm(student)
        self._target = self.teacher(images)
        self._size = (images.shape[2], images.shape[3])
        self._base = getattr(student, "criterion", None) or student.init_criterion()
        self.reader.arm()
        if self.config.variant == "paper" and "crd" in self.on:
            for branch in self.branches:  # a dual head's criterion holds one per branch
                self._count_positives(branch, getattr(self._base, branch, self._base).assigner)
        student.criterion = _Criterion(self, student)

    def _count_positives(self, branch: str, assigner: nn.Module) -> None:
        """The paper divides by the locations assigned to a defect: the detection loss has assigned them already."""

        def hook(module: nn.Module, inputs: tuple, output: tuple) -> None:
            self._positives[branch] = output[3].sum()

        self._handles.append(assigner.register_forward_hook(hook))

    def disarm(self, student: Any) -> None:
        """Gives the student its own criterion back and lets go of everything that belongs to the batch."""
        if isinstance(getattr(student, "criterion", None), _Criterion):
            student.criterion = self._base
        for handle in self._handles:
            handle.remove()
        self.reader.disarm()
        self._target, self._positives, self._handles, self._base = {}, {}, [], None

    def loss(self, student: Any, predictions: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The detection loss with the weighted terms added: to its vector, and under ``drd_loss`` ... to its items."""
        vector, items = self._base(predictions, batch)
        weighted = self.balance(self.terms(predictions, batch))
        zero = vector.new_zeros(())
        parts = torch.stack([weighted.get(term, zero) for term in TERMS])
        self.disarm(student)
        # Ultralytics multiplies its means by the batch size and shows the means.
        vector = torch.cat((vector, parts.to(vector) * len(batch["img"])))
        return vector, {**items, **{f"{term}_loss": part for term, part in zip(TERMS, parts.detach(), strict=True)}}

    def terms(self, predictions: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The unweighted terms that are on, by name, each a float32 scalar."""
        levels = self.reader.read(predictions)
        student = [levels[s] for s in self.strides]
        teacher = [self._target[s] for s in self.strides]
        terms = self._feature_terms(student, teacher, batch)
        if "crd" in self.on:
            terms["crd"] = self._response_term(student, teacher)
        return terms

    def _feature_terms(self, student: list[Level], teacher: list[Level], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """DRD and DED: the mean over levels (the paper's form: the sum)."""
        names = [term for term in ("drd", "ded") if term in self.on]
        if not names:
            return {}
        boxes = boxes_of(batch, images=len(batch["img"]), size=self._size)
        found: dict[str, list[Tensor]] = {name: [] for name in names}
        for stride, s, t in zip(self.strides, student, teacher, strict=True):
            adapter = self.learned["neck"][str(stride)]
            with torch.autocast(s.features.device.type, enabled=False):
                pair = self._pair(adapter, s.features, t.features)
                if "drd" in found:
                    found["drd"].append(self.learned["drd"][str(stride)](**pair, boxes=boxes))
                if "ded" in found:
                    regions = masks(boxes, *t.features.shape[2:])
                    found["ded"].append(self.learned["ded"](**pair, masks=regions))
        paper = self.config.variant == "paper"
        return {n: torch.stack(v).sum() if paper else torch.stack(v).mean() for n, v in found.items()}

    def _pair(self, adapter: Any, student: Tensor, teacher: Tensor) -> dict[str, Any]:
        """Both maps as the losses take them: standardised once for both losses, but for the paper's form."""
        if self.config.variant == "paper":
            return {"student": adapter(student.float()), "teacher": teacher}
        weight = None if isinstance(adapter, nn.Identity) else adapter.weight.flatten(1)
        return {"student": standardised(student, weight), "teacher": standardised(teacher)}

    def _response_term(self, student: list[Level], teacher: list[Level]) -> Tensor:
        """CRD: the sum over branches. Towers of a dual head share no weight, so neither branch dilutes the other."""
        total = []
        for branch in self.branches:
            total.append(
                self.learned["crd"][branch](
                    student=[level.responses[branch] for level in student],
                    teacher=[level.responses[branch] for level in teacher],
                    tails=[self.teacher.tails(stride, branch) for stride in self.strides],
                    positives=self._positives.get(branch),
                )
            )
        return torch.stack(total).sum()


class _Criterion:
    """Stands in for the student's criterion during one forward pass."""

    def __init__(self, distiller: Distiller, student: Any) -> None:
        self._distiller, self._student = distiller, student

    def __call__(self, predictions: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return self._distiller.loss(self._student, predictions, batch)


def boxes_of(batch: dict[str, Tensor], *, images: int, size: tuple[int, int]) -> Boxes:
    """Annotated boxes of an Ultralytics batch (centre, width, height as shares of the image) as corners in pixels."""
    centre, half = batch["bboxes"].float().split(2, dim=1)
    half = half / 2
    x, y = torch.stack((centre - half, centre + half), dim=1).unbind(dim=2)  # each (K, 2): from, to
    corners = torch.stack((x * size[1], y * size[0]), dim=2).flatten(1)  # no scale tensor that the device waits for
    return Boxes(corners, batch["batch_idx"].view(-1), images, size)


def _neck_width(head: Any, stride: int) -> int:
    """Channels of the features that come into a level of the head."""
    first = towers(head)[next(iter(towers(head)))][0][strides(head).index(stride)][0]
    return first.conv.in_channels


def _stage_widths(head: Any, branch: str, stride: int, index: int) -> tuple[int, int]:
    """Channels that come out of a stage of the box and of the class tower on a level."""
    level = strides(head).index(stride)

    def width(tower: Any) -> int:
        stage: Any = tower[level][index]
        last: Any = stage[-1] if isinstance(stage, nn.Sequential) else stage
        return last.conv.out_channels

    box, score = towers(head)[branch]
    return width(box), width(score)
