"""The teacher's outputs for every view of every training image, kept: the teacher sees each once.

What a record holds and where it lies: :mod:`tskd_yolo.distill.records`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor
from ultralytics.data.utils import img2label_paths
from ultralytics.utils import LOGGER, colorstr

from tskd_yolo.config import ConfigError
from tskd_yolo.distill.features import TeacherOutputs
from tskd_yolo.distill.panel import Panel
from tskd_yolo.distill.records import FORMAT, Layout, Store, Stores, pack, unpack
from tskd_yolo.hashing import fingerprint, hash_tensors

SUFFIX = ".tskd"

AUGMENTATIONS = (
    "hsv_h", "hsv_s", "hsv_v", "degrees", "translate", "scale", "shear", "perspective", "flipud", "fliplr", "bgr",
    "mosaic", "mixup", "cutmix", "copy_paste", "copy_paste_mode", "augmentations",
)  # fmt: skip
"""Ultralytics' arguments that a view depends on, beside ``imgsz``, ``seed`` and the data."""

_GB = 1e9


class Cache:
    """Gives the teacher's outputs for a batch of views; those that are not there yet are computed, and kept.

    The outputs always come out of records, also where they have just been made: a run is the same whether it found them
    or not.

    Args:
        layout: Of the records.
        stores: Where they are: of labelled images, and of others where a run has some.
    """

    def __init__(self, layout: Layout, *stores: Store) -> None:
        self.layout, self.stores, self.store = layout, stores, Stores(stores)
        self.asked = self.computed = 0
        """Views that were asked for, and of them those that the teacher was shown."""
        self._torn = self._full = False

    def __call__(
        self, images: Tensor, batch: Mapping[str, Any], teacher: Callable[[Tensor], TeacherOutputs]
    ) -> TeacherOutputs:
        """The outputs for images ``(N, 3, H, W)`` of a batch of :class:`tskd_yolo.data.views.Views`."""
        table, missing = self._table(batch, images.device)
        self.asked += len(table)
        if missing:
            fresh = table[missing]
            self.layout.join(pack(teacher(images[missing] if len(missing) < len(images) else images)), fresh)
            table[missing] = fresh
            self.computed += len(missing)
            self._keep([batch["view"][place] for place in missing], fresh.cpu())
        return unpack(self.layout.split(table))

    def close(self) -> None:
        """Lets go of the records, in memory or mapped: nothing can be read any more."""
        for store in self.stores:
            store.close()

    def _table(self, batch: Mapping[str, Any], device: torch.device) -> tuple[Tensor, list[int]]:
        """The batch's records on the device, and which of them are to be made."""
        numbers = batch["view"]
        table, states = batch.get("record"), list(batch.get("state", ()))
        if table is None:  # the loader could not read them
            table, states = torch.zeros(len(numbers), self.layout.size, dtype=torch.uint8), [0] * len(numbers)
        table = table.to(device)
        for place in [place for place, state in enumerate(states) if state <= 0]:
            record, state = self.store.read(numbers[place])
            if state > 0:  # written since the loader looked
                table[place] = torch.from_numpy(record)
            states[place] = min(states[place], state) if state <= 0 else state
        if min(states) < 0 and not self._torn:
            LOGGER.warning("some records of the teacher's outputs are damaged, they are made anew.")
            self._torn = True
        return table, [place for place, state in enumerate(states) if state <= 0]

    def _keep(self, numbers: Sequence[int], records: Tensor) -> None:
        if self._full:
            return
        try:
            for number, record in zip(numbers, records.numpy(), strict=True):
                self.store.write(number, record)
        except OSError as error:
            LOGGER.warning(f"the teacher's outputs cannot be kept any more ({error.strerror}): it runs every time.")
            self._full = True


class Plan(NamedTuple):
    """What the records of a run take, and where they go; nothing of it is made yet."""

    layout: Layout
    slots: list[int]
    """Records of each set of images."""
    headers: list[dict[str, Any]]
    files: list[Path | None]
    """Of each set its file; None in memory of one process."""
    images: int
    needed: int
    """Bytes at most."""


def plan(*, distiller: Any, views: Any, args: Any, epochs: int, shared: str = "", others: Any = None) -> Plan:
    """What a run's cache takes, where that is no more than it may.

    Args:
        distiller, views, args, epochs, shared, others: As of :func:`prepare`.

    Raises:
        ConfigError: If the records would take more than the limit, the disk or the memory has.
    """
    device = next(distiller.teacher.model.parameters()).device
    images = torch.zeros(1, views.dataset.channels, views.dataset.imgsz, views.dataset.imgsz, device=device)
    sample = pack(distiller.teacher_outputs(images, size=(args.imgsz, args.imgsz)))
    layout, sets = Layout(sample, views.kept.size), [views] if others is None else [views, others]
    count = sum(map(len, sets))
    needed = sum(_size(layout, len(each), args, epochs, often=each is others) for each in sets)
    _within_limit(needed, layout, count, args)  # before every image is asked for its time
    folder = _folder(views.dataset)
    headers, files = zip(*(_planned(each, layout, distiller, args, folder, shared) for each in sets), strict=True)
    _fits(needed, layout, count, args, files)
    return Plan(layout, [each.slots * len(each) for each in sets], list(headers), list(files), count, needed)


def prepare(*, distiller: Any, views: Any, args: Any, epochs: int, shared: str = "", others: Any = None) -> Cache:
    """The cache of one run, after its size was told.

    Args:
        distiller: The run's distiller.
        views: The training set as :class:`tskd_yolo.data.views.Views`.
        args: The run's arguments.
        epochs: Of the run.
        shared: For ``teacher_cache=ram``: a word that the run's processes on this machine have in common and no other
            run has. They then hold the records once; what is left over is removed by :func:`release`.
        others: The images without labels, as the training set, where there are some.

    Raises:
        ConfigError: If the records would take more than the limit, the disk or the memory has, or cannot be written.
    """
    planned = plan(distiller=distiller, views=views, args=args, epochs=epochs, shared=shared, others=others)
    layout, place = planned.layout, "memory"
    if args.teacher_cache == "disk":
        place = ", ".join(map(str, planned.files))
    try:
        each = zip(planned.slots, planned.files, planned.headers, strict=True)
        cache = Cache(layout, *(Store(slots, layout.size, file, header) for slots, file, header in each))
    except OSError as error:
        remedy = "make its folder writable, or give ram" if args.teacher_cache == "disk" else "give disk"
        raise ConfigError([f"teacher_cache: {place} cannot be had ({error.strerror}); {remedy}."]) from error
    LOGGER.info(
        f"{colorstr('tskd-yolo:')} the teacher's outputs are kept in {place}: {planned.needed / _GB:.2f} GB at most, "
        f"{layout.size / 1e3:.0f} kB for each view of {planned.images} images; {cache.store.whole()} views are there "
        "already."
    )
    if args.teacher_cache == "disk":
        _name_others(_folder(views.dataset), {file.name for file in planned.files if file is not None})
    return cache


def _planned(
    views: Any, layout: Layout, distiller: Any, args: Any, folder: Path, shared: str
) -> tuple[dict[str, Any], Path | None]:
    """What is written down about the records of a set, and the file that they go into."""
    header = {
        "format": FORMAT,
        "fields": layout.plain(),
        "start": views.kept.size,
        "images": len(views),
        "views": args.views,
    }
    header["key"] = key(header, panel=distiller.panel, dataset=views.dataset, args=args, folder=folder)
    name = f"{folder.name}.{header['key'][:16]}{SUFFIX}"
    return header, folder.parent / name if args.teacher_cache == "disk" else _in_memory(name, shared)


def _folder(dataset: Any) -> Path:
    """The folder of the labels, beside which Ultralytics keeps its own cache of them; images without a defect may have
    none.
    """
    folders = list(dict.fromkeys(Path(file).parent for file in img2label_paths([*dataset.im_files])))
    return next((folder for folder in folders if folder.parent.is_dir()), folders[0]).resolve()


def _in_memory(name: str, shared: str) -> Path | None:
    """The file in memory that processes of a run share; None where there is but one, or no such file system."""
    memory = Path("/dev/shm")
    return memory / f"{shared}.{name}" if shared and memory.is_dir() else None


def release(args: Any, cache: Cache) -> None:
    """Takes the name away from a file in memory that all processes have opened: it goes when the last of them goes."""
    for file in [store.file for store in cache.stores]:
        if args.teacher_cache == "ram" and file is not None:
            file.unlink(missing_ok=True)


def _size(layout: Layout, images: int, args: Any, epochs: int, *, often: bool = False) -> int:
    """Bytes of all records that a run can come to need: a view of each image in an epoch, or all of them, where an
    epoch may pass over a set ``often``.
    """
    closed = min(args.close_mosaic, epochs)
    views = sum(args.views if often else min(args.views, count) for count in (epochs - closed, closed) if count)
    return images * views * (layout.size + 8)


def _within_limit(needed: int, layout: Layout, images: int, args: Any) -> None:
    """Refuses what is larger than it may be."""
    if needed > args.cache_limit * _GB:
        words, remedy = _told(needed, layout, images, args)
        raise ConfigError([f"{words}, and cache_limit is {args.cache_limit:g} GB; raise it, or {remedy}."])


def _fits(needed: int, layout: Layout, images: int, args: Any, files: Sequence[Path | None]) -> None:
    """Refuses what is larger than it can be."""
    known = [file for file in files if file is not None]
    free, what = psutil.virtual_memory().available, "of memory free"
    if known:  # on the disk, or in memory that is a file system of its own, often a small one in a container
        blocks = [f.stat().st_blocks for f in known if f.exists() and hasattr(os.stat_result, "st_blocks")]
        room = shutil.disk_usage(known[0].parent).free + 512 * sum(blocks)
        if args.teacher_cache == "disk" or room < free:
            free, what = room, "free on the disk" if args.teacher_cache == "disk" else f"free in {known[0].parent}"
    if needed > free:
        words, remedy = _told(needed, layout, images, args)
        raise ConfigError([f"{words}, and {free / _GB:.2f} GB are {what}; free some, or {remedy}."])


def _told(needed: int, layout: Layout, images: int, args: Any) -> tuple[str, str]:
    """How much it is, and what to do about it."""
    return (
        f"teacher_cache: the teacher's outputs for {images} images in views={args.views} take {needed / _GB:.2f} GB "
        f"({layout.size / 1e3:.0f} kB each)",
        "take fewer views, or teacher_cache=disk" if args.teacher_cache == "ram" else "take fewer views",
    )


def _name_others(folder: Path, names: set[str]) -> None:
    others = [f for f in folder.parent.glob(f"{folder.name}.*{SUFFIX}") if f.name not in names]
    if others:
        LOGGER.info(
            f"{len(others)} more such files beside it were made for another teacher, other data or other settings and "
            f"are not used here; whoever needs them no more can delete them: {', '.join(f.name for f in others)}"
        )


def key(header: Mapping[str, Any], *, panel: Panel, dataset: Any, args: Any, folder: Path) -> str:
    """A hash over everything that a record depends on: teachers, data, views, and what computes them."""
    settings: dict[str, Any] = {k: str(getattr(args, k, None)) for k in (*AUGMENTATIONS, "imgsz", "seed")}
    if args.task != "detect":
        settings["task"], settings["flip_idx"] = str(args.task), str(dataset.data.get("flip_idx"))
    if args.teacher_imgsz:
        settings["teacher_imgsz"] = str(args.teacher_imgsz)
    first, *others = (voice.teacher.model for voice in panel.voices)
    if others:
        settings["others"] = [hash_tensors(model.state_dict().values()).hexdigest() for model in others]
        settings["votes"] = panel.votes.tolist()
    return fingerprint([header, settings], network=first, dataset=dataset, folder=folder)
