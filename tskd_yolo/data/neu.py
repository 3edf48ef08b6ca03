"""NEU-DET in its authors' layout as an Ultralytics data set, with one of the two splits that this project uses.

neu(Path("neu-det-yolo"))
neu(Path("neu-det-yolo-3"), split="three")
"""

from __future__ import annotations

import os
import re
from bisect import bisect_left
from functools import partial
from pathlib import Path

from tskd_yolo.data.dataset import Summary
from tskd_yolo.data.voc import convert

NEU_NAMES = ("crazing", "inclusion", "patches", "pitted_surface", "rolled-in_scale", "scratches")
NEU_SPLITS = {"two": (240, 300), "three": (200, 240)}
"""Of images <class>_1 to <class>_300: up to which number they train, and up to which they validate; the rest test."""
NEU_PAGE = "http://faculty.neu.edu.cn/songkechen/zh_CN/zdylm/263270/list/index.htm"


def neu(out: Path, source: Path | None = None, split: str | tuple[int, int] = "two") -> Summary:
    """Turns NEU-DET in its authors' layout into an Ultralytics data set with a fixed split and order of classes.

    Args:
        out: Folder to make, as in :func:`convert`.
        source: Folder that holds ``IMAGES`` and ``ANNOTATIONS``, in any letter case. Without it: the folder that the
            environment variable ``TSKD_NEU`` names, then ``NEU-DET`` in Ultralytics' datasets folder.
        split: A name of :data:`NEU_SPLITS`, or two limits: image ``<class>_<k>`` trains up to the first, validates up
            to the second, and tests beyond it.

    Raises:
        ValueError: If there is no such split.
        FileNotFoundError: If no such folder is found; the message says how to obtain the set.
        VocError: If the folder is not as published.
    """
    limits = _limits(split)
    places = _neu_places(source)
    for place in places:
        images, annotations = _subfolder(place, "IMAGES"), _subfolder(place, "ANNOTATIONS")
        if images and annotations:
            assign = partial(_neu_split, limits=limits)
            return convert(images=images, annotations=annotations, out=out, split=assign, names=NEU_NAMES)
    raise FileNotFoundError(
        f"NEU-DET not found, looked for IMAGES and ANNOTATIONS in {' and '.join(map(str, places))}. "
        "Its licence does not let it travel with this project: download it from its authors' page (Northeastern "
        f'University, K. Song and Y. Yan, "NEU surface defect database", {NEU_PAGE}), unpack it so that IMAGES and '
        "ANNOTATIONS lie side by side in one folder, and set the environment variable TSKD_NEU to that folder."
    )


def _neu_places(source: Path | None) -> list[Path]:
    """Where to look for NEU-DET. A source given by the caller is the only place."""
    if source is not None:
        return [Path(source)]
    from ultralytics.utils import DATASETS_DIR

    named = os.environ.get("TSKD_NEU")
    return [*([Path(named).expanduser()] if named else []), Path(DATASETS_DIR) / "NEU-DET"]


def _subfolder(folder: Path, name: str) -> Path | None:
    """The subfolder of this name in any letter case, None if there is none."""
    if not folder.is_dir():
        return None
    return next(
        (path for path in sorted(folder.iterdir()) if path.is_dir() and path.name.lower() == name.lower()), None
    )


def _limits(split: str | tuple[int, int]) -> tuple[int, int]:
    """The two limits of a split."""
    limits = NEU_SPLITS.get(split) if isinstance(split, str) else split
    if limits is None or not 0 < limits[0] < limits[1]:
        raise ValueError(f"split must be one of {', '.join(NEU_SPLITS)} or two rising limits, got {split!r}.")
    return limits


def _neu_split(stem: str, limits: tuple[int, int]) -> str:
    """The split of ``<class>_<k>``."""
    match = re.fullmatch(r".+_(\d+)", stem)
    if match is None:
        raise ValueError("expected a name like crazing_1")
    return ("train", "val", "test")[bisect_left(limits, int(match[1]))]
