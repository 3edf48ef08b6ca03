"""What a user can get wrong: a table, each case with one outcome, for the tests that run it.

refuse: exit code 1, one sentence per mistake, nothing left behind; in Python one exception with the same words.
warn, works: a student comes out; what the user should know is said.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from PIL import Image

from tests.helpers import NAMES, settings, tiny_data
from tskd_yolo import config

REFUSE, WARN, WORKS = "refuse", "warn", "works"


class Case(NamedTuple):
    """``values`` go over those of a run that works, ``{f}`` is the folder of FILES; ``data`` spoils its data set."""

    name: str
    outcome: str
    values: dict[str, Any]
    says: tuple[str, ...]
    data: Callable[[Path], Any] | None = None
    count: int = 1  # mistakes


# Data sets ------------------------------------------------------------------------------------------------------------


def edited(**changes: Any) -> Callable[[Path], Path]:
    """The tiny set with other entries in its YAML; None takes one out."""

    def make(folder: Path) -> Path:
        file = tiny_data(folder, train=4, val=2)
        content = {**yaml.safe_load(file.read_text(encoding="utf-8")), **changes}
        file.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}), encoding="utf-8")
        return file

    return make


def labelled(*lines: str, append: bool = True, split: str = "train") -> Callable[[Path], Path]:
    """The tiny set with these lines in the labels of its first image."""

    def make(folder: Path) -> Path:
        file = tiny_data(folder, train=4, val=2)
        label = folder / "set" / "labels" / split / "strip_0000.txt"
        before = label.read_text() if append else ""
        label.write_text(before + "".join(line + "\n" for line in lines))
        return file

    return make


def without(pattern: str) -> Callable[[Path], Path]:
    """The tiny set without some of its files."""

    def make(folder: Path) -> Path:
        file = tiny_data(folder, train=4, val=2)
        for path in (folder / "set").glob(pattern):
            path.unlink()
        return file

    return make


without_labels = without("labels/train/*")


def written(name: str, text: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_text(text, encoding="utf-8")
        return folder / name

    return make


def odd(folder: Path) -> Path:
    """A set with everything that Ultralytics' scan leaves out or lets through, on an image each."""
    file = tiny_data(folder, train=8, val=2)
    (folder / "set" / "images" / "train" / "strip_0000.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    labels = {
        "train/strip_0001": ["1 nan .5 .2 .2"],
        "train/strip_0002": ["1 2.5 .5 .2 .2"],
        "train/strip_0003": ["1 .5 .5 -.2 .2"],
        "train/strip_0004": ["1 .5 .5 0 .2", "1 .2 .5 .1 0"],
        "train/strip_0005": ["1 .5 .5 .2 .2"] * 3,
        "val/strip_0000": ["1 .5 .5 0 0"],
    }
    for name, lines in labels.items():
        (folder / "set" / "labels" / f"{name}.txt").write_text("\n".join(lines))
    return file


def moved_originals(folder: Path) -> Path:
    """A set prepared from Pascal VOC, whose images lie elsewhere by now."""
    from tskd_yolo.data.convert.common import Options
    from tskd_yolo.data.convert.voc import convert

    (folder / "IMAGES").mkdir()
    (folder / "ANNOTATIONS").mkdir()
    for number, name in enumerate((*NAMES, *NAMES)):
        Image.new("L", (64, 64), 90).save(folder / "IMAGES" / f"a_{number}.png")
        box = "<bndbox><xmin>4</xmin><ymin>4</ymin><xmax>30</xmax><ymax>30</ymax></bndbox>"
        text = f"<annotation><object><name>{name}</name>{box}</object></annotation>"
        (folder / "ANNOTATIONS" / f"a_{number}.xml").write_text(text)
    convert(
        folder / "IMAGES", folder / "ANNOTATIONS", Options(out=folder / "prepared"),
        split=lambda stem: "train" if int(stem[2:]) < 6 else "val",
    )  # fmt: skip
    (folder / "IMAGES").rename(folder / "elsewhere")
    return folder / "prepared" / "data.yaml"


def blanks(folder: Path) -> Path:
    inner = folder / "Bänder 钢 and more"
    inner.mkdir()
    return tiny_data(inner, train=4, val=2)


def demo_at(place: Path, folder: Path) -> Path:
    """The data set demo.yaml, which prepares itself, to be prepared in another place."""
    content = yaml.safe_load((config.folder("datasets") / "demo.yaml").read_text(encoding="utf-8"))
    (folder / "demo.yaml").write_text(yaml.safe_dump({**content, "path": str(place)}), encoding="utf-8")
    return folder / "demo.yaml"


def prepared_below_a_file(folder: Path) -> Path:
    (folder / "file").touch()
    return demo_at(folder / "file" / "set", folder)


def read_only(folder: Path) -> Path:
    file = demo_at(folder / "locked" / "set", folder)
    (folder / "locked").mkdir(mode=0o500)
    if os.access(folder / "locked", os.W_OK):
        pytest.skip("this user may write anywhere")
    return file


SAME = {"teacher": "{f}/student.pt", "model": "{f}/student.pt"}

CASES = [
    # Teacher
    Case("teacher missing", REFUSE, {"teacher": "{f}/nowhere.pt"}, ("teacher: ", "nowhere.pt was not found", "give a")),
    Case("teacher=None", REFUSE, {"teacher": "None"}, ("teacher: missing; give teacher=FILE.pt",)),
    Case("teacher a folder", REFUSE, {"teacher": "{f}/folder"}, ("teacher: ", "is a folder; give the .pt")),
    Case("teacher a folder named .pt", REFUSE, {"teacher": "{f}/folder.pt"}, ("teacher: ", "is a folder; give the")),
    Case("teacher empty", REFUSE, {"teacher": "{f}/empty.pt"}, ("teacher: ", "is empty, cut short or no checkpoint")),
    Case("teacher truncated", REFUSE, {"teacher": "{f}/cut.pt"}, ("teacher: ", "is empty, cut short or no checkpoint")),
    Case("teacher an image", REFUSE, {"teacher": "{f}/image.pt"}, ("teacher: ", "is empty, cut short or no check")),
    Case("teacher words", REFUSE, {"teacher": "{f}/words.pt"}, ("teacher: ", "is empty, cut short or no checkpoint")),
    Case("teacher only tensors", REFUSE, {"teacher": "{f}/tensors.pt"}, ("teacher: ", "holds no model")),
    Case("teacher another network", REFUSE, {"teacher": "{f}/foreign.pt"}, ("teacher: ", "holds a Sequential and no")),
    Case("teacher a list", REFUSE, {"teacher": "{f}/list.pt"}, ("teacher: ", "holds no model")),
    Case("teacher ONNX", REFUSE, {"teacher": "{f}/model.onnx"}, ("teacher: ", "is an exported model", "give the .pt")),
    Case("teacher TensorRT", REFUSE, {"teacher": "{f}/model.engine"}, ("teacher: ", "is an exported model")),
    Case("teacher TorchScript", REFUSE, {"teacher": "{f}/model.torchscript"}, ("teacher: ", "is an exported model")),
    Case("teacher TorchScript as .pt", REFUSE, {"teacher": "{f}/scripted.pt"}, ("teacher: ", "TorchScript export")),
    Case("teacher safetensors", REFUSE, {"teacher": "{f}/model.safetensors"}, ("teacher: ", "'.safetensors', not in")),
    Case("teacher .bin", REFUSE, {"teacher": "{f}/weights.bin"}, ("teacher: ", "ends in '.bin', not in '.pt'")),
    Case("teacher segments", REFUSE, {"teacher": "{f}/seg.pt"}, ("is one for segment and the student one for det",)),
    Case("teacher classifies", REFUSE, {"teacher": "{f}/cls.pt"}, ("teacher: ", "ClassificationModel", "'classify'")),
    Case("teacher finds poses", REFUSE, {"teacher": "{f}/pose.pt"}, ("is one for pose and the", "give two of the")),
    Case("teacher turns boxes", REFUSE, {"teacher": "{f}/obb.pt"}, ("teacher: ", "is one for obb", "same task.")),
    Case("teacher with P2", WORKS, {"teacher": "{f}/p2.pt"}, ("levels of stride [4] are in one network only",)),
    Case("teacher RT-DETR", WORKS, {"teacher": "{f}/rtdetr.pt"}, ("crd       off: teacher and student have no class",)),
    Case("teacher of other count", WORKS, {"teacher": "{f}/two.pt"}, ("the teacher knows 2 of the 6", "alone: pa")),
    Case(
        "teacher of other names", REFUSE, {"teacher": "{f}/others.pt", "drd": 0, "ded": 0},
        ("no class (cat, dog", "in common with the data (crazing", "give classes_map="),
    ),
    Case("teacher twice", REFUSE, {"teacher": "[a.pt,a.pt]"}, ("teacher: must be a file, or a list of different",)),
    Case("teachers and a gap", REFUSE, {"teacher": "[a.pt,]"}, ("teacher: must be a file, or a list of different",)),
    Case(
        "teachers missing", REFUSE, {"teacher": "[nowhere.pt,no.pt]"},
        ("nowhere.pt was not found", "no.pt was not found"), count=2,
    ),
    Case("map missing", REFUSE, {"classes_map": "nowhere.yaml"}, ("classes_map: nowhere.yaml was not found; give a",)),
    Case("map no map", REFUSE, {"classes_map": "{f}/words.pt"}, ("classes_map: ", "words.pt maps no names to names")),
    Case("map a number", REFUSE, {"classes_map": 3}, ("classes_map: must be a YAML file, or a mapping",)),
    Case("teacher turned", WORKS, {"teacher": "{f}/turned.pt"}, ("are in another order; they are matched by name",)),
    Case("teacher fused", WORKS, {"teacher": "{f}/fused.pt"}, ("fused.pt",)),
    Case("teacher built-in", WORKS, {"teacher": "{f}/built_in.pt"}, ("interrupted run of distill_", "its student")),
    Case("teacher untrained", WARN, {"imgsz": 31}, ("it finds next to nothing", "give one that is trained")),
    Case("teacher no better", WARN, SAME, ("no better than the student already is", "there is little to learn")),
    Case("teacher the student", WARN, SAME, ("is the student itself: it can teach nothing new",)),
    # Student
    Case("student fused", REFUSE, {"model": "{f}/fused.pt"}, ("model: the batch norms of", "are folded")),
    Case("student missing", REFUSE, {"model": "{f}/nowhere.pt"}, ("model: ", "nowhere.pt was not found", "give a")),
    Case("student YAML missing", REFUSE, {"model": "nowhere.yaml"}, ("model: nowhere.yaml", "give a YOLO's .pt")),
    Case("student left out", REFUSE, {"model": None}, ("model: missing; give the student",)),
    Case("student empty", REFUSE, {"model": "{f}/empty.pt"}, ("model: ", "is empty, cut short or no checkpoint")),
    Case("student segments", REFUSE, {"model": "yolo11n-seg.yaml"}, ("is one for detect and the student one for seg",)),
    Case("student RT-DETR", REFUSE, {"model": "rtdetr-l.yaml"}, ("(rtdetr-l) ends in RTDETRDecoder", "give one")),
    Case("student .pt RT-DETR", REFUSE, {"model": "{f}/rtdetr.pt"}, ("model: ", "RTDETRDetectionModel", "give a")),
    Case("student .pt segments", REFUSE, {"model": "{f}/seg.pt"}, ("the student one for segment;",)),
    Case("student .pt classifies", REFUSE, {"model": "{f}/cls.pt"}, ("model: ", "for 'classify'; give a YOLO for")),
    Case("student classifies", REFUSE, {"model": "yolo11n-cls.yaml"}, ("(yolo11n-cls) ends in Classify", "give one")),
    Case("student ONNX", REFUSE, {"model": "{f}/model.onnx"}, ("model: ", "is an exported model")),
    Case("student built-in", REFUSE, {"model": "{f}/built_in.pt"}, ("model: ", "interrupted run of distill_model=")),
    Case("pretrained missing", REFUSE, {"pretrained": "{f}/nowhere.pt"}, ("pretrained: ", "was not found")),
    Case("pretrained words", REFUSE, {"pretrained": "{f}/words.pt"}, ("pretrained: ", "is empty, cut short")),
    Case("student no network", REFUSE, {"model": "{f}/set.yaml"}, ("model: ", "describes no network (backbone: and")),
    Case("student's layer", REFUSE, {"model": "{f}/yolo11-typo.yaml"}, ("model: the network of ", "KeyError: 'C3PSA'")),
    Case("frozen by words", REFUSE, {"freeze": "abc"}, ("freeze: must be a number of layers, or a list of layers",)),
    Case("all frozen by number", REFUSE, {"freeze": 24}, ("freeze: 24 freezes every layer of the student",)),
    Case("all frozen by list", REFUSE, {"freeze": list(range(24))}, ("freeze: [0, 1, ", "freezes every layer")),
    Case("student larger", WARN, {"model": "yolo11s.yaml"}, ("it is not larger than the student",)),
    # Data
    Case("data missing", REFUSE, {"data": "nowhere.yaml"}, ("data: nowhere.yaml", "'nowhere.yaml' does not exist")),
    Case("data left out", REFUSE, {"data": None}, ("data: missing; give data=FILE.yaml",)),
    Case("data without names", REFUSE, {}, ("data: ", "'names'"), edited(names=None)),
    Case("no such split", REFUSE, {"split": "test"}, ("split: must be one that the data YAML names (train, val),",)),
    Case("no such class", REFUSE, {"classes": [0, 9]}, ("classes: the data has none with the number 9; its are 0 to",)),
    Case("no class", REFUSE, {"classes": []}, ("classes: must be numbers of classes, i.e. classes=[0,2], got []",)),
    Case("data without val", REFUSE, {}, ("data: ", "'val:' key missing"), edited(val=None)),
    Case("data empty", REFUSE, {}, ("data: ", "give a data YAML"), written("empty.yaml", "")),
    Case("data no YAML", REFUSE, {}, ("data: ", "give a data YAML"), written("torn.yaml", "a: [1,\nb: }{")),
    Case("data of another count", REFUSE, {}, ("data: ", "must match"), edited(nc=3)),
    Case("data whose folder is gone", REFUSE, {}, ("data: ", "images not found"), edited(path="/nowhere/at/all")),
    Case("data without train images", REFUSE, {}, ("data: the train images",), without("images/train/*")),
    Case("data without val images", REFUSE, {}, ("data: the val images",), without("images/val/*")),
    Case("data without train labels", REFUSE, {}, ("data: ", "No labels found"), without_labels),
    Case("data beyond its classes", REFUSE, {}, ("beyond the 6", "class 9", "strip_0000"), labelled("9 .5 .5 .2 .2")),
    Case(
        "val beyond its classes", REFUSE, {}, ("1 val images", "beyond the 6", "class 6"),
        labelled("6 .5 .5 .2 .2", split="val"),
    ),
    Case("data below a file", REFUSE, {}, ("data: ", "can be written to"), prepared_below_a_file),
    Case("data with moved originals", REFUSE, {}, ("data: ", "IMAGES", "gone", "prepared"), moved_originals),
    Case("data in a read-only folder", REFUSE, {}, ("data: ", "Permission denied", "can be written to"), read_only),
    Case("data with a broken image", WORKS, {}, ("train: 4 images are left out: ", "1 with an unreadable image"), odd),
    Case("data with NaN and beyond the image", WORKS, {}, ("train: 4 images are left out: 2 with non-norm",), odd),
    Case("data negative", WORKS, {}, ("train: 4 images are left out: ", "1 with negative label values"), odd),
    Case("data no area", WORKS, {}, ("train: 2 boxes have no area; they teach nothing",), odd),
    Case("val no area", WORKS, {}, ("val: 1 boxes have no area; nothing can find them",), odd),
    Case("data twice", WORKS, {}, ("train: 2 boxes that were there twice are counted once",), odd),
    Case(
        "all paths with blanks", WORKS, {"teacher": "{f}/with blank ü/teacher 教.pt", "name": "Lauf 1 ß"},
        ("teacher 教.pt",), blanks,
    ),
    # Arguments
    Case("unknown key", REFUSE, {"techer": "x.pt"}, ("techer: is not an argument; did you mean 'teacher'?",)),
    Case("unknown key of theirs", REFUSE, {"epohcs": 3}, ("epohcs: is not an argument; did you mean 'epochs'?",)),
    Case("unknown key far off", REFUSE, {"qqqqqq": 3}, ("qqqqqq: is not an argument; see 'tskd-yolo help'.",)),
    Case("word", REFUSE, {"drd": "word"}, ("drd: must be a finite number >= 0, got 'word'",)),
    Case("negative", REFUSE, {"ded": -1}, ("ded: must be a finite number >= 0, got -1",)),
    Case("NaN", REFUSE, {"crd": "nan"}, ("crd: must be a finite number >= 0, got",)),
    Case("infinite", REFUSE, {"crd": "inf"}, ("crd: must be a finite number >= 0, got",)),
    Case("beyond float32", REFUSE, {"crd": "1e39"}, ("crd: must be a finite number >= 0, got",)),
    Case("empty list", REFUSE, {"crd": "[]"}, ("crd: must be a finite number >= 0, got []",)),
    Case("no choice", REFUSE, {"balance": "foo"}, ("balance: must be one of share, fixed, got 'foo'.",)),
    Case("no bool", REFUSE, {"trust": "maybe"}, ("trust: must be True or False, got 'maybe'.",)),
    Case("no bool either", REFUSE, {"cuda_graphs": "maybe"}, ("cuda_graphs: must be True or False, got 'maybe'.",)),
    Case("distill_model", REFUSE, {"distill_model": "{f}/teacher.pt"}, ("distill_model: Ultralytics' built-in",)),
    Case("quantize=8", REFUSE, {"quantize": 8}, ("quantize: training with int8",)),
    Case("quantize=int8", REFUSE, {"quantize": "int8"}, ("quantize: training with int8",)),
    Case("batch=0", REFUSE, {"batch": 0}, ("batch: must be a whole number >= 1", "got 0.")),
    Case("batch=2.5", REFUSE, {"batch": 2.5}, ("batch: must be a whole number >= 1", "got 2.5.")),
    Case("batch=-4", REFUSE, {"batch": -4}, ("batch: must be a whole number >= 1", "got -4.")),
    Case("epochs=-3", REFUSE, {"epochs": -3}, ("epochs: must be at least 1, got -3.",)),
    Case("epochs=0", REFUSE, {"epochs": 0}, ("epochs: must be at least 1, got 0.",)),
    Case("epochs a word", REFUSE, {"epochs": "many"}, ("epochs: ", "must be an int")),
    Case("imgsz in words", REFUSE, {"imgsz": "large"}, ("imgsz: must be a whole number of pixels >= 1, got 'large'",)),
    Case("imgsz and a half", REFUSE, {"imgsz": 64.5}, ("imgsz: must be a whole number of pixels >= 1, got 64.5.",)),
    Case("seed too large", REFUSE, {"seed": 2**32}, ("seed: must be from 0 to 4294967295, got 4294967296.",)),
    Case("bf16 on a CPU", REFUSE, {"amp": "bf16"}, ("amp: bf16 needs a CUDA device, and this run has none",)),
    Case("a last batch of one", REFUSE, {"batch": 1, "nbs": 1, "imgsz": 32}, ("batch: final batch=1 training at",)),
    Case("imgsz=0", REFUSE, {"imgsz": 0}, ("imgsz: must be a whole number of pixels >= 1, got 0.",)),
    Case("lr0 a word", REFUSE, {"lr0": "fast"}, ("lr0: ", "Valid 'lr0' types are")),
    Case("lr0 beyond", REFUSE, {"lr0": 7}, ("lr0: ", "between 0.0 and 1.0")),
    Case("box=NaN", REFUSE, {"box": "nan"}, ("box: ",)),
    Case("optimizer unknown", REFUSE, {"optimizer": "Adamm"}, ("optimizer: ", "AdamW")),
    Case("compile", REFUSE, {"compile": True}, ("compile: not supported while distilling; leave it off.",)),
    Case("task unknown", REFUSE, {"task": "classify"}, ("task: only detect, segment, pose and obb can be distilled",)),
    Case("task of no student", REFUSE, {"task": "pose"}, ("task: pose was asked for and the student is one for det",)),
    Case(
        "pose without key points", REFUSE, {"teacher": "{f}/pose.pt", "model": "yolo11n-pose.yaml"},
        ("data: it has no kpt_shape, which pose needs; give",),
    ),
    Case(
        "pose of other key points", REFUSE, {"teacher": "{f}/pose.pt", "model": "yolo11n-pose.yaml"},
        ("teacher: its key points have the shape [17, 3] and those of the data [2, 3]; give one",),
        edited(kpt_shape=[2, 3]),
    ),
    Case(
        "obb at two sizes", REFUSE, {"teacher": "{f}/obb.pt", "model": "yolo11n-obb.yaml", "teacher_imgsz": 128},
        ("teacher_imgsz: CRD does not bring rotated boxes (obb) to another grid; add crd=0, or leave it out.",),
    ),
    Case(
        "obb without angles", REFUSE, {"teacher": "{f}/obb.pt", "model": "yolo11n-obb.yaml"},
        ("data: the train images could not be read (", "OBB dataset requires"), labelled(),
    ),
    Case("device not there", REFUSE, {"device": 99}, ("device: 99 cannot be used here", "give device=cpu")),
    Case("device a word", REFUSE, {"device": "gpu"}, ("device: 'gpu' cannot be used here", "give device=cpu")),
    Case("imgsz=31", WORKS, {"imgsz": 31}, ("updating to [32]",)),
    # Resuming
    Case("resume nothing", REFUSE, {"resume": "{f}/nowhere.pt"}, ("model: ", "nowhere.pt was not found")),
    Case("resume a folder", REFUSE, {"resume": "{f}/folder"}, ("model: ", "is a folder; give the .pt")),
    Case("resume garbage", REFUSE, {"resume": "{f}/words.pt"}, ("model: ", "is empty, cut short or no checkpoint")),
    Case("resume finished", REFUSE, {"resume": "{f}/finished.pt"}, ("model: ", "is the end of a finished run")),
    Case("resume plain", REFUSE, {"resume": "{f}/plain_run.pt"}, ("model: ", "a run without a teacher", "'yolo train")),
    # Several at once
    Case(
        "eight at once", REFUSE,
        {
            "techer": 1, "teacher": "{f}/nowhere.pt", "model": "nowhere.yaml", "data": "nowhere.yaml", "drd": -1,
            "epochs": "many", "lr0": 7, "device": 99,
        },
        ("techer: ", "teacher: ", "model: ", "data: ", "drd: ", "epochs: ", "lr0: ", "device: "), count=8,
    ),
    Case(
        "teacher of other names, all frozen", REFUSE, {"teacher": "{f}/others.pt", "drd": 0, "ded": 0, "freeze": 99},
        ("no class (cat", "freeze: 99"), count=2,
    ),
]  # fmt: skip


def of(*outcomes: str, but: Callable[[Case], bool] = lambda case: False) -> Any:
    """A test of the cases with these outcomes."""
    cases = [case for case in CASES if case.outcome in outcomes and not but(case)]
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


def arguments(case: Case, *, folder: Path, data: Path, place: Callable[[Any], Any]) -> dict[str, Any]:
    """A run's arguments with those of the case, for a run that would write into ``folder``."""
    given = {**settings(folder, data, teacher="{f}/teacher.pt"), **case.values}
    return {key: place(value) for key, value in given.items() if value is not None}


def words(values: dict[str, Any]) -> list[str]:
    """The command line of a run."""
    return ["train", *(f"{key}={value}" for key, value in values.items())]
