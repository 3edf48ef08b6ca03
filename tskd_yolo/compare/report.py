"""What a comparison or a validation found, as JSON, as CSV, and as one HTML page that loads nothing."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from torch import nn
from ultralytics import YOLO
from ultralytics.data import build_yolo_dataset
from ultralytics.data.utils import check_det_dataset
from ultralytics.nn.tasks import DetectionModel, RTDETRDetectionModel
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER, IterableSimpleNamespace
from ultralytics.utils.torch_utils import get_flops, get_num_params

from tskd_yolo import compat, config
from tskd_yolo.compare import charts
from tskd_yolo.compare.images import Picture, Pictures, missed
from tskd_yolo.compare.metrics import FALSE_ALARMS, Image, Judge, coco, findings, misses, seen
from tskd_yolo.compare.page import page
from tskd_yolo.compare.timing import STOOD, mean_over_minutes
from tskd_yolo.config import DEFAULTS, TASKS, TERMS
from tskd_yolo.distill.classes import folded, short
from tskd_yolo.distill.matching import task_of
from tskd_yolo.files import replace, write_json
from tskd_yolo.train import checks, scan

Curves = Mapping[str, Mapping[int, Mapping[str, Sequence[float]]]]
"""Columns of results.csv by arm and seed."""

TITLES = {
    "metrics/mAP50-95(B)": "mAP50-95 on the validation images",
    "metrics/mAP50(B)": "mAP50 on the validation images",
    **{
        f"{split}/{loss}_loss": f"{name} loss, {where}"
        for split, where in {"train": "training", "val": "validation"}.items()
        for loss, name in {"box": "Box", "cls": "Class", "dfl": "DFL", "l1": "L1"}.items()
    },
}
"""The curves of every arm, in the page's order."""


def write_comparison(
    out: Path, summary: dict[str, Any], *, curves: Curves, pictures: Pictures | None
) -> tuple[Path, Path, Path]:
    """Writes ``compare.json``, ``compare.csv`` and ``compare.html``; returns where they are."""
    files = out / "compare.json", out / "compare.csv", out / "compare.html"
    shown = [picture.name for picture in pictures.shown] if pictures else []
    write_json(files[0], {**summary, "curves": _finite(curves), "pictures": shown})
    _write_csv(files[1], summary)
    replace(files[2], comparison_page(summary, curves=curves, pictures=pictures).encode("utf-8"))
    return files


def comparison_page(summary: dict[str, Any], *, curves: Curves, pictures: Pictures | None) -> str:
    """The page of a comparison."""
    arms = {arm: index for index, arm in enumerate(summary["arms"])}
    others = [(arm, index) for arm, index in arms.items() if arm != "plain"]
    known = {**DEFAULT_CFG_DICT, **DEFAULTS}
    return page(
        "compare.html",
        s=summary,
        alarms=FALSE_ALARMS,
        settings={k: v for k, v in summary["settings"].items() if k not in known or known[k] != v},
        legend_arms=charts.legend(list(arms.items())),
        legend_effect=charts.legend(others, filled=True),
        legend_terms=charts.legend([(term, index + 1) for index, term in enumerate(TERMS)]),
        class_charts=_class_charts(summary["arms"], others),
        curve_charts=_curve_charts(curves, arms),
        minutes_chart=_minutes_chart(curves, arms, summary["clock"]),
        term_charts=_term_charts(curves),
        stood=STOOD,
        pictures=pictures,
        tile=lambda picture, index, who: tile(picture, index, who, pictures.names if pictures else {}),
    )


def _class_charts(arms: Mapping[str, Any], others: Sequence[tuple[str, int]]) -> list[Markup]:
    """Bars of the effect per class, about 18 to a chart."""
    each = max(18 // max(len(others), 1), 1)
    groups = []
    for place, entry in enumerate(arms["plain"]["classes"]):
        bars = []
        for arm, index in others:
            effect = arms[arm]["classes"][place]["AP50-95"]["effect"] if arms[arm]["classes"] else None
            if effect:
                low, high = (None if effect[k] is None else 100 * effect[k] for k in ("low", "high"))
                bars.append(charts.Bar(index, 100 * effect["mean"], low, high))
        groups.append((entry["name"], bars))
    parts = [groups[i : i + each] for i in range(0, len(groups), each)]
    return [charts.bars("Effect per class; the numbers are in the table below", part, x_label="points of AP50-95")
            for part in parts]  # fmt: skip


def _curve_charts(curves: Curves, arms: Mapping[str, int]) -> list[tuple[str, Markup]]:
    found = []
    for column, title in TITLES.items():
        series = [
            charts.Series(arm, arms[arm], runs)
            for arm, seeds in curves.items()
            if (runs := [(c["epoch"], c[column]) for c in seeds.values() if column in c])
        ]
        if series:
            label = f"{title} over epochs, arms {', '.join(s.name for s in series)}"
            found.append((title, charts.lines(label, series, x_label="epoch", y_label="")))
    return found


def _minutes_chart(curves: Curves, arms: Mapping[str, int], clock: str) -> Markup:
    """mAP50-95 on the validation images over minutes, a mean line for every arm."""
    means = {arm: mean_over_minutes(seeds, clock) for arm, seeds in curves.items()}
    series = [charts.Series(arm, arms[arm], [mean]) for arm, mean in means.items() if mean[0]]
    label = f"mAP50-95 on the validation images over minutes of training, arms {', '.join(s.name for s in series)}"
    return charts.lines(label, series, x_label="minutes of training", y_label="", whole_x=False)


def _term_charts(curves: Curves) -> list[tuple[str, Markup]]:
    """Every column of the training run that a term's name stands in, one chart per arm and kind of column."""
    term_in = re.compile(rf"(?<![a-z])({'|'.join(TERMS)})(?![a-z])")
    charted: dict[tuple[str, str], dict[str, list[charts.Run]]] = {}
    for arm, seeds in curves.items():
        for columns in seeds.values():
            for column, values in columns.items():
                match = term_in.search(column)
                if match and any(values):
                    kind = " ".join(re.split(r"[/_]+", term_in.sub("", column))).strip()
                    charted.setdefault((arm, kind), {}).setdefault(match[0], []).append((columns["epoch"], values))
    found = []
    for (arm, kind), terms in charted.items():
        series = [charts.Series(term, TERMS.index(term) + 1, runs) for term, runs in terms.items()]
        title = f"{arm}: {kind}"
        found.append((title, charts.lines(f"{title} of {', '.join(terms)}", series, x_label="epoch", y_label="")))
    return found


class _Box(NamedTuple):
    """What stands beside a box, how it is drawn, and its corners x1, y1, x2, y2 as parts of the image's size."""

    text: str
    kind: str
    corners: Sequence[float]


def tile(picture: Picture, index: int, who: str, names: Mapping[int, str]) -> Markup:
    """One image with the boxes of the truth or of a network; its pixels are the page's ``<image id="p<index>">``."""
    width, height = picture.size
    if who == "truth":
        boxes = [_Box(names[row[0]], "true", row[1:5]) for row in picture.truth]
        said = f"{picture.name}, truth: {', '.join(box.text for box in boxes) or 'no defect'}"
    else:
        boxes = [
            _Box(f"{names[row[0]]} {row[1]:.2f}", "hit" if row[2] else "false", row[3:7]) for row in picture.found[who]
        ]
        said = f"{picture.name}, {who}: {picture.hits(who)} found, {picture.false(who)} false alarms"
    taken: list[tuple[float, float, float]] = []
    drawn = Markup("").join(_drawn(box, width, height, taken) for box in boxes)
    return Markup(
        '<svg class="tile" viewBox="0 0 {0} {1}" role="img" aria-label="{2}"><use href="#p{3}"/>{4}</svg>'
    ).format(width, height, said, index, drawn)


def _drawn(box: _Box, width: int, height: int, taken: list[tuple[float, float, float]]) -> Markup:
    """A box and its label in an image of this size, where no label of ``taken`` is hidden."""
    x1, y1, x2, y2 = box.corners
    x, y = round(x1 * width, 1), round(y1 * height, 1)
    w, h = round((x2 - x1) * width, 1), round((y2 - y1) * height, 1)
    rectangle = Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}"/>')
    size = max(width, height) / 18
    wide, end = 0.6 * size * len(box.text), x > 0.6 * width
    # Inside the image, whatever the box: at its upper edge, or below it where that is the image's.
    at = min(x + w, width - 1) if end else max(x, 1)
    line = free_height(taken, at - wide if end else at, wide, y - size / 4 if y > size * 1.2 else y + size, size)
    text = Markup('<text class="{}" x="{:.1f}" y="{:.1f}" font-size="{:.1f}">{}</text>').format(
        "end" if end else "start", at, line, size, box.text
    )
    return Markup("").join([*(rectangle.format(kind, x, y, w, h) for kind in ("under", box.kind)), text])


def free_height(taken: list[tuple[float, float, float]], x: float, width: float, y: float, size: float) -> float:
    """The next height from ``y`` downwards where a label of this place and width hides no other; takes it."""
    while any(abs(y - v) < size and x < u + w and u < x + width for u, w, v in taken):
        y += size / 2
    taken.append((x, width, y))
    return y


def _finite(curves: Curves) -> dict[str, Any]:
    """The curves as JSON takes them: a loss that became NaN is null."""
    return {
        arm: {
            seed: {column: [v if np.isfinite(v) else None for v in values] for column, values in columns.items()}
            for seed, columns in seeds.items()
        }
        for arm, seeds in curves.items()
    }


def _write_csv(file: Path, summary: Mapping[str, Any]) -> None:
    """One line per run and checkpoint: figures as shares of 1."""
    split = summary["judged"]["split"]
    rows = [(arm, row, which) for arm, a in summary["arms"].items() for row in a["rows"] for which in ("best", "last")]
    lines = [_csv_line(arm, row["seed"], which, split, row[which], row) for arm, row, which in rows if row[which]]
    if summary["teacher"]:
        lines.append(_csv_line("teacher", "", "", split, summary["teacher"]["last"], {}))
    output = io.StringIO(newline="")
    writer = csv.DictWriter(output, fieldnames=list(dict.fromkeys(key for line in lines for key in line)))
    writer.writeheader()
    writer.writerows(lines)
    replace(file, output.getvalue().encode("utf-8"))


def _csv_line(
    arm: str, seed: Any, which: str, split: str, figures: Mapping[str, Any], row: Mapping[str, Any]
) -> dict[str, Any]:
    line = {"arm": arm, "seed": seed, "weights": which, "split": split}
    line |= {key: figures[key] for key in ("mAP50-95", "mAP50")}
    line |= {f"missed at {m['false_alarms']:g} false alarms per image": m["miss"] for m in figures["misses"]}
    for key in ("AP50-95", "AP50"):
        line |= {f"{key} {entry['name']}": entry[key] for entry in figures["classes"]}
    line |= {key: row.get(key, "") for key in ("epochs", "seconds", "process_seconds")}
    return {**line, "time to plain's accuracy": row.get("to_plain", "")}


# One checkpoint -------------------------------------------------------------------------------------------------------


def wrong(values: Mapping[str, Any]) -> list[str]:
    """What is wrong with the arguments of a detector's validation, a sentence each, before it is begun.

    Args:
        values: What the user gave, ``model`` among it.
    """
    given, model = {key: value for key, value in values.items() if key not in DEFAULTS}, None
    read, problems = checks.engine_values(DEFAULT_CFG_DICT, given, _wrong_size)
    with compat.guarded(trust=values.get("trust") is True):
        if str(values["model"]).endswith(".pt"):
            with config.collected(problems):
                model = compat.load(values["model"], key="model")[0]
        if type(model) is DetectionModel and values.get("data"):
            checks.attempted_data(read, problems)
        elif values.get("data") and model is not None and (task := task_of(model)) in set(TASKS) - {"detect"}:
            problems += _wrong_labels({**read, "task": task})
    return problems


def _wrong_labels(values: dict[str, Any]) -> list[str]:
    """Why the split's labels are not those of the model's task; its images are scanned, which Ultralytics keeps."""
    problems: list[str] = []
    with config.collected(problems):
        checks.attempted_data(values, problems)
        if not problems:
            data, args = check_det_dataset(values["data"]), IterableSimpleNamespace(**values)
            build = partial(build_yolo_dataset, args, data[args.split], args.batch, data, mode="val", rect=True)
            scan.read(args.split, build)
    return problems


def _wrong_size(values: Mapping[str, Any]) -> list[str]:
    sides = values["imgsz"] if isinstance(values["imgsz"], (list, tuple)) else [values["imgsz"]]
    if 1 <= len(sides) <= 2 and all(type(side) is int and side > 0 for side in sides):
        return []
    return [f"imgsz: must be a number of pixels, or height and width as [480,640], got {values['imgsz']!r}."]


def validate(model: Any, **arguments: Any) -> bool:
    """Validates as ``YOLO(model).val(...)`` does and writes the page; False, and nothing done, of no YOLO detector.

    An RT-DETR's answers are no boxes in pixels, and its own validator reads them.
    """
    network = YOLO(model)
    if network.task != "detect" or isinstance(network.model, RTDETRDetectionModel):
        return False
    asked = {k: v for k, v in arguments.items() if k not in DEFAULTS}
    judges: list[Judge] = []

    def judge(**kwargs: Any) -> Judge:
        judges.append(Judge(**kwargs))
        return judges[0]

    network.val(validator=judge, **asked)
    theirs, ours = network.names, judges[0].data["names"]
    if not judges[0].args.single_cls and [*map(folded, theirs.values())] != [*map(folded, ours.values())]:
        LOGGER.warning(
            f"the model's classes ({short(theirs)}) are not the data's ({short(ours)}): val goes by their numbers, and "
            "its figures are under the data's names. tskd-yolo check goes by names, of a teacher."
        )
    size = None
    if isinstance(network.model, nn.Module):
        size = get_num_params(network.model), get_flops(network.model, _side(judges[0].args.imgsz))
    for file in write_validation(judges[0], size=size):
        LOGGER.info(f"{file}")
    return True


def _side(imgsz: Any) -> int:
    return imgsz if isinstance(imgsz, int) else max(imgsz)


def write_validation(validator: Judge, *, size: tuple[int, float] | None) -> tuple[Path, Path]:
    """Writes ``report.json`` and ``report.html`` beside what Ultralytics' validation wrote; returns where they are.

    Args:
        validator: It has validated.
        size: Parameters and GFLOPs of the network; None where they cannot be counted, as of an exported file.
    """
    args, images = validator.args, validator.images
    summary = {
        "model": Path(str(args.model)).name,
        "data": Path(str(args.data)).name,
        "split": args.split,
        "imgsz": _side(args.imgsz),
        "parameters": size and size[0],
        "GFLOPs": size and round(size[1], 2),
        **findings(validator),
        "coco": coco(images),
    }
    names = dict(validator.names)
    pictures = missed(seen(images), folder=Path(validator.data["path"]), names=names)
    files = validator.save_dir / "report.json", validator.save_dir / "report.html"
    write_json(files[0], summary)
    replace(files[1], validation_page(summary, images, pictures).encode("utf-8"))
    return files


def validation_page(summary: dict[str, Any], images: Sequence[Image], pictures: Pictures) -> str:
    """The page of one checkpoint."""
    at = [float(v) for v in np.geomspace(0.01, 10, 31)]
    curve = [(row["false_alarms"], 100 * row["miss"]) for row in misses(images, at=at) if row["miss"] is not None]
    x_label, below = "false alarms per image", "the numbers are in the table below"
    line = charts.Series("miss rate", 1, [tuple(zip(*curve))] if curve else [])  # type: ignore[list-item]
    aps = [(c["name"], [charts.Bar(1, 100 * c["AP50-95"])]) for c in summary["classes"] if c["AP50-95"] is not None]
    return page(
        "val.html",
        s=summary,
        alarms=FALSE_ALARMS,
        miss_chart=charts.lines(
            "Missed defects over false alarms per image; some of the numbers are in the table above",
            [line], x_label=x_label, y_label="missed, %", log_x=True,
        ),
        class_chart=charts.bars(f"AP50-95 per class; {below}", aps, x_label="AP50-95 in points"),
        pictures=pictures,
        tile=lambda picture, index, who: tile(picture, index, who, pictures.names),
    )  # fmt: skip
