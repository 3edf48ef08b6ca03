"""Distances of images to a training set, in a teacher's pooled features."""

from __future__ import annotations

import numpy as np
import torch

from tests.distill.helpers import load, make_student
from tskd_yolo.distill.likeness import distances, pooled
from tskd_yolo.distill.teacher import Teacher


def test_images_like_the_training_images_are_as_near_as_these():
    generator = torch.Generator().manual_seed(0)
    train, same = (torch.randn(128, 20, generator=generator) * 5 + 3 for _ in range(2))
    found = distances(train, same)
    assert found.own.shape == found.others.shape == (128,) and found.own.min() > 0
    assert found.far < 0.15 and abs(np.median(found.others) / np.median(found.own) - 1) < 0.1
    other = distances(train, same + 40)
    assert other.far == 1 and other.limit == found.limit
    np.testing.assert_allclose(distances(train * 7, same * 7).others, found.others, rtol=1e-4)


def test_a_feature_that_never_varies_is_no_distance_of_its_own():
    train = torch.cat((torch.randn(20, 3), torch.ones(20, 1)), dim=1)
    assert np.isfinite(distances(train, train).others).all() and distances(train, train).others.max() == 0


def test_features_are_means_of_every_level(files):
    teacher = Teacher(load(files["11s"]), like=make_student(), names={0: "crack", 1: "pit", 2: "scale"})
    images = torch.rand(3, 3, 64, 64)
    found = pooled(teacher, [images[:2], images[2:]])
    assert found.shape == (3, 128 + 256 + 512)
    torch.testing.assert_close(found[:2, :128], teacher(images[:2])[8].features.mean(dim=(2, 3)))
