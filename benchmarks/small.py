"""Two data sets of drawn steel strip with small defects, where NEU-DET's are large: ``few`` for students, ``many`` for
their teacher.

    python benchmarks/small.py out=datasets/small
    python benchmarks/teachers.py name=small data=datasets/small/many/data.yaml model=yolo11n.pt epochs=30 bf16=True
    python benchmarks/finetune.py split=val name=small_drawn_128 data=datasets/small/few/data.yaml seeds=3 \
        arms=plain,tskd,without_ded,benchmarks/brief.yaml teacher=runs/teachers/small/weights/best.pt
    python benchmarks/finetune.py split=test name=small_drawn_128 data=datasets/small/few/data.yaml \
        arms=plain,tskd,without_ded,benchmarks/brief.yaml teacher=runs/teachers/small/weights/best.pt

Sides of a defect are four tenths of what ``tskd_yolo.data.drawn`` draws, so that its area is about a sixth; all else is
the same. Both sets have the same validation and test images; the training images of ``few`` are the first of ``many``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from unittest import mock

from ultralytics.cfg import parse_key_value_pair

from tskd_yolo.data import drawn

SHRINK = 0.4
IMAGES = {"few": 400, "many": 2400}
VAL, TEST = 240, 480


def main(arguments: list[str]) -> None:
    given = dict(parse_key_value_pair(a) for a in arguments)
    out = Path(given.pop("out", "datasets/small"))
    if given:
        sys.exit(f"{', '.join(given)}: unknown; give out=FOLDER.")
    with mock.patch.object(drawn, "KINDS", {name: _smaller(kind) for name, kind in drawn.KINDS.items()}):
        for name, count in IMAGES.items():
            drawn.prepare(out / name, train=count, val=VAL, test=TEST)


def _smaller(kind: drawn.Kind) -> drawn.Kind:
    (narrow, wide), (low, high) = kind.width, kind.height
    return kind._replace(width=(SHRINK * narrow, SHRINK * wide), height=(SHRINK * low, SHRINK * high))


if __name__ == "__main__":
    main(sys.argv[1:])
