"""The three losses as the TSKD release defines them, with its sums and its attention, for comparison.

They reproduce the release's numbers (tests/losses/test_release_parity.py) and are what ``variant=paper`` trains with.
Only the formulas are the release's; its code is not in here.

Source: Wen et al., "A triple semantic-aware knowledge distillation network for industrial defect detection",
Computers in Industry 166 (2025) 104252, and its public release.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import torchvision  # noqa: F401, registers torch.ops.torchvision
from torch import Tensor, nn

from tskd_yolo.losses.boxes import Boxes, Masks, cells, largest_weight
from tskd_yolo.losses.crd import CRD, Response, Target, overlap, target
from tskd_yolo.losses.ded import ssim
from tskd_yolo.losses.distributed import all_reduce_mean, processes
from tskd_yolo.losses.glore import GraphUnit
from tskd_yolo.losses.tails import Tails

TEMPERATURE = 0.5
"""Temperature of both attentions, for feature maps as they are."""

ALPHA = 5e-4
"""The release's weight of every part of DRD and DED."""


# What DRD and DED share -----------------------------------------------------------------------------------------------


def spatial_attention(features: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Where a map is active: ``HW * softmax_HW(mean_C |F| / t)``; ``(N, C, H, W)`` -> ``(N, H, W)`` with mean 1."""
    n, _, h, w = features.shape
    energy = features.abs().mean(dim=1).flatten(1) / temperature
    return (h * w * energy.softmax(dim=1)).view(n, h, w)


def channel_attention(features: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Which channels are active: ``C * softmax_C(mean_HW |F| / t)``; ``(N, C, H, W)`` -> ``(N, C)`` with mean 1."""
    energy = features.abs().mean(dim=(2, 3)) / temperature
    return features.shape[1] * energy.softmax(dim=1)


# DED ------------------------------------------------------------------------------------------------------------------


class PaperDED(nn.Module):
    """DED with the release's sums: ``alpha (L_fg + L_bg + L_se)``, alpha = 5e-4, on the maps as they are.

    L_fg, L_bg = (1/N) sum M A_s(T) A_c(T) (S - T)^2   over batch, C, H, W;      L_se = (1 - SSIM) / 2
    """

    def forward(self, *, student: Tensor, teacher: Tensor, boxes: Boxes) -> Tensor:
        """``(N, C, H, W)`` maps -> scalar."""
        student, teacher = student.float(), teacher.detach().float()
        terms = ded_terms(student=student, teacher=teacher, masks=masks(boxes, *teacher.shape[2:]))
        return ALPHA * torch.stack(list(terms.values())).sum()


def ded_terms(*, student: Tensor, teacher: Tensor, masks: Masks) -> dict[str, Tensor]:
    """The parts ``foreground`` (L_fg), ``background`` (L_bg) and ``structure`` (L_se)."""
    attention = spatial_attention(teacher), channel_attention(teacher)
    error = attended_error(student=student, teacher=teacher, attention=attention) / max(len(teacher), 1)
    return {
        "foreground": (error * masks.foreground).sum(),
        "background": (error * masks.background).sum(),
        "structure": (1 - ssim(student, teacher)) / 2,
    }


def attended_error(*, student: Tensor, teacher: Tensor, attention: tuple[Tensor, Tensor]) -> Tensor:
    """``A_s sum_C A_c (S - T)^2``, ``(N, H, W)``, with attention ``(N, H, W)`` and ``(N, C)``."""
    spatial, channel = attention
    return spatial * torch.einsum("nchw,nc->nhw", (student - teacher).square(), channel)


def masks(boxes: Boxes, height: int, width: int) -> Masks:
    """Foreground and background weights on a grid, so that small and large defects weigh the same.

    A box gives each cell it covers ``1 / ((x2 + 1 - x1)(y2 + 1 - y1))``; where boxes overlap the largest weight, that
    of the smallest box, stands. Background is every cell without foreground, divided by their number per image (0
    where there is none).
    """
    x1, y1, x2, y2 = (edge.unsqueeze(1) for edge in cells(boxes, height, width))
    weight = ((x2 + 1 - x1) * (y2 + 1 - y1)).clamp(min=1).reciprocal()  # (K, 1)
    ys = torch.arange(height, device=weight.device)
    xs = torch.arange(width, device=weight.device)
    rows = (ys >= y1) & (ys <= y2)  # (K, H)
    columns = (xs >= x1) & (xs <= x2)  # (K, W)

    def weights(part: slice) -> Tensor:
        return (rows[part].unsqueeze(2) & columns[part].unsqueeze(1)).flatten(1) * weight[part]

    foreground = largest_weight(boxes, weights, height * width).view(boxes.images, height, width)
    background = (foreground == 0).float()
    return Masks(foreground, background / background.sum(dim=(1, 2), keepdim=True).clamp(min=1))


# DRD ------------------------------------------------------------------------------------------------------------------


class PaperDRD(nn.Module):
    """DRD as the release defines it: ``alpha (L_pix + L_ins)`` with alpha = 5e-4.

    The pixel unit is drawn once and fixed. The instance unit is as wide as the batch has boxes, so it is drawn anew for
    every batch, as in the release, by random numbers of its own that begin at a seed, and again where a run goes on;
    with fewer than two boxes in the batch the instance term is 0. It is drawn on the CPU, and the step waits for it.

    Args:
        channels: Width of the maps.
        seed: Where the instance units' random numbers begin; drawn where it is missing.
    """

    def __init__(self, channels: int, seed: int | None = None) -> None:
        super().__init__()
        self.unit = graph_unit(channels)
        self.generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())) if seed is None else seed)

    def forward(self, *, student: Tensor, teacher: Tensor, boxes: Boxes) -> Tensor:
        """``(N, C, H, W)`` maps -> scalar."""
        student, teacher = student.float(), teacher.detach().float()
        total = pixel_relation(student=student, teacher=teacher, unit=self.unit)
        if len(boxes.xyxy) >= 2:
            unit = graph_unit(len(boxes.xyxy), self.generator).to(student.device)
            total = total + instance_relation(
                student=instances(student, boxes), teacher=instances(teacher, boxes), unit=unit
            )
        return ALPHA * total


def graph_unit(channels: int, generator: torch.Generator | None = None) -> GraphUnit:
    """The release's unit for maps of C channels: ``C // 2`` nodes of ``2 (C // 2)`` states, weights as drawn."""
    nodes = channels // 2
    return GraphUnit(channels, nodes=nodes, states=2 * nodes, generator=generator)


def pixel_relation(*, student: Tensor, teacher: Tensor, unit: GraphUnit) -> Tensor:
    """``L_pix``: mean squared difference of the unit's outputs, each with its own batch statistics."""
    return F.mse_loss(unit(student), unit(teacher))


def instance_relation(*, student: Tensor, teacher: Tensor, unit: GraphUnit) -> Tensor:
    """``L_ins``: the K crops ``(K, 6, 6)`` as the K channels of one map, through a unit of that width."""
    return F.mse_loss(unit(student.unsqueeze(0)), unit(teacher.unsqueeze(0)))


def instances(features: Tensor, boxes: Boxes) -> Tensor:
    """The release's instances: the channel mean of the attended map, cut to 6x6 per box, ``(K, 6, 6)``."""
    attended = features * spatial_attention(features).unsqueeze(1) * channel_attention(features)[..., None, None]
    return crops(attended.mean(dim=1, keepdim=True), boxes, 6).squeeze(1)


def crops(features: Tensor, boxes: Boxes, output: int) -> Tensor:
    """Cuts every box out of a level by RoIAlign, all boxes in one call: ``(N, C, H, W)`` -> ``(K, C, output, output)``.

    Corners are the cells a box covers, ``(x1, y1, x2 + 1, y2 + 1)``, also where they reach beyond the grid; sampling
    ratio 2, not aligned.
    """
    height, width = features.shape[2:]
    x1, y1, x2, y2 = cells(boxes, height, width)
    rois = torch.stack((boxes.image.to(x1), x1, y1, x2 + 1, y2 + 1), dim=1)
    # The operator itself: torchvision's wrapper leaves its CUDA kernel for compiled Python under Ultralytics' default
    # deterministic=True, where only a warning was asked for.
    return torch.ops.torchvision.roi_align(features, rois, 1.0, output, output, 2, False)


# CRD ------------------------------------------------------------------------------------------------------------------


class PaperCRD(CRD):
    """CRD as the release has it: the cross response only, at all locations, divided by the number of positives.

    ``D`` is 1 - GIoU of the boxes that the distances mean (the release's configurations for RetinaNet and DDOD).
    """

    recordable = False

    def responses(
        self, student: Sequence[Response], teacher: Target, tails: Sequence[Tails]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """The cross response."""
        return {"cross": self.cross_response(student, teacher, tails)}

    def divisor(self, confidence: Tensor, positives: Tensor | None) -> Tensor:
        """The number of locations assigned to a defect, of all processes; one where it is not known."""
        if positives is None:
            return confidence.new_ones(())
        total = all_reduce_mean(positives.float()) * processes()
        return total.clamp(min=1) / processes()

    def box_distance(self, boxes: Tensor, teacher: Tensor) -> Tensor:
        """The overlap alone."""
        return 1 - overlap(boxes, teacher)

    @staticmethod
    def target(teacher: Sequence[Response]) -> Target:
        """Boxes at all locations."""
        return target(teacher, 1)
