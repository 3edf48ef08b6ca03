"""Every measured figure that the documentation tells, by name, from benchmarks/results.

A name is what stands in a mark ``<!-- generated: NAME -->``; its value is a word, a sentence or a table of Markdown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import elsewhere
import few
import judged
import more
import pairs
import sizes
import teachers
import yaml
from results import (
    METRICS,
    RESULTS,
    ROOT,
    class_table,
    effect,
    load,
    miss_table,
    model_name,
    percent,
    scores,
    table,
    told,
)

from tskd_yolo.compare.stats import holm, interval, paired, points

ARMS = {
    "plain": "plain training",
    "ultralytics": "Ultralytics `distill_model=`",
    "tskd": "tskd-yolo",
}
"""How the arms of the screening are called."""


def values() -> dict[str, str]:
    """All of them."""
    return {
        **screening(),
        **cache(),
        **costs(),
        **index(),
        **parts(),
        "settings": settings(),
        "sources": sources(),
        **teachers.values(),
        **few.values(),
        **judged.values(),
        **more.values(),
        **elsewhere.values(),
        "pairs": pairs.text(),
        "backbones": sizes.text(),
    }


# Does it help? --------------------------------------------------------------------------------------------------------


def screening() -> dict[str, str]:
    """What the screening on NEU-DET says, and about what."""
    found = load("screening_neu_128")["comparison"]
    arms, teacher = found["arms"], found["teacher"]["last"]
    gain, rival = effect(arms["tskd"]["effect"]["mAP50-95"]), effect(found["tskd_against"]["ultralytics"])
    alarms = {arm: next(m for m in arms[arm]["effect_on_misses"] if m["false_alarms"] == 1) for arm in arms}
    asked = found["settings"]
    return {
        "screening": _screening_table(found),
        "screening setting": f"NEU-DET, {asked['imgsz']} px, {asked['epochs']} epochs, batch {asked['batch']}, "
        f"{model_name(asked['model'])} from random weights, on a CPU; teacher {teacher_name(found)} (mAP50-95 "
        f"{teacher['mAP50-95']:.3f}); last weights, {len(found['seeds'])} seeds",
        "screening gain": f"{points(gain.mean, sign=True)} points of mAP50-95 (95 % interval {interval(gain)})",
        "screening recovered": percent(arms["tskd"]["recovered"]),
        "screening rival": f"{points(rival.mean)} points ({interval(rival)})",
        "screening misses": f"{percent(alarms['tskd']['miss'])} of the defects are missed instead of "
        f"{percent(alarms['plain']['miss'])}",
        "screening time": f"{arms['tskd']['time']['of_plain']:.1f} times as long as plain training",
        "screening first": _screening_gain("first"),
        "screening ded": _screening_gain("ded"),
        "screening latency": _latency(found),
        "screening classes": class_table(arms),
        "screening misses table": miss_table(arms),
        "recipe": _recipe(found),
    }


def _screening_gain(name: str) -> str:
    """What another screening on the same seeds says, of an earlier or a later state."""
    return told(effect(load(f"screening_{name}_neu_128")["comparison"]["arms"]["tskd"]["effect"]["mAP50-95"]))


def teacher_name(found: Mapping[str, Any]) -> str:
    """The teacher of a comparison."""
    return _teacher(found["teacher"]["name"])


def _teacher(file: str) -> str:
    """``YOLO11s`` of ``neu_yolo11s_128.pt``."""
    found = re.search(r"yolo\w+?[nsmlx](?=[_.-])", file)
    return model_name(found[0] if found else file)


def _screening_table(found: Mapping[str, Any]) -> str:
    head = ["", *(f"seed {seed}" for seed in found["seeds"]), "mAP50-95 over plain, 95 % interval", "verdict"]
    gains = {arm: effect(a["effect"]["mAP50-95"]) for arm, a in found["arms"].items() if arm != "plain"}
    verdicts = holm(gains)
    rows = []
    for arm, name in ARMS.items():
        figures = [scores(row["last"]) for row in found["arms"][arm]["rows"]]
        over = ["", ""] if arm == "plain" else [told(gains[arm]), verdicts[arm].verdict]
        rows.append([name, *figures, *over])
    teacher = scores(found["teacher"]["last"])
    rows.append([f"teacher, {teacher_name(found)}", teacher, *[""] * (len(head) - 2)])
    return table([f"{' / '.join(METRICS)}", *head[1:]], rows)


def _latency(found: Mapping[str, Any]) -> str:
    timed = found["latency"]
    student, teacher = (f"{timed['milliseconds'][who]:.1f} ms" for who in ("student", "teacher"))
    return f"{student} for the student and {teacher} for the teacher, at {timed['imgsz']} px, one image, one CPU thread"


def _recipe(found: Mapping[str, Any]) -> str:
    """The header of cfg/neu.yaml."""
    teacher = found["teacher"]["last"]["mAP50-95"]
    seeds = ", ".join(map(str, found["seeds"]))
    lines = [
        f"mAP50 / mAP50-95 of the last weights, seeds {seeds}; teacher {teacher_name(found)}, {teacher:.3f}:",
    ]
    for arm, name in (("tskd", "tskd-yolo"), ("plain", "plain training")):
        rows = found["arms"][arm]["rows"]
        figures = "   ".join(scores(row["last"]) for row in rows)
        lines.append(f"  {name:<16}{figures}")
    return "\n".join(f"# {line}" for line in lines)


# What it costs --------------------------------------------------------------------------------------------------------


def cache() -> dict[str, str]:
    """Training out of the teacher's cache against live distillation, in mAP and in time."""
    kept, live = (_by_seed(load(name), "tskd") for name in ("screening_neu_128_cache", "screening_first_neu_128"))
    found, cost, small = paired(kept, live), load("cache_cost_cpu"), load("cache_cost_128_cpu")
    assert found is not None
    ratio = {arm: f"{told['ratio']['wall']:.2f}" for arm, told in cost["epoch"].items()}
    rows = [
        [name, f"{cost['epoch'][arm]['wall']:.1f} s", ratio[arm]]
        for arm, name in {
            "plain": "plain training",
            "live": "tskd-yolo, the teacher in every step",
            "first": "tskd-yolo with `teacher_cache=disk`, the epoch that fills it",
            "cached": "tskd-yolo with `teacher_cache=disk`, every later epoch",
        }.items()
    ]
    seeds = sorted(kept)
    figures = [
        [name, *(f"{of[seed]:.3f}" for seed in seeds)]
        for name, of in (("out of the cache", kept), ("the teacher in every step", live))
    ]
    set_ = cost["settings"]
    return {
        "cache effect": f"{points(found.mean, sign=True)} points of mAP50-95 (95 % interval {interval(found)}, "
        f"{found.seeds} seeds)",
        "cache ratio": f"{ratio['cached']} times a plain one, where live distillation takes {ratio['live']} times",
        "cache table": table(["an epoch", "time", "÷ plain"], rows),
        "cache mAP": table(["mAP50-95", *(f"seed {seed}" for seed in seeds)], figures),
        "cache setting": f"{pair_name(cost['pair'])}, {set_['imgsz']} px, batch {set_['batch']}, on a CPU",
        "cache later": f"{_later(small):.2f}",
        "cache later goal": "reached" if _later(small) <= 1.05 else "missed",
        "cache later stock": f"{small['epoch']['cached']['ratio']['cpu']:.2f}",
        "cache later setting": f"{pair_name(small['pair'])}, {small['settings']['imgsz']} px, "
        f"batch {small['settings']['batch']}, on a CPU",
        "cache record": f"{cost['record_bytes'] / 1e3:.0f} kB per view",
    }


def _later(cost: Mapping[str, Any]) -> float:
    """What an epoch out of the cache takes over a plain one in the same memory format."""
    return cost["epoch"]["cached"]["cpu"] / cost["epoch"]["same_format"]["cpu"]


def _by_seed(report: Mapping[str, Any], arm: str) -> dict[int, float]:
    return {row["seed"]: row["last"]["mAP50-95"] for row in report["comparison"]["arms"][arm]["rows"]}


def pair_name(pair: str) -> str:
    """``11n ← 11m`` for ``yolo11n:yolo11m``."""
    return "\u00a0←\u00a0".join(name.replace("yolo", "") for name in pair.split(":"))


def costs() -> dict[str, str]:
    """What a step and an epoch cost."""
    rows, epoch = load("step_cost_cpu"), load("epoch_cost")
    on_gpu = load("step_cost_cuda")
    gpu = on_gpu[0]["settings"]
    first, swept = rows[0]["settings"], load("step_cost_batch")[0]
    asked = dict(re.findall(r"(\w+)=(\S+)", epoch["command"]))
    return {
        "step setting": f"{first['imgsz']} px, batch {first['batch']}, on a CPU, medians",
        "step times": _step_times(rows),
        "step ratios": _step_ratios(rows),
        "step memory": _memory_table(rows),
        "gpu setting": f"{on_gpu[0]['machine']['hardware']}, {gpu['imgsz']} px, batch {gpu['batch']}, float16, medians",
        "gpu steps": _gpu_table(on_gpu),
        "step sweeps": f"{pair_name(swept['pair'])}, medians of {swept['settings']['repeats']} steps",
        "step boxes": _sweep("boxes", "boxes per image"),
        "step classes": _sweep("classes", "classes"),
        "step imgsz": _sweep("imgsz", "image size in px"),
        "step batch": _sweep("batch", "batch"),
        "epoch setting": f"`data={asked['data']}` at {asked['imgsz']} px, batch {asked['batch']}, "
        f"teacher {_teacher(asked['teacher'])}",
        "epoch process": f"{epoch['ratio_epoch_process']:.2f}",
        "epoch overhead": f"{epoch['ratio_overhead_process']:.2f}",
        "epoch overhead wall": f"{epoch['ratio_overhead']:.2f}",
    }


def index() -> dict[str, str]:
    """What it takes to find the images of a large folder."""
    found = load("index_cost")
    return {
        "index setting": f"{found['images']:,} links in {found['folders']} folders, on a CPU",
        "index cost": f"{found['first']:.1f} s the first time and {found['second']:.2f} s the next, "
        f"{found['changed']:.2f} s where one folder has changed; the paths take {found['memory']:.0f} MB",
    }


def _step_times(rows: Sequence[Mapping[str, Any]]) -> str:
    times = "student_step_s", "student_channels_last_step_s", "teacher_forward_s", "distill_step_s", "builtin_step_s"
    head = ["student ← teacher", "plain step", "the same in channels_last", "teacher", "tskd-yolo", "`distill_model=`"]
    return table(head, [[pair_name(row["pair"]), *(f"{row[key]:.2f} s" for key in times)] for row in rows])


def _step_ratios(rows: Sequence[Mapping[str, Any]]) -> str:
    ratios = "ratio_to_floor", "ratio_to_floor_channels_last", "ratio_to_builtin"
    head = ["student ← teacher", "tskd-yolo ÷ floor", "÷ stricter floor", "÷ `distill_model=`"]
    return table(head, [[pair_name(row["pair"]), *(f"{row[key]:.2f}" for key in ratios)] for row in rows])


def _memory_table(rows: Sequence[Mapping[str, Any]]) -> str:
    sizes = "student_peak_mib", "teacher_weights_mib", "teacher_kept_mib", "distill_peak_mib", "builtin_peak_mib"
    head = ["student ← teacher", "plain step", "teacher's weights", "kept of its outputs", "tskd-yolo"]
    head += ["`distill_model=`", "÷ floor", "÷ `distill_model=`"]
    body = [
        [pair_name(row["pair"]), *(f"{row[key]:.0f} MiB" for key in sizes)]
        + [f"{row[key]:.2f}" for key in ("ratio_to_memory_floor", "ratio_to_builtin_memory")]
        for row in rows
    ]
    return table(head, body)


def _gpu_table(rows: Sequence[Mapping[str, Any]]) -> str:
    times = "student_step_s", "teacher_forward_s", "distill_step_s", "builtin_step_s"
    ratios = "ratio_to_floor_channels_last", "ratio_to_builtin", "ratio_to_memory_floor", "ratio_to_builtin_memory"
    head = ["student ← teacher", "terms", "`cuda_graphs`", "plain step", "teacher", "tskd-yolo", "`distill_model=`"]
    head += ["time ÷ floor", "÷ `distill_model=`", "memory ÷ floor", "÷ `distill_model=`"]
    body = [
        [pair_name(row["pair"]), ", ".join(row["terms"]).upper(), str(row["cuda_graphs"])]
        + [f"{1000 * row[key]:.0f} ms" for key in times]
        + [f"{row[key]:.2f}" for key in ratios]
        for row in rows
    ]
    return table(head, body, words=3)


def _sweep(what: str, title: str) -> str:
    rows = [row for row in load(f"step_cost_{what}") if "settings" in row]
    body = [
        [f"{row['settings'][what]}", f"{1000 * row['terms_s']:.0f} ms", f"{row['distill_step_s']:.2f} s"]
        + [f"{row[key]:.2f}" for key in ("ratio_to_floor", "ratio_to_builtin")]
        for row in rows
    ]
    return table([title, "terms", "tskd-yolo step", "÷ floor", "÷ `distill_model=`"], body, words=0)


PARTS = {
    "stages.detection": "detection loss, on the backbone's stages",
    "stages.foreground": "DED, foreground",
    "stages.background": "DED, background",
    "stages.structure": "DED, structure",
    "detection": "detection loss, on the neck",
    "pixel": "DRD, pixels",
    "instance": "DRD, instances",
    "cross_class": "CRD, classes, cross response",
    "cross_box": "CRD, boxes, cross response",
    "own_class": "CRD, classes, the student's own",
    "own_box": "CRD, boxes, the student's own",
}
"""Each place has the detection loss first, and then the parts that are held against it there."""


EARLY = 7
"""So many layers of a YOLO11 end in the map of stride 16."""


def parts() -> dict[str, str]:
    """The gradient of each part of each term at weight 1."""
    found, rows = load("gradients_start")["parts"], []
    for part, name in PARTS.items():
        norm = found[part]["norm"]
        if part.endswith("detection"):
            whole, against = norm, ["", ""]
        else:
            against = [f"{norm / whole:.2f}", _signed(found[part]["cosine"])]
        rows.append([name, f"{norm:.3f}", *against])
    head = ["part, at weight 1", "gradient norm", "÷ detection loss", "cosine with it"]
    strong, light = (_in_weights(load(f"pulls_weights_{name}")["layers"]) for name in ("strong", "light"))
    return {
        "parts": table(head, rows),
        "weights strong": f"{min(strong):.0f} to {max(strong):.0f} times",
        "weights light": f"{min(light):.1f} to {max(light):.1f} times",
    }


def _in_weights(layers: Mapping[str, Sequence[float]]) -> list[float]:
    """Norm with the terms over that of plain training, of each layer up to the map of stride 16."""
    return [ours / plain for ours, plain in zip(layers["tskd"][:EARLY], layers["plain"][:EARLY], strict=True)]


def _signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "−")


# Settings, and where figures come from --------------------------------------------------------------------------------


def settings() -> str:
    """Our keys, as cfg/default.yaml documents them."""
    text = (ROOT / "cfg" / "default.yaml").read_text(encoding="utf-8")
    defaults, rows = yaml.safe_load(text), []
    for line in text.splitlines():
        found = re.fullmatch(r"(\w+):(?: \S+)? # \((\w+)\) (.+)", line)
        if found:
            key, kind, meaning = found.groups()
            default = "" if defaults[key] is None else f"`{defaults[key]}`"
            rows.append([f"`{key}`", default, kind, meaning.replace("|", "\\|")])
    return table(["argument", "default", "type", "meaning"], rows, words=4)


def sources() -> str:
    """Of every file of results, the command that made it, and on what."""
    groups: dict[str, dict[str, None]] = {}
    for file in sorted(RESULTS.glob("*.json")):
        for report in _reports(json.loads(file.read_text(encoding="utf-8"))):
            machine = report.get("machine", report)
            versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
            line = f"- `{file.name}`, commit `{machine['commit']}`:\n  `{report['command']}`"
            groups.setdefault(f"On {machine['hardware']}; {versions}:", {})[line] = None
    return "\n\n".join("\n".join([head, "", *lines]) for head, lines in groups.items())


def _reports(content: Any) -> list[Mapping[str, Any]]:
    """What a file holds: one report, a list of them, or one under each name."""
    if isinstance(content, list):
        return content
    return [content] if "command" in content else list(content.values())
