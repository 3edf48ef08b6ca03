"""Data sets by name, from their authors' layouts: where each is found, its classes and its split.

prepare("neu", Path("neu-det-yolo"))
prepare("gc10", Path("gc10-det-yolo"), source=Path("/data/GC10-DET"))
"""

from __future__ import annotations

import os
import re
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tskd_yolo.data.convert import deeppcb, masks, rle, voc
from tskd_yolo.data.convert.common import Options
from tskd_yolo.data.dataset import Summary

Read = Callable[[Path, Path], Summary]
"""Converts: the folder of the originals, and the folder to make."""


class MissingSetError(FileNotFoundError):
    """The originals of a data set were not found; says where to get them and how to lay them out."""


@dataclass(frozen=True)
class NamedSet:
    """One data set.

    Args:
        title: Its name, which is that of its folder in Ultralytics' datasets folder, too.
        variable: The environment variable that names its folder.
        parts: What must lie in its folder, in any letter case; of several words in one entry any will do.
        source: Where to get it and how to lay it out, one sentence or more.
        names: Its classes in the order of their index.
        read: Converts it.
    """

    title: str
    variable: str
    parts: tuple[str, ...]
    source: str
    names: tuple[str, ...]
    read: Read


def prepare(name: str, out: Path, source: Path | None = None) -> Summary:
    """Turns a data set in its authors' layout into an Ultralytics data set with a fixed order of classes and split.

    Args:
        name: A key of :data:`SETS`.
        out: Folder to make, as in :class:`~tskd_yolo.data.convert.common.Options`.
        source: Its folder. Without it: the one that its environment variable names, then the one of its title in
            Ultralytics' datasets folder.

    Raises:
        ValueError: If there is no such set.
        MissingSetError: If no such folder is found; the message says how to obtain the set.
        ConvertError: If the folder is not as published.
    """
    if name not in SETS:
        raise ValueError(f"no data set is called {name!r}; expected one of {', '.join(SETS)}.")
    chosen = SETS[name]
    places = _places(chosen, source)
    for place in places:
        if all(_part(place, part) for part in chosen.parts):
            return chosen.read(place, out)
    raise MissingSetError(
        f"{chosen.title} not found, looked for {' and '.join(p.replace('|', ' or ') for p in chosen.parts)} in "
        f"{' and '.join(map(str, places))}. Its images do not travel with this project: {chosen.source} Then set the "
        f"environment variable {chosen.variable} to that folder."
    )


def _places(chosen: NamedSet, source: Path | None) -> list[Path]:
    """Where to look. A source given by the caller is the only place."""
    if source is not None:
        return [Path(source)]
    from ultralytics.utils import DATASETS_DIR

    named = os.environ.get(chosen.variable)
    return [*([Path(named).expanduser()] if named else []), Path(DATASETS_DIR) / chosen.title]


def _part(folder: Path, names: str) -> Path | None:
    """What lies in a folder under one of these names in any letter case; None if there is nothing."""
    if not folder.is_dir():
        return None
    wanted = names.lower().split("|")
    return next((path for path in sorted(folder.iterdir()) if path.name.lower() in wanted), None)


def _need(folder: Path, names: str) -> Path:
    """The same where it is known to be there."""
    part = _part(folder, names)
    assert part is not None
    return part


# NEU-DET --------------------------------------------------------------------------------------------------------------

NEU_NAMES = ("crazing", "inclusion", "patches", "pitted_surface", "rolled-in_scale", "scratches")


def _neu(source: Path, out: Path, *, limits: tuple[int, int]) -> Summary:
    """NEU-DET; image ``<class>_<k>`` trains up to the first limit, validates up to the second, and tests beyond it."""
    return voc.convert(
        _need(source, "IMAGES"),
        _need(source, "ANNOTATIONS"),
        Options(out=out, names=NEU_NAMES),
        split=partial(_neu_split, limits=limits),
    )


def _neu_split(stem: str, limits: tuple[int, int]) -> str:
    match = re.fullmatch(r".+_(\d+)", stem)
    if match is None:
        raise ValueError("expected a name like crazing_1")
    return ("train", "val", "test")[bisect_left(limits, int(match[1]))]


def _neu_set(limits: tuple[int, int]) -> NamedSet:
    return NamedSet(
        "NEU-DET",
        "TSKD_NEU",
        ("IMAGES", "ANNOTATIONS"),
        "download it from its authors' page (Northeastern University, K. Song and Y. Yan, \"NEU surface defect "
        'database", http://faculty.neu.edu.cn/songkechen/zh_CN/zdylm/263270/list/index.htm), and unpack it so that '
        "IMAGES and ANNOTATIONS lie side by side in one folder.",
        NEU_NAMES,
        partial(_neu, limits=limits),
    )


# The others: their originals have flaws, which are skipped and told, each by its file ---------------------------------

GC10_NAMES = (
    "punching_hole", "welding_line", "crescent_gap", "water_spot", "oil_spot", "silk_spot", "inclusion", "rolled_pit",
    "crease", "waist_folding",
)  # fmt: skip
_GC10_WORDS = (
    "1_chongkong", "2_hanfeng", "3_yueyawan", "4_shuiban", "5_youban", "6_siban", "7_yiwu", "8_yahen", "9_zhehen",
    "10_yaozhe",
)  # fmt: skip
GC10_RENAMED = {**dict(zip(_GC10_WORDS, GC10_NAMES)), "10_yaozhed": "waist_folding"}
"""Classes by what the XML files call them; one of them is written in two ways."""


def _gc10(source: Path, out: Path) -> Summary:
    options = Options(out=out, val=0.2, test=0.2, names=GC10_NAMES, skip=True)
    return voc.convert(source, source, options, renamed=GC10_RENAMED)


def _deeppcb(source: Path, out: Path) -> Summary:
    return deeppcb.convert(source, Options(out=out, val=0.2, skip=True))


SEVERSTAL_CLASSES = {number: f"defect_{number}" for number in range(1, 5)}
SPECK = 10
"""Pixels: smaller regions of a mask are slips of the pen rather than defects."""


def _severstal(source: Path, out: Path) -> Summary:
    return rle.convert(
        _need(source, "train_images"),
        _need(source, "train.csv"),
        Options(out=out, val=0.2, test=0.2, skip=True, background=True),
        classes=SEVERSTAL_CLASSES,
        min_area=SPECK,
    )


MAGNETIC_TILE_FOLDERS = {f"MT_{name.capitalize()}": name for name in ("blowhole", "break", "crack", "fray", "uneven")}


def _magnetic_tile(source: Path, out: Path) -> Summary:
    names = tuple(MAGNETIC_TILE_FOLDERS.values())
    return masks.convert(
        source,
        Options(out=out, val=0.2, test=0.2, names=names, skip=True),
        folders=True,
        renamed=MAGNETIC_TILE_FOLDERS,
        min_area=SPECK,
    )


SETS = {
    "neu": _neu_set((240, 300)),
    "neu3": _neu_set((200, 240)),
    "gc10": NamedSet(
        "GC10-DET",
        "TSKD_GC10",
        ("lable|label",),
        "its authors' page is https://github.com/lvxiaoming2019/GC10-DET-Metallic-Surface-Defect-Datasets; unpack it "
        "so that the folders 1 to 10 with the images and lable with the XML files lie side by side in one folder.",
        GC10_NAMES,
        _gc10,
    ),
    "deeppcb": NamedSet(
        "DeepPCB",
        "TSKD_DEEPPCB",
        ("PCBData|trainval.txt",),
        "clone its authors' repository, https://github.com/tangsanli5201/DeepPCB, in which PCBData is the folder with "
        "the images and the lists.",
        tuple(deeppcb.TYPES.values()),
        _deeppcb,
    ),
    "severstal": NamedSet(
        "Severstal",
        "TSKD_SEVERSTAL",
        ("train_images", "train.csv"),
        "download it from https://www.kaggle.com/c/severstal-steel-defect-detection/data, and unpack it so that "
        "train_images and train.csv lie side by side in one folder.",
        tuple(SEVERSTAL_CLASSES.values()),
        _severstal,
    ),
    "magnetic_tile": NamedSet(
        "Magnetic-Tile",
        "TSKD_MAGNETIC_TILE",
        (*MAGNETIC_TILE_FOLDERS, "MT_Free"),
        "clone its authors' repository, https://github.com/abin24/Magnetic-tile-defect-datasets., in which each of "
        "these folders has a folder Imgs with JPEG images and PNG masks.",
        tuple(MAGNETIC_TILE_FOLDERS.values()),
        _magnetic_tile,
    ),
}
"""By the name of their data YAML."""
