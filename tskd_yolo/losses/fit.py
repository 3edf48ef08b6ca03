"""The adapter that fits best: the least squares from a student's channels to its teacher's.

Two networks, even of one architecture, have their features in other channels: trained apart, a channel has nothing in
common with its namesake. Compared as they are, a pre-trained student would be taught to shuffle what it knows.

Source: ridge regression is that of Hoerl and Kennard, Technometrics 12(1), 1970; regressors between features of unlike
networks are those of Romero et al., "FitNets: hints for thin deep nets", ICLR 2015.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tskd_yolo.losses.distributed import all_reduce_mean, processes
from tskd_yolo.losses.standardize import inverse_deviation

LEAST = 0.01
"""Least ridge: in directions in which a student hardly varies the solution stays at its prior."""


@torch.no_grad()
def least_squares(student: Tensor, teacher: Tensor, *, same_width: bool) -> Tensor:
    """The matrix ``A`` that makes ``mean |t - A s|^2 + r |A D - P|^2`` least, its rows scaled.

    ``D`` are the deviations of the student's channels, so that ``A D`` leads from standardised ones. The prior ``P`` is
    the identity between equal widths, so that equal networks have equal maps, and 0 otherwise: where only a part of a
    wider teacher's channels is compared, they have nothing in common with the student's of the same number. With the
    covariances K of the standardised cells, over all processes,

        A = (K_ts + r P) (K_ss + r I)^-1 D^-1,    r = B / cells, at least 0.01

    The ridge is the best one for maps half of whose variance is explained: of few cells little can be learned. Rows are
    scaled so that :func:`tskd_yolo.losses.standardize.standardize`, which leaves channels small that hardly vary,
    leaves them as small as it has left the teacher's.

    Args:
        student: ``(cells, B)``, means of 0.
        teacher: ``(cells, C)``, standardised, of the same cells.
        same_width: Whether both networks are as wide; C is B then.

    Returns:
        ``(C, B)``; not finite where the cells are not.
    """
    count = len(student)
    scale = inverse_deviation(all_reduce_mean(student.square().sum(dim=0) / count))
    cells = student * scale
    own, cross = all_reduce_mean(cells.T @ cells / count), all_reduce_mean(cells.T @ teacher / count)
    ridge = max(LEAST, len(own) / (count * processes())) * torch.eye(len(own), device=own.device)
    solved = _solved(own + ridge, cross + ridge if same_width else cross)
    adapted = (solved * (own @ solved)).sum(dim=0).clamp(min=1e-12).rsqrt()  # to a variance of 1
    left = all_reduce_mean(teacher.square().sum(dim=0) / count)  # v / (v + f): v is what it was before, f the floor
    before = (left / (1 - left).clamp(min=1e-4)).sqrt()
    return solved.T * (adapted * before / before.mean()).unsqueeze(1) * scale


def _solved(a: Tensor, b: Tensor) -> Tensor:
    """``X`` of ``a X = b``, once in a run: on the CPU, because not every device can solve, and exactly."""
    return torch.linalg.solve_ex(a.cpu().double(), b.cpu().double())[0].to(b)
