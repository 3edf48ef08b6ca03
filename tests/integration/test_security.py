"""Files from strangers: a checkpoint is a program. None of theirs runs, wherever it is given; nothing is installed."""

from __future__ import annotations

import importlib
import os
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

from tests.helpers import make_detector, settings, tiny_data
from tskd_yolo import ConfigError
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


@pytest.fixture
def known(detector) -> Path:
    """A sound checkpoint."""
    return detector("yolo11n.yaml")


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
def test_what_a_run_begins_with_is_refused(key, attack, few, known, tmp_path, nothing_ran, capsys):
    build, name = ATTACKS[attack]
    file = stranger(tmp_path / "stranger.pt", build(nothing_ran))
    values = {**settings(tmp_path / "runs", few, teacher=known), key: file}
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
def test_what_other_modes_load_is_refused(mode, attack, few, tmp_path, nothing_ran, capsys):
    build, name = ATTACKS[attack]
    file = stranger(tmp_path / "stranger.pt", build(nothing_ran))
    said = delegated(run, capsys, mode, model=file, data=few, imgsz=64, device="cpu")
    assert f"asks for {name}, " in said and "trust=True" in said


@pytest.mark.parametrize("kind", ["sam_b", "mobile_sam", "FastSAM-s", "rtdetr-l"])
def test_other_kinds_of_model_are_refused_too(kind, few, tmp_path, nothing_ran, capsys):
    """Ultralytics reads some of them without its own restriction."""
    file = stranger(tmp_path / f"{kind}.pt", ATTACKS["a command"][0](nothing_ran))
    source = next((few.parent / "set" / "images" / "val").iterdir())
    said = delegated(run, capsys, "predict", model=file, source=source, imgsz=64, device="cpu")
    assert f"asks for {os.name}.system, " in said


def delegated(function, *arguments: Any, **values: Any) -> Any:
    """Ultralytics' entry point reads the process's own arguments."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["tskd-yolo"])
        patch.setattr("ultralytics.cfg.ARGV", sys.argv)
        return function(*arguments, **values)


def test_a_pickle_in_the_old_format_is_refused(few, tmp_path, nothing_ran, capsys):
    file = tmp_path / "old.pt"
    torch.save({"model": Calls(os.system, f"touch {nothing_ran}")}, file, _use_new_zipfile_serialization=False)
    values = settings(tmp_path / "runs", few, teacher=file)
    assert f"asks for {os.name}.system, " in run(capsys, "train", **values)


def test_an_activation_that_is_code_is_refused(few, known, tmp_path, nothing_ran, capsys):
    from ultralytics.nn.tasks import yaml_model_load

    code = f"__import__('os').system('touch {nothing_ran}') or nn.SiLU()"
    model = tmp_path / "yolo11n-stranger.yaml"
    model.write_text(yaml.safe_dump({**yaml_model_load("yolo11n.yaml"), "activation": code}))
    values = settings(tmp_path / "runs", few, teacher=known, model=model)
    assert "__import__" in run(capsys, "train", **values)
    assert not list((tmp_path / "runs").glob("*"))
    assert "__import__" in delegated(run, capsys, "val", model=model, data=few)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["train", "val"])
def test_a_label_cache_that_is_a_program_is_made_anew(mode, known, tmp_path, nothing_ran, no_end):
    data = tiny_data(tmp_path, train=4, val=2)
    for split in ("train", "val"):
        np.save(cache := tmp_path / "set" / "labels" / split, ATTACKS["a command"][0](nothing_ran), allow_pickle=True)
        cache.with_suffix(".npy").rename(cache.with_suffix(".cache"))
    values = settings(tmp_path / "runs", data, teacher=known)
    if mode == "val":
        values = dict(model=known, data=data, imgsz=64, device="cpu", project=tmp_path / "runs", plots=False)
    assert delegated(main, [mode, *(f"{key}={value}" for key, value in values.items())]) == 0


def test_a_class_of_ones_own_is_loaded_only_where_it_is_trusted(tmp_path):
    from tskd_yolo import compat

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
def test_a_run_distils_from_a_trusted_file(few, tmp_path, capsys, no_end):
    content = torch.load(make_detector(tmp_path / "own.pt", "yolo11n.yaml"), weights_only=False)
    content["model"].yaml["own"] = Harmless()
    torch.save(content, tmp_path / "own.pt")
    values = settings(tmp_path / "runs", few, teacher=tmp_path / "own.pt")
    assert "Harmless" in run(capsys, "train", **values)
    assert main(["train", *(f"{key}={value}" for key, value in values.items()), "trust=True"]) == 0


@pytest.mark.parametrize("words", [["train"], ["train", "resume"], ["val"], ["predict"]], ids=" ".join)
def test_a_torch_that_cannot_restrict_a_pickle_is_refused(words, few, known, tmp_path, monkeypatch, capsys):
    from ultralytics.nn import tasks

    monkeypatch.setattr(tasks._SafeLoad, "SUPPORTED", False)
    values = settings(tmp_path / "runs", few, teacher=known)
    values["model"] = known
    said = delegated(run, capsys, *words, **values)
    assert "torch: 2.6 or newer is needed" in said and "trust=True" in said
    assert not (tmp_path / "runs").exists()


def test_nothing_is_installed_whatever_is_missing(known, tmp_path, monkeypatch, capsys):
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
    values = settings(tmp_path / "runs", data, teacher=known)
    assert "data: the train images could not be read" in run(capsys, "train", **values)
    model = shutil.copy(known, tmp_path / "own.pt")  # what is exported lies beside it
    said = delegated(run, capsys, "export", model=model, format="ncnn", imgsz=64, device="cpu")
    assert "is not installed; install it with pip" in said
    assert not any("install" in str(command) for command in asked)  # devices may be asked for
