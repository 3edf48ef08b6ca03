"""What teachers of other kinds, sizes and classes give one pre-trained student, from the tuning run of that name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import mean
from typing import Any

from results import by_seed, gains, last_and_best, load, model_name, table

ARMS = {
    "tskd": ("a YOLO11n", ["n128"]),
    "v8": ("a YOLOv8n", ["v8n128"]),
    "v26": ("a YOLO26n", ["v26n128"]),
    "two": ("the YOLO11n and the YOLOv8n", ["n128", "v8n128"]),
    "three": ("all three of them", ["n128", "v8n128", "v26n128"]),
    "nine": ("a YOLO11n that knows three classes more", ["nine128"]),
    "sees_alike": ("a YOLO11n that was trained at 224 px", ["n224"]),
}
"""By arm of benchmarks/pairs.yaml how its teacher is called, and under which names it was trained."""


def values() -> dict[str, str]:
    """A table of Markdown, the setting of its runs, and what the guides tell of them."""
    found = load("tune_pairs_neu_128")["comparison"]
    trained = load("teachers")
    asked, arms = found["settings"], {arm: by_seed(found, arm) for arm in found["arms"]}
    corrected = [found["arms"][arm]["effect"]["mAP50-95"]["corrected"] for arm in ARMS]
    open_ = sum(told["low"] < 0 < told["high"] for told in corrected)
    return {
        "teachers": _table(arms, trained),
        "teachers setting": f"NEU-DET in three splits, val, {asked['imgsz']} px, {asked['epochs']} epochs, batch "
        f"{asked['batch']}, the pre-trained {model_name(asked['model'])}, on a CPU",
        "teachers verdict": f"{open_} of the {len(corrected)} corrected intervals hold 0",
        "teachers alone": gains(arms["tskd"], arms["plain"], "last"),
        "teachers two": gains(arms["two"], arms["tskd"], "last"),
        "teachers averaged": _averaged(trained, "soup4", _score),
        "teachers of 224": _averaged(trained, "n224_soup3", _alone),
        **_at_a_larger_size(),
    }


def _at_a_larger_size() -> dict[str, str]:
    """The same teacher at the size of its training and at the student's."""
    found = load("tune_larger_neu_128")["comparison"]
    plain, larger, alike = (by_seed(found, arm) for arm in ("plain", "tskd", "near"))
    sizes = found["settings"]
    return {
        "teachers larger": gains(larger, alike, "last"),
        "teachers larger sizes": f"a teacher at {sizes['teacher_imgsz']} px and a student at {sizes['imgsz']} px",
        "teachers larger teacher": f"{found['teacher']['last']['mAP50-95']:.3f}",
        "teachers larger gain": gains(larger, plain, "last"),
        "teachers larger alike": gains(alike, plain, "last"),
    }


def _table(arms: Mapping[str, Any], trained: Mapping[str, Any]) -> str:
    plain = arms["plain"]
    head = ["taught by", "teacher", "student", *(f"{weights}, over plain" for weights in ("last", "best")), "time"]
    rows = [["nobody", "", last_and_best(plain), "", "", "1.00"]]
    for arm, (name, teachers) in ARMS.items():
        taught = arms[arm]
        differences = [gains(taught, plain, weights) for weights in ("last", "best")]
        scores = ", ".join(_score(trained[each]) for each in teachers)
        rows.append([name, scores, last_and_best(taught), *differences, _time(taught, plain)])
    return table(head, rows)


def _score(teacher: Mapping[str, Any]) -> str:
    """Of a teacher, at the size at which it was trained."""
    return _alone(teacher) + ("" if teacher["imgsz"] == 128 else f" ({teacher['imgsz']} px)")


def _alone(teacher: Mapping[str, Any]) -> str:
    return f"{teacher['val']['mAP50-95']:.3f}"


def _averaged(trained: Mapping[str, Any], name: str, score: Callable[[Mapping[str, Any]], str]) -> str:
    *first, last = (score(trained[each]) for each in trained[name]["of"])
    return f"{', '.join(first)} and {last}; their mean has {score(trained[name])}"


def _time(taught: Mapping[int, Any], plain: Mapping[int, Any]) -> str:
    """Processor time beside plain training, of runs that nothing interrupted."""
    whole = [seed for seed in plain if not taught[seed]["resumed"] and not plain[seed]["resumed"]]
    ratios = [taught[seed]["process_seconds"] / plain[seed]["process_seconds"] for seed in whole]
    return f"{mean(ratios):.2f}" if ratios else ""
