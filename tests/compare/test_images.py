"""Images for the pages: which are chosen, and what DED weighs on them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ultralytics.nn.tasks import load_checkpoint

from tests.helpers import NAMES
from tskd_yolo.compare.images import DEDWeights, choose
from tskd_yolo.losses.paper import spatial_attention


def test_images_are_chosen_by_the_rule_that_the_page_states():
    gains = {"a": 1, "b": -2, "c": 3, "d": 0, "e": 1, "f": 2, "g": -1}
    assert choose(gains, dict.fromkeys(gains, 1)) == ["c", "f", "a", "b", "g"]
    assert choose({"a": 0, "b": 0}, {"a": 1, "b": 4}) == ["b", "a"]


def test_the_weights_shown_are_those_of_ded(files):
    teacher, names = str(files / "teacher.pt"), dict(enumerate(NAMES))
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    heat = DEDWeights(teacher, 64, "default", names)(image, [[0, 0, 0, 0.25, 0.5], [1, 0.5, 0.5, 0.5, 0.5]])
    root, rest = (1 / 8) ** 0.5, (7 / 8) ** 0.5  # of the areas of foreground and background
    expected = round(1 / root / (root + rest), 3)
    assert [(h.stride, round(h.strongest, 3)) for h in heat] == [(stride, expected) for stride in (4, 8, 16)]
    heat = DEDWeights(teacher, 64, "default", names)(image, [])
    assert [h.strongest for h in heat] == [1, 1, 1]
    heat = DEDWeights(teacher, 64, "paper", names)(image, [])
    model, caught = load_checkpoint(teacher)[0], {}
    model.model[-1].register_forward_pre_hook(lambda m, inputs: caught.update(levels=inputs[0]))
    with torch.no_grad():
        model(torch.from_numpy(image[..., ::-1].copy().transpose(2, 0, 1))[None] / 255)
    assert [h.stride for h in heat] == [8, 16, 32]
    for shown, features in zip(heat, caught["levels"]):
        assert shown.strongest == pytest.approx(float(spatial_attention(features).max()), rel=1e-3)
