"""The candidate of the judging with ten seeds more: what five, ten and fifteen seeds say of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from results import by_seed, load, table, told

from tskd_yolo.compare.stats import Effect, holm, interval, paired

RIVALS = {
    "plain": "plain training",
    "plain_same_time": "plain training for as long as tskd-yolo",
    "ultralytics": "Ultralytics `distill_model=`",
}
LOOKS = 2
"""Fifteen seeds are the second look at the same three questions."""


def values() -> dict[str, str]:
    """A table of Markdown of tskd-yolo over plain training and its rivals on test, by ``best.pt``."""
    first, more = (load(f"finetune_{name}neu_128")["comparison"] for name in ("", "more_"))
    over = {rival: [_over(rival, first), _over(rival, more), _over(rival, first, more)] for rival in RIVALS}
    judged = holm({rival: found[-1] for rival, found in over.items()}, of=LOOKS * len(RIVALS))
    head = ["mAP50-95 of tskd-yolo over", *(f"{found.seeds} seeds" for found in over["plain"])]
    rows = []
    for rival, name in RIVALS.items():
        last, sure = over[rival][-1], judged[rival]
        corrected = interval(Effect(last.mean, sure.low, sure.high, last.seeds))
        rows.append([name, *map(told, over[rival]), corrected, sure.verdict.replace("helps", "ahead")])
    return {
        "more": table([*head, "corrected interval", "verdict"], rows),
        **{f"more over {rival}": told(found[-1]) for rival, found in over.items()},
        **{f"more over {rival} corrected": row[-2] for rival, row in zip(RIVALS, rows, strict=True)},
    }


def _over(rival: str, *found: Mapping[str, Any]) -> Effect:
    """What tskd-yolo is ahead of a rival by in several files of the same question."""
    tskd, theirs = (
        {seed: row["best"]["mAP50-95"] for each in found for seed, row in by_seed(each, arm).items()}
        for arm in ("tskd", rival)
    )
    gain = paired(tskd, theirs)
    assert gain is not None, "every seed has both"
    return gain
