"""Teacher, adapters and losses of one run. One call per batch gives the named terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tskd_yolo.config import TERMS, Config
from tskd_yolo.distill.balance import Fixed, Meter, Share
from tskd_yolo.distill.features import STAGE, STAGES, STEPS, Answer, HeadReader, Level, StageReader, strides, towers
from tskd_yolo.distill.nonfinite import MOST, Gate, at_once
from tskd_yolo.distill.teacher import Teacher
from tskd_yolo.losses import CRD, DED, DRD
from tskd_yolo.losses.boxes import Boxes, covered, masks
from tskd_yolo.losses.crd import Response, adapter, target
from tskd_yolo.losses.ded import PaperDED
from tskd_yolo.losses.distributed import everywhere
from tskd_yolo.losses.drd import PaperDRD
from tskd_yolo.losses.standardize import Map, standardised
from tskd_yolo.rng import undisturbed

CHANNELS = 64
"""How many channels of a map, or somewhat more, DRD and DED compare where the widths differ."""

Cache = Callable[[Tensor, Mapping[str, Any], Callable[[Tensor], Answer]], Answer]
"""Images, the batch they are from and the teacher, to the teacher's answer: see :mod:`tskd_yolo.distill.cache`."""


class Pair(NamedTuple):
    """A map that feature terms compare: its stride in pixels, the student's channels, the teacher's, of which one in
    ``share`` is read, and every how manieth cell is read in either direction.
    """

    stride: int
    ours: int
    theirs: int
    share: int = 1
    step: int = 1

    @property
    def compared(self) -> int:
        """Channels that are compared."""
        return -(-self.theirs // self.share)


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
        self.balance = Share(self.on, config.floor, config.cap) if config.balance == "share" else Fixed(self.on)
        self.meter = Meter()
        self.factor = 1.0  # of the schedule
        head = student.model[-1]
        self.strides = [s for s in strides(head) if s in teacher.reader.strides]
        self.unpaired = sorted(set(strides(head)) ^ set(teacher.reader.strides))
        paper = config.variant == "paper"
        self.stages = StageReader(student)
        neck = [(s, _neck_width(head, s), _neck_width(teacher.head, s)) for s in self.strides]
        early = zip(STAGES, self.stages.widths, teacher.stages.widths, STEPS, strict=True)
        self.pairs = {
            "neck": [Pair(s, ours, theirs, 1 if paper else _one_in(ours, theirs)) for s, ours, theirs in neck],
            "stages": [Pair(s, ours, theirs, _one_in(ours, theirs), step) for s, ours, theirs, step in early],
        }
        """Where feature terms compare: levels of the neck, and early stages of the backbone."""
        teacher.stages.keep = lambda i, features: _share(features, self.pairs["stages"][i])
        self.places = {"drd": "neck", "ded": "neck" if paper else "stages"}
        """Of these the one for each feature term."""
        self.branches = [b for b in towers(head) if b in towers(teacher.head)] if "crd" in self.on else []
        self.untaught = [b for b in towers(head) if "crd" in self.on and b not in self.branches]
        stage = 0 if config.variant == "paper" else STAGE
        self.reader = HeadReader(head, responses="crd" in self.on, stage=stage)
        teacher.reader.stage = stage
        device = next(student.parameters()).device
        with undisturbed():
            torch.manual_seed(seed)
            self.learned = self._modules(head).to(device)
        self.gates = {term: Gate() for term in self.on if term != "crd"}
        self.gates.update({f"crd:{branch}": Gate() for branch in self.branches})
        if "drd" in self.on:  # DED has no parameters
            self.gates["drd"].watch(self.learned["drd"].parameters())
        for branch in self.branches:
            self.gates[f"crd:{branch}"].watch(self.learned["crd"][branch].parameters())
        self._places: dict[str, list[Tensor]] = {}
        self._seen: dict[str, Any] = {}
        self._first = [p.detach().clone() for p in self.learned.parameters()]
        self.cache: Cache | None = None
        """Stands between the teacher and batches of views, where the run keeps what the teacher says."""
        self._target: Answer | None = None
        self._base: Any = None
        self._size = (0, 0)
        self._positives: dict[str, Tensor] = {}
        self._handles: list[Any] = []

    def _modules(self, head: Any) -> Any:
        """Adapters by place and map, graph units by level."""
        paper = self.config.variant == "paper"
        modules: Any = nn.ModuleDict()
        for place, pairs in self.pairs.items():
            if self.compares(place):
                modules[place] = nn.ModuleList(adapter(p.ours, p.compared, bias=paper, share=p.share) for p in pairs)
        if "drd" in self.on:
            widths = [pair.compared for pair in self.pairs["neck"]]
            trained = self.config.graph == "trained"
            modules["drd"] = nn.ModuleList(PaperDRD(c) if paper else DRD(c, trained=trained) for c in widths)
        if "ded" in self.on:
            modules["ded"] = PaperDED() if paper else DED()
        if "crd" in self.on:
            modules["crd"] = nn.ModuleDict(
                {b: CRD(self._tower_widths(head, b), self.config.variant) for b in self.branches}
            )
        return modules

    def compares(self, place: str) -> bool:
        """Whether a feature term that is on compares there."""
        return any(term in self.on and at == place for term, at in self.places.items())

    def _tower_widths(self, head: Any, branch: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        """(student, teacher) width of the box and of the class tower, per level."""
        widths = []
        for stride in self.strides:
            ours, theirs = (_stage_widths(h, branch, stride, self.reader.stage) for h in (head, self.teacher.head))
            widths.append(((ours[0], theirs[0]), (ours[1], theirs[1])))
        return widths

    def leave_frozen(self) -> list[str]:
        """Leaves DED out where all of the student's layers that it teaches are frozen; the terms that were left out."""
        if self.compares("stages") and not any(p.requires_grad for p in self.stages.before()):
            del self.on["ded"]
            return ["ded"]
        return []

    # One step ---------------------------------------------------------------------------------------------------------

    def arm(self, student: Any, images: Tensor, batch: Mapping[str, Any] | None = None) -> None:
        """Runs the teacher on a batch and stands ready for the student's pass on the same images ``(N, 3, H, W)``.

        With a cache, and a batch of views, the teacher runs for those only that it has not seen yet.
        """
        self.disarm(student)
        if self.on and self.cache is not None and batch is not None:
            self._target = self.cache(images, batch, self.ask)
        elif self.on:
            self._target = self.ask(images)
        self._size = (images.shape[2], images.shape[3])
        self._base = getattr(student, "criterion", None) or student.init_criterion()
        self.reader.arm()
        if self.compares("stages"):
            self.stages.arm()
        if self.config.variant == "paper" and "crd" in self.on:
            for branch in self.branches:  # a dual head's criterion holds one per branch
                self._count_positives(branch, getattr(self._base, branch, self._base).assigner)
        student.criterion = _Criterion(self, student)

    def ask(self, images: Tensor) -> Answer:
        """What the teacher says of images ``(N, 3, H, W)``: what the terms read, the student needs the memory."""
        levels, stages = self.teacher.with_stages(images) if self.compares("stages") else (self.teacher(images), [])
        said = [levels[stride] for stride in self.strides]
        neck = zip(said, self.pairs["neck"], strict=True) if self.compares("neck") else ()
        weighed = self.compares("neck") and self.config.variant != "paper"
        return Answer(
            [_share(level.features, pair) for level, pair in neck],
            {b: target([level.responses[b] for level in said], self.config.variant) for b in self.branches},
            torch.stack([_said(level.scores) for level in said], dim=1) if weighed else None,
            stages,
        )

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
        self.stages.disarm()
        self._target, self._positives, self._handles, self._base, self._places = None, {}, [], None, {}

    def loss(self, student: Any, predictions: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The detection loss with the weighted terms added: to its vector, and under ``drd_loss`` ... to its items."""
        images = len(batch["img"])
        if self.config.variant == "paper":  # which asks what the detection loss has assigned
            vector, items = self._base(predictions, batch)
            terms = self.terms(predictions, batch)
        else:  # the teacher's word is forgotten before the detection loss takes its memory
            terms = self.terms(predictions, batch)
            self._target = None
            vector, items = self._base(predictions, batch)
        finite = {name: self._leave(name, term) for name, term in terms.items()}
        if terms and self.meter.due():
            self._measure(vector.sum() / images, terms)
        weighted = {name: self._factor(name) * term for name, term in finite.items()}
        zero = vector.new_zeros(())
        parts = torch.stack([sum((weighted[n] for n in weighted if _term(n) == t), zero) for t in TERMS])
        for name, term in finite.items():
            self._seen[_term(name)] = self._seen.get(_term(name), 0) + term.detach().abs()
        self.disarm(student)
        # Ultralytics multiplies its means by the batch size and shows the means.
        vector = torch.cat((vector, parts.to(vector) * images))
        return vector, {**items, **{f"{term}_loss": part for term, part in zip(TERMS, parts.detach(), strict=True)}}

    def _factor(self, name: str) -> float | Tensor:
        return self.factor * self.balance(name, self.meter.pulls.get(name))

    def _leave(self, name: str, term: Tensor) -> Tensor:
        return self.gates[name].leave(term)

    def _measure(self, detection: Tensor, terms: dict[str, Tensor]) -> None:
        for name in terms:
            self.gates[name].watching = False
        self.meter.measure(detection=detection, terms=terms, places=self._places)
        for name in terms:
            self.gates[name].watching = True

    def terms(self, predictions: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The unweighted terms that are on, each a float32 scalar: ``drd``, ``ded`` and one ``crd:BRANCH`` per branch.

        Towers of a dual head share no weight, so neither branch dilutes the other.
        """
        if not self.on or self._target is None:
            return {}
        levels = self.reader.read(predictions)
        student = [levels[s] for s in self.strides]
        maps = {"neck": [level.features for level in student]}
        maps["stages"] = self.stages.read() if self.compares("stages") else []
        terms = self._feature_terms(maps, self._target, batch)
        # Further down the graph a walk back from the loss takes more time, and memory while all of the graph is there.
        measured = {"neck": maps["neck"], "stages": maps["stages"][-1:]}
        self._places = {name: measured[self.places[name]] for name in terms}
        for branch in self.branches if "crd" in self.on else []:
            name = f"crd:{branch}"
            terms[name] = self._response_term(branch, student, self._target.responses[branch])
            # The second branch of a dual head sees the neck's features cut off from their graph.
            towers_ = [t for level in student for t in level.responses[branch][2:]]
            self._places[name] = towers_ if branch == "one2one" else maps["neck"]
        return terms

    def trial(self, student: Any, images: Tensor) -> tuple[Any, ...]:
        """Predictions and terms of a copy of the student on images without boxes."""
        own = self.reader, self.stages
        self.reader = HeadReader(student.model[-1], responses="crd" in self.on, stage=self.reader.stage)
        self.stages = StageReader(student)
        try:
            self._target, self._size = self.ask(images.detach()), (images.shape[2], images.shape[3])
            self.reader.arm()
            self.stages.arm()
            predictions = student(images)
            none = images.new_zeros(0)
            terms = self.terms(predictions, {"img": images, "bboxes": none.view(0, 4), "batch_idx": none})
            return predictions, [self._leave(name, term) for name, term in terms.items()]
        finally:
            self.reader.disarm()
            self.stages.disarm()
            (self.reader, self.stages), self._target = own, None
            for gate in self.gates.values():
                gate.collect()

    def _feature_terms(
        self, student: Mapping[str, Sequence[Tensor]], teacher: Answer, batch: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """DRD and DED of the student's maps by place, each a mean over the maps (the paper's form: the sum).

        On the neck a level weighs by how much the teacher says there: one where it finds nothing has features that
        nothing has ever asked for, noise to a student.
        """
        names = [term for term in self.places if term in self.on]
        if not names:
            return {}
        boxes = boxes_of(batch, images=len(batch["img"]), size=self._size)
        wanted = {"neck": teacher.maps, "stages": teacher.stages}
        found: dict[str, list[Tensor]] = {name: [] for name in names}
        with torch.autocast(boxes.xyxy.device.type, enabled=False):
            for place in dict.fromkeys(self.places[name] for name in names):
                ours = [self._brought(place, i, features) for i, features in enumerate(student[place])]
                behind = {n: _behind(self.gates[n], ours) for n in names if self.places[n] == place}
                for i, features in enumerate(wanted[place]):
                    theirs = self._wanted(features)
                    for name, maps in behind.items():
                        found[name].append(self._feature_term(name, i, student=maps[i], teacher=theirs, boxes=boxes))
            if self.config.variant == "paper":
                return {name: torch.stack(values).sum() for name, values in found.items()}
            levels = None if teacher.said is None else heard(teacher.said)
            return {
                name: _mean(values, levels if self.places[name] == "neck" else None) for name, values in found.items()
            }

    def _feature_term(self, name: str, i: int, *, student: Any, teacher: Any, boxes: Boxes) -> Tensor:
        """A feature term on one map, with its gradients."""
        if name == "drd":
            return _compare(self.learned["drd"][i], student, teacher=teacher, boxes=boxes)
        height, width = teacher.shape[2:] if isinstance(teacher, Tensor) else teacher.size
        regions = masks if self.config.variant == "paper" else covered
        return _compare(self.learned["ded"], student, teacher=teacher, masks=regions(boxes, height, width))

    def _brought(self, place: str, i: int, features: Tensor) -> Tensor | Map:
        """The student's map at the teacher's width; standardised once for both losses, but for the paper's form."""
        adapter: Any = self.learned[place][i]
        if self.config.variant == "paper":
            return adapter(features.float())
        lift = None if isinstance(adapter, nn.Identity) else adapter.weight.flatten(1)
        return standardised(features, lift, step=self.pairs[place][i].step)

    def _wanted(self, features: Tensor | Callable[[], Map]) -> Tensor | Map:
        """The teacher's map as the losses take it."""
        if not isinstance(features, Tensor):
            return features()
        return features if self.config.variant == "paper" else standardised(features)

    def _response_term(self, branch: str, student: Sequence[Level], teacher: Any) -> Tensor:
        """CRD of one branch."""
        crd, width = self.learned["crd"][branch], len(Response._fields)
        behind = self.gates[f"crd:{branch}"].enter([t for level in student for t in level.responses[branch]])

        def term(*tensors: Tensor) -> Tensor:
            return crd(
                student=[Response(*tensors[i : i + width]) for i in range(0, len(tensors), width)],
                teacher=teacher,
                tails=[self.teacher.tails(stride, branch) for stride in self.strides],
                positives=self._positives.get(branch),
            )

        return at_once(term, behind, crd.parameters())

    # Once per epoch ---------------------------------------------------------------------------------------------------

    def sick(self, total: Callable[[list[float]], list[float]]) -> dict[str, tuple[int, int, bool]]:
        """Terms that were not finite in some steps since the last call: steps left out, steps taken, switched off now.

        A term that was left out of more than a tenth of them is switched off: it has nothing to teach.

        Args:
            total: Sums a list of numbers over all processes.
        """
        counts = [n for gate in self.gates.values() for n in gate.collect()]
        sums = iter(total([float(n) for n in counts]))
        found: dict[str, tuple[int, int, bool]] = {}
        for name in self.gates:
            left_out, steps = int(next(sums)), int(next(sums))
            if left_out:
                off = left_out > MOST * steps
                found[_term(name)] = max(found.get(_term(name), (0, 0, False)), (left_out, steps, off))
        for term, (*_, off) in found.items():
            if off:
                self.on.pop(term, None)
        return found

    def pulls(self) -> dict[str, float]:
        """What was measured, as columns: per term its share of the detection loss's gradient and their cosine.

        Of a dual head's two branches those of the one that teaches the neck.
        """
        columns = {}
        for name, pull in self.meter.pulls.items():
            if not name.endswith(":one2one"):
                columns[f"share/{_term(name)}"] = float(self._factor(name) / pull.ratio.clamp(min=1e-30))
                columns[f"cosine/{_term(name)}"] = float(pull.cosine)
        return {key: round(value, 5) for key, value in columns.items()}

    def dead(self, total: Callable[[list[float]], list[float]], processes: int) -> list[str]:
        """After the first epoch: what shows that nothing is being taught, one sentence each.

        Args:
            total: Sums a list of numbers over all processes.
            processes: Their number.
        """
        everywhere = total([float(self._seen.get(term, 0) != 0) for term in TERMS])
        found = []
        for term, count in zip(TERMS, everywhere, strict=True):
            if term in self.on and count < processes:
                found.append(f"{term} is zero on {processes - int(count)} of {processes} processes")
            pulls = [float(pull.term) for name, pull in self.meter.pulls.items() if _term(name) == term]
            if term in self.on and not any(pulls):
                found.append(f"{term} does not reach the student: what it teaches is frozen")
        moved = [not torch.equal(a, b) for a, b in zip(self._first, self.learned.parameters(), strict=True)]
        if moved and not any(moved):
            found.append("the adapters have not moved: the learning rate is 0, or no step was taken")
        if not self.teacher.unmoved():
            found.append("the teacher's weights have changed")
        return found

    def state(self) -> dict[str, Any]:
        """What a resumed run needs of the past: a copy on the CPU, tensors and plain values only."""
        learned = {k: v.detach().cpu().clone() for k, v in self.learned.state_dict().items()}
        return {"learned": learned, "on": list(self.on), "meter": self.meter.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from :meth:`state`.

        Raises:
            RuntimeError: If it was made for another teacher or student.
        """
        self.learned.load_state_dict(state["learned"])
        self.on = {term: weight for term, weight in self.on.items() if term in state["on"]}
        self.meter.restore(state["meter"], next(iter(self.teacher.model.parameters())).device)


class Trial(nn.Module):
    """A student with its teacher and losses behind it, for measuring what memory a step takes.

    Its answer is every tensor of the student's, and the terms. It can be copied: the teacher is shared, not copied.
    """

    def __init__(self, student: Any, distiller: Distiller) -> None:
        super().__init__()
        self.student = student
        self.stride, self.names, self.yaml = student.stride, student.names, student.yaml
        self._distiller = [distiller]  # in a list: not a part of this module

    def __deepcopy__(self, memo: dict[int, Any]) -> Trial:
        return Trial(deepcopy(self.student, memo), self._distiller[0])

    def forward(self, images: Tensor) -> tuple[Any, ...]:
        """``(N, 3, H, W)`` images -> predictions and terms, without boxes."""
        return self._distiller[0].trial(self.student, images)


class _Criterion:
    """Stands in for the student's criterion during one forward pass."""

    def __init__(self, distiller: Distiller, student: Any) -> None:
        self._distiller, self._student = distiller, student

    def __call__(self, predictions: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return self._distiller.loss(self._student, predictions, batch)


def heard(said: Tensor) -> Tensor:
    """The share of each level in what a teacher says, ``(N, levels)`` -> ``(levels,)``; they add up to 1."""
    total = everywhere(said.sum(dim=0))
    return total / total.sum().clamp(min=1e-12)


def _said(scores: Tensor) -> Tensor:
    """Best class probabilities of ``(N, classes, H, W)`` logits, summed over the cells, ``(N,)``."""
    return scores.float().amax(dim=1).sigmoid().sum(dim=(1, 2))


def _one_in(ours: int, theirs: int) -> int:
    """Of a teacher's channels one in so many is compared with a student's."""
    return 1 if ours == theirs else max(theirs // min(ours, CHANNELS), 1)


def _share(features: Tensor, pair: Pair) -> Tensor:
    """What is compared of a teacher's map, as a copy: the rest can be forgotten."""
    step = pair.step
    if pair.share == step == 1:
        return features
    return features[:, :: pair.share, ::step, ::step].contiguous(memory_format=torch.channels_last)


def _mean(values: Sequence[Tensor], weight: Tensor | None) -> Tensor:
    """Mean of scalars, weighted where ``weight``, which adds up to 1, is given."""
    return torch.stack(list(values)).mean() if weight is None else (weight * torch.stack(list(values))).sum()


def _behind(gate: Gate, maps: list[Any]) -> list[Any]:
    """The maps, standardised or plain, with the gradients of their tensors under control."""
    after = iter(gate.enter([t for m in maps for t in _tensors(m)]))
    return [_with(m, *(next(after) for _ in _tensors(m))) for m in maps]


def _compare(loss: nn.Module, student: Any, **wanted: Any) -> Tensor:
    """A loss of one level, with its gradients."""
    return at_once(
        lambda *tensors: loss(student=_with(student, *tensors), **wanted), _tensors(student), loss.parameters()
    )


def _tensors(features: Tensor | Map) -> list[Tensor]:
    """What of a map, standardised or plain, carries gradient."""
    if isinstance(features, Tensor):
        return [features]
    return [features.cells] if features.lift is None else [features.cells, features.lift]


def _with(features: Tensor | Map, first: Tensor, lift: Tensor | None = None) -> Tensor | Map:
    """The map with other tensors in the place of :func:`_tensors`."""
    return first if isinstance(features, Tensor) else features._replace(cells=first, lift=lift)


def _term(name: str) -> str:
    """``crd`` of ``crd:one2many``."""
    return name.split(":")[0]


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
