"""A pre-trained student, as PROTOCOL.md says: settings are tuned on val, and a frozen candidate is judged once on test.

    TSKD_NEU=/data/NEU-DET python benchmarks/finetune.py split=val teacher=teacher.pt model=yolo11n.pt ded=2 name=ded2
    TSKD_NEU=/data/NEU-DET python benchmarks/finetune.py split=test teacher=teacher.pt model=yolo11n.pt

``tskd-yolo compare`` with the protocol's settings; other keys (``arms=``, ``seeds=``, ``jobs=2``, ``imgsz=224``, ...)
go to it. ``split=val`` judges on val, by default with seeds 0 to 4, plain and tskd, and leaves ``tune_NAME.json`` and
``.csv`` in ``out=``; ``split=test`` judges on test, by default with seeds 10 to 14 and all arms of the protocol, and
leaves ``finetune_NAME.json`` and ``.csv``. Seeds of the one are refused for the other. The page lies in ``runs=``; the
same command goes on with what is left.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from common import JUDGING_SEEDS, TUNING_SEEDS, keep, public, refuse_seeds
from ultralytics.cfg import parse_key_value_pair

from tskd_yolo import config
from tskd_yolo.compare.runner import compare
from tskd_yolo.compare.stats import points

LEAD = 0.03
"""By how much of mAP50-95 a teacher must be ahead of the plain student."""
OWN_ARMS = Path(__file__).with_name("arms.yaml")
SETTINGS = {"data": "neu3.yaml", "model": "yolo11n.pt", "epochs": 20, "imgsz": 128, "batch": 32, "device": "cpu"}


class Purpose(NamedTuple):
    """What a split is for: the start of the result's name, seeds and arms by default."""

    prefix: str
    seeds: list[int]
    arms: str


PURPOSES = {
    "val": Purpose("tune_", TUNING_SEEDS, "plain,tskd"),
    "test": Purpose(
        "finetune_",
        JUDGING_SEEDS,
        f"plain,plain_same_time,ultralytics,tskd,without_ded,without_crd,{OWN_ARMS}",
    ),
}


def main(arguments: list[str]) -> int:
    given: dict[str, Any] = dict(parse_key_value_pair(a) for a in arguments)
    purpose = PURPOSES.get(split := given.get("split", "val"))
    if purpose is None:
        sys.exit(f"split: must be val (tuning) or test (judging), got {split!r}.")
    name = purpose.prefix + str(given.pop("name", "neu_128")).removeprefix(purpose.prefix)
    runs, out = Path(given.pop("runs", f"runs/{name}")).resolve(), Path(given.pop("out", "benchmarks/results"))
    settings = {**SETTINGS, "seeds": purpose.seeds, "arms": purpose.arms, "split": split, **given}
    refuse_seeds(settings["seeds"], of=split)
    if split == "test" and (out / f"{name}.json").exists() and not (runs / "compare.json").exists():
        sys.exit(f"{name}.json is there: a candidate is judged once; go on in its own runs=, or give another name=.")
    if failed := compare(**settings, out=str(runs)):
        return failed
    keep(runs, out, name, "python benchmarks/finetune.py " + public(arguments), settings["device"])
    print(lead(json.loads((runs / "compare.json").read_text(encoding="utf-8"))))
    return 0


def lead(report: dict[str, Any]) -> str:
    """How far the teacher is ahead of the plain student, and whether that is enough."""
    judged, metric = report["judged"], report["metric"]
    ahead = report["teacher"]["last"][metric] - report["arms"]["plain"]["mean"][judged["weights"]][metric]
    words = f"The teacher is {points(ahead, sign=True)} points of {metric} ahead of plain on {judged['split']}"
    return f"{words}." if ahead >= LEAD else f"{words}: below {points(LEAD)}, so the protocol says nothing about it."


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]) > 0)
    except config.ConfigError as error:
        sys.exit(str(error))
