"""Sources of the feature maps that terms compare: where they are in both networks, and how they come to one width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tskd_yolo.distill.features import TeacherOutputs
from tskd_yolo.distill.matching import Pair
from tskd_yolo.losses.distributed import all_reduce_mean
from tskd_yolo.losses.fit import least_squares
from tskd_yolo.losses.standardize import Map, centred, standardize
from tskd_yolo.losses.tails import adapter


class MapSource:
    """Feature maps at strides that both networks have, which any number of terms compare; standardised, once for all.

    Args:
        name: Where the maps are, as :class:`StudentOutputs` and :class:`TeacherOutputs` have them.
        pairs: The maps.
    """

    weighed = False
    """Whether levels weigh by the teacher's class scores on them."""
    measured_at = "neck"
    """Where gradient shares are measured, as columns name it."""
    fitted = False
    """Whether its adapters have been started."""

    def __init__(self, name: str, pairs: Sequence[Pair]) -> None:
        self.name, self.pairs = name, pairs

    def build(self) -> nn.ModuleList | None:
        """Draws the adapters; None where maps are compared by what needs none."""
        return None

    def fit(self, student: Sequence[Tensor], teacher: Sequence[Tensor | Callable[[], Map]]) -> None:
        """Starts the adapters from a batch.

        Args:
            student, teacher: The maps of both.
        """

    def adapt(self, maps: Sequence[Tensor]) -> list[Any]:
        """The student's maps ``(N, C, H, W)`` as the losses take them."""
        return [standardize(features) for features in maps]

    def teacher_map(self, features: Tensor | Callable[[], Map]) -> Tensor | Map:
        """A map of the teacher's as the losses take it."""
        return standardize(features) if isinstance(features, Tensor) else features()

    def total(self, values: Sequence[Tensor], teacher: TeacherOutputs) -> Tensor:
        """A term from its values on every map."""
        return torch.stack(list(values)).mean()

    def measured(self, maps: Sequence[Tensor]) -> Sequence[Tensor]:
        """The student's maps on which gradient shares are measured."""
        return maps


class Neck(MapSource):
    """Levels of the neck, which weigh by the teacher's class scores.

    Where the teacher finds nothing, nothing was ever asked of its features: for a student they are noise.
    """

    weighed = True

    def total(self, values: Sequence[Tensor], teacher: TeacherOutputs) -> Tensor:
        """The weighted mean."""
        assert teacher.level_scores is not None
        return (level_weights(teacher.level_scores) * torch.stack(list(values))).sum()


class AdaptedSource(MapSource):
    """Maps that are compared channel by channel: the student's come to the teacher's channels through adapters.

    An adapter is a 1x1 convolution also between equal widths, because channels of the same number have nothing in
    common in two networks. The first step starts it from the least squares.
    """

    adapters: Any = None

    def build(self) -> nn.ModuleList:
        """Draws the adapters."""
        self.adapters = nn.ModuleList(map(self._adapter, self.pairs))
        return self.adapters

    def _adapter(self, pair: Pair) -> nn.Module:
        return nn.Conv2d(pair.student, pair.compared, 1, bias=False)

    @torch.no_grad()
    def fit(self, student: Sequence[Tensor], teacher: Sequence[Tensor | Callable[[], Map]]) -> None:
        """Starts each adapter from the least squares of a batch: see :func:`tskd_yolo.losses.fit.least_squares`.

        One whose maps are not finite, or do not vary, stays as it was drawn.
        """
        for pair, layer, own, theirs in zip(self.pairs, self.adapters, student, teacher, strict=True):
            cells = centred(own.detach().float(), pair.spatial_step).flatten(0, 1)
            wanted: Any = self.teacher_map(theirs)
            rows, equal = wanted.cells.flatten(0, 1), pair.student == pair.teacher
            solved = least_squares(cells, rows, same_width=equal).view_as(layer.weight)
            usable = solved.isfinite().all() & solved.any()
            layer.weight.copy_(torch.where(usable, solved, layer.weight))

    def adapt(self, maps: Sequence[Tensor]) -> list[Any]:
        """The student's maps ``(N, C, H, W)`` at the teacher's width, as the losses take them."""
        return [self._adapted(*each) for each in zip(self.pairs, self.adapters, maps, strict=True)]

    def _adapted(self, pair: Pair, adapter: Any, features: Tensor) -> Tensor | Map:
        return standardize(features, adapter.weight.flatten(1), spatial_step=pair.spatial_step)


class EarlyStages(AdaptedSource):
    """Early stages of the backbone.

    Gradient shares are measured at the last of them: a walk back from the loss to earlier ones takes more time, and
    memory while all of the graph is there.
    """

    def __init__(self, name: str, pairs: Sequence[Pair]) -> None:
        super().__init__(name, pairs)
        self.measured_at = f"stride{pairs[-1].stride}"

    def measured(self, maps: Sequence[Tensor]) -> Sequence[Tensor]:
        """The map of the last stage."""
        return maps[-1:]


class PaperNeck(AdaptedSource):
    """Levels of the neck as the release takes them: as they are, and summed; adapters have a bias and are drawn."""

    def _adapter(self, pair: Pair) -> nn.Module:
        return adapter(pair.student, pair.compared, bias=True, channel_step=pair.channel_step)

    def fit(self, student: Sequence[Tensor], teacher: Sequence[Tensor | Callable[[], Map]]) -> None:
        """The release starts from random ones."""

    def _adapted(self, pair: Pair, adapter: Any, features: Tensor) -> Tensor | Map:
        return adapter(features.float())

    def teacher_map(self, features: Tensor | Callable[[], Map]) -> Tensor | Map:
        """The features themselves."""
        return features if isinstance(features, Tensor) else features()

    def total(self, values: Sequence[Tensor], teacher: TeacherOutputs) -> Tensor:
        """The sum."""
        return torch.stack(list(values)).sum()


def level_weights(scores: Tensor) -> Tensor:
    """The part of the teacher's class scores on each level, ``(N, levels)`` -> ``(levels,)``; they add up to 1."""
    total = all_reduce_mean(scores.sum(dim=0))
    return total / total.sum().clamp(min=1e-12)
