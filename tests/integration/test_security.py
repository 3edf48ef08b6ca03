"""Files from strangers: a checkpoint is a program. None of theirs runs, wherever it is given; nothing is installed."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from ultralytics import YOLO
from ultralytics.data.utils import check_det_dataset
from ultralytics.utils import DEFAULT_CFG_DICT

from tests.helpers import make_detector, scanned_data, settings, tiny_data
from tskd_yolo import ConfigError, compat, load
from tskd_yolo.cli import main


class Calls:
    """Pickled, it is a call that whoever loads it makes."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


class Harmless(torch.nn.Identity):
    """A class of a user's own in a checkpoint of a user's own."""


ATTACKS = {
    "a command": (lambda mark: Calls(os.system, f"touch {mark}"), f"{os.name}.system"),
    "a process": (
        lambda mark: Calls(subprocess.call, ["touch", str(mark)]),
        "commands.call",
    ),  # its name in Python 2, as torch pickles it
    "a module": (lambda mark: Calls(importlib.import_module, f"ran_{mark.stem}"), "importlib.import_module"),
    "a socket": (lambda mark: Calls(socket.create_connection, ("127.0.0.1", 9)), "socket.create_connection"),
    "code": (lambda mark: Calls(eval, f"open({str(mark)!r}, 'w')"), "eval"),
}


@pytest.fixture(scope="session")
def good(shared) -> Path:
    """A folder with ``teacher.pt`` and ``tiny.yaml`` that nothing is wrong with."""

    def make(folder: Path) -> None:
        scanned_data(folder, train=4, val=2)
        make_detector(folder / "teacher.pt", "yolo11n.yaml")

    return shared("good", make)


@pytest.fixture
def nothing_ran(tmp_path, monkeypatch):
    """The mark that an attack would leave; at the end it must not be there, and no connection was asked for."""
    mark = tmp_path / "mark"
    (tmp_path / "ran_mark.py").write_text(f"open({str(mark)!r}, 'w').close()")
    (tmp_path / "cwd").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setattr(socket.socket, "connect", lambda *_: mark.touch())
    yield mark
    assert not mark.exists(), "a stranger's code ran"


def stranger(file: Path, attack: Any) -> Path:
    """A checkpoint with a call in it."""
    torch.save({"model": attack, "epoch": 1, "train_args": {"teacher": "a.pt", "epochs": 9}}, file)
    return file


def run(capsys, *words: Any, **values: Any) -> str:
    """What a command says that must be refused."""
    assert main([*words, *(f"{key}={value}" for key, value in values.items())]) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_the_attacks_work_on_who_does_not_look(tmp_path, nothing_ran):
    """Without this the tests below could not fail."""
    for build, _ in ATTACKS.values():
        file = stranger(tmp_path / "stranger.pt", build(nothing_ran))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(socket, "create_connection", lambda *_: nothing_ran.touch())
            torch.load(file, weights_only=False)
        assert nothing_ran.exists()
        nothing_ran.unlink()
        sys.modules.pop("ran_mark", None)


@pytest.mark.parametrize(
    ("key", "attack"),
    [*(("teacher", attack) for attack in ATTACKS), ("model", "a socket"), ("pretrained", "a command")],
    ids="-".join,
)
def test_what_a_run_begins_with_is_refused(key, attack, good, tmp_path, nothing_ran, capsys):
    build, name = ATTACKS[attack]
    file = stranger(tmp_path / "stranger.pt", build(nothing_ran))
    values = {**settings(tmp_path / "runs", good / "tiny.yaml", teacher=good / "teacher.pt"), key: file}
    said = run(capsys, "train", **values)
    assert f"{key}: {file} asks for {name}, " in said and "trust=True" in said and "1 problem found" in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("which", ["last.pt", "best.pt", "tskd_previous.pt"])
def test_what_a_resumed_run_reads_is_refused(which, tmp_path, nothing_ran, capsys):
    build, name = ATTACKS["a command"]
    weights = tmp_path / "run" / "weights"
    weights.mkdir(parents=True)
    content = torch.load(make_detector(weights / "last.pt", "yolo11n.yaml"), weights_only=False)
    torch.save({**content, "epoch": 1, "train_args": {"teacher": "a.pt", "epochs": 9}}, weights / "last.pt")
    if which == "tskd_previous.pt":  # it is read where last.pt is torn
        (weights / "last.pt").write_bytes(b"")
    stranger(weights / which, build(nothing_ran))
    said = run(capsys, "train", "resume", model=weights / "last.pt")
    assert f"{weights / which} asks for {name}, " in said and "trust=True" in said


@pytest.mark.parametrize(
    ("mode", "attack"),
    [("val", "a command"), ("predict", "a socket"), ("export", "a module"), ("track", "code")],
    ids="-".join,
)
def test_what_other_modes_load_is_refused(mode, attack, good, tmp_path, nothing_ran, capsys):
    build, name = ATTACKS[attack]
    file = stranger(tmp_path / "stranger.pt", build(nothing_ran))
    said = delegated(run, capsys, mode, model=file, data=good / "tiny.yaml", imgsz=64, device="cpu")
    assert f"asks for {name}, " in said and "trust=True" in said


@pytest.mark.parametrize("kind", ["sam_b", "mobile_sam", "FastSAM-s", "rtdetr-l"])
def test_other_kinds_of_model_are_refused_too(kind, good, tmp_path, nothing_ran, capsys):
    """Ultralytics reads some of them without its own restriction."""
    file = stranger(tmp_path / f"{kind}.pt", ATTACKS["a command"][0](nothing_ran))
    source = next((good / "set" / "images" / "val").iterdir())
    said = delegated(run, capsys, "predict", model=file, source=source, imgsz=64, device="cpu")
    assert f"asks for {os.name}.system, " in said


def delegated(function, *arguments: Any, **values: Any) -> Any:
    """Ultralytics' entry point reads the process's own arguments."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["tskd-yolo"])
        patch.setattr("ultralytics.cfg.ARGV", sys.argv)
        return function(*arguments, **values)


def test_a_pickle_in_the_old_format_is_refused(good, tmp_path, nothing_ran, capsys):
    file = tmp_path / "old.pt"
    torch.save({"model": Calls(os.system, f"touch {nothing_ran}")}, file, _use_new_zipfile_serialization=False)
    values = settings(tmp_path / "runs", good / "tiny.yaml", teacher=file)
    assert f"asks for {os.name}.system, " in run(capsys, "train", **values)


def test_an_activation_that_is_code_is_refused(good, tmp_path, nothing_ran, capsys):
    from ultralytics.nn.tasks import yaml_model_load

    code = f"__import__('os').system('touch {nothing_ran}') or nn.SiLU()"
    model = tmp_path / "yolo11n-stranger.yaml"
    model.write_text(yaml.safe_dump({**yaml_model_load("yolo11n.yaml"), "activation": code}))
    values = settings(tmp_path / "runs", good / "tiny.yaml", teacher=good / "teacher.pt", model=model)
    assert "__import__" in run(capsys, "train", **values)
    assert not list((tmp_path / "runs").glob("*"))
    assert "__import__" in delegated(run, capsys, "val", model=model, data=good / "tiny.yaml")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["train", "val"])
def test_a_label_cache_that_is_a_program_is_made_anew(mode, good, tmp_path, nothing_ran, no_end):
    data = tiny_data(tmp_path, train=4, val=2)
    for split in ("train", "val"):
        np.save(cache := tmp_path / "set" / "labels" / split, ATTACKS["a command"][0](nothing_ran), allow_pickle=True)
        cache.with_suffix(".npy").rename(cache.with_suffix(".cache"))
    values = settings(tmp_path / "runs", data, teacher=good / "teacher.pt")
    if mode == "val":
        values = dict(
            model=good / "teacher.pt", data=data, imgsz=64, device="cpu", project=tmp_path / "runs", plots=False
        )
    assert delegated(main, [mode, *(f"{key}={value}" for key, value in values.items())]) == 0


def test_a_class_of_ones_own_is_loaded_only_where_it_is_trusted(tmp_path):
    content = torch.load(make_detector(tmp_path / "own.pt", "yolo11n.yaml"), weights_only=False)
    content["model"].own = Harmless()
    torch.save(content, tmp_path / "own.pt")
    with (
        compat.guarded(),
        pytest.raises(ConfigError, match=r"asks for tests\.integration\.test_security\.Harmless, .*trust=True"),
    ):
        compat.load(tmp_path / "own.pt", key="teacher")
    with compat.guarded(trust=True):
        assert type(compat.load(tmp_path / "own.pt", key="teacher")[0].own) is Harmless


@pytest.mark.slow
def test_a_run_distils_from_a_trusted_file(good, tmp_path, capsys, no_end):
    content = torch.load(make_detector(tmp_path / "own.pt", "yolo11n.yaml"), weights_only=False)
    content["model"].yaml["own"] = Harmless()
    torch.save(content, tmp_path / "own.pt")
    values = settings(tmp_path / "runs", good / "tiny.yaml", teacher=tmp_path / "own.pt")
    assert "Harmless" in run(capsys, "train", **values)
    words = [f"{key}={value}" for key, value in values.items()]
    assert main(["train", *words, "trust=True"]) == 0

    # Its files do not trust for whoever repeats it.
    record = tmp_path / "runs" / "run" / "args.yaml"
    assert "trust" not in yaml.safe_load(record.read_text(encoding="utf-8"))
    assert "asks for tests.integration.test_security.Harmless" in run(capsys, "train", cfg=record)
    before = {file: file.read_bytes() for file in record.parent.rglob("*") if file.is_file()}
    assert main(["train", f"cfg={record}", "trust=True"]) == 0
    assert before == {file: file.read_bytes() for file in record.parent.rglob("*") if file.is_file()}
    assert (tmp_path / "runs" / "run-2" / "weights" / "last.pt").is_file()


@pytest.mark.slow
def test_whoever_goes_on_with_a_trusted_run_trusts_anew(good, tmp_path, capsys, no_end):
    from tskd_yolo import Trainer

    def stop(trainer: Any) -> None:
        raise KeyboardInterrupt

    content = torch.load(make_detector(tmp_path / "own.pt", "yolo11n.yaml"), weights_only=False)
    content["model"].yaml["own"] = Harmless()
    torch.save(content, tmp_path / "own.pt")
    values = settings(tmp_path / "runs", good / "tiny.yaml", teacher=tmp_path / "own.pt", epochs=2, trust=True)
    trainer = Trainer(**values)
    trainer.add_callback("on_model_save", stop)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert "trust" not in torch.load(trainer.last, weights_only=False)["train_args"]
    assert "Harmless" in run(capsys, "train", "resume", model=trainer.last)
    assert main(["train", "resume", f"model={trainer.last}", "trust=True"]) == 0


def test_the_processes_of_a_run_are_told_that_it_is_trusted(good, tmp_path, monkeypatch):
    from ultralytics.engine.trainer import BaseTrainer

    from tskd_yolo import Trainer

    given = settings(tmp_path / "runs", good / "tiny.yaml", teacher=good / "teacher.pt", trust=True)
    trainer, handed_on = Trainer(**given), {}
    trainer.ddp = True
    monkeypatch.setattr(BaseTrainer, "train", lambda self: handed_on.update(vars(self.args)))
    trainer.train()
    worker = Trainer(cfg={**DEFAULT_CFG_DICT, "save_dir": ""}, overrides=handed_on)
    assert worker.config.trust is True
    assert "trust" not in yaml.safe_load((worker.save_dir / "args.yaml").read_text(encoding="utf-8"))


# Who may trust --------------------------------------------------------------------------------------------------------


@pytest.fixture
def asking(good, tmp_path, nothing_ran) -> dict[str, Any]:
    """A run whose teacher is a stranger's."""
    file = stranger(tmp_path / "stranger.pt", ATTACKS["a command"][0](nothing_ran))
    return settings(tmp_path / "runs", good / "tiny.yaml", teacher=file)


def recipe(file: Path, **content: Any) -> Path:
    file.write_text(yaml.safe_dump({key: str(v) if isinstance(v, Path) else v for key, v in content.items()}))
    return file


TRUSTED_BY_A_FILE = r"trust: the file \S+ says trust=True, which no file can give; take it out"


@pytest.mark.parametrize("mode", ["train", "compare", "val"])
def test_a_settings_file_cannot_trust(mode, asking, tmp_path, capsys):
    file = recipe(tmp_path / "recipe.yaml", **asking, trust=True)
    more = {"model": asking["teacher"]} if mode == "val" else {"teacher": asking["teacher"]}
    assert re.search(TRUSTED_BY_A_FILE, delegated(run, capsys, mode, cfg=file, **more))


def test_ultralytics_own_modes_know_no_trust_in_a_file(asking, tmp_path, capsys):
    file = recipe(tmp_path / "recipe.yaml", trust=True)
    delegated(run, capsys, "predict", cfg=file, model=asking["teacher"], source=tmp_path)


def test_a_file_given_from_python_cannot_trust(asking, tmp_path):
    from tskd_yolo import Trainer

    file = recipe(tmp_path / "args.yaml", **asking, trust=True)
    with pytest.raises(ConfigError, match=TRUSTED_BY_A_FILE):
        Trainer(cfg=str(file))
    with pytest.raises(ConfigError, match=TRUSTED_BY_A_FILE):
        YOLO("yolo11n.yaml").train(trainer=Trainer, cfg=str(file))
    with pytest.raises(ConfigError, match="trust: cfg= says trust=True"):
        Trainer(cfg={**DEFAULT_CFG_DICT, **asking, "trust": True})


def checkpoint_of_a_run(folder: Path, **arguments: Any) -> Path:
    """last.pt of a run that was interrupted."""
    (folder / "weights").mkdir(parents=True)
    file = folder / "weights" / "last.pt"
    content = torch.load(make_detector(file, "yolo11n.yaml"), weights_only=False)
    torch.save({**content, "epoch": 0, "train_args": {"task": "detect", **arguments}}, file)
    return file


def test_the_checkpoint_of_a_run_that_goes_on_cannot_trust(asking, tmp_path, capsys):
    last = checkpoint_of_a_run(tmp_path / "run", **asking, trust=True)
    said = run(capsys, "train", "resume", model=last)
    assert f"trust: the checkpoint {last} says trust=True, which no file can give; give trust=True on the" in said


@pytest.mark.parametrize("mode", ["train", "val"])
def test_a_data_set_cannot_trust(mode, asking, good, tmp_path, nothing_ran, capsys):
    content = yaml.safe_load((good / "tiny.yaml").read_text(encoding="utf-8"))
    code = f"open({str(nothing_ran)!r}, 'w')"
    data = recipe(tmp_path / "data.yaml", **{**content, "val": "gone"}, trust=True, download=code)
    given = {**asking, "teacher": good / "teacher.pt", "data": data}
    if mode == "val":
        given = {"model": good / "teacher.pt", "data": data}
    assert f"trust: the data set {data} says trust=True, which no file can give" in delegated(
        run, capsys, mode, **given
    )


# Code in data YAMLs ---------------------------------------------------------------------------------------------------


def with_code(folder: Path, code: str, name: str = "data.yaml") -> Path:
    """A data set whose images are missing, and which says how to get them."""
    return recipe(folder / name, path=folder, train="gone", val="gone", names=["a"], download=code)


CODE = {"python": "import pathlib; pathlib.Path({mark!r}).touch()", "a shell": "bash -c touch$IFS{mark}"}


@pytest.mark.parametrize("code", CODE)
@pytest.mark.parametrize("mode", ["train", "val", "compare"])
def test_code_that_travels_with_a_data_set_is_not_run(code, mode, good, tmp_path, nothing_ran, capsys):
    data = with_code(tmp_path, CODE[code].format(mark=str(nothing_ran)))
    values = {**settings(tmp_path / "runs", data), "teacher": good / "teacher.pt"}
    if mode == "val":
        values = {"model": good / "teacher.pt", "data": data}
    elif mode == "compare":
        values = {"model": "yolo11n.yaml", "teacher": good / "teacher.pt", "data": data, "out": tmp_path / "out"}
    said = delegated(run, capsys, mode, **values)
    assert f"data: {data} would prepare its images by code of its own (download:), which is not run" in said


def test_a_run_that_goes_on_does_not_run_code_of_its_data_either(good, tmp_path, nothing_ran, capsys):
    data = with_code(tmp_path, CODE["python"].format(mark=str(nothing_ran)))
    arguments = settings(tmp_path, data, teacher=str(good / "teacher.pt"))
    said = run(capsys, "train", "resume", model=checkpoint_of_a_run(tmp_path / "run", **arguments))
    assert "would prepare its images by code of its own" in said


def test_a_name_that_we_ship_does_not_vouch_for_other_code(tmp_path, nothing_ran):
    data = with_code(tmp_path, CODE["python"].format(mark=str(nothing_ran)), name="demo.yaml")
    with compat.guarded(), pytest.raises(ConfigError, match="code of its own"):
        check_det_dataset(str(data))


def test_code_of_a_data_set_is_run_where_it_is_trusted(tmp_path):
    code = "from tskd_yolo.data.drawn import prepare; prepare(yaml['path'], train=1, val=1)"
    data = recipe(tmp_path / "data.yaml", path=tmp_path / "s", train="images", val="images", names=["a"], download=code)
    with compat.guarded(trust=True):
        check_det_dataset(str(data))
    assert (tmp_path / "s" / "images").is_dir()


def test_an_archive_is_still_fetched(tmp_path, monkeypatch):
    fetched = []
    monkeypatch.setattr("ultralytics.data.utils.safe_download", lambda url, **_: fetched.append(url))
    with compat.guarded():
        check_det_dataset(str(with_code(tmp_path, "https://example.org/set.zip")))
    assert fetched == ["https://example.org/set.zip"]


# YOLO(FILE) -----------------------------------------------------------------------------------------------------------


BEFORE = "import tskd_yolo, sys\nfrom ultralytics import YOLO\nYOLO(sys.argv[1])"
AFTER = "from ultralytics import YOLO\nimport tskd_yolo, sys\nYOLO(sys.argv[1])"
LOADED = "from ultralytics import YOLO\nimport tskd_yolo, sys\ntskd_yolo.load(sys.argv[1])"
WAYS = {  # code, environment, whether the stranger's command runs
    "before": (BEFORE, {}, False),
    "before, off": (BEFORE, {"ULTRALYTICS_SAFE_LOAD": "0"}, True),  # as asked
    "after": (AFTER, {}, True),  # as docs/guides/security.md says
    "after, on": (AFTER, {"ULTRALYTICS_SAFE_LOAD": "1"}, False),
    "load": (LOADED, {}, False),
    "load, off": (LOADED, {"ULTRALYTICS_SAFE_LOAD": "0"}, False),
}
IN_FORKS = """
import json, os, sys, traceback
import torch  # takes most of the time, and knows nothing of Ultralytics
for name, (code, environment, file) in json.loads(sys.argv[1]).items():
    if child := os.fork():
        os.waitpid(child, 0)
        continue
    assert not {"ultralytics", "tskd_yolo"} & set(sys.modules)
    os.environ.update(environment)
    sys.argv[1:] = [file]
    try:
        exec(code)
    except Exception:
        traceback.print_exc()
    os._exit(0)
"""


@pytest.fixture(scope="session")
def marks(tmp_path_factory) -> dict[str, Path]:
    """Where each way leaves a mark if the command runs: in new processes, as Ultralytics reads its switch once."""
    folder, cases = tmp_path_factory.mktemp("ways"), {}
    for number, (name, (code, environment, _)) in enumerate(WAYS.items()):
        file = stranger(folder / f"{number}.pt", ATTACKS["a command"][0](folder / name.replace(" ", "_")))
        cases[name] = code, environment, str(file)
    clean = {key: value for key, value in os.environ.items() if key != "ULTRALYTICS_SAFE_LOAD"}
    subprocess.run(
        [sys.executable, "-c", IN_FORKS, json.dumps(cases)], check=True, capture_output=True,
        env={**clean, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    return {name: folder / name.replace(" ", "_") for name in WAYS}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_what_is_known_of_yolo_and_load_holds(way, marks):
    assert marks[way].exists() is WAYS[way][2]


def test_load_names_what_a_stranger_asks_for(tmp_path, nothing_ran):
    build, name = ATTACKS["a command"]
    with pytest.raises(ConfigError, match=f"model: .*stranger.pt asks for {name}, .*trust=True"):
        load(stranger(tmp_path / "stranger.pt", build(nothing_ran)))
    with pytest.raises(ConfigError, match="model: nowhere.pt was not found"):
        load("nowhere.pt")
    with pytest.raises(ConfigError, match="model: nowhere.yaml "):
        load("nowhere.yaml")


def test_load_gives_what_yolo_gives(good):
    assert type(load(good / "teacher.pt")) is type(load("yolo11n.yaml")) is YOLO
    assert len(load(good / "teacher.pt").names) == 6


def test_load_trusts_where_it_is_told_to(tmp_path):
    content = torch.load(make_detector(tmp_path / "own.pt", "yolo11n.yaml"), weights_only=False)
    content["model"].own = Harmless()
    torch.save(content, tmp_path / "own.pt")
    with pytest.raises(ConfigError, match="asks for "):
        load(tmp_path / "own.pt")
    assert type(load(tmp_path / "own.pt", trust=True).model.own) is Harmless


def test_an_activation_in_a_students_checkpoint_is_no_code(good, tmp_path, nothing_ran, monkeypatch):
    """YOLO.train has the student built between the trainer's making and its training."""
    from ultralytics.nn import tasks

    from tskd_yolo import Trainer

    content = torch.load(make_detector(tmp_path / "student.pt", "yolo11n.yaml"), weights_only=False)
    content["model"].yaml["activation"] = f"open({str(nothing_ran)!r}, 'w') and torch.nn.SiLU()"
    torch.save(content, tmp_path / "student.pt")
    monkeypatch.setattr(tasks, "SAFE_LOAD", False)  # as where Ultralytics was imported first
    student = load(tmp_path / "student.pt")
    values = settings(tmp_path / "runs", good / "tiny.yaml", teacher=good / "teacher.pt")
    with pytest.raises(TypeError, match="unsupported activation"):
        student.train(trainer=Trainer, **{key: value for key, value in values.items() if key != "model"})


@pytest.mark.parametrize("words", [["train"], ["train", "resume"], ["val"], ["predict"]], ids=" ".join)
def test_a_torch_that_cannot_restrict_a_pickle_is_refused(words, good, tmp_path, monkeypatch, capsys):
    from ultralytics.nn import tasks

    monkeypatch.setattr(tasks._SafeLoad, "SUPPORTED", False)
    values = settings(tmp_path / "runs", good / "tiny.yaml", teacher=good / "teacher.pt")
    values["model"] = good / "teacher.pt"
    said = delegated(run, capsys, *words, **values)
    assert "torch: 2.6 or newer is needed" in said and "trust=True" in said
    assert not (tmp_path / "runs").exists()


def test_nothing_is_installed_whatever_is_missing(good, tmp_path, monkeypatch, capsys):
    """A checkpoint that names a package, an image of an unknown format, an export without its library."""
    from ultralytics.utils import checks

    asked: list[Any] = []
    monkeypatch.setenv("YOLO_AUTOINSTALL", "1")
    monkeypatch.setattr(checks, "AUTOINSTALL", True)
    monkeypatch.setattr(checks, "ONLINE", True)
    monkeypatch.setattr(checks.subprocess, "check_output", lambda command, **_: asked.append(command) or "")

    def run_command(command: Any, **_: Any) -> Any:
        asked.append(command)
        return checks.subprocess.CompletedProcess(command, 1, "", "")

    monkeypatch.setattr(checks.subprocess, "run", run_command)
    checks.check_requirements("no-such-package-for-tskd")
    assert any("install" in str(command) for command in asked), "the trap does not work"
    asked.clear()

    data = tiny_data(tmp_path, train=4, val=2)
    for image in (tmp_path / "set" / "images" / "train").iterdir():
        image.write_bytes(b"no image")
    values = settings(tmp_path / "runs", data, teacher=good / "teacher.pt")
    assert "data: the train images could not be read" in run(capsys, "train", **values)
    model = shutil.copy(good / "teacher.pt", tmp_path)  # what is exported lies beside it
    said = delegated(run, capsys, "export", model=model, format="ncnn", imgsz=64, device="cpu")
    assert "is not installed; install it with pip" in said
    assert not any("install" in str(command) for command in asked)  # devices may be asked for
