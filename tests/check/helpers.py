"""What the tests of checks share."""

from __future__ import annotations

from typing import Any

from tskd_yolo.check.trial import Cost

COST = Cost("cpu", 4, 10, 100, 5, 2.0, 0.5, 3.0, 100, 1000, 40)
"""Of a run of 100 epochs with 10 steps of 2 s, of which the teacher takes a quarter, and 3 s of validation."""


def summary(**more: Any) -> dict[str, Any]:
    """What a check found that nobody made; its names are such that a page could take them for markup."""
    network = {"name": "<t>.pt", "parameters": 9430114, "GFLOPs": 21.6, "imgsz": 640, "mAP50": 0.5, "mAP50-95": 0.25}
    split = {"images": 40, "left_out": 1, "empty": 2, "without_file": 1, "boxes": 90, "repeated": 3, "flat": 1,
             "outside": 2, "ambiguous": 1, "tiny": 7}  # fmt: skip
    names = ["<script>alert(1)</script>", "{{ 7 * 7 }}", *(f"class {i}" for i in range(10))]
    rows = [
        {"name": name, "train images": 5, "val images": 3, "train boxes": 9, "val boxes": 4,
         "teacher": None if i == 3 else name, "teacher AP50-95": None if i == 3 else 0.5 - i / 50,
         "student AP50-95": None if i == 3 else 0.3, "headroom": None if i == 3 else 0.2 - i / 50}
        for i, name in enumerate(names)
    ]  # fmt: skip
    return {
        "verdict": "go with a warning",
        "exit": 1,
        "sentence": "go with a warning: 1 warning, nothing that forbids this run",
        "findings": [
            {"level": "warning", "about": "labels", "reason": "<b>odd</b>", "remedy": "look"},
            {"level": "note", "about": "labels", "reason": "few", "remedy": ""},
        ],
        "settings": {"data": "neu.yaml", "teacher": "<t>.pt", "model": "yolo11n.pt", "imgsz": "640"},
        "versions": {"tskd_yolo": "0.1.0", "albumentations": ""},
        "files": {"teacher": {"name": "<t>.pt", "sha256": "0" * 16}, "model": {"name": "a", "sha256": None},
                  "data": None},
        "teacher": network,
        "student": {**network, "name": "yolo11n.pt"},
        "levels": [{"stride": 8, "teacher_stride": 16, "channels": 64, "teacher_channels": 128, "compared": 64}],
        "exceptions": ["unpaired  levels of stride [4]"],
        "classes": rows,
        "lost": ["<i>"],
        "data": {
            "judged": "val",
            "beside": "train",
            "splits": {"train": split, "val": split},
            "classes": [],
            "count": {"same": 60, "near": 1},
            "same": [["<a>.png", "b.png", 1.0]],
            "near": [["c.png", "d.png", 0.91]],
        },
        "cost": COST.row(),
        "seconds": 12.3,
        **more,
    }  # fmt: skip


EMPTY = {
    **dict.fromkeys(("teacher", "student", "data", "cost")),
    **dict.fromkeys(("levels", "exceptions", "classes", "lost", "findings"), []),
    "settings": {},
    "files": dict.fromkeys(("teacher", "model", "data")),
}
"""Of a check that came to know nothing."""
