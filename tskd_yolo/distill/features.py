"""What one forward pass offers to learn from, by name and stride: the one place that knows the Detect head's dicts.

A Detect head returns ``{"boxes": (N, 4R, A), "scores": (N, classes, A), "feats": [level, ...]}``, all levels joined
along A; a dual head (YOLO26) one such dict per branch, ``one2many`` and ``one2one``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from ultralytics.nn.modules.head import RTDETRDecoder
from ultralytics.utils.ops import xywh2xyxy

from tskd_yolo.losses import Response
from tskd_yolo.losses.assigned import Queries
from tskd_yolo.losses.crd import Target
from tskd_yolo.losses.standardize import Map

ENTRY_STAGE = 1
"""The head stage (0 or 1, before the last 1x1 convolution) after which activations enter the teacher's head.

After stage 1 the rest of the head is linear: what the teacher's classifier and box layer make of the student's last
activations, for a small part of the cost of entering after stage 0, where ``variant=paper`` enters.
"""

STAGE_STRIDES = 4, 8, 16
"""Strides of the backbone's early stages, in pixels."""


class Level(NamedTuple):
    """One level of one network: its neck features ``(N, C, H, W)``, the class logits ``(N, classes, H, W)`` of the
    head's first branch, without a gradient, and, where they are wanted, each branch's response.
    """

    features: Tensor
    scores: Tensor
    responses: dict[str, Response]


class Levels(dict[int, Level]):
    """The levels of one network by stride in pixels; of a network with queries also what these say."""

    queries: Queries | None = None


class StudentOutputs:
    """What terms read of the student's pass.

    Args:
        maps: Feature maps ``(N, C, H, W)`` by source: ``neck`` (levels that both networks have), ``stages``.
        responses: Per branch of the head, one per level.
        assigned: Per branch what the detection loss has assigned, as a term that asks for it reads it.
        adapted: By source the maps at the teacher's width, where they are known.
    """

    def __init__(
        self,
        maps: Mapping[str, Sequence[Tensor]],
        responses: Mapping[str, Sequence[Response]],
        assigned: Mapping[str, Any] | None = None,
        adapted: Mapping[str, Any] | None = None,
    ) -> None:
        self.maps, self.responses, self.assigned = maps, responses, assigned or {}
        self._adapted: dict[str, Any] = {**(adapted or {})}

    def adapted(self, source: Any) -> Any:
        """The maps of a source at the teacher's width, made once for all terms that read them."""
        if source.name not in self._adapted:
            self._adapted[source.name] = source.adapt(self.maps[source.name])
        return self._adapted[source.name]


class TeacherOutputs(NamedTuple):
    """What terms read of the teacher for a batch.

    A map is the features ``(N, C, H, W)``, or gives them standardised when it is called: until then it may be small.

    Shapes:
        maps: By source, as :class:`StudentOutputs` has them.
        responses: Per branch of the head.
        level_scores: ``(N, levels)``, the best class probabilities summed over the cells of a level; None where no
        term reads them.
    """

    maps: Mapping[str, Sequence[Tensor | Callable[[], Map]]]
    responses: Mapping[str, Target | Queries]
    level_scores: Tensor | None = None


class MapHead(nn.Module):
    """Stands where a detector has its head in a model without one: levels that have features and no response.

    Args:
        strides: Of its inputs, in pixels.
        widths: Their channels.
    """

    def __init__(self, strides: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        self.stride, self.widths = torch.tensor(strides), list(widths)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """The maps."""
        return maps


def towers(head: Any) -> dict[str, tuple[Any, Any]]:
    """Box and class tower of each branch that the head has, one module per level in each."""
    names = {"one2many": ("cv2", "cv3"), "one2one": ("one2one_cv2", "one2one_cv3")}
    return {
        branch: (getattr(head, box), getattr(head, score))
        for branch, (box, score) in names.items()
        if getattr(head, box, None) is not None
    }


def strides(head: Any) -> list[int]:
    """Stride of each level in pixels, in the head's own order."""
    return [int(s) for s in head.stride.tolist()]


def neck_width(head: Any, stride: int) -> int:
    """Channels of the features that come into a level of the head."""
    level = strides(head).index(stride)
    if isinstance(head, MapHead):
        return head.widths[level]
    if isinstance(head, RTDETRDecoder):
        projection: Any = head.input_proj[level]
        return projection[0].in_channels
    box, _ = next(iter(towers(head).values()))
    return box[level][0].conv.in_channels


def tower_widths(head: Any, branch: str, stride: int, stage: int) -> tuple[int, int]:
    """Channels that come out of a stage of the box and of the class tower on a level."""
    level = strides(head).index(stride)

    def width(tower: Any) -> int:
        module: Any = tower[level][stage]
        last: Any = module[-1] if isinstance(module, nn.Sequential) else module
        return last.conv.out_channels

    box, score = towers(head)[branch]
    return width(box), width(score)


class Capture:
    """Hooks of one forward pass and the module outputs that they caught, by key; detached when the pass is over.

    Before and after it the model carries no hook of ours: it can be copied, pickled and saved like any other.
    """

    def __init__(self) -> None:
        self.caught: dict[Any, Any] = {}
        self._handles: list[Any] = []

    def output_of(self, module: nn.Module, key: Any, keep: Callable[[Any], Any] = lambda output: output) -> None:
        """Catches ``keep(output)`` of a module; the rest of the output can be forgotten within the pass."""
        self.call_of(module, key, lambda _, output: keep(output))

    def call_of(self, module: nn.Module, key: Any, keep: Callable[[tuple, Any], Any]) -> None:
        """Catches ``keep(inputs, output)`` of a module."""

        def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
            self.caught[key] = keep(inputs, output)

        self._handles.append(module.register_forward_hook(hook))

    def detach(self) -> None:
        """Removes the hooks; what they caught stays until the capture is gone."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


class HeadReader:
    """Reads the passes of one Detect head.

    Args:
        head: The Detect module.
        responses: Whether the head's responses are wanted, or the neck features only (which need no hook).
        entry_stage: The stage of each tower whose activations are caught.
    """

    def __init__(self, head: Any, responses: bool, entry_stage: int = ENTRY_STAGE) -> None:
        self.entry_stage = entry_stage
        self.towers = towers(head) if responses else {}
        self.strides = strides(head)

    def attach(self, capture: Capture) -> None:
        """Catches the tower activations of the next pass."""
        for branch, pair in self.towers.items():
            for kind, tower in enumerate(pair):
                for level, layers in enumerate(tower.children()):
                    capture.output_of(layers[self.entry_stage], (branch, kind, level))

    def read(self, predictions: Any, caught: Mapping[Any, Any]) -> Levels:
        """Levels by stride, from the head's output and what was caught in the same pass."""
        raw = predictions[1] if isinstance(predictions, tuple) else predictions
        branches = raw if "boxes" not in raw else {"one2many": raw}
        first = next(branch for branch in branches.values() if branch)
        features = first["feats"]
        cells = [f.shape[2] * f.shape[3] for f in features]
        scores = first["scores"].detach().split(cells, dim=2)
        # Split, not sliced: the way back is one copy, where slices would add up as many zeros as there are levels.
        parts = {name: [branches[name][k].split(cells, dim=2) for k in ("boxes", "scores")] for name in self.towers}
        levels = []
        for i, feature in enumerate(features):
            size = feature.shape[2:]
            responses = {}
            for name, outputs in parts.items():
                activations = (caught[name, kind, i] for kind in (0, 1))
                responses[name] = Response(*(part[i].unflatten(2, size) for part in outputs), *activations)
            levels.append(Level(feature, scores[i].unflatten(2, size), responses))
        return Levels(zip(self.strides, levels, strict=True))


class QueryReader:
    """Reads the passes of an RT-DETR decoder in evaluation: features, the encoder's class scores, queries.

    Args:
        head: The decoder, with the strides of its inputs in ``head.stride``.
        responses: Whether the queries are wanted.
    """

    towers: Mapping[str, Any] = {}

    def __init__(self, head: Any, responses: bool) -> None:
        self.head, self.responses, self.strides = head, responses, strides(head)

    def attach(self, capture: Capture) -> None:
        """Catches the decoder's inputs and the class scores by which it chooses its queries."""
        capture.call_of(self.head, "inputs", lambda inputs, _: inputs[0])
        capture.output_of(self.head.enc_score_head, "scores")

    def read(self, predictions: Any, caught: Mapping[Any, Any]) -> Levels:
        """As :meth:`HeadReader.read`; no level has a response, the queries speak for all."""
        features = caught["inputs"]
        scores = caught["scores"].detach().transpose(1, 2).split([f.shape[2] * f.shape[3] for f in features], dim=2)
        pairs = zip(features, scores, strict=True)
        levels = [Level(feature, score.unflatten(2, feature.shape[2:]), {}) for feature, score in pairs]
        found = Levels(zip(self.strides, levels, strict=True))
        if self.responses:
            boxes, logits = (output[-1] for output in predictions[1][:2])  # of the decoder's last layer
            found.queries = Queries(xywh2xyxy(boxes), logits)
        return found


class MapReader:
    """Reads the passes of a model without a detection head: features, and scores of no class.

    Args:
        head: Its :class:`MapHead`.
    """

    towers: Mapping[str, Any] = {}

    def __init__(self, head: MapHead) -> None:
        self.strides = strides(head)

    def attach(self, capture: Capture) -> None:
        """Nothing has to be caught."""

    def read(self, predictions: Any, caught: Mapping[Any, Any]) -> Levels:
        """As :meth:`HeadReader.read`; no level has a response."""
        return Levels(zip(self.strides, (Level(features, features[:, :0], {}) for features in predictions)))


def reader(head: Any, responses: bool, entry_stage: int = ENTRY_STAGE) -> HeadReader | QueryReader | MapReader:
    """What reads the passes of a head; see :class:`HeadReader`."""
    if isinstance(head, MapHead):
        return MapReader(head)
    if isinstance(head, RTDETRDecoder):
        return QueryReader(head, responses)
    return HeadReader(head, responses, entry_stage)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode; afterwards every part of it is in the mode that it was in."""
    before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


def maps_of(output: Any) -> list[Tensor]:
    """The maps ``(N, C, H, W)`` in the output of a layer: one of most, several of a timm backbone."""
    outputs = output if isinstance(output, (list, tuple)) else [output]
    return [value for value in outputs if isinstance(value, Tensor) and value.dim() == 4]


def probe(model: Any, images: Tensor | None = None) -> dict[int, list[Tensor]]:
    """The maps ``(N, C, H, W)`` that every layer of a detector gives, by its number, in a pass that changes nothing.

    Args:
        model: The detector.
        images: The input; a black image of twice the largest stride where it is missing.
    """
    parameter = next(model.parameters())
    if images is None:
        side = 2 * int(max(model.stride))
        images = parameter.new_zeros(1, channels(model), side, side)
    capture = Capture()
    for number, layer in enumerate(model.model[:-1]):
        capture.output_of(layer, number, maps_of)
    try:
        with evaluating(model):
            model(images)
    finally:
        capture.detach()
    return capture.caught


def channels(model: Any) -> int:
    """Channels of the images that a detector takes."""
    return next(m for m in model.modules() if isinstance(m, nn.Conv2d)).in_channels


class StageReader:
    """Reads the maps of a backbone's stages: for each of some strides the last map of that stride, where it has one.

    Args:
        model: The detector.
        wanted: The strides in pixels.
    """

    def __init__(self, model: Any, wanted: Sequence[int] = STAGE_STRIDES) -> None:
        with torch.no_grad():
            outputs = probe(model)
        side, rows = 2 * int(max(model.stride)), len(model.yaml["backbone"])
        found = [(n, place, features) for n in range(rows) for place, features in enumerate(outputs.get(n, ()))]
        last = {side // features.shape[2]: (n, place, features.shape[1]) for n, place, features in found}
        self.strides = [stride for stride in wanted if stride in last]
        self.numbers = [last[stride][0] for stride in self.strides]
        self.places = [last[stride][1] for stride in self.strides]
        self.widths = [last[stride][2] for stride in self.strides]
        self.layers = [model.model[n] for n in self.numbers]

    def of(self, model: Any) -> StageReader:
        """The same for a copy of the model."""
        reader = copy(self)
        reader.layers = [model.model[n] for n in self.numbers]
        return reader

    def only(self, wanted: Sequence[int]) -> StageReader:
        """The same for some of the strides."""
        reader, places = copy(self), [self.strides.index(stride) for stride in wanted]
        reader.strides = list(wanted)
        reader.numbers, reader.places, reader.widths, reader.layers = (
            [values[place] for place in places] for values in (self.numbers, self.places, self.widths, self.layers)
        )
        return reader

    def attach(self, capture: Capture, keep: Callable[[int, Tensor], Tensor] = lambda _, features: features) -> None:
        """Catches ``keep(i, map)`` of each stage in the next pass, i its place among the strides."""

        def kept(i: int, place: int, output: Any) -> Tensor:
            return keep(i, maps_of(output)[place])

        for i, (layer, place) in enumerate(zip(self.layers, self.places, strict=True)):
            capture.output_of(layer, ("stage", i), partial(kept, i, place))

    def read(self, caught: Mapping[Any, Tensor]) -> list[Tensor]:
        """One map per stage."""
        return [caught["stage", i] for i in range(len(self.layers))]
