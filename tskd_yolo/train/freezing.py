"""What ``freeze=`` may ask for, as Ultralytics reads it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


def wrong(student: Mapping[str, Any], freeze: Any) -> list[str]:
    """What is wrong with ``freeze=``: Ultralytics passes over what names no layer, and freezes nothing then.

    Args:
        student: The student's YAML.
        freeze: How many layers from the first one on, or a list: numbers of layers, or beginnings of names of their
            parameters, such as ``23.cv2``.
    """
    layers = len(student["backbone"]) + len(student["head"])
    if freeze is None or (type(freeze) is int and freeze >= 0):
        listed: Any = range(freeze or 0)
    elif isinstance(freeze, (list, tuple)) and all(_names_a_layer(each, layers) for each in freeze):
        listed = freeze
    else:
        return [
            f"freeze: must be a number of layers, or a list of layers from 0 to {layers - 1}, i.e. freeze=10 or "
            f"freeze=[0,1,2], got {freeze!r}."
        ]
    if set(range(layers)) <= {*listed}:
        return [f"freeze: {freeze} freezes every layer of the student, so nothing could be learned."]
    return []


def _names_a_layer(each: Any, layers: int) -> bool:
    number = re.match(r"\d+(?=\.|$)", each) if isinstance(each, str) else None
    return (type(each) is int and 0 <= each < layers) or (number is not None and int(number[0]) < layers)
