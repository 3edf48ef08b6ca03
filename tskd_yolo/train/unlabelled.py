"""Images without labels in a run: which there are, how they come into each batch, and what speaks against them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from ultralytics.data.augment import LetterBox
from ultralytics.data.utils import IMG_FORMATS
from ultralytics.utils import LOCAL_RANK, LOGGER, RANK, YAML, colorstr
from ultralytics.utils.torch_utils import torch_distributed_zero_first

from tskd_yolo import compat, confidence, config, files, hashing
from tskd_yolo.confidence import Confidence
from tskd_yolo.config import Config, ConfigError
from tskd_yolo.data import index
from tskd_yolo.data.index import Paths
from tskd_yolo.data.unlabelled import Flow, UnlabelledSet, joined, parts, read
from tskd_yolo.data.views import Views
from tskd_yolo.distill import likeness, regions
from tskd_yolo.distill.cache import Cache
from tskd_yolo.distill.distiller import Distiller
from tskd_yolo.distill.teacher import Teacher, coarser
from tskd_yolo.findings import Finding
from tskd_yolo.train import doubts, hooks, scan
from tskd_yolo.train.processes import FIRST, Processes
from tskd_yolo.train.summary import Facts, log

if TYPE_CHECKING:
    from tskd_yolo.train.engine import Engine
else:
    Engine = object  # the engine's trainer comes after the mixins, in the class that joins them

SAMPLE, BATCH = 128, 16
"""So many images of either kind are compared, evenly spaced in their order, and so many of them at a time."""
NAMED = 10
"""So many images that cannot be read are named at a time."""
MISSING = "unreadable.txt"
"""A file of the run that names them all."""

# Which there are ------------------------------------------------------------------------------------------------------


def sources(values: Mapping[str, Any]) -> list[str]:
    """The images without labels that a run is given, by whole paths; those of the data YAML where it is given none.

    Args:
        values: The run's arguments.

    Raises:
        ConfigError: If one of them is not there.
    """
    if given := config.sources(values["unlabelled"]):
        return index.absolute(given)
    file = Path(str(values["data"]))
    if values["unlabelled"] is False or not any(values[term] for term in config.TERMS) or not file.is_file():
        return []
    try:
        content = YAML.load(file)
    except (OSError, ValueError):  # whoever reads the data says what is wrong with the file
        return []
    place = Path(str(content.get("path") or file.resolve().parent))
    if not place.exists() and not place.is_absolute():  # as Ultralytics finds the other splits
        place = compat.datasets_folder() / place
    return index.absolute(config.sources(content.get("unlabelled")), place.resolve())


def wrong_sources(values: Mapping[str, Any], overrides: dict[str, Any]) -> list[str]:
    """What is wrong with images without labels; puts their whole paths into ``overrides`` where nothing is.

    Args:
        values: The run's arguments.
        overrides: What the user gave.
    """
    try:
        found = sources(values)
    except ConfigError as error:
        return error.problems
    if not found:
        return ["pseudo: there are no images without labels; give unlabelled=, or leave pseudo out."] * (
            values["pseudo"] is True
        )
    if not any(values[term] for term in config.TERMS):
        return [
            "unlabelled: with drd=0 ded=0 crd=0 nothing is learned from images without labels; give a term a weight, "
            "or leave unlabelled out."
        ]
    overrides["unlabelled"] = found
    given = config.sources(values["unlabelled"])
    return [] if given else config.unlabelled_problems({**values, "unlabelled": found})


def wrong_teacher(distiller: Distiller, pseudo: bool) -> list[str]:
    """Why a teacher has nothing to say about images without labels, in a sentence; empty if it has."""
    match, name = distiller.match, distiller.teacher.name
    if match.headless or match.queries or not match.branches:
        what = "answers by queries" if match.queries else "has no response that the student's head has"
        return [f"unlabelled: the teacher {name} {what}; give a YOLO detector, or leave unlabelled out."]
    if not distiller.teacher.classes.known:
        return [f"unlabelled: the teacher {name} has no class of the data and sees nothing; give classes_map=."]
    if pseudo and match.strides != distiller.readers.head.strides:
        return ["pseudo: teacher and student have not the same levels, and a level would be all background; drop it."]
    return []


def left_out(
    paths: Paths, train: Sequence[str], val: Sequence[str], test: Sequence[str] = ()
) -> tuple[Paths, list[Finding]]:
    """The images that are in neither train nor val, by content, and what there is to say of the others and of test."""
    there = {name: paths.same_as(split) for name, split in (("train", train), ("val", val), ("test", test))}
    rest = paths.without([*there["train"], *there["val"]])
    return rest, doubts.of_leaks(
        {name: [(paths.file(n), file) for n, file in found.items()] for name, found in there.items()}
    )


# What is said of them -------------------------------------------------------------------------------------------------


def look(files: Sequence[str], *, side: int, channels: int, device: torch.device) -> Iterator[tuple[list[str], Tensor]]:
    """A sample of images in batches ``(n, channels, side, side)``, with their names; what cannot be read is left out.

    Args:
        files: The images.
        side: In pixels.
        channels: Of an image.
        device: Where they go.
    """
    chosen = np.unique(np.linspace(0, len(files) - 1, min(SAMPLE, len(files))).astype(int)).tolist()
    fit = LetterBox((side, side))
    for start in range(0, len(chosen), BATCH):
        names, images = [], []
        for file in (files[i] for i in chosen[start : start + BATCH]):
            if (image := read(file, channels)) is not None:
                names.append(file)
                images.append(np.atleast_3d(np.asarray(fit(image=image)))[..., ::-1].transpose(2, 0, 1))
        if images:
            yield names, torch.from_numpy(np.stack(images)).to(device).float() / 255


def unlike(teacher: Teacher, train: Sequence[str], others: Sequence[str], **how: Any) -> list[Finding]:
    """What speaks against images that look nothing like the training set.

    Args:
        teacher: In whose eyes.
        train, others: The images.
        **how: As of :func:`look`.
    """
    own = list(look(list(dict.fromkeys(train)), **how))  # a list may name an image several times
    theirs = list(look(others, **how))
    names = [name for part, _ in theirs for name in part]
    if not names:
        return [Finding("warning", "unlabelled", "none of a sample of them can be read", "look at the files")]
    if sum(len(part) for part, _ in own) < doubts.FEW:
        return []
    found = likeness.distances(*(likeness.pooled(teacher, (images for _, images in part)) for part in (own, theirs)))
    return doubts.of_likeness(found, names)


@hooks.noting
class UnlabelledMixin(Engine):
    """Hook points of a run that learns from images without labels too: each batch is joined from both kinds.

    ``batch_size``, as the engine has it, counts labelled images only: its epoch is one pass over these, and learning
    rates, accumulated gradients and decay are those of a run on them alone. ``args.batch`` counts both.
    """

    config: Config
    distiller: Distiller | None
    facts: Facts | None
    batches: int
    _cache: Cache | None
    _flow: Flow | None = None
    """Gives the images without labels of each step."""
    _total: int = 0
    """Images of a batch, of both kinds and all processes."""
    _counted: bool = False
    """It was said what the teacher sees."""
    _others: Paths | None = None
    """The images without labels, without those that are in train or val."""

    # Data -------------------------------------------------------------------------------------------------------------

    def _build_train_pipeline(self) -> None:
        """The engine's, with labelled images in their part of the batch, and the flow of others beside it."""
        if not self.config.unlabelled or self.distiller is None:
            return super()._build_train_pipeline()
        world = max(self.world_size, 1)
        if self._flow is not None:  # again, after a step that ran out of memory: the engine has halved its own part
            self._flow.close()
            self.args.batch = max(self._total // 2, 2 * world)
        self._total = int(self.args.batch)
        if self._total < 2 * world:
            words = f"each of {world} processes needs images of both kinds, and batch={self._total} is too small"
            raise ConfigError([f"unlabelled: {words}; give batch={2 * world} or more."])
        mine = parts(self._total // world, self.config.unlabelled_share)
        self.batch_size = mine.labelled * world
        super()._build_train_pipeline()
        self._flow = self._new_flow(mine.unlabelled)
        if self._cache is not None:  # after a step that ran out of memory
            self._flow.views.store = self._cache.stores[1]

    def get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """The engine's; of the processes that read, labelled images have their part."""
        mode = kwargs.get("mode") or (args[3] if len(args) > 3 else "train")
        if mode != "train" or not self.config.unlabelled or self.distiller is None:
            return super().get_dataloader(*args, **kwargs)
        with compat.swapped(self.args, "workers", self._workers()[0]):
            return super().get_dataloader(*args, **kwargs)

    def _workers(self) -> tuple[int, int]:
        """Processes that read labelled images, and others."""
        devices = torch.cuda.device_count() if self.device.type == "cuda" else 1
        workers = min(int(self.args.workers), (os.cpu_count() or 1) // max(devices, 1))
        mine = parts(workers, self.config.unlabelled_share)
        return (mine.labelled, mine.unlabelled) if workers > 0 else (0, 0)

    def _new_flow(self, batch: int) -> Flow:
        dataset = UnlabelledSet(
            self._find_others(), data=self.data, args=self.args, imgsz=self.config.teacher_imgsz or self.args.imgsz
        )
        return Flow(
            dataset,
            batch=batch,
            seed=self.args.seed,
            views=self.config.views if self.config.teacher_cache else None,
            workers=self._workers()[1],
            rank=max(RANK, 0),
            processes=max(self.world_size, 1),
            pinned=self.device.type == "cuda",
        )

    def _find_others(self) -> Paths:
        """The images without labels; what speaks against them is logged once."""
        if self._others is not None:
            return self._others
        assert self.config.unlabelled is not None
        how: dict[str, Any] = dict(suffixes=IMG_FORMATS, kept=hashing.kept)
        with torch_distributed_zero_first(LOCAL_RANK):  # the first writes the index, the others read it
            found = index.images(self.config.unlabelled, **how)
            train, val = (list(loader.dataset.im_files) for loader in (self.train_loader, self.test_loader))
            test = scan.images_of(self.data, "test")
            self._others, self._leaks = left_out(found, train, val, test)
            if found.heads_read:
                index.keep_heads(found, self.config.unlabelled, **how)
        if not len(self._others):
            raise ConfigError(
                [f"unlabelled: all {len(found)} images are in train or val too, and none is left; give others."]
            )
        return self._others

    def _close_dataloader_mosaic(self) -> None:
        super()._close_dataloader_mosaic()
        if self._flow is not None:
            self._flow.close_mosaic(copy(self.args))

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The engine's, for labelled images and others in one batch."""
        if self._flow is not None:
            other = self._flow.batch(self.epoch * len(self.train_loader) + self.batches)
            batch = joined(batch, other, self.device, views=self._labelled_views())
        return super().preprocess_batch(batch)

    def _labelled_views(self) -> int:
        dataset = self.train_loader.dataset
        return dataset.slots * len(dataset) if isinstance(dataset, Views) else 0

    def final_eval(self) -> None:
        """The engine's; nothing is read ahead any more."""
        if self._flow is not None:
            self._flow.close()
        super().final_eval()

    # Before the first step --------------------------------------------------------------------------------------------

    def _see_others(self, distiller: Distiller) -> None:
        """Finds out from which score on the teacher's boxes count, on the validation images."""
        if self._flow is None:
            return
        if problems := wrong_teacher(distiller, self.config.pseudo):
            raise ConfigError(problems)
        thresholds = torch.full((len(distiller.teacher.classes.names),), confidence.NEVER, device=self.device)
        seer = regions.see(distiller, thresholds, pseudo=self.config.pseudo)
        self._scores = self._confidence(distiller) if FIRST else None
        if self._scores is not None:
            thresholds = torch.tensor(self._scores.thresholds, device=self.device)
        _processes(self).broadcast([thresholds])
        seer.thresholds = thresholds

    def _confidence(self, distiller: Distiller) -> Confidence:
        size = self.config.teacher_imgsz or self.args.imgsz
        with compat.swapped(self.args, "imgsz", size):  # all images: the engine's own loader has a process's share
            loader = self.get_dataloader(self.data[self.args.split], batch_size=BATCH, rank=-1, mode="val")
        settings: dict[str, Any] = {"iou": self.args.iou, "max_det": self.args.max_det}
        together: dict[str, Any] = {"branch": distiller.match.branches[0]}
        detector: Any = regions.detector(distiller)
        networks = [detector]
        loader.dataset.rect &= not coarser(distiller.teachers, than=self.stride)
        if len(distiller.teachers) > 1:
            loader.dataset.rect = False  # on the student's grid, so the image has to be the student's too
            networks = [each.model for each in distiller.teachers]
            together["votes"] = distiller.panel.votes.tolist()
            together["student"] = [self.args.imgsz, *distiller.match.strides]  # the grid on which they are heard
        found = confidence.measured(
            confidence.look(detector, **settings),
            networks,
            loader=loader,
            device=self.device,
            settings={"imgsz": size, **settings, **together},
        )
        return confidence.of(found, self.data["names"], precision=self.config.unlabelled_precision)

    def _doubt_others(self, distiller: Distiller) -> None:
        """Logs what there is of images without labels, and what speaks against them."""
        if self._flow is None or self._others is None or not FIRST:
            return
        self._begin_missing()
        mine = self._flow.stream.batch * max(self.world_size, 1)
        found = self._scores
        rows = [f"images    {len(self._others)} without labels, {mine} of the {mine + self.batch_size} in a batch"]
        if found is not None:
            words = ", ".join(f"{c.name} {c.threshold.score:.2f}" for c in found.classes if c.threshold.found)
            rows.append(f"counted   fully from these scores on, at a precision of {found.precision:g}: {words or '-'}")
            rows += [f"counted   {line}" for line in found.told()]
        rows += [f"left out  {finding.reason}" for finding in self._leaks if finding.level == "note"]
        LOGGER.info("\n" + colorstr("tskd-yolo:") + " images without labels\n  " + "\n  ".join(rows) + "\n")
        size = self.config.teacher_imgsz or self.args.imgsz
        against = [
            *self._leaks,
            *doubts.of_confidence(found),
            *unlike(
                distiller.teacher,
                list(self.train_loader.dataset.im_files),
                self._others,
                side=size,
                channels=int(self.data["channels"]),
                device=self.device,
            ),
        ]
        log(against)
        if self.facts is not None:
            self.facts.doubts.extend(against)

    # Each epoch -------------------------------------------------------------------------------------------------------

    def _tell_others(self, distiller: Distiller) -> None:
        """Says what the teacher saw in an epoch, and which images could not be read, each once."""
        if self._flow is None or distiller.seer is None:
            return
        images, boxes, sure = _processes(self).total([*distiller.seer.collect()])
        self._tell_missing(_processes(self).together(list(self._flow.missing)))
        if images and not self._counted:  # the teacher does not change
            self._counted = True
            LOGGER.info(
                f"{colorstr('tskd-yolo:')} on images without labels the teacher saw {boxes / images:.1f} boxes an "
                f"image, {sure / images:.1f} of them with the wanted precision."
            )

    def _begin_missing(self) -> None:
        if not self.args.resume:  # those of another run in this folder
            (self.save_dir / MISSING).unlink(missing_ok=True)

    def _tell_missing(self, names: Sequence[str]) -> None:
        """Names images that cannot be read, each once in a run; a file in its folder has them all."""
        if not FIRST or not names:
            return
        file = self.save_dir / MISSING
        told = os.fsdecode(file.read_bytes()).splitlines() if file.exists() else []
        known = {*told}
        if new := [name for name in dict.fromkeys(names) if name not in known]:
            files.replace(file, os.fsencode("".join(f"{name}\n" for name in [*told, *new])))
            more = f" and {len(new) - NAMED} more" if len(new) > NAMED else ""
            words = f"{len(new)} images cannot be read, others stand in their place, and {MISSING} has their names"
            log([Finding("warning", "unlabelled", f"{words}: {', '.join(map(_name, new[:NAMED]))}{more}")])


def _name(file: str) -> str:
    return Path(file).name


def _processes(trainer: Engine) -> Processes:
    return Processes(max(trainer.world_size, 1), trainer.device)
