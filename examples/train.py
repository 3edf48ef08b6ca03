"""From Python, on drawn images: a teacher, then a student with its help. Every training argument works.

python examples/train.py epochs=30
"""

import sys
from pathlib import Path

from ultralytics import YOLO
from ultralytics.cfg import parse_key_value_pair

from tskd_yolo import Trainer
from tskd_yolo.data.drawn import prepare

given = dict(map(parse_key_value_pair, sys.argv[1:]))
out = Path("runs/example").resolve()
prepare(out / "data", train=given.pop("images", 288), val=40)
common = {"data": str(out / "data" / "data.yaml"), "imgsz": 128, "project": str(out), "exist_ok": True, **given}

YOLO("yolo11s.yaml").train(name="teacher", **common)
Trainer(teacher=str(out / "teacher/weights/best.pt"), model="yolo11n.yaml", name="student", **common).train()
print(YOLO(out / "student/weights/best.pt").val(data=common["data"], imgsz=common["imgsz"]).box.map)
