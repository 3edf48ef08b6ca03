"""What a check found, as text, as JSON, and as one HTML page that loads nothing."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from ultralytics.utils.files import increment_path

from tskd_yolo import files
from tskd_yolo.check.verdict import GB
from tskd_yolo.compare import charts
from tskd_yolo.compare.page import page
from tskd_yolo.config import ConfigError

FILES = {"check.json", "check.html"}
"""What a check writes."""
DEFAULT = Path("runs/check/check")
BARS = 9
"""So many classes go into one chart."""


def place(out: Any) -> Path | None:
    """The folder for the files that is asked for; None where it is the next free one, see :func:`write`.

    Raises:
        ConfigError: If something else than an earlier check is there.
        OSError: If nothing can be written there.
    """
    folder = Path(str(out)).expanduser() if out else DEFAULT
    if out and folder.exists() and not (folder.is_dir() and {file.name for file in folder.iterdir()} <= FILES):
        raise ConfigError([f"out: {folder} is there and holds no check; give another folder."])
    above = next(place for place in folder.absolute().parents if place.exists())
    tempfile.TemporaryDirectory(dir=above).cleanup()  # a check takes minutes, and writes at its end
    return folder if out else None


def write(out: Path | None, summary: Mapping[str, Any]) -> Path:
    """Writes ``check.json`` and ``check.html`` into a folder, both or neither; an earlier check there is replaced.

    Args:
        out: The folder; None is the next free one of :data:`DEFAULT`, counted as Ultralytics counts.
        summary: What the check found.

    Returns:
        The folder.

    Raises:
        OSError: If they cannot be written.
    """
    asked, out = out, (out or DEFAULT).resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as work:
        new = Path(work, "new")
        new.mkdir()
        files.write_json(new / "check.json", summary)
        files.replace(new / "check.html", check_page(summary).encode("utf-8"))
        if asked is None:
            return _numbered(new)
        place(out)  # it took a while: nobody may have put anything there
        if out.exists():
            os.rename(out, Path(work, "old"))
        try:
            os.rename(new, out)
        except OSError:
            if Path(work, "old").exists():
                shutil.move(Path(work, "old"), out)
            raise
    return out


def _numbered(new: Path) -> Path:
    """Moves a folder to the next free name of :data:`DEFAULT`: of two checks that end together each has its own."""
    while True:
        folder = increment_path(DEFAULT)
        try:
            os.rename(new, folder)
        except OSError:
            if folder.exists():  # another check was faster
                continue
            raise
        return folder.resolve()


# The page -------------------------------------------------------------------------------------------------------------


def check_page(summary: Mapping[str, Any]) -> str:
    """The page of a check."""
    return page(
        "check.html",
        folder=Path(__file__).with_name("templates"),
        s=summary,
        class_charts=_class_charts(summary),
        legend=charts.legend(list(_shown(summary).items()), filled=True),
        lines=cost_lines(summary["cost"]),
        listed=lambda rows: [row for row in rows if row["level"] != "note"],
        notes=[row for row in summary["findings"] if row["level"] == "note"],
    )


def _shown(summary: Mapping[str, Any]) -> dict[str, int]:
    """Which networks' scores are there, with their style."""
    return {
        who: style
        for style, who in enumerate(("student", "teacher"))
        if summary[who] and summary[who]["mAP50"] is not None
    }


def _class_charts(summary: Mapping[str, Any]) -> list[Markup]:
    """AP50-95 per class of the teacher, and of the student where it has one."""
    shown = _shown(summary)
    groups = []
    for row in summary["classes"]:
        values = {who: row[f"{who} AP50-95"] for who in shown}
        groups.append((row["name"], [charts.Bar(shown[who], 100 * v) for who, v in values.items() if v is not None]))
    parts = [groups[i : i + BARS] for i in range(0, len(groups) if shown else 0, BARS)]
    return [charts.bars("AP50-95 per class; the numbers are in the table", part, x_label="AP50-95 in points")
            for part in parts]  # fmt: skip


# Text -----------------------------------------------------------------------------------------------------------------


def text(summary: Mapping[str, Any]) -> str:
    """What a terminal shows."""
    lines = [summary["sentence"], ""]
    for row in summary["findings"]:
        lines.append(f"  {row['level']:<8} {row['about']}: {row['reason']}.")
        if row["remedy"]:
            lines.append(f"  {'':<8} -> {row['remedy']}.")
    for title, rows in _tables(summary).items():
        if rows:
            lines += ["", f"  {title}", *(f"    {row}" for row in rows)]
    return "\n".join(lines)


def _tables(summary: Mapping[str, Any]) -> dict[str, Sequence[str]]:
    return {
        "networks": _network_lines(summary),
        "levels": [_level(row) for row in summary["levels"]] + list(summary["exceptions"]),
        "classes": _class_lines(summary),
        "data": _split_lines(summary),
        "memory and time": cost_lines(summary["cost"]),
    }


def _network_lines(summary: Mapping[str, Any]) -> list[str]:
    lines = []
    for who in ("teacher", "student"):
        if found := summary[who]:
            score = (
                f"   mAP50 {found['mAP50']:.3f}   mAP50-95 {found['mAP50-95']:.3f}"
                if found["mAP50"] is not None
                else ""
            )
            lines.append(
                f"{who} {found['name']}   {found['parameters']:,} parameters   {found['GFLOPs']:.1f} GFLOPs   "
                f"{found['imgsz']} px{score}"
            )
    return lines


def _level(row: Mapping[str, Any]) -> str:
    """One level in words."""
    return (
        f"stride {row['stride']} from the teacher's {row['teacher_stride']}: {row['channels']} channels with "
        f"{row['compared']} of {row['teacher_channels']}"
    )


def _class_lines(summary: Mapping[str, Any]) -> list[str]:
    if not summary["classes"]:
        return []
    judged = summary["data"]["judged"]
    head = f"{'name':<22}{'teacher calls it':<22}{'train':>7}{judged:>7}{'teacher':>9}{'student':>9}{'headroom':>9}"
    rows = [
        f"{_short(row['name']):<22}{_short(row['teacher']):<22}{row['train boxes']:>7}{row[f'{judged} boxes']:>7}"
        + "".join(f"{_points(row[key]):>9}" for key in ("teacher AP50-95", "student AP50-95", "headroom"))
        for row in summary["classes"]
    ]
    lost = f"the teacher's {', '.join(summary['lost'])} have no partner in the data"
    return [head, *rows, *([lost] if summary["lost"] else [])]


def _short(name: str | None, most: int = 20) -> str:
    name = "-" if name is None else name
    return name if len(name) <= most else name[: most - 1] + "…"


def _points(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _split_lines(summary: Mapping[str, Any]) -> list[str]:
    if not summary["data"]:
        return []
    lines = [
        f"{name}: {split['images']} images with {split['boxes']} boxes, {split['empty']} of them without a box"
        for name, split in summary["data"]["splits"].items()
    ]
    for kind, words in (("same", "the same file as"), ("near", "nearly the same picture as")):
        twins, judged, beside = (summary["data"][key] for key in (kind, "judged", "beside"))
        lines += [f"{val} of {judged} is {words} {train} of {beside}" for val, train, _ in twins[:5]]
    return lines


def cost_lines(cost: Mapping[str, Any] | None) -> list[str]:
    """Memory and time in words."""
    if not cost:
        return []
    cached = "not possible with these settings"
    if cost["cached_run"] is not None:
        cached = f"{span(cost['cached_epoch'])} an epoch, {span(cost['cached_run'])} for the run"
    rest = " and a validation" if cost["validates"] else ""
    return [
        f"a step of {cost['batch']} images: {span(cost['step'])}, the teacher {span(cost['teacher'])} of it "
        f"(median of {cost['steps']} on {cost['device']})",
        f"memory at most {cost['peak'] / GB:.1f} GB of {cost['of'] / GB:.1f} GB",
        f"{cost['epochs']} epochs of {cost['batches']} steps{rest}: {span(cost['epoch'])} an epoch, "
        f"{span(cost['run'])} for the run",
        f"with teacher_cache, once every view is kept: {cached}",
    ]


def span(seconds: float) -> str:
    """A length of time in the unit that fits it."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"
