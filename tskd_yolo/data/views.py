"""Views: every training image in K augmented forms that are drawn by seed, the same in every epoch, run and process."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from tskd_yolo.rng import seeded
from tskd_yolo.rounding import ceil_div

KINDS = 2
"""Views with mosaic and its like, and views of the last epochs, which Ultralytics trains without (``close_mosaic``)."""


BOXES = 300
"""Most boxes of a view that is kept."""

_ITEM = {"im_file", "ori_shape", "resized_shape", "ratio_pad", "img", "cls", "bboxes", "batch_idx"}


class Kept:
    """A view as the first bytes of a record: image, boxes and shapes, as Ultralytics' training set gives them.

    A view with more boxes than fit, or with anything else in it, is not kept but drawn again.

    Args:
        imgsz, channels: Of the image.
        numbers: Of which a box consists, 5 where it is rotated; 0 of views that have masks or key points too, so that
            no record has room for them.
    """

    def __init__(self, imgsz: int, channels: int, numbers: int = 4) -> None:
        self.shape = channels, imgsz, imgsz
        self.numbers, self._box = numbers, 4 * (1 + numbers)
        self._boxes, self._image = 48, 48 + BOXES * self._box
        self.size = ceil_div(self._image + math.prod(self.shape), 16) * 16 if numbers else 0

    def put(self, view: dict[str, Any], record: np.ndarray) -> None:
        """Writes a view into a record, whose bytes are 0; they stay so where it is not kept."""
        if not self.size:
            return
        boxes = torch.cat((view["cls"], view["bboxes"]), dim=1).float().numpy()
        known = set(view) == _ITEM and np.shape(view["ratio_pad"]) == (2,)
        known = known and boxes.shape[1] == 1 + self.numbers
        if not known or len(boxes) > BOXES or tuple(view["img"].shape) != self.shape:
            return
        numbers = [len(boxes) + 1, *view["ori_shape"], *view["resized_shape"]]
        record[:20] = np.array(numbers, np.int32).view(np.uint8)
        record[32:48] = np.array(view["ratio_pad"], np.float64).view(np.uint8)
        record[self._boxes : self._boxes + boxes.nbytes] = boxes.reshape(-1).view(np.uint8)
        record[self._image : self._image + math.prod(self.shape)] = view["img"].numpy().reshape(-1)

    def get(self, record: np.ndarray, file: str) -> dict[str, Any] | None:
        """The view in a record, the record's own memory; None if it was not kept."""
        if not self.size:
            return None
        count, *shapes = record[:20].view(np.int32).tolist()
        if not count:
            return None
        boxes = record[self._boxes : self._boxes + (count - 1) * self._box].view(np.float32)
        boxes = boxes.reshape(-1, 1 + self.numbers)
        image = record[self._image : self._image + math.prod(self.shape)].reshape(self.shape)
        return {
            "im_file": file,
            "ori_shape": tuple(shapes[:2]),
            "resized_shape": tuple(shapes[2:]),
            "ratio_pad": tuple(record[32:48].view(np.float64).tolist()),
            "img": torch.from_numpy(image),
            "cls": torch.from_numpy(boxes[:, :1].copy()),
            "bboxes": torch.from_numpy(boxes[:, 1:].copy()),
            "batch_idx": torch.zeros(len(boxes)),
        }


class Views:
    """An Ultralytics training set whose items are views: item ``slot * len(set) + i`` is a view of image i.

    A slot is one of K views of one of two kinds. Mosaic takes its partners from the whole set, as with ``cache=ram``,
    and not from the images read last, and no image is changed in place: a view does not depend on what was read before
    it, or by which process.

    With a store of records, views come out of these, and each item carries its record, which begins with the view.

    Args:
        dataset: As Ultralytics builds it for training; it is changed in place.
        views: K.
        seed: What the views are drawn by.
    """

    def __init__(self, dataset: Any, views: int, seed: int) -> None:
        self.dataset, self.views, self.seed = dataset, views, seed
        self.closed = False
        self.store: Any = None
        numbers = 0 if dataset.use_segments or dataset.use_keypoints else 5 if dataset.use_obb else 4
        self.kept = Kept(dataset.imgsz, dataset.channels, numbers)
        dataset.load_image = partial(_untouched, dataset)
        self._spread()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # asked for by pickle before anything is set
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __getstate__(self) -> dict[str, Any]:
        """For a worker that is no fork; memory that it cannot open is read by the process that trains."""
        return {**self.__dict__, "store": self.store if self.store is not None and self.store.lasting else None}

    def __getitem__(self, number: int) -> dict[str, Any]:
        number = int(number)
        if self.store is None:
            return {**self.draw(number), "view": number}
        record, state = self.store.read(number)
        view = self.kept.get(record, self.dataset.im_files[number % len(self)]) if state > 0 else None
        if view is None:
            view = self.draw(number)
            if state <= 0:
                self.kept.put(view, record)
        return {**view, "view": number, "record": torch.from_numpy(record), "state": state}

    def draw(self, number: int) -> dict[str, Any]:
        """A view through Ultralytics' transforms."""
        slot, i = divmod(number, len(self.dataset))
        with seeded(self.seed % 2**63, slot // self.views, slot % self.views, i):
            return self.dataset[i]

    def collate_fn(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """Ultralytics' batch; records are stacked."""
        batch = self.dataset.collate_fn(items)
        if "record" in batch:
            batch["record"] = torch.stack(batch["record"])
        return batch

    @property
    def slots(self) -> int:
        """How many views an image can have."""
        return KINDS * self.views

    def slot(self, epoch: int) -> int:
        """Where an epoch's views stand."""
        return self.closed * self.views + epoch % self.views

    def close_mosaic(self, hyp: Any) -> None:
        """From now on views are of the other kind."""
        self.dataset.close_mosaic(hyp)
        self.closed = True
        self._spread()

    def _spread(self) -> None:
        """Lets every mosaic take its partners from the whole set."""
        waiting = [self.dataset.transforms]
        while waiting:
            transform = waiting.pop()
            if hasattr(transform, "buffer_enabled"):
                transform.buffer_enabled = False
            waiting += [t for t in (getattr(transform, "pre_transform", None),) if t is not None]
            waiting += getattr(transform, "transforms", None) or []


def _untouched(dataset: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    """The set's own ``load_image``, as a copy: what it keeps of images read last, some augmentations would draw on."""
    image, *shapes = type(dataset).load_image(dataset, *args, **kwargs)
    return image.copy(), *shapes


class Passes:
    """A sampler's images as numbers of views, another view in each pass.

    The view travels with the number: processes that read ahead, into the next epoch, read the next epoch's view.

    Args:
        sampler: Gives the images of each pass, in its order.
        views: The set that they belong to.
    """

    def __init__(self, sampler: Any, views: Views) -> None:
        self.sampler, self.views = sampler, views
        self._epoch, self._fresh = 0, True

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        start = self.views.slot(self._epoch) * len(self.views)
        self._epoch, self._fresh = self._epoch + 1, False
        for i in self.sampler:
            yield start + i

    def begin(self, epoch: int) -> None:
        """The next pass is this epoch's, unless passes are under way: they count for themselves."""
        if self._fresh:
            self._epoch = epoch

    def restart(self, epoch: int) -> None:
        """The loader begins anew: what was read ahead is dropped, the next pass is this epoch's."""
        self._fresh = True
        self.begin(epoch)


def of_views(loader: Any) -> Passes:
    """Lets an Ultralytics loader of a set of views go through them; returns what counts its passes."""
    passes = Passes(loader.sampler, loader.dataset)
    loader.batch_sampler.sampler.sampler = passes  # a batch sampler inside the one that Ultralytics repeats for ever
    return passes
