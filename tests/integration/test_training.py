"""Whole runs of a few steps on a CPU: what a user starts, and what is left when it ends."""

from __future__ import annotations

import copy
import io
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from ultralytics import YOLO, utils
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import YAML
from ultralytics.utils.loss import v8DetectionLoss

from tests.helpers import DEVICE, logged, rows, same, settings, trained, weights, without_end
from tskd_yolo import Trainer, compat, hashing
from tskd_yolo.cli import main
from tskd_yolo.train import summary

pytestmark = pytest.mark.slow


def last(folder: Path) -> dict[str, torch.Tensor]:
    """The weights that a run ended with."""
    return weights(folder / "run" / "weights" / "last.pt")


# One run, seen from many sides ----------------------------------------------------------------------------------------


class Finished(NamedTuple):
    """Where a run wrote, what its callbacks saw, and the trainer that it left."""

    folder: Path
    seen: dict[str, Any]
    trainer: Trainer


@pytest.fixture(scope="session")
def finished(tmp_path_factory, data, teacher) -> Finished:
    """Two epochs with everything on."""
    folder = tmp_path_factory.mktemp("finished")
    seen: dict[str, Any] = {"between steps": [], "teacher": [], "saved": {}}

    def look_at_the_teacher(trainer: Trainer) -> None:
        model = trainer.distiller.teacher.model
        touched = any(p.requires_grad or p.grad is not None for p in model.parameters())
        seen["teacher"].append(({k: v.clone() for k, v in model.state_dict().items()}, touched))

    def look_at_the_student(trainer: Trainer) -> None:
        model = trainer.model
        copy.deepcopy(model)
        torch.save(model, io.BytesIO())
        hooks = sum(len(m._forward_hooks) for m in model.modules())
        seen["between steps"].append((type(model), type(model.criterion), hooks))

    def keep_checkpoints(trainer: Trainer) -> None:
        if trainer.epoch == 0:
            seen["saved"] = {file.name: file.read_bytes() for file in trainer.wdir.glob("*.pt")}

    options = dict(epochs=2, plots=True, save_period=1)
    trainer = Trainer(**settings(folder, data, teacher=str(teacher), **options))
    for event in ("on_train_start", "on_train_epoch_end"):
        trainer.add_callback(event, look_at_the_teacher)
    trainer.add_callback("on_train_batch_end", look_at_the_student)
    trainer.add_callback("on_model_save", keep_checkpoints)
    trainer.train()
    return Finished(folder, seen, trainer)


def test_all_three_columns_are_finite_nonzero_and_move(finished):
    first, second = rows(finished.folder)
    for term in ("drd_loss", "ded_loss", "crd_loss"):
        values = [first[f"train/{term}"], second[f"train/{term}"]]
        assert all(0 < v < 1e4 for v in values) and values[0] != values[1]
        assert f"val/{term}" not in first  # our terms exist in training only
    assert (finished.folder / "run" / "results.png").exists()


def test_checkpoints_load_where_this_package_cannot_be_imported(finished, tmp_path):
    assert {"last.pt", "best.pt", "epoch0.pt"} <= finished.seen["saved"].keys()
    names = ("last.pt", "best.pt", "epoch0.pt", "epoch1.pt")
    files = [finished.folder / "run" / "weights" / name for name in names]
    for name in ("last.pt", "best.pt", "epoch0.pt"):
        files.append(tmp_path / f"during-{name}")
        files[-1].write_bytes(finished.seen["saved"][name])
    code = (
        "import sys; sys.modules['tskd_yolo'] = None\n"
        "from ultralytics import YOLO\n"
        "import numpy as np\n"
        "for f in sys.argv[1:]:\n"
        "    model = YOLO(f)\n"
        "    assert type(model.model).__name__ == 'DetectionModel', f\n"
        "    model.predict(np.zeros((64, 64, 3), 'uint8'), imgsz=64, save=False, verbose=False)\n"
        "print('loaded', len(sys.argv) - 1)\n"
    )
    environment = {**os.environ, "ULTRALYTICS_SAFE_LOAD": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, files)], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert f"loaded {len(files)}" in result.stdout


def test_at_the_end_side_file_and_teacher_are_gone(finished):
    assert not (finished.folder / "run" / "weights" / "tskd_last.pt").exists()
    assert finished.trainer.distiller is None


def test_teacher_weights_and_statistics_stay_identical(finished):
    (before, touched), *after = finished.seen["teacher"]
    assert len(after) == 2 and not touched
    for state, touched in after:
        assert same(before, state) and not touched


def test_user_callbacks_see_a_plain_student_between_steps(finished):
    assert set(finished.seen["between steps"]) == {(DetectionModel, v8DetectionLoss, 0)}


# The same as plain training -------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def stock(tmp_path_factory, data) -> dict[str, torch.Tensor]:
    """The weights of two epochs with Ultralytics' own trainer."""
    folder = tmp_path_factory.mktemp("stock")
    DetectionTrainer(overrides=settings(folder, data, epochs=2)).train()
    return last(folder)


def test_with_all_weights_zero_it_is_plain_training_to_the_bit(tmp_path, data, teacher, stock):
    trained(tmp_path / "ours", data, epochs=2, teacher=str(teacher), drd=0, ded=0, crd=0)
    assert same(stock, last(tmp_path / "ours"))
    with without_end():
        trained(tmp_path / "distilled", data, epochs=2, teacher=str(teacher), drd=0, ded=0, crd=1e-3)
    assert not same(stock, last(tmp_path / "distilled"))  # the comparison can fail


def test_random_numbers_stay_those_of_plain_training(tmp_path, data, teacher, stock, monkeypatch, caplog, no_end):
    """Teacher, adapters and teacher validation are all there: only their gradient is lost in rounding."""
    monkeypatch.setattr(hashing, "USER_CONFIG_DIR", tmp_path / "settings")  # where no score is kept yet
    weightless = dict(balance="fixed", drd=1e-30, ded=1e-30, crd=1e-30)
    stocks = False if DEVICE == "cpu" else None
    trained(tmp_path, data, epochs=2, teacher=str(teacher), channels_last=stocks, **weightless)
    assert same(stock, last(tmp_path)) and "is validated, once" in caplog.text


# Memory format --------------------------------------------------------------------------------------------------------


class Layout(NamedTuple):
    """A run in one memory format: its folder, whether weights lay in channels_last, and what was logged."""

    folder: Path
    found: list[bool]
    lines: list[str]
    wanted: bool | None


@pytest.fixture(scope="session")
def layout(tmp_path_factory, data, teacher):
    """Trains once where channels_last ``pays``, or not, with ``channels_last=wanted``."""
    runs: dict[Any, Layout] = {}

    def run(pays: bool, wanted: bool | None) -> Layout:
        if (pays, wanted) in runs:
            return runs[pays, wanted]
        folder, found = tmp_path_factory.mktemp("layout"), []

        def look(trainer: Trainer) -> None:
            for weight in (trainer.model.model[1].conv.weight, trainer.ema.ema.model[1].conv.weight):
                found.append(not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last))

        with pytest.MonkeyPatch.context() as patch, logged() as lines:
            patch.setattr(compat, "channels_last_pays", lambda: pays)
            trainer = Trainer(**settings(folder, data, teacher=str(teacher), channels_last=wanted, device="cpu"))
            trainer.add_callback("on_train_batch_end", look)
            trainer.train()
        runs[pays, wanted] = Layout(folder, found, lines, trainer.args.channels_last)
        return runs[pays, wanted]

    return run


@pytest.mark.parametrize(
    ("pays", "wanted", "taken"),
    [
        (True, None, True),
        (True, False, False),
        pytest.param(True, True, True, marks=pytest.mark.soak),
        pytest.param(False, None, False, marks=pytest.mark.soak),
    ],
)
def test_a_cpu_trains_in_channels_last_where_it_pays(layout, pays, wanted, taken):
    run = layout(pays, wanted)
    assert run.found and set(run.found) == {taken} and run.wanted is wanted
    assert not any("is only supported on CUDA" in line for line in run.lines)
    # Released engines cannot fuse anything else.
    assert all(value.is_contiguous() for value in last(run.folder).values())


def test_the_memory_format_changes_nothing_but_rounding(layout):
    after, first = (rows(layout(True, wanted).folder)[0] for wanted in (True, False))
    for key in (key for key in first if key.startswith("train/")):
        assert after[key] == pytest.approx(first[key], rel=1e-2), key


# Ways to start --------------------------------------------------------------------------------------------------------


def test_python_yolo_train_and_command_line_are_the_same_run(tmp_path, data, teacher, no_end):
    trained(tmp_path / "a", data, teacher=str(teacher))
    YOLO("yolo11n.yaml").train(trainer=Trainer, **settings(tmp_path / "b", data, teacher=str(teacher)))
    arguments = settings(tmp_path / "c", data, teacher=str(teacher))
    assert main(["train", *(f"{key}={value}" for key, value in arguments.items())]) == 0
    results = [last(tmp_path / who) for who in "abc"]
    assert same(results[0], results[1]) and same(results[1], results[2])


def test_a_student_from_a_checkpoint_starts_from_its_weights(tmp_path, data, teacher, detector, no_end):
    student = detector("yolo11n.yaml", seed=11)
    seen = {}
    trainer = Trainer(**settings(tmp_path, data, teacher=str(teacher), model=str(student)))
    trainer.add_callback(
        "on_train_start", lambda t: seen.update(first=t.model.model[0].conv.weight.detach().cpu().clone())
    )
    trainer.train()
    assert torch.equal(seen["first"], weights(student)["model.0.conv.weight"])


def test_a_bare_official_name_is_fetched_like_a_model(tmp_path, data, teacher, monkeypatch, no_end):
    from ultralytics.utils import downloads

    asked = []

    def fetch(file, *args, **kwargs):
        if str(file) != "yolo11l.pt":
            return file
        asked.append(file)
        return str(teacher)

    monkeypatch.setattr(downloads, "attempt_download_asset", fetch)
    monkeypatch.chdir(tmp_path)
    trainer = trained(tmp_path, data, teacher="yolo11l.pt")
    assert asked and trainer.args.teacher == str(teacher)


@pytest.mark.soak
def test_an_interrupted_run_resumes_with_its_adapters(tmp_path, data, teacher, no_end):
    class Stop(Exception):
        pass

    kept = {}

    def interrupt(trainer):
        if trainer.epoch == 1:
            kept["state"] = {k: v.clone() for k, v in trainer.distiller.learned.state_dict().items()}
            kept["optimizer"] = len(trainer.optimizer.state_dict()["state"])
            raise Stop

    trainer = Trainer(**settings(tmp_path, data, teacher=str(teacher), epochs=3))
    trainer.add_callback("on_model_save", interrupt)
    with pytest.raises(Stop):
        trainer.train()

    restored = {}

    def compare(trainer):
        restored["same"] = same(trainer.distiller.learned.state_dict(), kept["state"])
        restored["optimizer"] = len(trainer.optimizer.state_dict()["state"])
        restored["start"] = trainer.start_epoch

    moved = tmp_path / "elsewhere.pt"  # the teacher may have moved meanwhile
    moved.write_bytes(teacher.read_bytes())
    model = YOLO(tmp_path / "run" / "weights" / "last.pt")
    model.add_callback("on_train_start", compare)
    model.train(trainer=Trainer, resume=True, teacher=str(moved))
    assert restored == {"same": True, "optimizer": kept["optimizer"], "start": 2}
    assert [row["epoch"] for row in rows(tmp_path)] == [1, 2, 3]


# What is recorded -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("balance", ["fixed", "share"])
def test_shares_are_columns_and_the_first_epoch_check_is_said(balance, tmp_path, data, teacher, caplog, no_end):
    trained(tmp_path, data, teacher=str(teacher), balance=balance, drd=0.125, ded=0.25, crd=0.5, epochs=2, val=False)
    first, second = rows(tmp_path)
    for term, share in (("drd(neck)", 0.125), ("ded(stride16)", 0.25), ("crd(neck)", 0.5)):
        assert first[f"share/{term}"] > 0 and -1 <= second[f"cosine/{term}"] <= 1
        assert first[f"cosine/{term}"] != 0
        if balance == "share":
            assert second[f"share/{term}"] == pytest.approx(share, rel=1e-3)
    assert "levels    stride 8: 64 -> 64 of 128   stride 16: " in caplog.text
    assert "stages    stride 4: 64 -> 64 of 128   stride 8: 128 -> 64 of 256   stride 16: 128 -> " in caplog.text
    assert caplog.text.count("first-epoch check passed: every term reaches the student on 1 process(es)") == 1


def test_a_second_run_shows_the_teachers_score_unvalidated(tmp_path, data, teacher, monkeypatch, caplog, no_end):
    monkeypatch.setattr(hashing, "USER_CONFIG_DIR", tmp_path / "settings")
    validated, inner = [], summary.validate
    for name in ("first", "second"):
        monkeypatch.setattr(
            summary, "validate", lambda *args, name=name, **more: validated.append(name) or inner(*args, **more)
        )
        caplog.clear()
        trained(tmp_path, data, teacher=str(teacher), val=False, name=name)
        words = "is validated, once" if name == "first" else "was validated on these images before"
        assert words in caplog.text
    assert validated == ["first"]


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:The input to trace is already")
def test_tensorboard_receives_the_three_terms(tmp_path, data, teacher, monkeypatch, no_end):
    pytest.importorskip("tensorboard")
    import ultralytics.utils.callbacks.tensorboard as callbacks
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setitem(utils.SETTINGS, "tensorboard", True)
    monkeypatch.setattr(utils, "TESTS_RUNNING", False)  # in tests the integration switches itself off on import
    monkeypatch.setattr(callbacks, "callbacks", runpy.run_path(callbacks.__file__)["callbacks"])
    trained(tmp_path, data, teacher=str(teacher))
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert {"train/drd_loss", "train/ded_loss", "train/crd_loss"} <= set(events.Tags()["scalars"])


@pytest.mark.parametrize("given", [{}, {"ded": 2.0}])
def test_weights_that_were_loaded_into_a_yaml_are_no_new_student(given, tmp_path, data, teacher, detector, no_end):
    """Ultralytics' way to transfer weights: the trainer is told of a YAML, and given a network."""
    model = YOLO("yolo11n.yaml").load(str(detector("yolo11n.yaml", seed=4)))
    words = {key: value for key, value in settings(tmp_path, data, teacher=str(teacher), **given).items()}
    words.pop("model", None)
    with logged() as lines:
        model.train(trainer=Trainer, **words)
    kept = YAML.load(tmp_path / "run" / "args.yaml")
    assert model.trainer.args.ded == kept["ded"] == given.get("ded", 0.1)
    assert any("a pre-trained student, for which ded is 0.1 unless given" in line for line in lines)
