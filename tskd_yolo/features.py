"""What one forward pass offers to learn from, per level and by name: the one place that knows the Detect head's dicts.

A Detect head answers with ``{"boxes": (N, 4R, A), "scores": (N, classes, A), "feats": [level, ...]}``, all levels
joined along A; a dual head (YOLO26) with one such dict per branch, ``one2many`` and ``one2one``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from tskd_yolo.losses import Response
from tskd_yolo.losses.crd import Target
from tskd_yolo.losses.maps import Map

STAGE = 1
"""The head stage (0 or 1, before the last 1x1 convolution) after which activations enter the teacher's head.

After stage 1 the rest of the head is linear: what the teacher's classifier and box layer say of the student's last
activations, for a small part of the cost of a detour from stage 0 on, where ``variant=paper`` enters.
"""


class Level(NamedTuple):
    """One level of one network: its neck features ``(N, C, H, W)`` and, per branch, the head's response."""

    features: Tensor
    responses: dict[str, Response]


class Answer(NamedTuple):
    """What a teacher says of a batch, per level that both networks have and per branch of the head.

    A map is the features ``(N, C, H, W)``, or gives them standardised when it is asked to: until then it may be small.
    """

    maps: Sequence[Tensor | Callable[[], Map]]
    responses: dict[str, Target]


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
        features = next(branch["feats"] for name, branch in branches.items() if branch)
        cells = [f.shape[2] * f.shape[3] for f in features]
        levels = []
        for i, feature in enumerate(features):
            start, size = sum(cells[:i]), feature.shape[2:]
            responses = {}
            for name in self.towers:
                boxes, scores = (branches[name][k][..., start : start + cells[i]] for k in ("boxes", "scores"))
                activations = (self._activations[name, kind, i] for kind in (0, 1))
                responses[name] = Response(boxes.unflatten(2, size), scores.unflatten(2, size), *activations)
            levels.append(Level(feature, responses))
        return dict(zip(self.strides, levels, strict=True))
