"""What is done once between the engine's own set-up and the first step: teacher, adapters, optimizer, cache."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from ultralytics.data.utils import check_det_dataset
from ultralytics.utils import LOCAL_RANK, LOGGER, YAML
from ultralytics.utils.checks import check_imgsz
from ultralytics.utils.torch_utils import torch_distributed_zero_first

from tskd_yolo import compat, config
from tskd_yolo.config import Config, ConfigError
from tskd_yolo.data.views import Views
from tskd_yolo.distill import cache, classes, reach
from tskd_yolo.distill.distiller import Distiller
from tskd_yolo.distill.feature_model import FeatureModel
from tskd_yolo.distill.feature_teacher import FeatureTeacher
from tskd_yolo.distill.features import channels, strides
from tskd_yolo.distill.matching import no_student
from tskd_yolo.distill.teacher import Teacher, coarser
from tskd_yolo.rng import undisturbed
from tskd_yolo.rounding import ceil_div
from tskd_yolo.train import checks
from tskd_yolo.train.engine import Arguments, Engine
from tskd_yolo.train.processes import FIRST, Processes

MAX_NORM = 10.0
"""To which gradients of the adapters are clipped: the engine's own limit for the student's."""


def in_channels_last(args: Arguments, device: torch.device) -> bool:
    """Whether the student is brought to channels_last by us: on a CPU, where the engine never does it, a step takes a
    quarter less time. Elsewhere the engine decides, and it writes checkpoints in its own format anyway.
    """
    return device.type == "cpu" and args.channels_last is not False and compat.channels_last_pays()


def ded_if_trained(given: Mapping[str, Any], base: Mapping[str, Any]) -> float | None:
    """The share of DED that a student would have if it had weights; None of one that has some by its arguments.

    Args:
        given: What a user gave.
        base: The arguments beneath.
    """
    if not config.from_random(given.get("model"), given.get("pretrained")):
        return None
    return config.with_variant({**given, "model": None, "pretrained": True}).get("ded", base["ded"])


def take_as_trained(trainer: Any, weights: Any) -> None:
    """Notes that a student has weights, and whether they were trained on the data's classes.

    So ``YOLO("yolo11n.yaml").load("yolo11n.pt")`` is told from a new student, which it is by its arguments.
    """
    names = getattr(weights, "names", None) or {}
    trainer._student_trained = list(names.values()) == list(trainer.data["names"].values())
    if trainer._ded_if_trained is not None and not trainer.args.resume:
        trainer.args.ded, trainer._ded_if_trained = trainer._ded_if_trained, None
        trainer.config = config.build({**vars(trainer.args), "trust": trainer._trust})
        if FIRST:  # the engine wrote it before anybody knew
            YAML.save(trainer.save_dir / "args.yaml", vars(trainer.args))


def build_distiller(
    student: Any, loaded: Sequence[Any], *, names: dict[int, str], config: Config, args: Arguments
) -> Distiller:
    """Teachers, adapters and losses of a run.

    Args:
        student: The plain detector, on its device; nothing wraps it yet.
        loaded: The teachers as they were loaded; they are changed in place.
        names: The student's classes.
        config: The checked settings.
        args: The run's arguments.

    Raises:
        ConfigError: If these teachers cannot teach this student.
    """
    mapping, theirs = classes.read(config.classes_map), classes.of_all(model.names for model in loaded)
    whole = check_det_dataset(args.data)["names"] if args.single_cls else names  # the engine has made them one
    errors = [*no_student(student.yaml), *classes.wrong(mapping, theirs, whole)]
    if errors := [*errors, *checks.wrong_channels(loaded, channels(student))]:
        raise ConfigError(errors)
    with undisturbed():  # folding batch norms draws random numbers
        asked = [_asked(model.names, names, whole, mapping, args) for model in loaded]
        frozen = [_frozen(model, student, names, each) for model, each in zip(loaded, asked, strict=True)]
    stride = max(int(max(student.stride)), 32)
    imgsz = check_imgsz(args.imgsz, stride=stride, floor=stride, max_dim=1)  # as the engine will come to round it
    size = config.teacher_imgsz or imgsz
    errors = [problem for each in frozen for problem in _wrong_sizes(each, size, stride, args, own=size != imgsz)]
    if size < imgsz:
        errors.append(
            f"teacher_imgsz: must be at least imgsz, which is {imgsz} px for a student whose coarsest stride is "
            f"{stride}, got {size}; give {imgsz} or more."
        )
    if errors:
        raise ConfigError(errors)
    first, *others = frozen
    distiller = Distiller(
        student=student, teacher=first, config=config, seed=args.seed, scale=size / imgsz, others=others
    )
    if not distiller.match.levels:
        raise ConfigError(
            [f"teacher: it has no level in common with the student (strides {_told(first.head)} and "
             f"{_told(student.model[-1])}); take another pair."]
        )  # fmt: skip
    if not distiller.on:
        reasons = "; ".join(f"{key}: {why}" for key, why in distiller.left_out.items())
        raise ConfigError([f"teacher: it can teach this student nothing ({reasons}); take another pair."])
    return distiller


def _asked(
    theirs: dict[int, str], names: dict[int, str], whole: dict[int, str], mapping: Any, args: Arguments
) -> classes.Classes:
    """Which of a teacher's classes are which of the student's, without those that ``classes=`` leaves out; ``whole``
    are the data's before ``single_cls`` made them one.
    """
    matched = classes.match(theirs, names, mapping, single=bool(args.single_cls))
    if not args.single_cls or args.classes is None:
        return classes.only(matched, args.classes)
    return classes.only_of_one(matched, theirs, whole, args.classes, mapping)


def _frozen(model: Any, student: Any, names: dict[int, str], matched: classes.Classes) -> Teacher:
    """A teacher as it was loaded, frozen."""
    if isinstance(model, FeatureModel):
        return FeatureTeacher(model, like=student, classes=matched)
    return Teacher(model, like=student, names=names, classes=matched)


def _told(head: Any) -> str:
    return ", ".join(map(str, strides(head)))


def _wrong_sizes(frozen: Teacher, size: int, stride: int, args: Arguments, *, own: bool) -> list[str]:
    """What is wrong with the images for a teacher whose coarsest level is coarser than any of the student's, or that
    sees images of its own size.

    Args:
        frozen: The teacher.
        size: Of the images that it sees, in pixels.
        stride: Of which the size of every image is a multiple.
        args: The run's arguments.
        own: Whether that is not the student's.
    """
    coarsest = max(strides(frozen.head))
    if coarsest <= stride and not own:
        return []
    problems = [
        f"{key}: the teacher's coarsest level has stride {coarsest}, and {key}= brings images of other sizes than its "
        "multiples; drop it, or take another teacher."
        for key in ("multi_scale", "rect")
        if coarsest > stride and getattr(args, key)
    ]
    if size % coarsest:
        fits = ceil_div(size, coarsest) * coarsest
        problems.append(
            f"teacher: its coarsest level has stride {coarsest} and the {size} px of its images are no multiple of it; "
            f"add teacher_imgsz={fits}."
        )
    return problems


def reduced(images: torch.Tensor, imgsz: int) -> torch.Tensor:
    """Images ``(N, C, H, W)`` at the size at which the student sees them.

    They are reduced as the engine reduces training images: smoother ones would be unlike those of validation.
    """
    return F.interpolate(images, (imgsz, imgsz), mode="bilinear")


MASKS = "masks", "sem_masks"
"""What of a batch are masks, ``(N, H, W)``."""


def reduced_batch(batch: dict[str, Any], imgsz: int) -> dict[str, Any]:
    """A batch at the size at which the student sees it: its images, and masks, which keep their ratio to them.

    Masks hold numbers of instances and of classes, so each cell takes the nearest. Boxes and key points are parts of
    the image.
    """
    side, small = batch["img"].shape[2], {"img": reduced(batch["img"], imgsz)}
    for key in set(MASKS) & set(batch):
        small[key] = _nearest(batch[key], [round(length * imgsz / side) for length in batch[key].shape[1:]])
    return {**batch, **small}


def _nearest(masks: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Masks ``(N, H, W)`` of any type, also none, at another size."""
    rows, columns = (
        ((torch.arange(new, device=masks.device) + 0.5) * (old / new)).long()
        for old, new in zip(masks.shape[1:], size, strict=True)
    )
    return masks[:, rows][:, :, columns]


def with_adapters(student: Any, learned: nn.Module) -> nn.Module:
    """Student and adapters as one module, from which the engine makes parameter groups as it always does.

    It names the student's parameters as the student itself names them.
    """
    together = nn.Module()
    together.model, together.tskd = student.model, learned
    return together


def clip_adapters(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> None:
    """Clips the adapters' gradients before each step: the engine clips the student's only.

    At that point the scaler has divided the gradients, as it must have.
    """

    def clip(*_: Any) -> None:
        torch.nn.utils.clip_grad_norm_(parameters, max_norm=MAX_NORM)

    optimizer.register_step_pre_hook(clip)


def cast_teacher(distiller: Distiller, *, args: Arguments, amp: bool, device: torch.device) -> None:
    """With mixed precision, holds the teacher's weights in the dtype that autocast would bring them to in each pass."""
    if amp and device.type != "mps":
        for teacher in distiller.teachers:
            teacher.cast(torch.bfloat16 if args.amp == "bf16" else torch.float16)


def as_decided(args: Arguments, *, amp: bool) -> Arguments:
    """The run's arguments with what the engine made of ``amp=``: its own check may have turned it off."""
    decided = copy(args)
    decided.amp = amp and args.amp
    return decided


def teacher_loader(trainer: Engine, distiller: Distiller) -> Any:
    """The validation images at the size, and in the shape, in which the teachers see images."""
    size, square = distiller.config.teacher_imgsz, coarser(distiller.teachers, than=trainer.stride)
    if not size and not square:
        return trainer.test_loader
    given: dict[str, Any] = {"batch_size": trainer.test_loader.batch_size, "rank": LOCAL_RANK, "mode": "val"}
    with compat.swapped(trainer.args, "imgsz", size or trainer.args.imgsz):
        loader = trainer.get_dataloader(trainer.data[trainer.args.split], **given)
    loader.dataset.rect &= not square
    return loader


def make_ready(distiller: Distiller, student: Any, *, args: Arguments, scaled: bool, processes: Processes) -> None:
    """Tells a distiller what the engine has decided meanwhile: frozen layers, scaled gradients, processes.

    Raises:
        ConfigError: If the frozen layers leave nothing that a term could teach.
    """
    switched_off = not distiller.on
    for term in reach.leave_out_unreachable(distiller, student):
        LOGGER.warning(f"{term} is left out: freeze={args.freeze} freezes every layer that it would teach.")
    if switched_off:
        LOGGER.warning("every term was switched off before the interruption: the run goes on as plain training.")
    elif not distiller.on:
        raise ConfigError([f"freeze: {args.freeze} freezes every layer that the terms would teach; freeze less."])
    processes.broadcast(distiller.learned.state_dict().values())
    distiller.meter.scale = 2.0**10 if scaled else 1.0
    distiller.meter.total = dist.all_reduce if processes.count > 1 else None


def keep_teacher_outputs(
    distiller: Distiller,
    views: Views,
    *,
    args: Arguments,
    epochs: int,
    processes: Processes,
    others: Views | None = None,
) -> cache.Cache:
    """Puts the cache between teacher and training; ``others`` are the images without labels.

    Raises:
        ConfigError: If it would take more room than there is.
    """
    shared = f"tskd-{os.getppid()}" if processes.count > 1 else ""  # processes of a machine have one parent
    with torch_distributed_zero_first(LOCAL_RANK):  # the first of them makes the file
        kept = cache.prepare(distiller=distiller, views=views, args=args, epochs=epochs, shared=shared, others=others)
    if processes.count > 1:
        dist.barrier()
    cache.release(args, kept)
    distiller.cache = kept
    for each, store in zip([views, others], kept.stores):
        if each is not None:
            each.store = store
    return kept
