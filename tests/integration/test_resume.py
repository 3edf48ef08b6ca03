"""Interrupted runs: whatever ends one, it goes on from its last whole checkpoint."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from ultralytics.models.yolo.detect import DetectionTrainer

from tests.data.helpers import draw_image
from tests.helpers import rows, same, settings, tiny_data, weights
from tskd_yolo import Trainer, files
from tskd_yolo.cli import main
from tskd_yolo.train.checkpoints import PREVIOUS, SIDE_FILE, RunError

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


class Stop(Exception):
    pass


def interrupted(folder: Path, data: Path, after: int = 1, how: type[BaseException] = Stop, **more) -> Path:
    """A run that ended after its ``after``-th checkpoint; its last.pt."""

    def interrupt(trainer):
        if trainer.epoch + 1 == after:
            raise how

    trainer = Trainer(**settings(folder, data, **{"epochs": 3, **more}))
    trainer.add_callback("on_model_save", interrupt)
    with pytest.raises(how):
        trainer.train()
    return folder / "run" / "weights" / "last.pt"


def resume(last: Path, *words: str) -> int:
    return main(["train", "resume", f"model={last}", *words])


@pytest.fixture(scope="session")
def stopped(tmp_path_factory, data, teacher) -> Path:
    """The folder of a run of three epochs that ended after its second checkpoint."""
    folder = tmp_path_factory.mktemp("stopped")
    interrupted(folder, data, after=2, teacher=str(teacher))
    return folder / "run"


@pytest.fixture
def last(stopped, tmp_path) -> Path:
    """The checkpoint of a copy of that run in ``tmp_path``."""
    shutil.copytree(stopped, tmp_path / "run")
    return tmp_path / "run" / "weights" / "last.pt"


def words_of(folder: Path, data: Path, teacher: Path, **more) -> list[str]:
    values = settings(folder, data, teacher=str(teacher), **more)
    return ["train", *(f"{key}={value}" for key, value in values.items())]


def process(words: list[str], **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.integration.killed_worker", *words],
        env={**os.environ, **environment, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
    )  # fmt: skip


def go_on(folder: Path) -> list[str]:
    return ["train", "resume", f"model={folder / 'run' / 'weights' / 'last.pt'}"]


def check_adapters(folder: Path) -> None:
    """The adapters that the last process began with are those beside last.pt, to the bit."""
    side = torch.load(folder / "run" / "weights" / SIDE_FILE)["states"]
    begun = torch.load(folder / "begins.pt")
    assert any(same(begun, state["learned"]) for state in side.values())


def test_every_checkpoint_of_a_run_is_written_that_way(tmp_path, data, teacher, monkeypatch):
    written: list[str] = []
    whole = files.replace
    monkeypatch.setattr(files, "replace", lambda path, data: (written.append(Path(path).name), whole(path, data)))
    monkeypatch.setattr(Path, "write_bytes", lambda self, data: pytest.fail(f"{self} was written in place"))
    Trainer(**settings(tmp_path, data, teacher=str(teacher), epochs=1, save_period=1)).train()
    checkpoints = [name for name in written if name.endswith(".pt")]
    assert checkpoints == [SIDE_FILE, "last.pt", "best.pt", "epoch0.pt", "best.pt", "last.pt"]  # the last two: stripped
    assert sorted(f.name for f in (tmp_path / "run" / "weights").iterdir()) == ["best.pt", "epoch0.pt", "last.pt"]


def test_a_run_killed_twice_goes_on_to_a_whole_end(tmp_path, data, teacher):
    others = tmp_path / "others"
    for name in range(6):
        draw_image(others / f"{name}.png")
    words = words_of(tmp_path, data, teacher, epochs=3, unlabelled=str(others))
    for moment in ("val", "saving"):
        run = process(words, KILL=moment, EPOCH="1")
        said, _ = run.communicate(timeout=300)
        assert run.returncode == -signal.SIGKILL, said
        words = go_on(tmp_path)
    check_adapters(tmp_path)
    assert main(words) == 0
    assert [row["epoch"] for row in rows(tmp_path)] == [1, 2, 3]
    folder = tmp_path / "run" / "weights"
    assert {f.name for f in folder.iterdir()} - {".half"} == {"best.pt", "last.pt"}
    assert torch.load(folder / "last.pt", weights_only=False)["epoch"] == -1


def test_a_run_killed_before_the_final_stripping_is_finished(tmp_path, data, teacher):
    run = process(words_of(tmp_path, data, teacher, epochs=2), KILL="stripping")
    said, _ = run.communicate(timeout=300)
    assert run.returncode == -signal.SIGKILL, said
    before = weights(tmp_path / "run" / "weights" / "last.pt")
    assert resume(tmp_path / "run" / "weights" / "last.pt") == 0
    assert [row["epoch"] for row in rows(tmp_path)] == [1, 2]
    assert same(before, weights(tmp_path / "run" / "weights" / "last.pt"))
    assert torch.load(tmp_path / "run" / "weights" / "best.pt", weights_only=False)["epoch"] == -1
    assert not (tmp_path / "run" / "weights" / SIDE_FILE).exists()


@pytest.mark.soak
def test_twenty_random_kills_end_like_an_uninterrupted_run(tmp_path, data, teacher):
    more = dict(epochs=12, lr0=1e-4)
    assert main(words_of(tmp_path / "whole", data, teacher, **more)) == 0
    epoch_takes = rows(tmp_path / "whole")[-1]["time"] / more["epochs"]
    folder, moment = tmp_path / "killed", random.Random(0)
    last, begun = folder / "run" / "weights" / "last.pt", folder / "begins.pt"
    words, kills, compared = words_of(folder, data, teacher, **more), 0, 0
    while True:
        expected = None
        if last.exists():
            words = go_on(folder)
            epoch = torch.load(last, weights_only=False)["epoch"]
            if epoch == -1:
                break
            expected = torch.load(last.parent / SIDE_FILE)["states"][epoch]["learned"]
        begun.unlink(missing_ok=True)
        saved = last.exists() and last.stat().st_mtime_ns
        run = process(words)
        if kills < 20:
            wait_for(begun, run)
            while kills % 2 and run.poll() is None and (last.exists() and last.stat().st_mtime_ns) == saved:
                time.sleep(0.005)  # every other time an epoch is through, so that the run gets on
            time.sleep(moment.uniform(0, 1.5 * epoch_takes))
            run.kill()
        said, _ = run.communicate(timeout=600)
        assert run.returncode in {0, -signal.SIGKILL}, said
        kills += run.returncode == -signal.SIGKILL
        if expected is not None and begun.exists():
            compared += 1
            assert same(torch.load(begun), expected)
    assert kills >= 10 and compared >= 10
    whole, killed = rows(tmp_path / "whole"), rows(folder)
    assert [row["epoch"] for row in killed] == [row["epoch"] for row in whole] == list(range(1, 13))
    for term in ("drd", "ded", "crd"):
        values = [row[f"train/{term}_loss"] for row in whole]
        spread = max(values) - min(values)
        for row in killed:
            assert min(values) - spread <= row[f"train/{term}_loss"] <= max(values) + spread


def wait_for(file: Path, run: subprocess.Popen, seconds: float = 120) -> None:
    deadline = time.time() + seconds
    while not file.exists() and run.poll() is None and time.time() < deadline:
        time.sleep(0.05)


def test_a_torn_checkpoint_falls_back_to_the_one_before(last, tmp_path, caplog, no_end):
    states = torch.load(last.parent / SIDE_FILE)["states"]
    assert sorted(states) == [0, 1] and (last.parent / PREVIOUS).exists()
    last.write_bytes(last.read_bytes()[:10_000])
    begun = {}
    trainer = Trainer(resume=str(last))
    trainer.add_callback("on_train_start", lambda t: begun.update(t.distiller.state()["learned"], start=t.start_epoch))
    before = []
    trainer.add_callback(
        "on_model_save", lambda t: before.append(torch.load(t.last.with_name(PREVIOUS), weights_only=False)["epoch"])
    )
    trainer.train()
    assert begun.pop("start") == 1 and same(begun, states[0]["learned"])
    assert before == [0, 1], "the torn one never takes its place"
    assert [row["epoch"] for row in rows(tmp_path)] == [1, 2, 3]
    assert "The checkpoint before it, of epoch 1, is used" in caplog.text


@pytest.mark.parametrize("damage", [pytest.param("missing", marks=pytest.mark.soak), "torn", "of another epoch"])
def test_without_the_side_file_a_run_goes_on_with_new_adapters(damage, last, tmp_path, caplog, no_end):
    side = last.parent / SIDE_FILE
    if damage == "missing":
        side.unlink()
    elif damage == "torn":
        side.write_bytes(side.read_bytes()[:100])
    else:
        torch.save({"states": {7: {}}}, side)
    assert resume(last) == 0
    assert "adapters start anew" in caplog.text
    assert [row["epoch"] for row in rows(tmp_path)] == [1, 2, 3]


def test_a_row_ahead_of_the_checkpoint_or_torn_is_written_anew(last, tmp_path, no_end):
    csv = tmp_path / "run" / "results.csv"
    line = csv.read_text().splitlines()[-1]
    csv.write_text(csv.read_text() + "3" + line[1:] + "\n4,0.5,1")
    assert resume(last) == 0
    assert [row["epoch"] for row in rows(tmp_path)] == [1, 2, 3]


def test_a_moved_run_goes_on_with_a_moved_teacher(tmp_path, data, teacher, monkeypatch, caplog, no_end):
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    shutil.copy(teacher, "teacher.pt")
    shutil.copy(data, "tiny.yaml")
    last = interrupted(tmp_path / "a" / "runs", Path("tiny.yaml"), teacher="teacher.pt", epochs=2)
    before = torch.load(last.parent / SIDE_FILE)["states"][0]["learned"]
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "runs" / "run").rename(tmp_path / "b" / "run")
    (tmp_path / "a" / "teacher.pt").rename(tmp_path / "b" / "other.pt")
    monkeypatch.chdir(tmp_path / "b")
    begun = {}
    trainer = Trainer(resume="run/weights/last.pt", teacher="other.pt")
    trainer.add_callback("on_train_start", lambda t: begun.update(t.distiller.state()["learned"]))
    trainer.train()
    assert same(begun, before) and "Resume ignores" not in caplog.text
    assert [row["epoch"] for row in rows(tmp_path / "b")] == [1, 2] and not (tmp_path / "a" / "runs" / "run").exists()


@pytest.mark.parametrize("model", ["yolo11m.yaml", "yolo11s.yaml"])
def test_resuming_with_another_teacher_is_refused(model, last, tmp_path, detector, capsys):
    other = detector(model, seed=8)
    content = last.read_bytes()
    assert resume(last, f"teacher={other}") == 1
    assert f"teacher: {other} is not the one that this run began with" in capsys.readouterr().err
    assert last.read_bytes() == content and [row["epoch"] for row in rows(tmp_path)] == [1, 2]


@pytest.mark.soak
def test_the_schedule_of_a_dual_head_goes_on(tmp_path, data, detector, no_end):
    last = interrupted(tmp_path, data, teacher=str(detector("yolo26s.yaml")), model="yolo26n.yaml", epochs=2)
    seen = []
    trainer = Trainer(resume=str(last))
    trainer.add_callback("on_train_batch_end", lambda t: seen.append((t.epoch, t.model.criterion.updates)))
    trainer.train()
    assert seen and set(seen) == {(1, 1)}


def test_ctrl_c_says_in_one_line_how_to_go_on_and_ends_with_130(tmp_path, data, teacher):
    run = process(words_of(tmp_path, data, teacher, epochs=200))
    last = tmp_path / "run" / "weights" / "last.pt"
    wait_for(last, run)
    run.send_signal(signal.SIGINT)
    said, _ = run.communicate(timeout=120)
    assert run.returncode == 130, said
    lines = [line for line in said.splitlines() if "interrupted" in line]
    assert len(lines) == 1 and f"tskd-yolo train resume model={last}" in lines[0] and "Traceback" not in said
    assert torch.load(last, weights_only=False)["epoch"] >= 0


def test_ctrl_c_in_the_first_epoch_says_there_is_no_checkpoint(tmp_path, data, teacher, monkeypatch, caplog):
    def stop(trainer):
        raise KeyboardInterrupt

    begin = Trainer.__init__

    def __init__(self, *args, **kwargs):
        begin(self, *args, **kwargs)
        self.add_callback("on_train_batch_end", stop)

    monkeypatch.setattr(Trainer, "__init__", __init__)
    assert main(words_of(tmp_path, data, teacher)) == 130
    assert "No epoch was finished" in caplog.text


@pytest.mark.parametrize(
    "file", ["last.pt", *(pytest.param(f, marks=pytest.mark.soak) for f in (SIDE_FILE, "results.csv"))]
)
def test_a_full_disk_leaves_the_checkpoint_before_and_is_told(
    file, tmp_path, data, teacher, monkeypatch, capsys, no_end
):
    whole, metrics = files.replace, DetectionTrainer.save_metrics
    full = OSError(errno.ENOSPC, "No space left on device")
    written = []

    def replace(path, data):
        written.append(Path(path).name)
        if written.count(file) == 2:
            raise full
        whole(path, data)

    def save_metrics(self, metrics_):
        if file == "results.csv" and self.epoch == 1:
            raise full
        metrics(self, metrics_)

    monkeypatch.setattr(files, "replace", replace)
    monkeypatch.setattr(DetectionTrainer, "save_metrics", save_metrics)
    assert main(words_of(tmp_path, data, teacher, epochs=2)) == 1
    said = capsys.readouterr().err
    last = tmp_path / "run" / "weights" / "last.pt"
    assert file in said and "No space left on device" in said and "MB are needed" in said and "Traceback" not in said
    assert f"tskd-yolo train resume model={last}" in said
    assert torch.load(last, weights_only=False)["epoch"] == 0
    monkeypatch.undo()
    assert resume(last) == 0
    assert [row["epoch"] for row in rows(tmp_path)] == [1, 2]


def test_in_python_a_full_disk_is_one_exception(tmp_path, data, teacher, monkeypatch):
    def full(path, data):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(files, "replace", full)
    with pytest.raises(RunError, match="Read-only file system"):
        Trainer(**settings(tmp_path, data, teacher=str(teacher))).train()


def test_ultralytics_recovery_from_nan_restores_the_adapters_too(tmp_path, data, teacher, caplog, no_end):
    seen = {}

    def spoil(trainer):
        if trainer.epoch == 1 and "spoiled" not in seen:
            seen["spoiled"] = True
            trainer.loss = trainer.loss * float("nan")
            for p in trainer.distiller.learned.parameters():
                p.data.fill_(float("nan"))

    def look(trainer):
        if trainer.epoch == 1 and "spoiled" in seen and "back" not in seen:
            seen["back"] = trainer.distiller.state()["learned"]

    trainer = Trainer(**settings(tmp_path, data, teacher=str(teacher), epochs=2))
    trainer.add_callback("on_model_save", lambda t: seen.setdefault("saved", t.distiller.state()["learned"]))
    trainer.add_callback("on_train_epoch_end", spoil)
    trainer.add_callback("on_train_epoch_start", look)
    trainer.train()
    assert "recovering from last.pt" in caplog.text and same(seen["back"], seen["saved"])
    assert [row["epoch"] for row in rows(tmp_path)] == [1, 2]


def nan_in_steps(monkeypatch, steps: set[int]) -> None:
    """DED is NaN in these steps of the run, counted from 0."""
    from tskd_yolo.losses import DED

    whole, calls = DED.forward, []

    def forward(self, **maps):
        calls.append(maps)
        value = whole(self, **maps)
        return value * float("nan") if (len(calls) - 1) // 3 in steps else value  # three maps a step

    monkeypatch.setattr(DED, "forward", forward)


def test_a_term_that_is_nan_in_a_step_is_left_out_and_counted(tmp_path, teacher, monkeypatch, caplog, no_end):
    data = tiny_data(tmp_path, train=48)
    nan_in_steps(monkeypatch, {3})
    trainer = Trainer(**settings(tmp_path, data, teacher=str(teacher), epochs=2))
    trainer.train()
    assert "ded was not finite in 1 of 12 steps and left out of them. The detection loss went on." in caplog.text
    assert "recovering" not in caplog.text and caplog.text.count("was not finite") == 1
    first, second = rows(tmp_path)
    assert 0 < first["train/ded_loss"] < 1e3 and second["train/ded_loss"] > 0
    assert first["left_out/ded"] == pytest.approx(1 / 12, abs=1e-4) and second["left_out/ded"] == 0
    assert all(v.isfinite().all() for v in weights(trainer.last).values())


def test_a_term_too_often_nan_stays_off_after_resuming(tmp_path, data, teacher, monkeypatch, caplog, no_end):
    nan_in_steps(monkeypatch, {0})
    last = interrupted(tmp_path, data, teacher=str(teacher))
    assert "ded was not finite in 1 of 2 steps" in caplog.text and "It is switched off" in caplog.text
    assert resume(last) == 0
    assert [row["train/ded_loss"] > 0 for row in rows(tmp_path)] == [True, False, False]
    assert [row["left_out/ded"] for row in rows(tmp_path)] == [1, 1, 1]
    assert all(row[f"train/{term}_loss"] > 0 for row in rows(tmp_path) for term in ("drd", "crd"))


def test_with_every_term_switched_off_the_run_goes_on(tmp_path, data, teacher, monkeypatch, no_end):
    nan_in_steps(monkeypatch, {0})
    trainer = Trainer(**settings(tmp_path, data, teacher=str(teacher), drd=0, crd=0, epochs=2))
    trainer.train()
    assert [row["train/ded_loss"] > 0 for row in rows(tmp_path)] == [True, False]


def test_a_step_out_of_memory_halves_the_batch(tmp_path, data, teacher, monkeypatch, no_end):
    from tskd_yolo.distill.step import Step

    whole, clear, steps, sizes, held = Step.__call__, Trainer._clear_memory, [], [], []

    def loss(self, predictions, batch):
        steps.append(self)
        sizes.append(len(batch["img"]))
        if len(batch["img"]) > 2:
            raise RuntimeError("CUDA out of memory")
        return whole(self, predictions, batch)

    def _clear_memory(self, *args):
        clear(self, *args)
        held.extend(step.teacher is not None for step in steps)
        held.append(self.distiller is not None and self.distiller.step is not None)

    monkeypatch.setattr(Step, "__call__", loss)
    monkeypatch.setattr(Trainer, "_clear_memory", _clear_memory)
    trainer = Trainer(**settings(tmp_path, data, teacher=str(teacher)))
    trainer.train()
    assert sizes[0] == 4 and set(sizes[1:]) == {2} and trainer.batch_size == 2
    assert held and not any(held)  # the teacher's outputs for the failed step are let go
    assert all(rows(tmp_path)[0][f"train/{term}_loss"] > 0 for term in ("drd", "ded", "crd"))


def test_the_trial_for_batch_sizes_runs_all_that_a_step_runs(tmp_path, data, teacher, no_end):
    from ultralytics.utils.torch_utils import profile_ops

    from tskd_yolo.distill.distiller import Trial

    asked = {}

    def estimate(trainer):
        model = Trial(trainer.model, trainer.distiller)
        before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
        import copy

        trial = copy.deepcopy(model).train()
        assert not any("teacher" in name for name, _ in trial.named_parameters())
        (asked["result"],) = profile_ops([torch.rand(2, 3, 64, 64)], trial, n=1, device=trainer.device, max_num_obj=4)
        assert same(before, trainer.model.state_dict())
        assert not any(m._forward_hooks for m in trainer.model.modules())

    trainer = Trainer(**settings(tmp_path, data, teacher=str(teacher)))
    trainer.add_callback("on_train_start", estimate)
    trainer.train()
    assert asked["result"] and asked["result"][4] == asked["result"][4] and asked["result"][4] > 0  # backward ran
