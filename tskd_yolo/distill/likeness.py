"""How far images are from those of a training set, in a teacher's eyes: distances between its pooled features."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tskd_yolo.distill.teacher import Teacher

BEYOND = 95
"""The percentile of the training images' own distances beyond which an image is far."""


class Distances(NamedTuple):
    """Distances of images to the nearest training image: of training images to another one, and of others.

    Units:
        standard deviations of a feature over the training images, root mean square over the features.
    """

    own: np.ndarray
    others: np.ndarray

    @property
    def limit(self) -> float:
        """From which distance on an image is far."""
        return float(np.percentile(self.own, BEYOND))

    @property
    def far(self) -> float:
        """The share of the other images that is far: 0.05 where they are as the training images are."""
        return float((self.others > self.limit).mean())


def pooled(teacher: Teacher, batches: Iterable[Tensor]) -> Tensor:
    """The mean of each channel of the teacher's neck, of all levels, ``(N, C)``.

    Args:
        teacher: The teacher.
        batches: Images ``(n, channels, H, W)``, values from 0 to 1.
    """
    rows = []
    for images in batches:
        levels = teacher(images).values()
        rows.append(torch.cat([level.features.float().mean(dim=(2, 3)) for level in levels], dim=1))
    return torch.cat(rows)


def distances(train: Tensor, others: Tensor) -> Distances:
    """Of every image to the nearest training image, in features ``(N, C)`` that are standardised by those of train."""
    mean, deviation = train.mean(dim=0), train.std(dim=0).clamp(min=1e-6)
    train, others = (train - mean) / deviation, (others - mean) / deviation
    scale = train.shape[1] ** 0.5
    own = torch.cdist(train, train).fill_diagonal_(float("inf"))
    near = (d.amin(dim=1).div(scale).cpu().numpy() for d in (own, torch.cdist(others, train)))
    return Distances(*near)
