"""What one forward pass offers to learn from, per level and by name: the one place that knows the Detect head's dicts.

A Detect head answers with ``{"boxes": (N, 4R, A), "scores": (N, classes, A), "feats": [level, ...]}``, all levels
joined along A; a dual head (YOLO26) with one such dict per branch, ``one2many`` and ``one2one``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from tskd_yolo.losses import Response
from tskd_yolo.losses.crd import Target
from tskd_yolo.losses.standardize import Map

STAGE = 1
"""The head stage (0 or 1, before the last 1x1 convolution) after which activations enter the teacher's head.

After stage 1 the rest of the head is linear: what the teacher's classifier and box layer say of the student's last
activations, for a small part of the cost of a detour from stage 0 on, where ``variant=paper`` enters.
"""

STAGES = {4: 2, 8: 4, 16: 6}
"""The layers that end the backbone's early stages, by their stride in pixels, in every family."""

STEPS = 2, 2, 1
"""Of each stage every how manieth cell is read in either direction: all of stride 4 would cost more than the neck."""


class Level(NamedTuple):
    """One level of one network: its neck features ``(N, C, H, W)``, the class logits ``(N, classes, H, W)`` of the
    head's first branch, without a gradient, and, where they are wanted, each branch's response.
    """

    features: Tensor
    scores: Tensor
    responses: dict[str, Response]


class Answer(NamedTuple):
    """What a teacher says of a batch, per level that both networks have, per branch of the head, per backbone stage.

    A map is the features ``(N, C, H, W)``, or gives them standardised when it is asked to: until then it may be small.
    ``said`` ``(N, levels)`` is how much the teacher says on each level: best class probabilities, summed over cells;
    None where no term reads it.
    """

    maps: Sequence[Tensor | Callable[[], Map]]
    responses: dict[str, Target]
    said: Tensor | None = None
    stages: Sequence[Tensor | Callable[[], Map]] = ()


def towers(head: Any) -> dict[str, tuple[Any, Any]]:
    """Box and class tower of each branch that the head has, one module per level in each."""
    names = {"one2many": ("cv2", "cv3"), "one2one": ("one2one_cv2", "one2one_cv3")}
    found = {}
    for branch, (box, score) in names.items():
        if getattr(head, box, None) is not None:
            found[branch] = getattr(head, box), getattr(head, score)
    return found


def strides(head: Any) -> list[int]:
    """Stride of each level in pixels, in the head's own order."""
    return [int(s) for s in head.stride.tolist()]


class HeadReader:
    """Reads the forward passes of one head, armed for one pass at a time.

    Between two passes the model carries no hook of ours: it can be copied, pickled and saved like any other.

    Args:
        head: The Detect module.
        responses: Whether the head's responses are wanted, or the neck features only (which need no hook).
        stage: The stage of each tower whose activations are caught.
    """

    def __init__(self, head: Any, responses: bool, stage: int = STAGE) -> None:
        self.stage = stage
        self.towers = towers(head) if responses else {}
        self.strides = strides(head)
        self._activations: dict[tuple[str, int, int], Tensor] = {}
        self._handles: list[Any] = []

    def arm(self) -> None:
        """Catches the tower activations of the next pass."""
        self.disarm()
        for branch, pair in self.towers.items():
            for kind, tower in enumerate(pair):
                for level, layers in enumerate(tower.children()):
                    self._handles.append(layers[self.stage].register_forward_hook(self._keep((branch, kind, level))))

    def disarm(self) -> None:
        """Removes the hooks and forgets what they caught."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._activations = {}

    def _keep(self, key: tuple[str, int, int]) -> Any:
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            self._activations[key] = output

        return hook

    def read(self, predictions: Any) -> dict[int, Level]:
        """Levels by stride, from the head's answer to the pass that was armed."""
        raw = predictions[1] if isinstance(predictions, tuple) else predictions
        branches = raw if "boxes" not in raw else {"one2many": raw}
        first = next(branch for branch in branches.values() if branch)
        features = first["feats"]
        cells = [f.shape[2] * f.shape[3] for f in features]
        scores = first["scores"].detach().split(cells, dim=2)
        # Split, not sliced: the way back is one copy, where slices would add up as many zeros as there are levels.
        said = {name: [branches[name][k].split(cells, dim=2) for k in ("boxes", "scores")] for name in self.towers}
        levels = []
        for i, feature in enumerate(features):
            size = feature.shape[2:]
            responses = {}
            for name, parts in said.items():
                activations = (self._activations[name, kind, i] for kind in (0, 1))
                responses[name] = Response(*(part[i].unflatten(2, size) for part in parts), *activations)
            levels.append(Level(feature, scores[i].unflatten(2, size), responses))
        return dict(zip(self.strides, levels, strict=True))


class StageReader:
    """Reads what the stages of a backbone say in a pass, armed for one pass at a time, like :class:`HeadReader`.

    Args:
        model: The detector.
        keep: What is kept of a stage's map ``(N, C, H, W)``, by its place among :data:`STAGES`; the rest can be
        forgotten within the pass.
    """

    def __init__(self, model: Any, keep: Callable[[int, Tensor], Tensor] = lambda _, features: features) -> None:
        self.model = model.model[: max(STAGES.values()) + 1]
        self.layers = [self.model[i] for i in STAGES.values()]
        self.widths = [layer.cv2.conv.out_channels for layer in self.layers]
        self.keep = keep
        self._maps: dict[int, Tensor] = {}
        self._handles: list[Any] = []

    def arm(self) -> None:
        """Catches the stages' maps in the next pass."""
        self.disarm()
        for i, layer in enumerate(self.layers):
            self._handles.append(layer.register_forward_hook(self._hook(i)))

    def disarm(self) -> None:
        """Removes the hooks and forgets what they caught."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._maps = {}

    def _hook(self, place: int) -> Any:
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            self._maps[place] = self.keep(place, output)

        return hook

    def before(self) -> Iterator[nn.Parameter]:
        """All parameters that the maps depend on."""
        return self.model.parameters()

    def read(self) -> list[Tensor]:
        """One map per stage, from the pass that was armed."""
        return [self._maps[i] for i in range(len(self.layers))]
