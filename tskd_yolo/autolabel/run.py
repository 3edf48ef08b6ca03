"""``tskd-yolo autolabel``: a teacher's labels for images that have none, as an Ultralytics data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ultralytics.data import build_dataloader, build_yolo_dataset
from ultralytics.data.utils import check_det_dataset
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER, TQDM, IterableSimpleNamespace, colorstr

from tskd_yolo import compat, confidence, hashing
from tskd_yolo.autolabel import exports, record, report, review, source, teachers
from tskd_yolo.autolabel.plan import Plan, checked
from tskd_yolo.autolabel.record import Folder, Settings
from tskd_yolo.autolabel.teachers import Panel
from tskd_yolo.confidence import Confidence
from tskd_yolo.config import ConfigError, collected
from tskd_yolo.data import duplicates
from tskd_yolo.data.convert.files import ConvertError
from tskd_yolo.data.sets import MissingSetError
from tskd_yolo.distill.classes import read as read_map
from tskd_yolo.train import scan
from tskd_yolo.train.checkpoints import RunError

NAMED = 5
"""So many files are named in a line; the record names all."""


def autolabel(errors: Sequence[str] | None = None, **arguments: Any) -> dict[str, Any]:
    """Labels images with a teacher, and writes a data set of them; the same call goes on where it was interrupted.

    Args:
        errors: Mistakes that are known already.
        **arguments: Those of the command, see :data:`tskd_yolo.autolabel.plan.KEYS`.

    Returns:
        What was written, as ``autolabel.json`` holds it.

    Raises:
        ConfigError: Naming everything that is wrong, before anything is written.
        RunError: If something could not be written.
    """
    plan = checked(arguments, errors or ())
    with compat.guarded(trust=plan.trust):
        data, panel, images = _read(plan)
        known, left_out, twice = None, [], []
        if data:
            loader = _loader(plan, panel, data)
            left_out = _judging([*loader.dataset.im_files, *scan.images_of(data, "test")], images)
            twice = _in_train(scan.images_of(data, "train"), images)
            known = _measured(plan, panel, loader)
    thresholds = _thresholds(plan, panel, known)
    folder = Folder(plan.out, _settings(plan, panel, data, thresholds))
    facts = _facts(plan, panel, known, left_out, twice)
    try:
        folder.begin(channels=data["channels"] if data else 3, facts=facts)
        unreadable = _label(folder, panel, images, plan.batch)
        summary = _finish(folder, plan, {**facts, "unreadable": unreadable})
    except OSError as error:
        said = f"{plan.out} could not be written ({error}); make room or give another folder, the same call goes on."
        raise RunError(f"out: {said}") from error
    LOGGER.info(f"\n{colorstr('tskd-yolo autolabel:')} {report.text(summary, plan.out)}\n")
    return summary


def _tell(words: str) -> None:
    LOGGER.info(f"{colorstr('tskd-yolo autolabel:')} {words}")


# What there is --------------------------------------------------------------------------------------------------------


def _read(plan: Plan) -> tuple[dict[str, Any] | None, Panel, dict[str, Path]]:
    """The data set's YAML, the teachers and the images; what is wrong with any of them is told at once."""
    problems: list[str] = []
    data, panel, images = None, None, {}
    with collected(problems):
        record.begun(plan.out)
    with collected(problems):
        images = source.find(plan.source, out=plan.out)
    inside = Path(plan.source).is_dir() and plan.out.is_relative_to(Path(plan.source).resolve())
    if inside:
        problems.append(f"out: {plan.out} is in the source, whose images it would join; give a folder beside it.")
    with collected(problems):
        data = _data(plan.data) if plan.data else None
        panel = teachers.load(plan, data)
    if problems or panel is None:
        raise ConfigError(problems)
    return data, panel, images


def _data(file: str) -> dict[str, Any]:
    try:
        data = check_det_dataset(file)
    except (MissingSetError, ConvertError) as error:  # ours, and whole sentences already
        raise ConfigError([f"data: {error}"]) from error
    except ConfigError:
        raise
    except Exception as error:  # a missing or broken file ends in many types of exception
        raise ConfigError(
            [f"data: {file} could not be read ({compat.plain(error, about=file)}); give one whose folders exist."]
        ) from error  # fmt: skip
    if data["channels"] not in (1, 3):
        raise ConfigError(
            [f"data: images to label are read as grey or RGB (channels 1 or 3), and {file} has channels "
             f"{data['channels']}; give a data set of one of these kinds."]
        )  # fmt: skip
    return data


def _loader(plan: Plan, panel: Panel, data: dict[str, Any]) -> Any:
    """Ultralytics' loader of the validation images, as it validates."""
    args = IterableSimpleNamespace(**{**DEFAULT_CFG_DICT, "imgsz": panel.imgsz, "task": "detect"})
    build = partial(build_yolo_dataset, args, data["val"], plan.batch, data, mode="val", rect=True, stride=panel.stride)
    dataset = scan.scanned("val", build)
    return build_dataloader(dataset, plan.batch, workers=0, shuffle=False)


def _judging(judging: Sequence[str], images: dict[str, Path]) -> list[str]:
    """Takes images out, in place, that are in the validation or test set too; gives their names.

    Raises:
        ConfigError: If none is left.
    """
    found = _same(judging, images)
    for name in found:
        del images[name]
    if not images:
        raise ConfigError(
            [f"source: all {len(found)} images are in the validation or test set too, by their content, and none is "
             "left; give others."]
        )  # fmt: skip
    if found:
        LOGGER.warning(
            f"source: {len(found)} images are in the validation or test set too, by their content, and are left out: a "
            f"network that trained on them could not be judged there ({_first(found)})."
        )
    return found


def _in_train(train: Sequence[str], images: Mapping[str, Path]) -> list[str]:
    """Names of images that are in the training set too: they are labelled, and somebody may have had a reason."""
    if not train:
        LOGGER.warning("data: its training images were not found, so images of the source that are there are not told.")
    if found := _same(train, images):
        LOGGER.warning(
            f"source: {len(found)} images are in the training set too, by their content ({_first(found)}); trained on "
            "together with it, they would be there twice, with two sets of labels."
        )
    return found


def _same(known: Sequence[str], images: Mapping[str, Path]) -> list[str]:
    """Names of the images whose files are among the known ones."""
    by_path = {str(file): name for name, file in images.items()}
    return [by_path[twin.val] for twin in duplicates.same_files(known, by_path)]


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


# Thresholds -----------------------------------------------------------------------------------------------------------


def _measured(plan: Plan, panel: Panel, loader: Any) -> Confidence:
    """What the teachers' scores are worth on the validation images."""
    _tell("the teacher's scores on the validation images...")
    settings = {**panel.settings(), "known": [found.members for found in panel.classes]}
    found = confidence.measured(panel.look(), panel.networks, loader=loader, device=panel.device, settings=settings)
    known = confidence.of(found, panel.names, precision=plan.precision)
    for line in known.told(thresholds=plan.conf is None):
        _tell(line)
    return known


def _thresholds(plan: Plan, panel: Panel, known: Confidence | None) -> list[float]:
    """Per class the score from which on a detection becomes a label.

    Raises:
        ConfigError: If no class has one.
    """
    if plan.conf is not None or known is None:
        return [plan.conf or 0.0] * len(panel.names)
    if not any(each.threshold.found for each in known.classes):
        reasons = "; ".join(dict.fromkeys(f"{each.name}: {each.threshold.reason}" for each in known.classes))
        raise ConfigError(
            [f"data: no class has a threshold for a precision of {plan.precision:g} ({reasons}); give a lower "
             "precision=, more labelled images, or conf=."]
        )  # fmt: skip
    without = [each.name for each in known.classes if not each.threshold.found]
    if without:
        LOGGER.warning(
            f"no threshold and so no label: {', '.join(without)}; images that show one of them say that it is not "
            "there, so review uncertain.csv, or train on certain.txt alone."
        )
    return [record.rounded(t) for t in known.thresholds]


def _settings(plan: Plan, panel: Panel, data: Mapping[str, Any] | None, thresholds: list[float]) -> Settings:
    detector = panel.settings()
    if plan.classes_map:
        detector["classes_map"] = dict(read_map(plan.classes_map) or {})
    return Settings(
        teacher=panel.files,
        names=[str(name) for _, name in sorted(panel.names.items())],
        thresholds=thresholds,
        source=str(Path(plan.source).resolve()),
        val=data["val"] if data else None,
        detector=detector,
    )


def _facts(plan: Plan, panel: Panel, known: Confidence | None, left_out: list[str], twice: list[str]) -> dict[str, Any]:
    """What the record and the page tell besides."""
    notes = (
        [f"{each.name}: {each.threshold.reason}." for each in known.classes if not each.threshold.found]
        if known and plan.conf is None
        else []
    )
    words = "images of the source are in the validation or test set too and were left out."
    notes += [f"{len(left_out)} {words}"] if left_out else []
    notes += [f"{len(twice)} images of the source are in the training set too."] if twice else []
    lost = sorted({name for found in panel.classes for name in found.lost})
    notes += [f"Classes of the teacher that the data does not have: {', '.join(lost)}."] if lost else []
    unknown = [name for place, name in sorted(panel.names.items()) if not any(place in c.known for c in panel.classes)]
    notes += [f"No teacher knows {', '.join(unknown)}."] if unknown else []
    return {
        "teacher": panel.files,
        "detector": panel.settings(),
        "versions": hashing.versions(),
        "measured_for": plan.precision if plan.conf is None else None,
        "confidence": known.row() if known else None,
        "left_out": left_out,
        "in_train": twice,
        "notes": notes,
    }


# The images -----------------------------------------------------------------------------------------------------------


def _label(folder: Folder, panel: Panel, images: Mapping[str, Path], batch: int) -> list[str]:
    """Labels what is not labelled yet; gives the names of images that cannot be read."""
    left = folder.left(images)
    if done := len(images) - len(left):
        _tell(f"{done} of {len(images)} images are labelled already, {len(left)} are left.")
    look, unreadable = panel.look(), []
    given: dict[str, Any] = {"imgsz": panel.imgsz, "stride": panel.stride, "batch": batch, "device": panel.device}
    bar = TQDM(total=len(left), desc="labelling", disable=not left)
    for part in source.batches(left, **given):
        unreadable += part.unreadable
        for index, found in enumerate(look(part.images) if part.read else []):
            name, (height, width) = part.read[index].name, part.read[index].size
            boxes = part.boxes(index, found["bboxes"]).tolist()
            rows = list(zip(found["cls"].int().tolist(), found["conf"].tolist(), boxes))
            folder.add(left[name], record.labelled(name, (width, height), rows, folder.settings.thresholds))
        bar.update(len(part.read) + len(part.unreadable))
    bar.close()
    if unreadable:
        LOGGER.warning(f"source: {len(unreadable)} images could not be read and are left out ({_first(unreadable)}).")
    return unreadable


def _finish(folder: Folder, plan: Plan, facts: dict[str, Any]) -> dict[str, Any]:
    """Writes what is made of all labels: the record, the list for review, the page, and files for other tools."""
    names, thresholds = folder.settings.names, folder.settings.thresholds
    sheets, counts = report.count(folder.read(), len(names))
    if facts["unreadable"]:
        facts["notes"] = [
            *facts["notes"],
            f"{len(facts['unreadable'])} images could not be read: {_first(facts['unreadable'])}.",
        ]
    summary = {**facts, "counts": counts, "classes": report.rows(names, thresholds, sheets)}
    uncertain = [row for image in folder.read() if (row := review.row(image, names, thresholds))]
    review.write(uncertain, plan.out)
    review.write_certain((image.name for image in folder.read() if not image.uncertain), plan.out)
    teacher = ", ".join(file["name"] for file in folder.settings.teacher)
    for name in plan.exports:
        exports.FORMATS[name](folder.read(), names, counts["images"], teacher, plan.out)
    report.write(summary, sheets, uncertain, image=folder.image, out=plan.out)
    folder.note(summary)
    return summary
