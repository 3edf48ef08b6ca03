"""The same question elsewhere: other students, on test."""

from __future__ import annotations

from results import effect, load, model_name, setting, table, told

STUDENTS = "yolo26n", "yolov8n"
METRICS = "mAP50", "mAP50-95"


def values() -> dict[str, str]:
    """Tables of Markdown, and their setting."""
    return {**_students()}


def _students() -> dict[str, str]:
    """Other students under the same teacher, on test, by ``best.pt``."""
    found = [load(f"finetune_{name}_neu_128")["comparison"] for name in STUDENTS]
    head = ["student", *(f"{who}, {' / '.join(METRICS)}" for who in ("plain", "tskd-yolo"))]
    head += ["mAP50-95 over plain, 95 % interval", "verdict", "time ÷ plain"]
    rows = []
    for each in found:
        arms = each["arms"]
        gain = arms["tskd"]["effect"]["mAP50-95"]
        scores = [" / ".join(f"{arms[arm]['mean']['best'][key]:.3f}" for key in METRICS) for arm in ("plain", "tskd")]
        time = f"{arms['tskd']['time']['of_plain']:.2f}"
        rows.append([model_name(each["settings"]["model"]), *scores, told(effect(gain)), gain["verdict"], time])
    return {
        "students": table(head, rows),
        "students setting": setting(found[0], "test, `best.pt`"),
        "students teacher": f"{found[0]['teacher']['last']['mAP50-95']:.3f}",
    }
