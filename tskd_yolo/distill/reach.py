"""Which terms can teach a student whose layers are partly frozen."""

from __future__ import annotations

from typing import Any

import torch

from tskd_yolo.distill.distiller import Distiller
from tskd_yolo.distill.features import Capture, channels, evaluating


def leave_out_unreachable(distiller: Distiller, student: Any) -> list[str]:
    """Leaves terms out whose gradient would reach frozen layers only, and returns their keys.

    Where a gradient can go is read off a pass of the student that changes nothing.
    """
    side = 2 * int(max(student.stride))
    images = next(student.parameters()).new_zeros(1, channels(student), side, side)
    capture = Capture()
    distiller.readers.attach(capture, distiller.active)
    try:
        with evaluating(student), torch.enable_grad():
            outputs = distiller.readers.read(student(images), capture.caught)
    finally:
        capture.detach()
    unreachable = [term for term in distiller.active if not any(t.requires_grad for t in term.reached(outputs))]
    distiller.terms = [term for term in distiller.terms if term not in unreachable]
    keys = [key for key in distiller.on if key in {t.key for t in unreachable} - {t.key for t in distiller.terms}]
    for key in keys:
        del distiller.on[key]
    return keys
