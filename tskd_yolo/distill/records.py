"""Records of the teacher's outputs: what of them is kept of one view, in which bytes, and where these lie.

A record holds a view of an image, so that it is drawn only once, and what the terms read of the teacher and no more:

- image and boxes of the view (:class:`tskd_yolo.data.views.Kept`);
- neck features and maps of the backbone's stages as 8-bit codes, per channel ``value = code * step + low``, with the
  mean and variance of each channel, by which a batch is standardised; the teacher's class scores on each level;
- per branch of the head: class logits, the box logits at the locations that CRD compares, and of the tower activations
  the mean and sum of squares of each channel; or boxes and class logits of the teacher's queries.

Records lie in a file of fixed size: a header, one checksum per record, the records. A checksum is written after its
record and is read with it, so a record that is torn, by a kill or by two processes that write it at once, is no record:
it is computed again. Nothing needs a lock, and processes of a run share the file.
"""

from __future__ import annotations

import json
import mmap
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from ultralytics.utils import LOGGER

from tskd_yolo.distill.features import TeacherOutputs
from tskd_yolo.losses.assigned import Queries
from tskd_yolo.losses.crd import Target
from tskd_yolo.losses.distributed import all_reduce_mean
from tskd_yolo.losses.standardize import Map, inverse_deviation
from tskd_yolo.losses.tails import Moments
from tskd_yolo.rounding import ceil_div

FORMAT = 4
"""Counts up when records come to hold something else."""

_HEADER, _WHOLE, _ALIGN = 1 << 14, 1 << 32, 16
_SOURCES = {"map": "neck", "stage": "stages"}
"""Names of parts, and of the sources that they hold."""


# Outputs and their parts ----------------------------------------------------------------------------------------------


@torch.no_grad()
def pack(outputs: TeacherOutputs) -> dict[str, Tensor]:
    """What is kept of the teacher's outputs, by name, each ``(N, ...)``."""
    kept: dict[str, Tensor] = {} if outputs.level_scores is None else {"said": outputs.level_scores}
    for kind, source in _SOURCES.items():
        for i, features in enumerate(outputs.maps.get(source, ())):
            assert isinstance(features, Tensor)
            kept.update({f"{kind}{i}.{name}": value for name, value in _coded(features).items()})
    for branch, target in outputs.responses.items():
        if isinstance(target, Queries):
            kept[f"{branch}.queries"], kept[f"{branch}.logits"] = target.boxes.float(), _half(target.scores)
            continue
        kept[f"{branch}.scores"] = _half(target.scores)
        kept[f"{branch}.place"] = target.place.int()
        kept[f"{branch}.boxes"] = _half(target.boxes)
        for i, (box, score) in enumerate(target.towers):
            kept[f"{branch}.box{i}"] = torch.stack(box, dim=1)
            kept[f"{branch}.score{i}"] = torch.stack(score, dim=1)
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


def unpack(kept: Mapping[str, Tensor]) -> TeacherOutputs:
    """What the terms read of the teacher, from :func:`pack`: maps standardised over the batch."""
    maps = {source: _maps(kept, kind) for kind, source in _SOURCES.items()}
    branches = [name.removesuffix(".scores") for name in kept if name.endswith(".scores")]
    responses: dict[str, Target | Queries] = {branch: _target(kept, branch) for branch in branches}
    for branch in [name.removesuffix(".queries") for name in kept if name.endswith(".queries")]:
        responses[branch] = Queries(kept[f"{branch}.queries"], kept[f"{branch}.logits"])
    return TeacherOutputs(maps, responses, kept.get("said"))


def _maps(kept: Mapping[str, Tensor], kind: str) -> list[Callable[[], Map]]:
    maps: list[Callable[[], Map]] = []
    while f"{kind}{len(maps)}.codes" in kept:
        maps.append(partial(_map, *(kept[f"{kind}{len(maps)}.{field}"] for field in ("codes", "channels"))))
    return maps


def _map(codes: Tensor, channels: Tensor) -> Map:
    """Codes to a standardised map: ``code * gain + shift`` per image and channel."""
    low, step, mean, variance = channels.unbind(1)  # each (N, C)
    center = all_reduce_mean(mean.mean(dim=0))
    scale = inverse_deviation(all_reduce_mean((variance + (mean - center).square()).mean(dim=0)))
    cells = torch.addcmul(((low - center) * scale).unsqueeze(1), codes.flatten(1, 2), (step * scale).unsqueeze(1))
    return Map(cells, (codes.shape[1], codes.shape[2]))


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
        sample: Parts of any outputs.
        start: Bytes before them.
    """

    def __init__(self, sample: Mapping[str, Tensor], start: int = 0) -> None:
        self.fields: list[tuple[str, tuple[int, ...], torch.dtype, int, int]] = []
        self.size = start
        for name, part in sample.items():
            size = part[0].numel() * part.element_size()
            self.fields.append((name, tuple(part.shape[1:]), part.dtype, self.size, self.size + size))
            self.size += ceil_div(size, _ALIGN) * _ALIGN

    def join(self, kept: Mapping[str, Tensor], table: Tensor) -> None:
        """Puts parts into records ``(N, size)``."""
        for name, _, _, start, end in self.fields:
            table[:, start:end] = kept[name].contiguous().view(len(table), -1).view(torch.uint8)

    def split(self, table: Tensor) -> dict[str, Tensor]:
        """Records as parts, not copied."""
        return {
            name: table[:, start:end].view(dtype).unflatten(1, shape) for name, shape, dtype, start, end in self.fields
        }

    def plain(self) -> list[list[Any]]:
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
        self._start = ceil_div(_HEADER + 8 * count, mmap.PAGESIZE) * mmap.PAGESIZE
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
    def count(self) -> int:
        """How many records there can be."""
        return len(self._records)

    def close(self) -> None:
        """Gives its memory back, or lets go of its file; of no use after it."""
        self._sums, self._records, self._bytes = np.empty(0, np.uint64), np.empty((0, 0), np.uint8), None
        if self._file is not None:
            self._file.close()

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


class Stores:
    """Stores under one numbering: the numbers of each begin where those of the one before it end.

    Args:
        parts: The stores.
    """

    def __init__(self, parts: Sequence[Store]) -> None:
        self.parts = list(parts)

    def read(self, number: int) -> tuple[np.ndarray, int]:
        """As :meth:`Store.read`."""
        store, number = self._place(number)
        return store.read(number)

    def write(self, number: int, record: np.ndarray) -> None:
        """As :meth:`Store.write`."""
        store, number = self._place(number)
        store.write(number, record)

    def _place(self, number: int) -> tuple[Store, int]:
        for store in self.parts[:-1]:
            if number < store.count:
                return store, number
            number -= store.count
        return self.parts[-1], number

    def whole(self) -> int:
        """How many records there are."""
        return sum(store.whole() for store in self.parts)


def _sum(record: np.ndarray) -> int:
    return _WHOLE | zlib.crc32(record.data)


def _make(file: Path, head: bytes, total: int) -> None:
    """An empty file, unless there is one with this header and of this size."""
    if file.exists():
        with open(file, "rb") as found:
            if found.read(_HEADER) == head and file.stat().st_size == total:
                return
        LOGGER.warning(f"{file} is cut short or damaged and is made anew.")
        file.unlink()
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as new:
            new.write(head)
            new.truncate(total)  # takes up no room yet
            new.flush()
            os.fsync(new.fileno())
        _place(part, file)
    finally:
        part.unlink(missing_ok=True)


def _place(part: Path, file: Path) -> None:
    """Gives a file its name, unless another run that starts meanwhile was faster: that one's is used by both."""
    try:
        os.link(part, file)
    except FileExistsError:
        return
    except OSError:  # a file system without links
        os.replace(part, file)
