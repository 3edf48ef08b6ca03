"""Images without labels for training: read lazily, augmented as labelled ones are, in an order that a seed decides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader
from ultralytics.data.dataset import YOLODataset
from ultralytics.utils.patches import imread

from tskd_yolo.data.views import Views

TRIES = 32
"""So many images after one that cannot be read are tried in its place; if none can be, the place is grey."""
MANY = 1 << 20
"""Views of an image where none is kept: as many as there are passes."""
_SEED = 1 << 40
"""Added to the run's seed: views of labelled and of other images have nothing in common."""


class UnlabelledSet(YOLODataset):
    """An Ultralytics training set of images without labels, of which nothing is read before it is asked for.

    Mosaic and its like take their partners from this set. In the place of an image that cannot be read stands the next
    one that can; its name comes with the batch under ``unreadable``.

    Args:
        files: The images.
        data: The data set of the run, as the engine has read its YAML.
        args: The run's arguments.
        imgsz: At which images are read, in pixels.
    """

    def __init__(self, files: Sequence[str], *, data: Mapping[str, Any], args: Any, imgsz: int) -> None:
        # Not the engine's own: it lists, opens and remembers every image.
        own: dict[str, Any] = dict(im_files=files, labels=_Nothing(files), data=dict(data))
        own |= dict.fromkeys(("ims", "im_hw0", "im_hw", "npy_files"), _Absent())
        vars(self).update(own)
        self.side = self.imgsz = imgsz
        self.channels, self.single_cls, self.prefix = int(data["channels"]), False, "unlabelled: "
        self.cv2_flag = how_to_read(self.channels)
        self.use_segments = self.use_keypoints = self.use_obb = self.rect = False
        self.augment, self.ni = True, len(files)
        self.cache = "ram"  # to the engine: no image is remembered, and partners come from the whole set
        self.buffer: list[int] = []
        self.unreadable: list[str] = []
        """What could not be read since an item was given."""
        self.transforms = self.build_transforms(hyp=copy(args))

    def __getitem__(self, index: int) -> dict[str, Any]:
        """An augmented image with no box."""
        item = super().__getitem__(index)
        if self.unreadable:
            item["unreadable"], self.unreadable = self.unreadable, []
        return item

    def load_image(self, i: int, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The image of this number, or the next one that can be read."""
        for number in range(i, i + TRIES):
            file = self.im_files[number % self.ni]
            if (image := read(file, self.channels)) is not None:
                break
            self.unreadable.append(file)
        else:
            image = np.full((self.side, self.side, self.channels), 114, np.uint8)
        size = image.shape[:2]
        image = _fitted(image, self.side)
        return image, size, image.shape[:2]

    @staticmethod
    def collate_fn(batch: list[dict[str, Any]]) -> dict[str, Any]:
        """Ultralytics' batch, and under ``unreadable`` the names of images that could not be read."""
        missing = [file for item in batch for file in item.pop("unreadable", ())]
        return {**YOLODataset.collate_fn(batch), "unreadable": missing}


def how_to_read(channels: int) -> int:
    """OpenCV's flag for images of so many channels."""
    return {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR}.get(channels, cv2.IMREAD_UNCHANGED)


def read(file: str, channels: int) -> np.ndarray | None:
    """An image as Ultralytics reads it, ``(H, W, channels)``; None where it cannot be read, or has other channels."""
    try:
        image = imread(file, flags=how_to_read(channels))
    except (OSError, ValueError, cv2.error):
        return None
    return image if image is not None and image.shape[2] == channels else None


def _fitted(image: np.ndarray, side: int) -> np.ndarray:
    """An image with its longer side of so many pixels."""
    height, width = image.shape[:2]
    if max(height, width) == side:
        return image
    ratio = side / max(height, width)
    size = min(int(np.ceil(width * ratio)), side), min(int(np.ceil(height * ratio)), side)
    image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    return image[..., None] if image.ndim == 2 else image


class _Absent:
    """Nothing for every image: what the engine remembers of images that it keeps."""

    def __getitem__(self, i: int) -> None:
        return None


class _Nothing(Sequence[Any]):
    """The label of an image without labels, for every image."""

    def __init__(self, files: Sequence[str]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: Any) -> Any:
        return {
            "im_file": self.files[i],
            "shape": None,
            "cls": np.zeros((0, 1), np.float32),
            "bboxes": np.zeros((0, 4), np.float32),
            "segments": [],
            "keypoints": None,
            "normalized": True,
            "bbox_format": "xywh",
        }


# Order ----------------------------------------------------------------------------------------------------------------


class Parts(NamedTuple):
    """A batch on one process: labelled images, and others."""

    labelled: int
    unlabelled: int


def parts(batch: int, share: float) -> Parts:
    """A process's batch in two: ``share`` of it without labels, rounded, and at least one image of either kind."""
    other = min(max(round(batch * share), 1), max(batch - 1, 1))
    return Parts(max(batch - other, 1), other)


class Stream:
    """Batches of numbers of views, without end: the set is walked through in an order that seed and pass decide.

    Step ``s`` of a run reads places ``s * batch * processes`` and on, of which each process has its own. So a run that
    goes on reads what it would have read.

    Args:
        views: The set.
        batch: Images of a batch on one process.
        seed: Of the run.
        rank, processes: Which process this is, of how many.
    """

    def __init__(self, views: Views, *, batch: int, seed: int, rank: int = 0, processes: int = 1) -> None:
        self.views, self.batch, self.seed, self.rank, self.processes = views, batch, seed, rank, processes
        self.step = 0
        """The next step."""
        self._order: tuple[int, np.ndarray] | None = None

    def __iter__(self) -> Iterator[list[int]]:
        while True:
            first = (self.step * self.processes + self.rank) * self.batch
            self.step += 1
            yield [self.number(place) for place in range(first, first + self.batch)]

    def number(self, place: int) -> int:
        """The view at a place of the stream."""
        passed, i = divmod(place, len(self.views))
        if self._order is None or self._order[0] != passed:
            generator = np.random.default_rng([self.seed % 2**63, passed])
            self._order = passed, generator.permutation(len(self.views))
        return self.views.slot(passed) * len(self.views) + int(self._order[1][i])


class Flow:
    """The batches of images without labels of one run, read ahead by processes of its own.

    Args:
        dataset: The images.
        batch: Images of a batch on one process.
        seed: Of the run.
        views: How many of each image there are; None: a new one in every pass.
        workers: Processes that read; 0 reads in this one.
        rank, processes: As of :class:`Stream`.
        pinned: Whether batches go to a GPU.
    """

    def __init__(
        self,
        dataset: UnlabelledSet,
        *,
        batch: int,
        seed: int,
        views: int | None,
        workers: int,
        rank: int = 0,
        processes: int = 1,
        pinned: bool = False,
    ) -> None:
        self.views = Views(dataset, views or MANY, seed + _SEED)
        self.stream = Stream(self.views, batch=batch, seed=seed + _SEED, rank=rank, processes=processes)
        self.workers, self.pinned = workers, pinned
        self.missing: dict[str, None] = {}
        """Names of images that could not be read, in the order in which they were asked for."""
        self._batches: Any = None

    def batch(self, step: int) -> dict[str, Any]:
        """The batch of a step; that of the next one is being read."""
        if self._batches is None:
            self.stream.step = step
            self._batches = iter(self._loader())
        found = next(self._batches)
        self.missing |= dict.fromkeys(found.pop("unreadable"))
        return found

    def close(self) -> None:
        """Ends what reads ahead; the next batch begins anew."""
        self._batches = None

    def close_mosaic(self, hyp: Any) -> None:
        """As Ultralytics does for the last epochs."""
        self.close()
        self.views.close_mosaic(hyp)

    def _loader(self) -> DataLoader[Any]:
        return DataLoader(
            self.views,  # type: ignore[arg-type]
            batch_sampler=self.stream,
            num_workers=self.workers,
            prefetch_factor=4 if self.workers else None,
            collate_fn=self.views.collate_fn,
            pin_memory=self.pinned,
            generator=torch.Generator().manual_seed(0),  # the run's own random numbers stay what they are
        )


def joined(batch: Mapping[str, Any], other: Mapping[str, Any], device: torch.device, views: int = 0) -> dict[str, Any]:
    """One batch of labelled images and others, in this order; ``labelled`` counts the first.

    Args:
        batch, other: As Ultralytics collates them.
        device: Where images are joined: what a loader has pinned gets there without waiting.
        views: Of the labelled images; those of the others are numbered after them.
    """
    assert ("record" in batch) == ("record" in other), "one part comes out of the cache and the other does not"
    together = {**batch, "labelled": len(batch["img"])}
    for key in {"img", "record"} & batch.keys() & other.keys():
        together[key] = torch.cat([part[key].to(device, non_blocking=True) for part in (batch, other)])
    for key in {"im_file", "state"} & batch.keys() & other.keys():
        together[key] = [*batch[key], *other[key]]
    if "view" in batch:
        together["view"] = [*batch["view"], *(views + number for number in other["view"])]
    return together
