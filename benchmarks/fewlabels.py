"""Few labels and many images: what a student learns from those that nobody labelled, as PROTOCOL.md says.

    TSKD_NEU=/data/NEU-DET python benchmarks/fewlabels.py share=10 teacher=runs/few/t10/weights/best.pt

Of each class of NEU-DET's train split the first images by the hash of their name are labelled, the others are not; the
lists are in ``benchmarks/fewlabels``. ``teacher=`` was trained on the labelled ones only (``teachers.py name=t10
data=runs/fewlabels/10/labelled.yaml``), ``knows_all=`` on all of them, for rows of its own. Every arm takes the same
number of steps (``steps=600``) with 16 labelled images in each; a short list is repeated, so that an epoch is a
twentieth of them (the arms autolabel and all_labels take each of their images once in an epoch, and so have fewer
validations to choose from):

    plain          the labelled images alone                tskd          the same with the teacher
    unlabelled     16 others in every batch too             pseudo        and the detection loss on confident boxes
    autolabel      plain training on the labelled images and on others with the teacher's labels
    all_labels     plain training on all images with their labels

Judged on test with seeds 10 to 12; ``split=val seeds=[0,1]`` chooses settings. ``arms=plain,tskd`` runs some of
them, ``lists=True`` writes lists and data sets and nothing else, other keys go to ``tskd-yolo compare``. The same
command goes on with what is left. ``results/fewlabels_neu_128.json`` gets a row per share, of val
``results/tune_fewlabels_neu_128.json``; ``name=`` gives another last word.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from common import JUDGING_SEEDS, TUNING_SEEDS, machine, public, refuse_seeds
from ultralytics.cfg import parse_key_value_pair
from ultralytics.data.utils import check_det_dataset

from tskd_yolo import config, files, settings_files
from tskd_yolo.autolabel.run import autolabel
from tskd_yolo.compare.runner import compare
from tskd_yolo.compare.stats import paired

LISTS = Path(__file__).with_name("fewlabels")
LABELLED = 16
"""Labelled images of a step."""
EPOCHS = 20
"""A list of labelled images is repeated until an epoch is about so many of the steps: then best.pt is chosen as often
from few images as from many, and validation does not take the time."""
SETTINGS = {"model": "yolo11n.pt", "imgsz": 128, "batch": LABELLED, "device": "cpu", "drd": 1, "ded": 4}
"""Those that were judged; since then DRD is off by default."""
FILES = {"test": ("fewlabels_", JUDGING_SEEDS[:3]), "val": ("tune_fewlabels_", TUNING_SEEDS[:2])}
"""By split how its result is called, and its seeds."""
ARMS = "plain", "tskd", "unlabelled", "pseudo", "autolabel", "all_labels"
METRIC = "mAP50-95"


def main(arguments: list[str]) -> int:
    given: dict[str, Any] = dict(parse_key_value_pair(a) for a in arguments)
    share, steps = int(given.pop("share", 10)), int(given.pop("steps", 600))
    runs, out = Path(given.pop("runs", "runs/fewlabels")).resolve(), Path(given.pop("out", "benchmarks/results"))
    folder, knows_all, lists = runs / f"{share:02d}", given.pop("knows_all", None), given.pop("lists", False)
    name, arms = str(given.pop("name", "neu_128")), str(given.pop("arms", ",".join(ARMS))).split(",")
    if "plain" not in arms or not {*arms} <= {*ARMS}:
        sys.exit(f"arms: must be plain and some of {', '.join(ARMS[1:])}, got {', '.join(arms)}.")
    named: dict[str, Any] = {"data": "neu3.yaml"}
    settings_files.resolve(named)
    few = data_sets(check_det_dataset(named["data"]), share, folder, steps)
    if lists:
        return 0
    split = given.setdefault("split", "test")
    if split not in FILES:
        sys.exit(f"split: must be val (choosing) or test (judging), got {split!r}.")
    prefix, seeds = FILES[split]
    settings: dict[str, Any] = {**SETTINGS, "seeds": seeds, **given}
    refuse_seeds(settings["seeds"], of=split)
    refuse_again(out / f"{prefix}{name}.json", share, arms, folder, split)
    if failed := students(settings, arms, few, folder, named["data"], steps, knows_all):
        return failed
    row = {"share": share, "steps": steps, **summary(folder)}
    keep(out / f"{prefix}{name}.json", share, {
        "command": "python benchmarks/fewlabels.py " + public(arguments), **machine(settings["device"]), **row,
    })  # fmt: skip
    return 0


def refuse_again(file: Path, share: int, arms: list[str], folder: Path, split: str) -> None:
    """Ends with a sentence where a share was judged already and this is not that run going on, or would lose rows."""
    rows = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    for row in (row for row in rows if row["share"] == share):
        if split == "test" and not (folder / "few" / "compare.json").exists():
            sys.exit(f"{file.name} has a share of {share} %: it is judged once; go on in its own runs=, or give name=.")
        if lost := sorted({arm for arm in row["arms"] if arm in ARMS} - {*arms}):
            sys.exit(f"{file.name} has rows of {', '.join(lost)} too, which would be lost; name them in arms=.")


# The data -------------------------------------------------------------------------------------------------------------


def chosen(images: list[Path], share: int) -> list[str]:
    """Names of so many per cent of each class's images, ``CLASS_K.jpg``: the first ones by the hash of the name."""
    by_class = defaultdict(list)
    for image in images:
        by_class[image.name.rpartition("_")[0]].append(image.name)
    first = {
        kind: sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
        for kind, names in by_class.items()
    }
    return sorted(name for names in first.values() for name in names[: round(len(names) * share / 100)])


def data_sets(whole: dict[str, Any], share: int, folder: Path, steps: int) -> dict[str, Path]:
    """Files of a share: ``labelled`` is a data YAML, ``rest`` the list of images without labels."""
    images = sorted(Path(whole["train"]).iterdir())
    names, stored = chosen(images, share), LISTS / f"neu_{share:02d}.txt"
    if not stored.exists():
        stored.write_text("\n".join(names) + "\n", encoding="ascii")
    if stored.read_text(encoding="ascii").split() != names:
        sys.exit(f"{stored.name} has other images than their hash chooses; the data set is another one.")
    folder.mkdir(parents=True, exist_ok=True)
    known = set(names)
    times = max(round(steps / EPOCHS * LABELLED / len(names)), 1)
    lists = {
        "labelled": [image for image in images if image.name in known] * times,
        "rest": [image for image in images if image.name not in known],
    }
    for name, listed in lists.items():
        (folder / f"{name}.txt").write_text("".join(f"{image}\n" for image in listed), encoding="utf-8")
    return {"labelled": _data(folder / "labelled.yaml", whole, [folder / "labelled.txt"]), "rest": folder / "rest.txt"}


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


def _data(file: Path, whole: dict[str, Any], train: list[Path]) -> Path:
    splits = {"train": [str(part) for part in train], "val": str(whole["val"]), "test": str(whole["test"])}
    content = {"path": str(whole["path"]), **splits, "names": whole["names"]}
    file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return file


def schedule(data: Path | str, steps: int) -> dict[str, Any]:
    """Epochs of about so many steps; of these the first 15 % warm up, and the second half is without mosaic.

    Ultralytics' own numbers, 3 epochs and the last 10, mean this where there are 20.
    """
    train = check_det_dataset(str(data))["train"]
    parts = map(Path, train if isinstance(train, list) else [train])
    count = sum(len(_lines(part) if part.suffix == ".txt" else list(part.iterdir())) for part in parts)
    epochs = max(round(steps / -(-count // LABELLED)), 1)
    return {"epochs": epochs, "close_mosaic": round(epochs / 2), "warmup_epochs": 0.15 * epochs}


# The arms -------------------------------------------------------------------------------------------------------------


def students(
    settings: dict[str, Any], arms: list[str], few: dict[str, Path], folder: Path, whole: str, steps: int,
    knows_all: str | None,
) -> int:  # fmt: skip
    """Runs the arms; gives the number of comparisons that failed."""
    others = {"batch": 2 * LABELLED, "unlabelled": str(few["rest"]), "unlabelled_share": 0.5}
    own: dict[str, Any] = {"unlabelled": others, "pseudo": {**others, "pseudo": True}}
    own = {name: arm for name, arm in own.items() if name in arms}
    if knows_all:
        own |= {"tskd_all": {"teacher": knows_all}, "unlabelled_all": {**others, "teacher": knows_all}}
    (folder / "arms.yaml").write_text(yaml.safe_dump(own), encoding="utf-8")
    built_in = [arm for arm in ("plain", "tskd") if arm in arms]
    failed = compare(
        arms=",".join([*built_in, *([str(folder / "arms.yaml")] if own else [])]), data=str(few["labelled"]),
        out=str(folder / "few"), **schedule(few["labelled"], steps), **settings,
    )  # fmt: skip
    if "autolabel" in arms:
        failed += _plainly(taught(settings, few, folder), folder / "autolabel", settings, steps)
    if "all_labels" in arms:
        failed += _plainly(whole, folder / "all_labels", settings, steps)
    return failed


def _plainly(data: str, out: Path, settings: dict[str, Any], steps: int) -> int:
    return compare(arms="plain", data=data, out=str(out), **schedule(data, steps), **settings)


def taught(settings: dict[str, Any], few: dict[str, Path], folder: Path) -> str:
    """A data YAML of the labelled images and of the others with the teacher's labels, all once."""
    out = folder / "taught"
    if not (out / "autolabel.json").exists():
        known = {key: settings[key] for key in ("teacher", "imgsz", "device")}
        autolabel(source=str(few["rest"]), data=str(few["labelled"]), out=str(out), **known)
    once = folder / "labelled_once.txt"
    once.write_text("".join(f"{line}\n" for line in dict.fromkeys(_lines(folder / "labelled.txt"))), encoding="utf-8")
    content = yaml.safe_load(few["labelled"].read_text(encoding="utf-8"))
    content["train"] = [str(once), str(out / "images" / "train")]
    (folder / "auto.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return str(folder / "auto.yaml")


def summary(folder: Path) -> dict[str, Any]:
    """Scores of every arm by seed, and its gain over plain training with a paired interval, of best.pt and last.pt."""
    rows: dict[str, dict[str, dict[int, float]]] = {}
    found = json.loads((folder / "few" / "compare.json").read_text(encoding="utf-8"))
    for arm in found["arms"]:
        rows[arm] = _scores(found, arm)
    for name in ("autolabel", "all_labels"):
        if (report := folder / name / "compare.json").exists():
            rows[name] = _scores(json.loads(report.read_text(encoding="utf-8")), "plain")
    told: dict[str, Any] = {}
    for arm, scores in rows.items():
        gains = {weights: paired(scores[weights], rows["plain"][weights]) for weights in scores}
        told[arm] = {**scores, "gain": {weights: gain and asdict(gain) for weights, gain in gains.items()}}
    return {"teacher": found["teacher"], "judged": found["judged"], "settings": found["settings"], "arms": told}


def _scores(found: dict[str, Any], arm: str) -> dict[str, dict[int, float]]:
    rows = found["arms"][arm]["rows"]
    return {weights: {row["seed"]: row[weights][METRIC] for row in rows} for weights in ("best", "last")}


def keep(file: Path, share: int, row: dict[str, Any]) -> None:
    """Adds a share's row, or replaces it."""
    rows = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    rows = sorted([*(known for known in rows if known["share"] != share), row], key=lambda known: known["share"])
    file.parent.mkdir(parents=True, exist_ok=True)
    files.replace(file, (json.dumps(rows, indent=1) + "\n").encode("utf-8"))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]) > 0)
    except config.ConfigError as error:
        sys.exit(str(error))
