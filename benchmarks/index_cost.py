"""What it takes to find the images of a large folder: the first time, with its index, and after one folder changed.

    python benchmarks/index_cost.py --images 100000 --json index_cost.json

The folder holds links to drawn images, spread over folders, as somebody makes it who links to an archive. Each figure
is in seconds of the clock, the median of ``--times``; the first time is one. ``second`` is with the index and without
a change,
``changed`` after one of the folders got an image, ``leaks`` is the comparison with a labelled set of 100 of the images
by content, the first time and again. ``memory`` is what the paths take in this process, in MB.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from common import machine, public

from tskd_yolo.data import index
from tskd_yolo.data.drawn import prepare

SUFFIXES = "jpg", "png"
DRAWN, LABELLED = 200, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--folders", type=int, default=20)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), options)
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def measure(place: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Times the index of one folder of links."""
    prepare(place / "set", train=DRAWN, val=1, size=64)
    originals = sorted((place / "set" / "images" / "train").iterdir())
    links(place / "links", originals, options)
    sources = [str(place / "links")]
    before = psutil.Process().memory_info().rss

    def find() -> index.Paths:
        return index.images(sources, suffixes=SUFFIXES, kept=lambda name: place / name)

    first = timed(find)
    time.sleep(2 * index.SETTLED / 1e9)  # a folder that has just changed is read again
    find()
    second = statistics.median(timed(find) for _ in range(options.times))
    (place / "links" / "0" / "new.png").symlink_to(originals[0])
    changed = timed(find)
    paths, labelled = find(), [str(file) for file in originals[:LABELLED]]
    leaks = timed(lambda: paths.same_as(labelled))
    index.keep_heads(paths, sources, suffixes=SUFFIXES, kept=lambda name: place / name)
    again = find()
    memory = psutil.Process().memory_info().rss - before
    return {
        "command": "python benchmarks/index_cost.py " + public([Path(word).name for word in sys.argv[1:]]),
        "machine": machine(),
        "images": len(paths),
        "folders": options.folders,
        "first": round(first, 3),
        "second": round(second, 3),
        "changed": round(changed, 3),
        "leaks": [round(leaks, 3), round(timed(lambda: again.same_as(labelled)), 3)],
        "index MB": round((place / f"links{index.SUFFIX}").stat().st_size / 1e6, 1),
        "memory": round(memory / 1e6, 1),
    }


def links(folder: Path, originals: list[Path], options: argparse.Namespace) -> None:
    """So many links to these images, in so many folders."""
    for i in range(options.images):
        part = folder / str(i % options.folders)
        part.mkdir(parents=True, exist_ok=True)
        (part / f"{i:07d}{originals[0].suffix}").symlink_to(originals[i % len(originals)])


def timed(work: Callable[[], Any]) -> float:
    """Seconds of the clock."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
