"""What a user can get wrong: a table, each case with one outcome, through the command line's main function.

refuse: exit code 1, one sentence per mistake, nothing left behind; in Python one exception with the same words.
warn, works: a student comes out; what the user should know is said.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from PIL import Image
from ultralytics.cfg import smart_value

from tests.helpers import NAMES, make_detector, settings, tiny_data
from tskd_yolo import ConfigError
from tskd_yolo.cli import main

REFUSE, WARN, WORKS = "refuse", "warn", "works"


class Case(NamedTuple):
    """``values`` go over those of a run that works, ``{f}`` is the folder of FILES; ``data`` spoils its data set."""

    name: str
    outcome: str
    values: dict[str, Any]
    says: tuple[str, ...]
    data: Callable[[Path], Any] | None = None
    count: int = 1  # mistakes


# Files ----------------------------------------------------------------------------------------------------------------


def model_file(kind: str, model_yaml: Any, task: str) -> Callable[[Path], Any]:
    """A checkpoint with random weights of one of Ultralytics' models."""

    def make(file: Path) -> None:
        from ultralytics.nn import tasks

        model = getattr(tasks, kind)(model_yaml, verbose=False)
        model.args, model.task = {}, task
        torch.save({"model": model.half(), "train_args": {}, "epoch": -1}, file)

    return make


def truncated(file: Path) -> None:
    whole = make_detector(file, "yolo11n.yaml").read_bytes()
    file.write_bytes(whole[: len(whole) * 2 // 3])


def image(file: Path) -> None:
    Image.new("RGB", (64, 64)).save(file, format="png")


def scripted(file: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), file)


def fused(file: Path) -> None:
    content = torch.load(make_detector(file, "yolo11n.yaml"), weights_only=False)
    content["model"].eval().fuse(verbose=False)
    torch.save(content, file)


def built_in(file: Path) -> None:
    """What last.pt holds in the middle of a run of Ultralytics' own distillation."""
    from ultralytics.cfg import get_cfg
    from ultralytics.nn.distill_model import DistillationModel
    from ultralytics.utils.torch_utils import ModelEMA

    content = torch.load(make_detector(file, "yolo11n.yaml"), weights_only=False)
    content["model"].args = get_cfg(overrides={"imgsz": 64})
    both = DistillationModel(teacher_model=deepcopy(content["model"]), student_model=content["model"])
    torch.save({**content, "model": None, "ema": ModelEMA(both).ema}, file)


def finished(file: Path) -> None:
    make_detector(file, "yolo11n.yaml")


def plain_run(file: Path) -> None:
    content = torch.load(make_detector(file, "yolo11n.yaml"), weights_only=False)
    torch.save({**content, "epoch": 3, "train_args": {"epochs": 10}}, file)


RTDETR = {  # as small as one can be
    "nc": 6,
    "backbone": [[-1, 1, "Conv", [8, 3, 2]] for _ in range(5)],
    "head": [[[2, 3, 4], 1, "RTDETRDecoder", ["nc", 32, 20, 4, 2, 1]]],
}

FILES: dict[str, Callable[[Path], Any]] = {
    "teacher.pt": lambda file: make_detector(file, "yolo11n.yaml"),
    "student.pt": lambda file: make_detector(file, "yolo11n.yaml", seed=3),
    "folder": Path.mkdir,
    "folder.pt": Path.mkdir,
    "empty.pt": Path.touch,
    "cut.pt": truncated,
    "image.pt": image,
    "words.pt": lambda file: file.write_text("garbage\n" * 50),
    "tensors.pt": lambda file: torch.save({"weight": torch.zeros(2)}, file),
    "list.pt": lambda file: torch.save([1, 2], file),
    "model.onnx": Path.touch,
    "model.engine": Path.touch,
    "model.torchscript": scripted,
    "scripted.pt": scripted,
    "model.safetensors": Path.touch,
    "weights.bin": Path.touch,
    "seg.pt": model_file("SegmentationModel", "yolo11n-seg.yaml", "segment"),
    "cls.pt": model_file("ClassificationModel", "yolo11n-cls.yaml", "classify"),
    "pose.pt": model_file("PoseModel", "yolo11n-pose.yaml", "pose"),
    "obb.pt": model_file("OBBModel", "yolo11n-obb.yaml", "obb"),
    "rtdetr.pt": model_file("RTDETRDetectionModel", RTDETR, "detect"),
    "p2.pt": lambda file: make_detector(file, "yolov8n-p2.yaml"),
    "v5.pt": lambda file: make_detector(file, "yolov5n.yaml"),
    "v8.pt": lambda file: make_detector(file, "yolov8n.yaml"),
    "two.pt": lambda file: make_detector(file, "yolo11n.yaml", names=("crazing", "inclusion")),
    "others.pt": lambda file: make_detector(file, "yolo11n.yaml", names=("cat", "dog", "cow", "hen", "ox", "ant")),
    "turned.pt": lambda file: make_detector(file, "yolo11n.yaml", names=NAMES[::-1]),
    "fused.pt": fused,
    "built_in.pt": built_in,
    "finished.pt": finished,
    "plain_run.pt": plain_run,
    "with blank ü/teacher 教.pt": make_detector,
}


@pytest.fixture(scope="session")
def file(tmp_path_factory) -> Callable[[Any], Any]:
    """Puts paths into a value, and makes the files that it names."""
    folder = tmp_path_factory.mktemp("files")

    def place(value: Any) -> Any:
        if not isinstance(value, str) or "{f}/" not in value:
            return value
        path = folder / value.removeprefix("{f}/")
        if not path.exists() and path.name != "nowhere.pt":
            path.parent.mkdir(exist_ok=True)
            FILES[value.removeprefix("{f}/")](path)
        return str(path)

    return place


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
    from tskd_yolo.data.voc import convert

    (folder / "IMAGES").mkdir()
    (folder / "ANNOTATIONS").mkdir()
    for number, name in enumerate((*NAMES, *NAMES)):
        Image.new("L", (64, 64), 90).save(folder / "IMAGES" / f"a_{number}.png")
        box = "<bndbox><xmin>4</xmin><ymin>4</ymin><xmax>30</xmax><ymax>30</ymax></bndbox>"
        text = f"<annotation><object><name>{name}</name>{box}</object></annotation>"
        (folder / "ANNOTATIONS" / f"a_{number}.xml").write_text(text)
    convert(
        images=folder / "IMAGES", annotations=folder / "ANNOTATIONS", out=folder / "prepared",
        split=lambda stem: "train" if int(stem[2:]) < 6 else "val",
    )  # fmt: skip
    (folder / "IMAGES").rename(folder / "elsewhere")
    return folder / "prepared" / "data.yaml"


def blanks(folder: Path) -> Path:
    inner = folder / "Bänder 钢 and more"
    inner.mkdir()
    return tiny_data(inner, train=4, val=2)


PREPARED = "from tskd_yolo.data.drawn import prepare\nprepare(yaml['path'])\n"


def prepared_below_a_file(folder: Path) -> Path:
    (folder / "file").touch()
    return edited(path=str(folder / "file" / "set"), download=PREPARED)(folder)


def read_only(folder: Path) -> Path:
    file = edited(path=str(folder / "locked" / "set"), download=PREPARED)(folder)
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
    Case("teacher a list", REFUSE, {"teacher": "{f}/list.pt"}, ("teacher: ", "holds no model")),
    Case("teacher ONNX", REFUSE, {"teacher": "{f}/model.onnx"}, ("teacher: ", "is an exported model", "give the .pt")),
    Case("teacher TensorRT", REFUSE, {"teacher": "{f}/model.engine"}, ("teacher: ", "is an exported model")),
    Case("teacher TorchScript", REFUSE, {"teacher": "{f}/model.torchscript"}, ("teacher: ", "is an exported model")),
    Case("teacher TorchScript as .pt", REFUSE, {"teacher": "{f}/scripted.pt"}, ("teacher: ", "TorchScript export")),
    Case("teacher safetensors", REFUSE, {"teacher": "{f}/model.safetensors"}, ("teacher: ", "'.safetensors', not in")),
    Case("teacher .bin", REFUSE, {"teacher": "{f}/weights.bin"}, ("teacher: ", "ends in '.bin', not in '.pt'")),
    Case("teacher segments", REFUSE, {"teacher": "{f}/seg.pt"}, ("teacher: ", "SegmentationModel for 'segment'")),
    Case("teacher classifies", REFUSE, {"teacher": "{f}/cls.pt"}, ("teacher: ", "ClassificationModel", "'classify'")),
    Case("teacher finds poses", REFUSE, {"teacher": "{f}/pose.pt"}, ("teacher: ", "PoseModel for 'pose'", "give")),
    Case("teacher turns boxes", REFUSE, {"teacher": "{f}/obb.pt"}, ("teacher: ", "OBBModel for 'obb'", "give")),
    Case("teacher RT-DETR", REFUSE, {"teacher": "{f}/rtdetr.pt"}, ("teacher: ", "RTDETRDetectionModel", "give a YOLO")),
    Case("teacher with P2", REFUSE, {"teacher": "{f}/p2.pt"}, ("teacher: its architecture (yolov8n-p2)", "use one")),
    Case("teacher YOLOv5", REFUSE, {"teacher": "{f}/v5.pt"}, ("teacher: its architecture (yolov5n) is not", "use one")),
    Case("teacher of another family", REFUSE, {"teacher": "{f}/v8.pt"}, ("a YOLOv8 cannot teach a YOLO11", "use a")),
    Case("teacher of other count", REFUSE, {"teacher": "{f}/two.pt"}, ("it knows 2 classes (crazing, inclusion)",)),
    Case("teacher of other names", REFUSE, {"teacher": "{f}/others.pt"}, ("6 classes (cat, dog", "has 6 (crazing",)),
    Case("teacher turned", WORKS, {"teacher": "{f}/turned.pt"}, ("are in another order; they are matched by name",)),
    Case("teacher fused", WORKS, {"teacher": "{f}/fused.pt"}, ("fused.pt",)),
    Case("teacher built-in", WORKS, {"teacher": "{f}/built_in.pt"}, ("interrupted run of distill_", "its student")),
    Case("teacher untrained", WARN, {"imgsz": 31}, ("the teacher finds next to nothing", "is it trained")),
    Case("teacher no better", WARN, SAME, ("no better than the student already is", "there is little to learn")),
    Case("teacher the student", WARN, SAME, ("is the student itself: it can teach nothing new",)),
    # Student
    Case("student fused", REFUSE, {"model": "{f}/fused.pt"}, ("model: the batch norms of", "are folded")),
    Case("student missing", REFUSE, {"model": "{f}/nowhere.pt"}, ("model: ", "nowhere.pt was not found", "give a")),
    Case("student YAML missing", REFUSE, {"model": "nowhere.yaml"}, ("model: nowhere.yaml", "give a detector's")),
    Case("student left out", REFUSE, {"model": None}, ("model: missing; give the student",)),
    Case("student empty", REFUSE, {"model": "{f}/empty.pt"}, ("model: ", "is empty, cut short or no checkpoint")),
    Case("student segments", REFUSE, {"model": "yolo11n-seg.yaml"}, ("architecture (yolo11n-seg) is not", "use one")),
    Case("student .pt segments", REFUSE, {"model": "{f}/seg.pt"}, ("model: ", "SegmentationModel for 'segment'")),
    Case("student classifies", REFUSE, {"model": "yolo11n-cls.yaml"}, ("architecture (yolo11n-cls) is not", "use one")),
    Case("student ONNX", REFUSE, {"model": "{f}/model.onnx"}, ("model: ", "is an exported model")),
    Case("student built-in", REFUSE, {"model": "{f}/built_in.pt"}, ("model: ", "interrupted run of distill_model=")),
    Case("pretrained missing", REFUSE, {"pretrained": "{f}/nowhere.pt"}, ("pretrained: ", "was not found")),
    Case("pretrained words", REFUSE, {"pretrained": "{f}/words.pt"}, ("pretrained: ", "is empty, cut short")),
    Case("all frozen by number", REFUSE, {"freeze": 24}, ("freeze: 24 freezes every layer of the student",)),
    Case("all frozen by list", REFUSE, {"freeze": list(range(24))}, ("freeze: [0, 1, ", "freezes every layer")),
    Case("student larger", WARN, {"model": "yolo11s.yaml"}, ("the teacher is not larger than the student",)),
    # Data
    Case("data missing", REFUSE, {"data": "nowhere.yaml"}, ("data: nowhere.yaml", "'nowhere.yaml' does not exist")),
    Case("data left out", REFUSE, {"data": None}, ("data: missing; give data=FILE.yaml",)),
    Case("data without names", REFUSE, {}, ("data: ", "'names'"), edited(names=None)),
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
    Case("distill_model", REFUSE, {"distill_model": "{f}/teacher.pt"}, ("distill_model: Ultralytics' built-in",)),
    Case("quantize=8", REFUSE, {"quantize": 8}, ("quantize: training with int8",)),
    Case("quantize=int8", REFUSE, {"quantize": "int8"}, ("quantize: training with int8",)),
    Case("batch=0", REFUSE, {"batch": 0}, ("batch: must be a whole number >= 1", "got 0.")),
    Case("batch=2.5", REFUSE, {"batch": 2.5}, ("batch: must be a whole number >= 1", "got 2.5.")),
    Case("batch=-4", REFUSE, {"batch": -4}, ("batch: must be a whole number >= 1", "got -4.")),
    Case("epochs=-3", REFUSE, {"epochs": -3}, ("epochs: must be at least 1, got -3.",)),
    Case("epochs=0", REFUSE, {"epochs": 0}, ("epochs: must be at least 1, got 0.",)),
    Case("epochs a word", REFUSE, {"epochs": "many"}, ("epochs: ", "must be an int")),
    Case("imgsz=0", REFUSE, {"imgsz": 0}, ("imgsz: must be at least 1 pixel, got 0.",)),
    Case("lr0 a word", REFUSE, {"lr0": "fast"}, ("lr0: ", "Valid 'lr0' types are")),
    Case("lr0 beyond", REFUSE, {"lr0": 7}, ("lr0: ", "between 0.0 and 1.0")),
    Case("box=NaN", REFUSE, {"box": "nan"}, ("box: ",)),
    Case("optimizer unknown", REFUSE, {"optimizer": "Adamm"}, ("optimizer: ", "AdamW")),
    Case("compile", REFUSE, {"compile": True}, ("compile: not supported while distilling; leave it off.",)),
    Case("task", REFUSE, {"task": "segment"}, ("task: only detect can be distilled, got 'segment'.",)),
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
        "teacher of another family and list", REFUSE, {"teacher": "{f}/v8.pt", "freeze": 99},
        ("a YOLOv8 cannot teach", "freeze: 99"), count=2,
    ),
]  # fmt: skip


def of(*outcomes: str, but: Callable[[Case], bool] = lambda case: False) -> Any:
    cases = [case for case in CASES if case.outcome in outcomes and not but(case)]
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("tiny"), train=4, val=2)


@pytest.fixture(scope="module")
def good_teacher(file) -> Any:
    from tskd_yolo import compat

    return compat.load(file("{f}/teacher.pt"), key="teacher")


@pytest.fixture
def teacher_at_hand(case, file, good_teacher, monkeypatch) -> None:
    """Where something else is wrong, the good teacher need not be read from its file each time."""
    from tskd_yolo import compat

    good, load = file("{f}/teacher.pt"), compat.load

    def read(path, *, key):
        if str(path) != good or key != "teacher":
            return load(path, key=key)
        return deepcopy(good_teacher) if case.data else good_teacher  # a run that gets as far as its data changes it

    monkeypatch.setattr(compat, "load", read)


@pytest.fixture
def values(case, file, tiny, tmp_path_factory, tmp_path, monkeypatch) -> dict[str, Any]:
    """A run's arguments with those of the case, to be given in an empty folder."""
    monkeypatch.chdir(tmp_path)
    data = case.data(tmp_path_factory.mktemp("data")) if case.data else tiny
    given = {**settings(tmp_path, data, teacher="{f}/teacher.pt"), **case.values}
    return {key: file(value) for key, value in given.items() if value is not None}


def words(values: dict[str, Any]) -> list[str]:
    return ["train", *(f"{key}={value}" for key, value in values.items())]


@of(REFUSE)
def test_a_mistake_is_refused_in_one_sentence_and_nothing_is_left(case, values, teacher_at_hand, tmp_path, capsys):
    assert main(words(values)) == 1
    said = capsys.readouterr().err
    assert not list(tmp_path.iterdir()), "something was left behind"
    number, *sentences = said.rstrip("\n").split("\n  ")
    assert number == f"tskd-yolo: {case.count} problem{'s' * (case.count > 1)} found, nothing was started:", said
    assert len(sentences) == case.count and all(part in said for part in case.says), said
    for sentence in sentences:
        assert (
            re.match(r"\w+: \S.*[.?]$", sentence) and "\n" not in sentence and ". " not in sentence.replace("i.e. ", "")
        ), sentence
        assert sentence.isascii() and "\x1b" not in sentence and "Traceback" not in sentence


@of(REFUSE, but=lambda case: "{f}" in str(case.values) and case.count == 1 or case.data not in {None, without_labels})
def test_python_raises_what_the_command_line_prints(case, values, teacher_at_hand, tmp_path, capsys):
    from tskd_yolo import Trainer

    assert main(words(values)) == 1
    said = capsys.readouterr().err
    with pytest.raises(ConfigError) as caught:
        Trainer(**{key: smart_value(str(value)) if key != "name" else value for key, value in values.items()}).train()
    assert f"tskd-yolo: {caught.value}\n" == said
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def runs() -> dict[Any, list[str]]:
    """What was said in the runs so far: cases that differ in their words only share one."""
    return {}


@pytest.mark.slow
@of(WARN, WORKS)
def test_what_is_odd_but_can_be_trained_on_is_trained_on_and_said(case, values, runs, tmp_path):
    key = str(case.values), case.data
    if key not in runs:
        runs[key] = heard(lambda: main(words(values)))
        assert (tmp_path / values["name"] / "weights" / "best.pt").is_file()
    lines = runs[key]
    assert all(part in "\n".join(lines) for part in case.says), lines
    if case.outcome == WARN:
        assert any(line.startswith("WARNING") and case.says[0] in line for line in lines)


def heard(run: Callable[[], int]) -> list[str]:
    """What Ultralytics' logger says in a run that must end well."""
    from ultralytics.utils import LOGGER

    lines: list[str] = []
    listener = logging.Handler()
    listener.emit = lambda record: lines.append(f"{record.levelname} {record.getMessage()}")  # type: ignore[method-assign]
    LOGGER.addHandler(listener)
    try:
        assert run() == 0
    finally:
        LOGGER.removeHandler(listener)
    return lines


def test_the_table_is_as_long_as_it_should_be():
    assert len(CASES) >= 60 and len({case.name for case in CASES}) == len(CASES)
