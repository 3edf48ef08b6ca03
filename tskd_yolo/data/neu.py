"""NEU-DET in its authors' layout as an Ultralytics data set, with the split that is used throughout this project.

neu(Path("neu-det-yolo"))
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from tskd_yolo.data.dataset import Summary
from tskd_yolo.data.voc import convert

NEU_NAMES = ("crazing", "inclusion", "patches", "pitted_surface", "rolled-in_scale", "scratches")
NEU_TRAIN = 240  # images <class>_1 ... <class>_240 train, <class>_241 ... <class>_300 validate
NEU_PAGE = "http://faculty.neu.edu.cn/songkechen/zh_CN/zdylm/263270/list/index.htm"


def neu(out: Path, source: Path | None = None) -> Summary:
    """Turns NEU-DET in its authors' layout into an Ultralytics data set with a fixed split and order of classes.

    Args:
        out: Folder to make, as in :func:`convert`.
        source: Folder that holds ``IMAGES`` and ``ANNOTATIONS``, in any letter case. Without it: the folder that the
            environment variable ``TSKD_NEU`` names, then ``NEU-DET`` in Ultralytics' datasets folder.

    Raises:
        FileNotFoundError: If no such folder is found; the message says how to obtain the set.
        VocError: If the folder is not as published.
    """
    places = _neu_places(source)
    for place in places:
        images, annotations = _subfolder(place, "IMAGES"), _subfolder(place, "ANNOTATIONS")
        if images and annotations:
            return convert(images=images, annotations=annotations, out=out, split=_neu_split, names=NEU_NAMES)
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


def _neu_split(stem: str) -> str:
    """The split of ``<class>_<k>``."""
    match = re.fullmatch(r".+_(\d+)", stem)
    if match is None:
        raise ValueError("expected a name like crazing_1")
    return "train" if int(match[1]) <= NEU_TRAIN else "val"
