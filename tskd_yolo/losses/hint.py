"""Plain hints: the squared difference of two maps. What DED has to be better than.

Source: Romero et al., "FitNets: hints for thin deep nets", ICLR 2015.
"""

from __future__ import annotations

from torch import Tensor, nn

from tskd_yolo.losses.boxes import Boxes
from tskd_yolo.losses.standardize import Map, standardize_pair


class Hint(nn.Module):
    """``mean (s(S) - s(T))^2`` over cells and channels, with ``s`` the standardisation of every channel.

    Shapes:
        student, teacher: ``(N, C, H, W)``, or standardised already; output ``()``, float32. Boxes are not read.
    Units:
        2 (1 - correlation).
    """

    recordable = True
    """Batches of one form take the same kernels, and none waits for the device."""

    def forward(self, *, student: Tensor | Map, teacher: Tensor | Map, boxes: Boxes) -> Tensor:
        """``(N, C, H, W)`` maps -> scalar."""
        student, teacher = standardize_pair(student, teacher)
        return (student.cells - teacher.cells).square().mean()
