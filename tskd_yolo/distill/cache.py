"""What the teacher says of every view of every training image, kept: the teacher sees each once.

A record holds a view of an image, so that it is drawn only once, and what the terms read of the teacher and no more:

- image and boxes of the view (:class:`tskd_yolo.data.views.Kept`);
- neck features and maps of the backbone's stages as 8-bit codes, per channel ``value = code * step + low``, with the
  mean and variance of each channel, by which a batch is standardised; how much the teacher says on each level;
- per branch of the head: class logits, the box logits at the locations that CRD compares, and of the tower activations
  the mean and sum of squares of each channel.

Records lie in a file of fixed size: a header, one checksum per record, the records. A checksum is written after its
record and is read with it, so a record that is torn, by a kill or by two processes that write it at once, is no record:
it is computed again. Nothing needs a lock, and processes of a run share the file.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor
from ultralytics.data.utils import img2label_paths
from ultralytics.utils import LOGGER, colorstr

from tskd_yolo.config import ConfigError
from tskd_yolo.distill.features import Answer
from tskd_yolo.hashing import fingerprint
from tskd_yolo.losses.crd import Moments, Target
from tskd_yolo.losses.distributed import everywhere
from tskd_yolo.losses.standardize import Map, inverse_deviation

FORMAT = 3
"""Counts up when records come to hold something else."""

SUFFIX = ".tskd"

AUGMENTATIONS = (
    "hsv_h", "hsv_s", "hsv_v", "degrees", "translate", "scale", "shear", "perspective", "flipud", "fliplr", "bgr",
    "mosaic", "mixup", "cutmix", "copy_paste", "copy_paste_mode", "augmentations",
)  # fmt: skip
"""Ultralytics' arguments that a view depends on, beside ``imgsz``, ``seed`` and the data."""

_HEADER, _WHOLE, _ALIGN, _GB = 1 << 14, 1 << 32, 16, 1e9


# What is kept of an answer --------------------------------------------------------------------------------------------


@torch.no_grad()
def parts(answer: Answer) -> dict[str, Tensor]:
    """What is kept of the teacher's answer, by name, each ``(N, ...)``."""
    kept: dict[str, Tensor] = {} if answer.said is None else {"said": answer.said}
    for kind, maps in (("map", answer.maps), ("stage", answer.stages)):
        for i, features in enumerate(maps):
            assert isinstance(features, Tensor)
            kept.update({f"{kind}{i}.{name}": value for name, value in _coded(features).items()})
    for branch, said in answer.responses.items():
        kept[f"{branch}.scores"] = _half(said.scores)
        kept[f"{branch}.place"] = said.place.int()
        kept[f"{branch}.boxes"] = _half(said.boxes)
        for i, pair in enumerate(said.towers):
            for kind, tower in zip(("box", "score"), pair, strict=True):
                kept[f"{branch}.{kind}{i}"] = torch.stack(tower, dim=1)
    return kept


def _half(x: Tensor) -> Tensor:
    return x.clamp(-65504, 65504).half()


def _coded(features: Tensor) -> dict[str, Tensor]:
    """Features ``(N, C, H, W)`` as 8-bit codes, with the statistics of what the codes stand for."""
    values = features.float().permute(0, 2, 3, 1).flatten(1, 2)
    low, high = values.aminmax(dim=1, keepdim=True)
    step = ((high - low) / 255).clamp(min=1e-30)
    codes = ((values - low) / step).round().clamp(0, 255)
    variance, mean = torch.var_mean(codes, dim=1, correction=0)
    low, step = low.squeeze(1), step.squeeze(1)
    return {
        "codes": codes.byte().unflatten(1, features.shape[2:]),
        "channels": torch.stack((low, step, mean * step + low, variance * step.square()), dim=1),
    }


def answer(kept: Mapping[str, Tensor]) -> Answer:
    """What the terms read of the teacher, from :func:`parts`: maps standardised over the batch."""
    maps, stages = (_maps(kept, kind) for kind in ("map", "stage"))
    branches = [name.removesuffix(".scores") for name in kept if name.endswith(".scores")]
    return Answer(maps, {branch: _target(kept, branch) for branch in branches}, kept.get("said"), stages)


def _maps(kept: Mapping[str, Tensor], kind: str) -> list[Callable[[], Map]]:
    maps: list[Callable[[], Map]] = []
    while f"{kind}{len(maps)}.codes" in kept:
        maps.append(partial(_map, *(kept[f"{kind}{len(maps)}.{field}"] for field in ("codes", "channels"))))
    return maps


def _map(codes: Tensor, channels: Tensor) -> Map:
    """Codes to a standardised map: ``code * gain + shift`` per image and channel."""
    low, step, mean, variance = channels.unbind(1)  # each (N, C)
    center = everywhere(mean.mean(dim=0))
    scale = inverse_deviation(everywhere((variance + (mean - center).square()).mean(dim=0)))
    cells = torch.addcmul(((low - center) * scale).unsqueeze(1), codes.flatten(1, 2), (step * scale).unsqueeze(1))
    return Map(cells, None, (codes.shape[1], codes.shape[2]))


def _target(kept: Mapping[str, Tensor], branch: str) -> Target:
    towers: list[tuple[Moments, Moments]] = []
    while f"{branch}.box{len(towers)}" in kept:
        box, score = (kept[f"{branch}.{kind}{len(towers)}"] for kind in ("box", "score"))
        towers.append((Moments(*box.unbind(1)), Moments(*score.unbind(1))))
    scores, place, boxes = (kept[f"{branch}.{name}"] for name in ("scores", "place", "boxes"))
    return Target(scores.float(), place.long(), boxes.float(), towers)


class Layout:
    """Where each part stands in a record.

    Args:
        sample: Parts of any answer.
        start: Bytes before them.
    """

    def __init__(self, sample: Mapping[str, Tensor], start: int = 0) -> None:
        self.fields: list[tuple[str, tuple[int, ...], torch.dtype, int, int]] = []
        self.size = start
        for name, part in sample.items():
            size = part[0].numel() * part.element_size()
            self.fields.append((name, tuple(part.shape[1:]), part.dtype, self.size, self.size + size))
            self.size += -(-size // _ALIGN) * _ALIGN

    def join(self, kept: Mapping[str, Tensor], table: Tensor) -> None:
        """Puts parts into records ``(N, size)``."""
        for name, _, _, start, end in self.fields:
            table[:, start:end] = kept[name].contiguous().view(len(table), -1).view(torch.uint8)

    def split(self, table: Tensor) -> dict[str, Tensor]:
        """Records as parts, not copied."""
        return {
            name: table[:, start:end].view(dtype).unflatten(1, shape) for name, shape, dtype, start, end in self.fields
        }

    def words(self) -> list[list[Any]]:
        """The layout in plain values."""
        return [[name, list(shape), str(dtype)] for name, shape, dtype, *_ in self.fields]


# Where records lie ----------------------------------------------------------------------------------------------------


class Store:
    """Records of one size under numbers, in a file or in memory.

    Args:
        count, size: How many, of how many bytes each.
        file: Where they lie; made where it is missing or not what it should be. None: in this process's memory.
        header: What is written down about them, in plain values; None: the file is there.

    Raises:
        OSError: If the file cannot be made.
    """

    def __init__(self, count: int, size: int, file: Path | None, header: Mapping[str, Any] | None) -> None:
        self._start = -(-(_HEADER + 8 * count) // mmap.PAGESIZE) * mmap.PAGESIZE
        self.file = file
        total = self._start + count * size
        self._file: Any = None
        if file is None:
            self._bytes: Any = mmap.mmap(-1, total)
        else:
            if header is not None:
                _make(file, json.dumps(header).encode().ljust(_HEADER), total)
            self._file = open(file, "r+b", buffering=0)
            self._bytes = mmap.mmap(self._file.fileno(), total, access=mmap.ACCESS_READ)
        self._sums = np.frombuffer(self._bytes, np.uint64, count, _HEADER)
        self._records = np.frombuffer(self._bytes, np.uint8, count * size, self._start).reshape(count, size)

    def read(self, number: int) -> tuple[np.ndarray, int]:
        """A copy of a record, and 1 if it is whole; zeros and 0 where there is none yet, and -1 where it is torn."""
        expected = self._sums[number]
        record = self._records[number].copy() if expected else np.zeros(self._records.shape[1], np.uint8)
        if not expected or expected == _sum(record):
            return record, int(expected > 0)
        record[:] = 0
        return record, -1

    def write(self, number: int, record: np.ndarray) -> None:
        """Writes a record before its checksum.

        Raises:
            OSError: If the disk is full.
        """
        self._put(self._start + number * len(record), record.tobytes())
        self._put(_HEADER + 8 * number, np.uint64(_sum(record)).tobytes())

    @property
    def lasting(self) -> bool:
        """Whether another process can open it by its name."""
        return self.file is not None and self.file.exists()

    def __reduce__(self) -> Any:
        return Store, (*self._records.shape, self.file, None)

    def _put(self, place: int, data: bytes) -> None:
        if self._file is None:
            self._bytes[place : place + len(data)] = data
            return
        self._file.seek(place)  # through the file: of a full disk a write into a mapping would be told by a signal
        while data:
            data = data[self._file.write(data) :]

    def whole(self) -> int:
        """How many records there are."""
        return int(np.count_nonzero(self._sums))


def _sum(record: np.ndarray) -> int:
    return _WHOLE | zlib.crc32(record.data)


def _make(file: Path, head: bytes, total: int) -> None:
    """An empty file, unless there is one with this header and of this size."""
    if file.exists():
        with open(file, "rb") as found:
            if found.read(_HEADER) == head and file.stat().st_size == total:
                return
        LOGGER.warning(f"{file} is cut short or damaged and is made anew.")
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    with open(part, "wb") as new:
        new.write(head)
        new.truncate(total)  # takes up no room yet
        new.flush()
        os.fsync(new.fileno())
    os.replace(part, file)


# One run's cache ------------------------------------------------------------------------------------------------------


class Cache:
    """Gives what the teacher said of a batch of views; what has not been said yet is asked for, and kept.

    The answer always comes out of records, also where they have just been made: a run is the same whether it found them
    or not.

    Args:
        layout: Of the records.
        store: Where they are.
    """

    def __init__(self, layout: Layout, store: Store) -> None:
        self.layout, self.store = layout, store
        self.asked = 0
        """Views that the teacher was shown."""
        self._torn = self._full = False

    def __call__(self, images: Tensor, batch: Mapping[str, Any], teacher: Callable[[Tensor], Answer]) -> Answer:
        """The answer to images ``(N, 3, H, W)`` of a batch of :class:`tskd_yolo.data.views.Views`."""
        table, missing = self._table(batch, images.device)
        if missing:
            fresh = table[missing]
            self.layout.join(parts(teacher(images[missing] if len(missing) < len(images) else images)), fresh)
            table[missing] = fresh
            self.asked += len(missing)
            self._keep([batch["view"][place] for place in missing], fresh.cpu())
        return answer(self.layout.split(table))

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
            LOGGER.warning("some records of what the teacher says are damaged, they are made anew.")
            self._torn = True
        return table, [place for place, state in enumerate(states) if state <= 0]

    def _keep(self, numbers: Sequence[int], records: Tensor) -> None:
        if self._full:
            return
        try:
            for number, record in zip(numbers, records.numpy(), strict=True):
                self.store.write(number, record)
        except OSError as error:
            LOGGER.warning(f"what the teacher says cannot be kept any more ({error.strerror}): it is asked every time.")
            self._full = True


def prepare(*, distiller: Any, views: Any, args: Any, epochs: int, shared: str = "") -> Cache:
    """The cache of one run, after its size was told.

    Args:
        distiller: The run's distiller.
        views: The training set as :class:`tskd_yolo.data.views.Views`.
        args: The run's arguments.
        epochs: Of the run.
        shared: For ``teacher_cache=ram``: a word that the run's processes on this machine have in common and no other
        run has. They then hold the records once; what is left over is removed by :func:`release`.

    Raises:
        ConfigError: If the records would take more than the limit, the disk or the memory has, or cannot be written.
    """
    device = next(distiller.teacher.model.parameters()).device
    sample = parts(distiller.ask(torch.zeros(1, 3, args.imgsz, args.imgsz, device=device)))
    layout = Layout(sample, views.kept.size)
    folder = _folder(views.dataset)
    header = {
        "format": FORMAT,
        "fields": layout.words(),
        "start": views.kept.size,
        "images": len(views),
        "views": args.views,
    }
    header["key"] = key(header, teacher=distiller.teacher, dataset=views.dataset, args=args, folder=folder)
    name = f"{folder.name}.{header['key'][:16]}{SUFFIX}"
    file = folder.parent / name if args.teacher_cache == "disk" else _in_memory(name, shared)
    needed = _size(layout, len(views), args, epochs)
    place = str(file) if args.teacher_cache == "disk" else "memory"
    _fits(needed, layout, len(views), args, file)
    try:
        store = Store(views.slots * len(views), layout.size, file, header)
    except OSError as error:
        raise ConfigError(
            [f"teacher_cache: {place} cannot be made ({error.strerror}); make its folder writable, or give ram."]
        ) from error
    LOGGER.info(
        f"{colorstr('tskd-yolo:')} what the teacher says is kept in {place}: {needed / _GB:.2f} GB at most, "
        f"{layout.size / 1e3:.0f} kB for each view of {len(views)} images; {store.whole()} views are there already."
    )
    if args.teacher_cache == "disk":
        _name_others(folder, name)
    return Cache(layout, store)


def _folder(dataset: Any) -> Path:
    """The folder of the labels, beside which Ultralytics keeps its own cache of them."""
    return Path(img2label_paths(dataset.im_files)[0]).resolve().parent


def _in_memory(name: str, shared: str) -> Path | None:
    """The file in memory that processes of a run share; None where there is but one, or no such file system."""
    memory = Path("/dev/shm")
    return memory / f"{shared}.{name}" if shared and memory.is_dir() else None


def release(args: Any, cache: Cache) -> None:
    """Takes the name away from a file in memory that all processes have opened: it goes when the last of them goes."""
    file = cache.store.file
    if args.teacher_cache == "ram" and file is not None:
        file.unlink(missing_ok=True)


def _size(layout: Layout, images: int, args: Any, epochs: int) -> int:
    """Bytes of all records that a run can come to need."""
    closed = min(args.close_mosaic, epochs)
    views = min(args.views, epochs - closed) + min(args.views, closed)
    return images * views * (layout.size + 8)


def _fits(needed: int, layout: Layout, images: int, args: Any, file: Path | None) -> None:
    """Refuses what is larger than it may be or can be."""
    if args.teacher_cache == "disk":
        assert file is not None
        there = file.stat().st_blocks * 512 if file.exists() and hasattr(os.stat_result, "st_blocks") else 0
        free, what = shutil.disk_usage(file.parent).free + there, "free on the disk"
    else:
        free, what = psutil.virtual_memory().available, "of memory free"
    words = (
        f"teacher_cache: what the teacher says of {images} images in views={args.views} takes {needed / _GB:.2f} GB "
        f"({layout.size / 1e3:.0f} kB each)"
    )
    remedy = "take fewer views" + ", or teacher_cache=disk" * (args.teacher_cache == "ram")
    if needed > args.cache_limit * _GB:
        raise ConfigError([f"{words}, and cache_limit is {args.cache_limit:g} GB; raise it, or {remedy}."])
    if needed > free:
        raise ConfigError([f"{words}, and {free / _GB:.2f} GB are {what}; free some, or {remedy}."])


def _name_others(folder: Path, name: str) -> None:
    others = [f for f in folder.parent.glob(f"{folder.name}.*{SUFFIX}") if f.name != name]
    if others:
        LOGGER.info(
            f"{len(others)} more such files beside it were made for another teacher, other data or other settings and "
            f"are not used here; whoever needs them no more can delete them: {', '.join(f.name for f in others)}"
        )


def key(header: Mapping[str, Any], *, teacher: Any, dataset: Any, args: Any, folder: Path) -> str:
    """A hash over everything that a record depends on: teacher, data, views, and what computes them."""
    settings = {k: str(getattr(args, k, None)) for k in (*AUGMENTATIONS, "imgsz", "seed")}
    return fingerprint([header, settings], network=teacher.model, dataset=dataset, folder=folder)
