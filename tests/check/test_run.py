"""Prepared cases, good and bad: the verdict, its exit code, the reason, and that nothing else is left.

Data are drawn, detectors have random weights. So where a case needs a teacher that finds something its score is made
up; everything else is real, the steps too.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.helpers import NAMES, make_detector, scanned_data, timm_file
from tests.train.model_files import model_file
from tskd_yolo import hashing
from tskd_yolo.check import run
from tskd_yolo.cli import main
from tskd_yolo.train import summary

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def roomy(shared) -> Path:
    """The folder of a drawn data set in which every class is in both splits, and of detectors."""

    def make(folder: Path) -> None:
        scanned_data(folder, train=24, val=12)
        make_detector(folder / "teacher.pt")
        make_detector(folder / "turned.pt", names=NAMES[::-1])
        make_detector(folder / "others.pt", "yolo11n.yaml", names=("cat", "dog"))
        make_detector(folder / "student.pt", "yolo11n.yaml", seed=3)
        for file in folder.glob("*.pt"):  # trained at the size that they see here
            content = torch.load(file, weights_only=False)
            torch.save({**content, "train_args": {**content["train_args"], "imgsz": 128}}, file)
        model_file("SegmentationModel", "yolo11n-seg.yaml", "segment")(folder / "seg.pt")

    return shared("roomy", make)


@pytest.fixture
def place(roomy, tmp_path) -> Path:
    """The same in a folder that a test may change."""
    shutil.copytree(roomy / "set", tmp_path / "set")
    for file in roomy.glob("*.pt"):
        (tmp_path / file.name).symlink_to(file)
    content = {**yaml.safe_load((roomy / "tiny.yaml").read_text()), "path": str(tmp_path / "set")}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return tmp_path


def score(value: float) -> dict[str, Any]:
    rows = [{"AP50": value + 0.1 + i / 100, "AP50-95": value + i / 100} for i in range(len(NAMES))]
    return {"metrics/mAP50(B)": value + 0.1, "metrics/mAP50-95(B)": value, "classes": rows}


@pytest.fixture
def skilled(monkeypatch) -> list[int]:
    """Detectors of more than three million parameters find much, others a little; gives how large those asked were."""
    asked: list[int] = []

    def validate(model: Any, **_: Any) -> dict[str, Any]:
        asked.append(sum(p.numel() for p in model.parameters()))
        return score(0.6 if asked[-1] > 3e6 else 0.3)

    monkeypatch.setattr(summary, "validate", validate)
    return asked


# What is wrong with the bad ones --------------------------------------------------------------------------------------


def train_images_in_val(folder: Path) -> None:
    """Two as files, one as a picture that was saved anew."""
    for kind, suffix in (("images", "png"), ("labels", "txt")):
        for n in (0, 1):
            source = folder / "set" / kind / "train" / f"strip_{n:04d}.{suffix}"
            shutil.copy(source, folder / "set" / kind / "val" / f"copy_{n}.{suffix}")
    image = Image.open(folder / "set" / "images" / "train" / "strip_0002.png")
    image.save(folder / "set" / "images" / "val" / "again.jpg", quality=95)
    shutil.copy(folder / "set" / "labels" / "train" / "strip_0002.txt", folder / "set" / "labels" / "val" / "again.txt")


def broken_labels(folder: Path) -> None:
    """Every fourth label file in pixels, as somebody's script may have written it."""
    for file in sorted((folder / "set" / "labels" / "train").glob("*.txt"))[::4]:
        file.write_text("0 32 32 16 16\n")


def no_val(folder: Path) -> None:
    content = yaml.safe_load((folder / "tiny.yaml").read_text())
    del content["val"]
    (folder / "tiny.yaml").write_text(yaml.safe_dump(content))


def a_few_oddities(folder: Path) -> None:
    """One box twice, a label file without an image."""
    label = folder / "set" / "labels" / "train" / "strip_0000.txt"
    label.write_text(label.read_text() + label.read_text().splitlines()[0] + "\n")
    (folder / "set" / "labels" / "train" / "gone.txt").write_text("0 .5 .5 .2 .2\n")


def beyond(folder: Path) -> None:
    (folder / "set" / "labels" / "train" / "strip_0000.txt").write_text("7 .5 .5 .2 .2\n")
    (folder / "map.yaml").write_text("crazing: patches\n")


class Case(NamedTuple):
    """``values`` go over those of a good run; ``spoil`` changes the data."""

    name: str
    word: str
    values: dict[str, Any]
    says: tuple[str, ...] = ()
    spoil: Callable[[Path], None] = lambda folder: None
    skilled: bool = True


GO, WARN, NO = "go", "go with a warning", "no"
CASES = [
    Case("random student", GO, {}),
    Case("other order of classes", GO, {"teacher": "turned.pt"}, ("classes   the teacher's are in another order",)),
    Case("student with weights", GO, {"model": "student.pt"}, ("headroom",)),
    Case("cached teacher at a larger size", GO, {"teacher_imgsz": 160, "teacher_cache": "disk", "views": 4}),
    Case(
        "a few oddities", WARN, {},
        ("1 boxes of the train split are there twice", "1 label files have no image, the first is gone.txt"),
        a_few_oddities,
    ),
    Case(
        "train images in val", NO, {},
        ("3 of 15 val images are in train too (2 the same file, 1 nearly the same picture", "take them out of one"),
        train_images_in_val,
    ),
    Case(
        "nothing in common", NO, {"teacher": "others.pt", "drd": 0, "ded": 0},
        ("it has no class (cat, dog) in common",),
    ),
    Case(
        "broken labels", NO, {},
        ("6 of 24 train images are left out (6 with non-normalized or out of bounds coordinates",), broken_labels,
    ),
    Case("teacher that finds nothing", NO, {}, ("it finds next to nothing", "give one that is trained"), skilled=False),
    Case("no val split", NO, {}, ("'val:' key missing",), no_val),
    Case("views without a cache", NO, {"views": 8}, ("views=8 needs teacher_cache=ram or disk",)),
    Case(
        "cache beyond its limit", NO, {"teacher_cache": "disk", "cache_limit": 0.00001},
        ("the teacher's outputs for 24 images in views=4 take", "and cache_limit is 1e-05 GB; raise it"),
    ),
    Case(
        "labels beyond the classes, and a map", NO, {"classes_map": "map.yaml"},
        ("labels of 1 train images name classes beyond the 6 of the set",), beyond,
    ),
    Case("time in words", NO, {"time": "long"}, ("'time=long' is of invalid type str",)),
    Case("wrong task", NO, {"teacher": "seg.pt"}, ("is one for segment and the student one for detect; give two",)),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_verdict_is_right(case, place, request, monkeypatch, capsys, caplog):
    if case.skilled:
        request.getfixturevalue("skilled")
    monkeypatch.setattr(hashing, "USER_CONFIG_DIR", place / "settings")
    monkeypatch.chdir(place)
    case.spoil(place)
    before = {path for path in place.rglob("*") if path.suffix != ".cache"}
    given = {
        "data": "tiny.yaml",
        "teacher": "teacher.pt",
        "model": "yolo11n.yaml",
        "imgsz": 128,
        "batch": 8,
        "epochs": 3,
    }
    values = {**given, "workers": 0, "device": "cpu", "out": "out", "project": "runs", **case.values}
    code = main(["check", *(f"{key}={value}" for key, value in values.items())])

    found = json.loads((place / "out" / "check.json").read_text())
    assert (found["verdict"], found["exit"], code) == (case.word, (GO, WARN, NO).index(case.word), code), found[
        "findings"
    ]
    assert code == found["exit"] and found["sentence"] in caplog.text and "Traceback" not in capsys.readouterr().err
    page = (place / "out" / "check.html").read_text(encoding="utf-8")
    assert found["sentence"].partition(":")[2] in page and str(place) not in page + json.dumps(found)
    said = [f"{f['reason']}; {f['remedy']}" for f in found["findings"] if f["level"] != "note"] + found["exceptions"]
    for words in case.says:
        assert words in "\n".join(said) or words in caplog.text, (words, said)
    assert all(f["remedy"] for f in found["findings"] if f["level"] == "no"), said
    left = {path for path in place.rglob("*") if path.suffix != ".cache"} - before
    assert {path.relative_to(place).parts[0] for path in left} <= {"out", "settings"}, left
    if case.word != NO:
        check_facts(found, case)


def check_facts(found: dict[str, Any], case: Case) -> None:
    """What a check that went through knows."""
    cost, known = found["cost"], "student" in case.values.get("model", "")
    assert cost["steps"] == 2 and cost["batches"] == 3 and cost["epochs"] == 3 and cost["batch"] == 8
    assert 0 < cost["teacher"] < cost["step"] and cost["run"] == pytest.approx(3 * cost["epoch"])
    assert 0 < cost["peak"] < cost["of"] and cost["passes"] == 3  # all three epochs are those without mosaic
    assert [row["stride"] for row in found["levels"]] == [8, 16, 32]
    assert [(row["name"], row["teacher"]) for row in found["classes"]] == [(name, name) for name in NAMES]
    for i, row in enumerate(found["classes"]):
        assert row["teacher AP50-95"] == pytest.approx(0.6 + i / 100)
        assert row["headroom"] == (pytest.approx(0.3) if known else None)
    assert found["teacher"]["imgsz"] == case.values.get("teacher_imgsz", 128)
    assert len(found["files"]["teacher"]["sha256"]) == 16 and found["versions"]["ultralytics"]


def test_what_is_wrong_with_the_arguments_is_a_verdict_too(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    words = ["data=tiny.yaml", "techer=x.pt", "model=yolo11n.yaml", "drd=-1", "epohcs=3", "device=cpu"]
    assert main(["check", *words, "out=out"]) == 2
    found = json.loads((place / "out" / "check.json").read_text())
    assert {"techer", "teacher", "drd", "epohcs"} == {f["about"] for f in found["findings"] if f["level"] == "no"}
    assert found["data"]["splits"]["train"]["images"] == 24  # the data could be looked at all the same
    (place / "full").mkdir()
    (place / "full" / "mine.txt").touch()
    assert main(["check", *words, "out=full"]) == 2 and "holds no check" in capsys.readouterr().err
    assert main(["check", "resume", "model=student.pt", "data=tiny.yaml", "teacher=teacher.pt", "out=out"]) == 2
    found = json.loads((place / "out" / "check.json").read_text())
    assert "nothing to check of a run that goes on" in str(found["findings"])


def test_a_run_after_a_check_validates_neither_of_the_two(place, skilled, monkeypatch):
    from tskd_yolo import Trainer

    monkeypatch.setattr(hashing, "USER_CONFIG_DIR", place / "settings")
    monkeypatch.chdir(place)
    given = dict(data="tiny.yaml", teacher="teacher.pt", model="student.pt", imgsz=64, batch=8, device="cpu", workers=0)
    run.check(**given, out="out")
    assert len(skilled) == 3  # teacher, student, and some batches for their time

    class Enough(Exception):
        pass

    def stop(_: Any) -> None:
        raise Enough

    trainer = Trainer(**given, project="runs", plots=False)
    trainer.add_callback("on_train_start", stop)
    with pytest.raises(Enough):
        trainer.train()
    assert len(skilled) == 3 and trainer.facts.taught["classes"][0]["AP50-95"] == 0.6


def test_the_short_form_does_not_disturb_what_training_draws(data):
    from tskd_yolo.rng import undisturbed

    def state() -> tuple:
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    from ultralytics.cfg import get_cfg
    from ultralytics.data import build_yolo_dataset
    from ultralytics.data.utils import check_det_dataset

    content = check_det_dataset(str(data))
    args = get_cfg(overrides={"data": str(data), "imgsz": 64})
    sets = [build_yolo_dataset(args, content[m], 4, content, mode=m, rect=m == "val") for m in ("train", "val")]
    before = state()
    with undisturbed():
        summary.log_data(*sets, args=args, stride=8)
    assert state() == before


def test_a_teacher_without_a_head_lacks_no_classes(place):
    vit = f"timm:test_vit:{timm_file(place / 'vit.safetensors', 'test_vit')}"
    given = dict(data=str(place / "tiny.yaml"), model="yolo11n.yaml", imgsz=64, batch=4, workers=0, device="cpu")
    decided = run.check(teacher=vit, out=str(place / "out"), **given)
    found = json.loads((place / "out" / "check.json").read_text(encoding="utf-8"))
    assert decided.code == 1 and not [row for row in found["findings"] if "knows none" in row["reason"]]
    assert [row for row in found["exceptions"] if "crd       off" in row] and found["cost"]["step"] > 0


def test_all_devices_of_a_run_are_checked(place):
    """The steps are of one of them."""
    given = dict(data=str(place / "tiny.yaml"), model="yolo11n.yaml", imgsz=64, batch=4, workers=0, device="cpu,cpu")
    assert run.check(teacher=str(place / "teacher.pt"), out=str(place / "out"), **given).code == 2
    found = json.loads((place / "out" / "check.json").read_text(encoding="utf-8"))["findings"]
    assert [row["about"] for row in found if row["level"] == "no"] == ["device"]


def test_files_among_the_settings_are_told_by_their_names():
    values = {
        "teacher": "[/x/a.pt,/y/b.pt]",
        "unlabelled": ["/z/new", "/z/old.txt"],
        "classes_map": "/m/map.yaml",
        "epochs": 3,
    }
    told = {"teacher": "a.pt, b.pt", "unlabelled": "new, old.txt", "classes_map": "map.yaml", "epochs": "3"}
    assert run._settings(values) == told
    assert run._settings({"unlabelled": False, "classes_map": None}) == {"unlabelled": "False"}
