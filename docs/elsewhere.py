"""The same question elsewhere: other students, on test."""

from __future__ import annotations

from results import METRICS, effect, load, model_name, scores, setting, table, told

STUDENTS = "yolo26n", "yolov8n"


def values() -> dict[str, str]:
    """A table of Markdown of other students under the same teacher, on test, by ``best.pt``, and its setting."""
    found = [load(f"finetune_{name}_neu_128")["comparison"] for name in STUDENTS]
    head = ["student", *(f"{who}, {' / '.join(METRICS)}" for who in ("plain", "tskd-yolo"))]
    head += ["mAP50-95 over plain, 95 % interval", "verdict", "time ÷ plain"]
    rows = []
    for each in found:
        arms = each["arms"]
        gain = arms["tskd"]["effect"]["mAP50-95"]
        figures = [scores(arms[arm]["mean"]["best"]) for arm in ("plain", "tskd")]
        time = f"{arms['tskd']['time']['of_plain']:.2f}"
        rows.append([model_name(each["settings"]["model"]), *figures, told(effect(gain)), gain["verdict"], time])
    return {
        "students": table(head, rows),
        "students setting": setting(found[0], "test, `best.pt`"),
        "students teacher": f"{found[0]['teacher']['last']['mAP50-95']:.3f}",
    }
