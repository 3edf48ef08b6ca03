"""What a run says before its first step: what is distilled, how good the teacher is, and what speaks against it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import nn
from ultralytics.utils import LOGGER, IterableSimpleNamespace, colorstr
from ultralytics.utils.torch_utils import get_flops, get_num_params

from tskd_yolo.config import DEFAULTS, Config, ConfigError, with_variant
from tskd_yolo.data.labels import Split, asked
from tskd_yolo.distill.distiller import Distiller
from tskd_yolo.distill.matching import Pair
from tskd_yolo.distill.teacher import Teacher
from tskd_yolo.findings import Finding
from tskd_yolo.hashing import Score
from tskd_yolo.train import doubts, tasks
from tskd_yolo.train.engine import Arguments, engine_arguments
from tskd_yolo.train.processes import FIRST, Processes


class Facts(NamedTuple):
    """What the summary of a run knows: scores (:data:`tskd_yolo.hashing.METRICS`), sizes, what speaks against it."""

    taught: dict[str, Any]
    """The teacher's score on the validation set; of several in each class that of the best one."""
    known: dict[str, Any]
    """The student's before training; empty where it would say nothing."""
    teacher: tuple[int, float]
    """The teacher's parameters and GFLOPs, of several together."""
    student: tuple[int, float]
    exceptions: list[str]
    """What is not as one would expect it."""
    doubts: list[Finding]
    """What speaks against the teacher."""


def log_summary(
    distiller: Distiller,
    student: nn.Module,
    *,
    config: Config,
    args: Arguments,
    loader: Any,
    trained: bool,
    new: bool,
    processes: Processes,
    taught: Sequence[dict[str, Any]],
) -> Facts | None:
    """Logs what is distilled, once, with the teacher's own accuracy on the run's validation set.

    Args:
        distiller: Of the run, ready for the first step.
        student: The plain detector; a copy of it is validated.
        config: The checked settings.
        args: The run's arguments.
        loader: The engine's loader of the validation set.
        trained: Whether the student knows these classes already, so that its accuracy says something.
        new: Whether it starts from random weights.
        processes: Of the run.
        taught: As of :func:`teacher_scores`.

    Returns:
        What it says; None in all processes but the first.
    """
    student, size = deepcopy(student), config.teacher_imgsz or args.imgsz
    known = student_score(student, loader=loader, args=args, processes=processes) if trained else {}
    if not FIRST:
        return None
    exceptions = _exceptions(distiller)
    rows = [
        *_networks(distiller.teachers, student, args=args, size=size, taught=taught, known=known),
        *_maps(distiller),
        *_settings(distiller, config, args, new),
        *exceptions,
    ]
    LOGGER.info("\n" + colorstr("tskd-yolo:") + " what is distilled\n  " + "\n  ".join(rows) + "\n")
    best = best_of(taught)
    theirs = _together(distiller.teachers)
    ours = get_num_params(student), get_flops(student, args.imgsz)
    larger = size > args.imgsz or max(frozen.params for frozen in distiller.teachers) > ours[0]
    against = doubts.of_scores(best, known, larger=larger, names=dict(enumerate(distiller.teacher.classes.names)))
    against += doubts.of_order(taught, [each.classes.known for each in distiller.teachers])
    log(against)
    return Facts(best, known, theirs, ours, exceptions, against)


def log_data(train: Any, val: Any, *, args: Arguments, stride: int) -> None:
    """Logs what speaks against the data, in the first process.

    Args:
        train, val: The engine's data sets.
        args: The run's arguments.
        stride: Of the student's finest level, in pixels.
    """
    if FIRST:
        splits = [Split(name, dataset.labels) for name, dataset in (("train", train), ("val", val))]
        log(doubts.of_data(*splits, names=asked(val.data["names"], args.classes), imgsz=args.imgsz, stride=stride))


def log(findings: Iterable[Finding]) -> None:
    """Logs what is more than a note."""
    for finding in findings:
        if finding.level != "note":
            LOGGER.warning(str(finding))


# Scores ---------------------------------------------------------------------------------------------------------------


def teacher_scores(
    distiller: Distiller, *, loader: Any, args: Arguments, size: int, processes: Processes
) -> list[dict[str, Any]]:
    """The score of each teacher, which sees images of a size; empty of one that knows no class of the set."""
    theirs = IterableSimpleNamespace(**{**vars(args), "imgsz": size})
    given = dict(loader=loader, args=theirs, processes=processes)
    return [teacher_score(each, **given) if each.classes.known else {} for each in distiller.teachers]


def best_of(taught: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The score of several teachers, see :data:`tskd_yolo.hashing.METRICS`: in each class that of the best one, and
    means over the classes of which there are boxes; of one teacher its own.

    Args:
        taught: As of :func:`teacher_scores`.
    """
    scores = [score for score in taught if score]
    if len(scores) < 2:
        return scores[0] if scores else {}
    columns = zip(*(score["classes"] for score in scores), strict=True)
    rows = [max(filter(None, column), key=lambda row: row["AP50-95"], default=None) for column in columns]
    means = {key: fmean([row[key] for row in rows if row] or [0.0]) for key in ("AP50", "AP50-95")}
    return {"metrics/mAP50(B)": means["AP50"], "metrics/mAP50-95(B)": means["AP50-95"], "classes": rows}


def weigh_teachers(distiller: Distiller, taught: Sequence[dict[str, Any]], *, processes: Processes) -> None:
    """Has each of several teachers count in each class by its AP on the validation set, where the set has the class.

    Args:
        distiller: Of the run.
        taught: As of :func:`teacher_scores`.
        processes: Of the run.
    """
    count = len(distiller.teacher.classes.members)
    rows = [score.get("classes") or [None] * count for score in taught]  # only the first process has all of them
    aps = torch.tensor([[row["AP50-95"] if row else 1.0 for row in classes] for classes in rows])
    together = aps.to(processes.device)
    processes.broadcast([together])
    distiller.panel.weigh(together.cpu())


def teacher_score(frozen: Teacher, *, loader: Any, args: Arguments, processes: Processes) -> dict[str, Any]:
    """The teacher's metrics on the run's validation set, from an earlier run where there was one like this."""
    who = f"the teacher {frozen.name}"
    return _score(frozen.model, frozen.detector, who, loader=loader, args=args, processes=processes)


def student_score(student: nn.Module, *, loader: Any, args: Arguments, processes: Processes) -> dict[str, Any]:
    """The same of the student before training, which is not changed."""
    return _score(student, lambda: deepcopy(student), "the student", loader=loader, args=args, processes=processes)


def _score(
    network: nn.Module,
    detector: Callable[[], nn.Module],
    who: str,
    *,
    loader: Any,
    args: Arguments,
    processes: Processes,
) -> dict[str, Any]:
    """The score that is kept of a network; where there is none, that of the detector which it gives."""
    score = Score(network=network, dataset=loader.dataset, args=args)
    metrics, who = score.recall(), f"{colorstr('tskd-yolo:')} {who}"
    if processes.total([float(bool(metrics))])[0] == processes.count:  # they validate together or not at all
        LOGGER.info(f"\n{who} was validated on these images before; its score is in {score.file}")
        return metrics
    LOGGER.info(f"\n{who} is validated, once for these images and settings...")
    metrics = validate(detector(), loader=loader, args=args)
    if FIRST:
        score.keep(metrics)
    return metrics


def validate(model: nn.Module, *, loader: Any, args: Arguments) -> dict[str, Any]:
    """A model's metrics on a validation set, by the engine's own validator of the task, which writes nothing.

    Args:
        model: It is changed in place.
        loader: The engine's loader of the set.
        args: The run's arguments.

    Returns:
        Ultralytics' metrics and ``classes``, see :data:`tskd_yolo.hashing.METRICS`, of boxes whatever the task;
        nothing in all processes but the first.

    Raises:
        ConfigError: If it does not fit into memory.
    """
    own = engine_arguments(args)
    own.plots = own.save_json = own.save_txt = own.save_crop = False
    if args.amp and next(model.parameters()).device.type == "cuda":
        own.quantize = 16  # as the engine validates the student of such a run
    with tempfile.TemporaryDirectory() as folder:
        validator = tasks.VALIDATORS[args.task](loader, save_dir=Path(folder), args=own)
        try:
            metrics = validator(model=model.float().eval())
        except torch.OutOfMemoryError as error:
            words = f"validating a network with {loader.batch_size} images at once, twice those of a step, does not fit"
            raise ConfigError([f"batch: {words} into memory; give a smaller batch."]) from error
    return {**metrics, "classes": class_scores(validator)} if metrics else {}


def class_scores(validator: Any) -> list[dict[str, float] | None]:
    """AP of every class after a validation; None where there is no box of it."""
    box = validator.metrics.box
    place = {int(index): i for i, index in enumerate(box.ap_class_index)}
    return [
        {"AP50": float(box.ap50[place[index]]), "AP50-95": float(box.ap[place[index]])} if index in place else None
        for index in sorted(validator.names)
    ]


# The table ------------------------------------------------------------------------------------------------------------


def _networks(
    teachers: Sequence[Teacher],
    student: nn.Module,
    *,
    args: Arguments,
    size: int,
    taught: Sequence[dict[str, Any]],
    known: dict[str, float],
) -> list[str]:
    """A line for each teacher, for what several take together, and for the student, under a heading."""
    head = f"{'name':<28}{'parameters':>12}{'GFLOPs':>9}{'mAP50':>9}{'mAP50-95':>10}"
    name, gflops = Path(str(args.model)).name, get_flops(student, args.imgsz)
    rows = []
    for frozen, metrics in zip(teachers, taught, strict=True):
        frozen.measure(size)
        cost = f"{frozen.params:>12,}{frozen.gflops:>9.1f}"
        rows.append(f"{'teacher':10}{frozen.name:<28}{cost}{_accuracy(metrics)}   at {size} px")
    if len(teachers) > 1:
        params, together = _together(teachers)
        rows.append(f"{'teachers':10}{'together':<28}{params:>12,}{together:>9.1f}")
    return [
        f"{'':10}{head}",
        *rows,
        f"{'student':10}{name:<28}{get_num_params(student):>12,}{gflops:>9.1f}{_accuracy(known)}   at {args.imgsz} px",
    ]


def _together(teachers: Sequence[Teacher]) -> tuple[int, float]:
    """Parameters and GFLOPs."""
    return sum(each.params for each in teachers), sum(each.gflops for each in teachers)


def _accuracy(metrics: dict[str, float]) -> str:
    if not metrics:
        return " " * 19
    return f"{metrics['metrics/mAP50(B)']:>9.3f}{metrics['metrics/mAP50-95(B)']:>10.3f}"


def _maps(distiller: Distiller) -> list[str]:
    """Which maps are compared."""
    rows = ["levels    " + _pairs(distiller.pairs("neck") or distiller.match.neck(all_channels=True))]
    if stages := distiller.pairs("stages"):
        rows.append("stages    " + _pairs(stages))
    return rows


def _pairs(pairs: Iterable[Pair]) -> str:
    """Strides, and how many channels of the student are compared with how many of the teacher's."""
    return "   ".join(f"stride {_strides(pair)}: {pair.student} -> {_compared(pair)}" for pair in pairs)


def _strides(pair: Pair) -> str:
    return f"{pair.stride}" if pair.teacher_stride == pair.stride else f"{pair.stride} from {pair.teacher_stride}"


def _compared(pair: Pair) -> str:
    return f"{pair.compared} of {pair.teacher}" if pair.compared < pair.teacher else str(pair.teacher)


def _settings(distiller: Distiller, config: Config, args: Arguments, new: bool) -> list[str]:
    """Terms with their weights, what follows from where the student starts, and the size of what is trained besides."""
    terms = "   ".join(f"{term} {weight:g}" if weight else f"{term} off" for term, weight in config.weights.items())
    rows = [f"terms     {terms}   (balance={config.balance} variant={config.variant})"]
    if "ded" in distiller.on and config.balance == "share" and not args.resume:
        usual = {**DEFAULTS, **with_variant({"pretrained": not new})}["ded"]
        kind = "new" if new else "pre-trained"  # of a new one timm's backbone may have weights
        rows.append(f"start     a {kind} student, for which ded is {usual:g} unless given")
    count = sum(parameter.numel() for parameter in distiller.learned.parameters())
    trained = f"{count:,} parameters, trained with the student and not part of it" if count else "none"
    return [*rows, f"adapters  {trained}"]


def _exceptions(distiller: Distiller) -> list[str]:
    """What is not as one would expect it."""
    match, rows = distiller.match, []
    for key, why in distiller.left_out.items():
        rows.append(f"{key:<10}off: {why}")
    if match.unpaired:
        rows.append(f"unpaired  levels of stride {match.unpaired} are in one network only and not distilled")
    if match.unpaired_stages and distiller.source("stages") is not None:
        rows.append(f"unpaired  backbone stages of stride {match.unpaired_stages} are in one network only, also")
    if distiller.untaught:
        rows.append(f"untaught  {', '.join(distiller.untaught)}: the teacher's head has no such branch")
        rows += [
            f"untaught  {voice.teacher.name} has {branch}; named first, it would teach it"
            for branch in distiller.untaught
            for voice in distiller.panel.voices[1:]
            if branch in voice.match.branches
        ]
    if (theirs := distiller.teacher.channels) != (ours := distiller.channels):
        rows.append(f"images    of {ours} channel(s) are brought to the teacher's {theirs}")
    if match.queries and "crd" in distiller.on:
        rows.append("queries   the teacher's queries teach the locations of annotated boxes; no cross response")
    for frozen in [] if match.headless else distiller.teachers:
        alone = len(distiller.teachers) == 1
        rows += [f"classes   {'' if alone else f'{frozen.name}: '}{line}" for line in frozen.classes.told(alone)]
    rows += _votes(distiller)
    return rows


def _votes(distiller: Distiller) -> list[str]:
    """Of several teachers, how much each counts in the student's classes."""
    if len(distiller.teachers) == 1:
        return []
    rows = ["several   features and cross response are those of the first, responses a mean by AP of each class:"]
    votes = distiller.panel.votes / distiller.panel.votes.sum(dim=0).clamp(min=1e-9)
    names = distiller.teacher.classes.names
    for frozen, parts in zip(distiller.teachers, votes.tolist(), strict=True):
        rows.append(f"{'':10}{frozen.name}: " + ", ".join(f"{name} {part:.2f}" for name, part in zip(names, parts)))
    return rows
