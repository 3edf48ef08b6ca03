"""The paper's form against numbers the TSKD release produces on fixed inputs.

The file is read from the environment variable TSKD_GOLDEN, by default the copy beside this test. It holds the release's
inputs, weights and outputs (no code of it); any number of images, boxes, channels and any map size will do.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from tskd_yolo.losses import crd, paper, tails
from tskd_yolo.losses.boxes import Boxes
from tskd_yolo.losses.glore import GraphUnit

RELATIVE_ERROR = 1e-4


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    file = Path(os.environ.get("TSKD_GOLDEN") or Path(__file__).with_name("tskd_golden.npz"))
    with np.load(file) as content:
        return {name: torch.from_numpy(np.asarray(content[name])) for name in content}


@pytest.fixture(scope="module")
def boxes(golden) -> Boxes:
    per_image = [golden[f"boxes_{i}"].reshape(-1, 4) for i in range(len(golden["student"]))]
    image = torch.cat([torch.full((len(b),), float(i)) for i, b in enumerate(per_image)])
    height, width = golden["img_hw"].tolist()
    return Boxes(torch.cat(per_image), image, len(per_image), (height, width))


def unit_of(golden, prefix: str) -> GraphUnit:
    """A unit that carries the weights of the release's unit ``prefix``."""
    names = {
        "state_weight": "conv_state.weight",
        "state_bias": "conv_state.bias",
        "project_weight": "conv_proj.weight",
        "project_bias": "conv_proj.bias",
        "between_nodes_weight": "gcn.conv1.weight",
        "between_nodes_bias": "gcn.conv1.bias",
        "between_states_weight": "gcn.conv2.weight",
        "extend_weight": "conv_extend.weight",
        "norm_weight": "blocker.weight",
        "norm_bias": "blocker.bias",
    }
    unit = paper.graph_unit(golden[f"{prefix}.conv_state.weight"].shape[1])
    state = {ours: golden[f"{prefix}.{theirs}"].reshape(getattr(unit, ours).shape) for ours, theirs in names.items()}
    unit.load_state_dict(state)
    return unit


def assert_close(ours: torch.Tensor, golden: torch.Tensor) -> None:
    golden = golden.float()
    assert ours.shape == golden.shape
    error = (ours.float() - golden).norm() / golden.norm().clamp(min=1e-12)
    assert error <= RELATIVE_ERROR, f"relative error {error:.2e}"


def test_spatial_and_channel_attention_are_the_releases(golden):
    assert_close(paper.spatial_attention(golden["teacher"]), golden["spatial_attention"])
    assert_close(paper.channel_attention(golden["teacher"]), golden["channel_attention"])


def test_foreground_and_background_masks_are_the_releases(golden, boxes):
    ours = paper.masks(boxes, *golden["teacher"].shape[2:])
    assert_close(ours.foreground, golden["mask_fg"])
    assert_close(ours.background, golden["mask_bg"])


def test_foreground_background_and_structure_are_the_releases(golden, boxes):
    terms = paper.ded_terms(
        student=golden["student"], teacher=golden["teacher"], masks=paper.masks(boxes, *golden["teacher"].shape[2:])
    )
    assert_close(terms["foreground"], golden["loss_fg"])
    assert_close(terms["background"], golden["loss_bg"])
    assert_close(terms["structure"], golden["loss_ssim"])


def test_roi_crops_are_the_releases(golden, boxes):
    assert_close(paper.instances(golden["teacher"], boxes), golden["roi_teacher"])
    assert_close(paper.instances(golden["student"], boxes), golden["roi_student"])


def test_pixel_graph_and_its_loss_are_the_releases(golden):
    unit = unit_of(golden, "pixel_graph")
    student, teacher = golden["student"], golden["teacher"]
    assert_close(unit(teacher), golden["pixel_graph_out_teacher"])
    assert_close(unit(student), golden["pixel_graph_out_student"])
    loss = paper.pixel_relation(student=student, teacher=teacher, unit=unit)
    assert_close(loss, golden["loss_pixel_relation"])


def test_instance_graph_and_its_loss_are_the_releases(golden):
    if "instance_graph.conv_state.weight" not in golden:
        pytest.skip("the file holds no instance graph (fewer than two boxes in the batch)")
    unit = unit_of(golden, "instance_graph")
    student, teacher = golden["roi_student"], golden["roi_teacher"]
    assert_close(unit(teacher.unsqueeze(0)), golden["instance_graph_out_teacher"])
    assert_close(unit(student.unsqueeze(0)), golden["instance_graph_out_student"])
    loss = paper.instance_relation(student=student, teacher=teacher, unit=unit)
    assert_close(loss, golden["loss_instance_relation"])


def test_renormalized_activations_are_the_releases(golden):
    assert_close(tails.renormalize(golden["student"], golden["teacher"]), golden["aligned_student"])


def test_quality_focal_class_loss_is_the_releases(golden):
    loss = crd.quality_focal(golden["cls_student_logits"], golden["cls_teacher_logits"])
    assert_close(loss, golden["loss_cls_qfl_sum"])
