"""What few labels and many images without labels give a student, from ``fewlabels_edges_neu_128.json``; and with an
earlier DRD from ``fewlabels_averaged_neu_128.json`` and, with teachers of one training, ``fewlabels_neu_128.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean
from typing import Any

from results import load, model_name, table, told

from tskd_yolo.compare.stats import paired, points

ARMS = {
    "plain": "plain training, the labelled images alone",
    "tskd": "tskd-yolo, the labelled images alone",
    "unlabelled": "tskd-yolo, all images (`unlabelled=`)",
    "pseudo": "the same with `pseudo=True`",
    "autolabel": "plain training on all images, the others with labels by `tskd-yolo autolabel`",
    "tskd_all": "tskd-yolo, the labelled images alone, from a teacher that had all labels",
    "unlabelled_all": "tskd-yolo, all images, from that teacher",
    "all_labels": "plain training with all labels",
}
"""How the arms of benchmarks/fewlabels.py are called."""
GOALS = {10: 0.05, 25: 0.03}
"""By share what PROTOCOL.md asks of all images over plain training, in mAP50-95."""


def values() -> dict[str, str]:
    """Two tables of Markdown, the setting of their runs, and the gains that the protocol asks for."""
    rows, before = load("fewlabels_edges_neu_128"), load("fewlabels_averaged_neu_128")
    first = load("fewlabels_neu_128")
    asked, seeds = rows[0]["settings"], rows[0]["arms"]["plain"]["best"]
    return {
        "few table": _table({f"{row['share']} %": row for row in rows}),
        "few earlier table": _table(
            {
                **{f"{row['share']} %": row for row in before},
                **{f"{row['share']} %, teachers not averaged": row for row in first},
            }
        ),
        "few setting": f"NEU-DET in three splits, test, `best.pt`, {len(seeds)} seeds; {asked['imgsz']} px, "
        f"{rows[0]['steps']} steps, the pre-trained {model_name(asked['model'])}, on a CPU",
        "few gains": ", ".join(_over(row, "unlabelled", "plain") for row in rows),
        "few pseudo": ", ".join(_over(row, "pseudo", "plain") for row in rows if "pseudo" in row["arms"]),
        "few before": ", ".join(_over(row, "unlabelled", "plain") for row in before),
        "few first": ", ".join(_over(row, "unlabelled", "plain") for row in first),
        "few others": ", ".join(_over(row, "unlabelled", "tskd") for row in rows),
        **_beside_all_labels(),
        "few goals": "; ".join(_goal(row) for row in rows if row["share"] in GOALS),
        "few autolabel": ", ".join(_over(row, "unlabelled", "autolabel") for row in rows),
    }


def _table(columns: Mapping[str, Mapping[str, Any]]) -> str:
    head = ["mAP50-95, and points over plain training with 95 % interval", *columns]
    asked = {arm: name for arm, name in ARMS.items() if any(arm in row["arms"] for row in columns.values())}
    body = [[name, *(_cell(row, arm) for row in columns.values())] for arm, name in asked.items()]
    best = (f"{row['teacher']['last']['mAP50-95']:.3f}" for row in columns.values())
    return table(head, [*body, ["the best of the teachers, at the student's size", *best]])


def _cell(row: Mapping[str, Any], arm: str) -> str:
    if arm not in row["arms"]:
        return ""
    score = f"{mean(row['arms'][arm]['best'].values()):.3f}"
    return score if arm == "plain" else f"{score}, {_gain(row, arm, 'plain')}"


def _gain(row: Mapping[str, Any], arm: str, base: str) -> str:
    effect = paired(row["arms"][arm]["best"], row["arms"][base]["best"])
    assert effect is not None
    return told(effect)


def _over(row: Mapping[str, Any], arm: str, base: str) -> str:
    return f"{_gain(row, arm, base)} with {row['share']} % of the labels"


def _goal(row: Mapping[str, Any]) -> str:
    words = [f"with {row['share']} % of the labels it is {_reached(row, 'unlabelled')}"]
    words += [f"with `pseudo=True` {_reached(row, 'pseudo')}"] if "pseudo" in row["arms"] else []
    return ", ".join(words)


def _reached(row: Mapping[str, Any], arm: str) -> str:
    effect = paired(row["arms"][arm]["best"], row["arms"]["plain"]["best"])
    assert effect is not None
    missing = GOALS[row["share"]] - effect.mean
    return "reached" if missing <= 0 else f"missed by {points(missing)}"


def _beside_all_labels() -> dict[str, str]:
    """What images without labels do to a student that has all labels, judged on val by its last weights."""
    found = load("tune_others_neu_128")["comparison"]
    rows = {
        arm: {row["seed"]: row["last"]["mAP50-95"] for row in found["arms"][arm]["rows"]}
        for arm in ("plain", "tskd", "others")
    }
    gains = {arm: paired(rows["others"], rows[arm]) for arm in ("plain", "tskd")}
    over = {arm: told(gain) for arm, gain in gains.items() if gain}
    return {
        "few harm": f"{over['tskd']} points over tskd-yolo without them, {over['plain']} over plain training",
        "few harm setting": f"val, last weights, {len(rows['plain'])} seeds, {found['settings']['epochs']} epochs",
    }
