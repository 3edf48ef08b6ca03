"""The same question elsewhere: other students, longer runs, small defects."""

from __future__ import annotations

from results import METRICS, by_seed, effect, gains, last_and_best, load, model_name, scores, setting, table, told

STUDENTS = "yolo26n", "yolov8n"
SMALL = {
    "plain": "plain training",
    "tskd": "tskd-yolo",
    "without_ded": "tskd-yolo without DED",
    "hints": "tskd-yolo, plain hints in the place of DED",
}


def values() -> dict[str, str]:
    """Tables of Markdown, their settings, and the figures that the text tells."""
    return {**_students(), **_longer(), **_small()}


def _students() -> dict[str, str]:
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


def _longer() -> dict[str, str]:
    """A run of three times as many epochs, on val, with two seeds: too few for an interval that says anything."""
    found = load("tune_long_neu_128")["comparison"]
    plain, tskd = (by_seed(found, arm) for arm in ("plain", "tskd"))
    return {
        "long plain": last_and_best(plain),
        "long tskd": last_and_best(tskd),
        "long teacher": f"{found['teacher']['last']['mAP50-95']:.3f}",
        **{f"long gain of {weights}": gains(tskd, plain, weights) for weights in ("last", "best")},
    }


def _small() -> dict[str, str]:
    """Drawn steel with small defects, on val, by last weights, and what DED adds there."""
    found = load("tune_small_drawn_128")["comparison"]
    rows = []
    for arm, words in SMALL.items():
        row = found["arms"][arm]
        over = "" if arm == "plain" else told(effect(row["effect"]["mAP50-95"]))
        rows.append([words, scores(row["mean"]["last"]), over])
    head = [" / ".join(METRICS), "val", "mAP50-95 over plain, 95 % interval"]
    teacher = [["teacher", scores(found["teacher"]["last"]), ""]]
    return {
        "small": table(head, [*rows, *teacher]),
        "small setting": setting(found, "val, last weights", "drawn steel with small defects"),
        **{f"small over {arm}": told(effect(rival)) for arm, rival in found["tskd_against"].items()},
    }
