"""The three losses of TSKD. They know torch and torchvision, and no detector.

A loss takes student and teacher tensors by keyword and returns one scalar in float32; its weight lives with the caller.
"""

from tskd_yolo.losses.crd import CRD, Response
from tskd_yolo.losses.ded import DED
from tskd_yolo.losses.drd import DRD

__all__ = "CRD", "DED", "DRD", "Response"
