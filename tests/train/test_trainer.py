"""Whole runs of a few steps on a CPU: what a user starts, and what is left when it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers import make_detector, rows, settings, tiny_data, weights

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return make_detector(tmp_path_factory.mktemp("teacher") / "teacher.pt")


def trained(folder: Path, data: Path, **more):
    """Runs the trainer to its end and returns it."""
    from tskd_yolo import Trainer

    trainer = Trainer(**settings(folder, data, **more))
    trainer.train()
    return trainer


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data, teacher) -> Path:
    """The folder of one run of two epochs with everything on."""
    folder = tmp_path_factory.mktemp("finished")
    trained(folder, data, teacher=str(teacher), epochs=2, plots=True, save_period=1)
    return folder


def test_all_three_columns_are_finite_nonzero_and_move(finished):
    first, second = rows(finished)
    for term in ("drd_loss", "ded_loss", "crd_loss"):
        values = [first[f"train/{term}"], second[f"train/{term}"]]
        assert all(0 < v < 1e4 for v in values) and values[0] != values[1]
        assert f"val/{term}" not in first  # our terms exist in training only
    assert (finished / "run" / "results.png").exists()


def test_with_all_weights_zero_a_run_ends_with_the_stock_trainers_weights_bit_for_bit(tmp_path, data, teacher):
    from ultralytics.models.yolo.detect import DetectionTrainer

    stock = DetectionTrainer(overrides=settings(tmp_path / "stock", data, epochs=2))
    stock.train()
    trained(tmp_path / "ours", data, epochs=2, teacher=str(teacher), drd=0, ded=0, crd=0)
    plain, ours = (weights(tmp_path / who / "run" / "weights" / "last.pt") for who in ("stock", "ours"))
    assert same(plain, ours)
    trained(tmp_path / "distilled", data, epochs=2, teacher=str(teacher), drd=0, ded=0, crd=1e-3)
    assert not same(plain, weights(tmp_path / "distilled" / "run" / "weights" / "last.pt"))  # the comparison can fail


def test_a_weight_so_small_that_it_rounds_away_leaves_every_random_number_where_it_was(tmp_path, data, teacher):
    """Teacher, adapters, graph units and teacher validation are all there: only their gradient is lost in rounding."""
    from ultralytics.models.yolo.detect import DetectionTrainer

    stock = DetectionTrainer(overrides=settings(tmp_path / "stock", data))
    stock.train()
    weightless = dict(balance="fixed", drd=1e-30, ded=1e-30, crd=1e-30)
    trained(tmp_path / "ours", data, teacher=str(teacher), channels_last=False, **weightless)
    assert same(*(weights(tmp_path / who / "run" / "weights" / "last.pt") for who in ("stock", "ours")))


@pytest.mark.parametrize(
    ("pays", "wanted", "taken"), [(True, None, True), (True, True, True), (True, False, False), (False, None, False)]
)
def test_on_a_cpu_the_student_trains_in_channels_last_where_that_pays_and_nobody_forbids_it(
    tmp_path, data, teacher, monkeypatch, caplog, pays, wanted, taken
):
    from tskd_yolo import Trainer, compat

    monkeypatch.setattr(compat, "channels_last_pays", lambda: pays)
    found = []

    def look(trainer):
        found.extend(
            not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last)
            for weight in (trainer.model.model[1].conv.weight, trainer.ema.ema.model[1].conv.weight)
        )

    trainer = Trainer(**settings(tmp_path, data, teacher=str(teacher), channels_last=wanted))
    trainer.add_callback("on_train_batch_end", look)
    trainer.train()
    assert found and set(found) == {taken} and trainer.args.channels_last is wanted
    assert not any("is only supported on CUDA" in record.message for record in caplog.records)
    saved = weights(tmp_path / "run" / "weights" / "last.pt")
    assert all(value.is_contiguous() for value in saved.values())  # released engines cannot fuse anything else


def test_the_memory_format_changes_nothing_but_rounding(tmp_path, data, teacher):
    for name, wanted in (("last", True), ("first", False)):
        trained(tmp_path / name, data, teacher=str(teacher), channels_last=wanted)
    last, first = rows(tmp_path / "last")[0], rows(tmp_path / "first")[0]
    for key in (key for key in first if key.startswith("train/")):
        assert last[key] == pytest.approx(first[key], rel=1e-2), key


def test_every_checkpoint_loads_where_this_package_cannot_be_imported(finished, teacher, tmp_path, data):
    from tskd_yolo import Trainer

    running = {}
    trainer = Trainer(**settings(tmp_path, data, teacher=str(teacher), save_period=1))
    trainer.add_callback(
        "on_model_save", lambda t: running.update({f.name: f.read_bytes() for f in t.wdir.glob("*.pt")})
    )
    trainer.train()
    assert {"last.pt", "best.pt", "epoch0.pt"} <= running.keys()
    files = [finished / "run" / "weights" / name for name in ("last.pt", "best.pt", "epoch0.pt", "epoch1.pt")]
    for name in ("last.pt", "best.pt", "epoch0.pt"):
        files.append(tmp_path / f"during-{name}")
        files[-1].write_bytes(running[name])
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


def test_after_training_the_side_file_is_gone_and_the_teacher_let_go(finished, tmp_path, data, teacher):
    assert not (finished / "run" / "weights" / "tskd_last.pt").exists()
    trainer = trained(tmp_path, data, teacher=str(teacher))
    assert trainer.distiller is None


@pytest.mark.parametrize("family", ["yolov8", "yolo12", "yolo26"])
def test_the_other_families_distil_too(family, tmp_path, data):
    teacher = make_detector(tmp_path / "teacher.pt", f"{family}s.yaml")
    trained(tmp_path, data, teacher=str(teacher), model=f"{family}n.yaml")
    (row,) = rows(tmp_path)
    assert all(0 < row[f"train/{term}_loss"] < 1e4 for term in ("drd", "ded", "crd"))


def test_both_branches_of_a_dual_head_are_taught(tmp_path, data):
    teacher = make_detector(tmp_path / "teacher.pt", "yolo26s.yaml")
    stock = trained(tmp_path / "a", data, teacher=str(teacher), model="yolo26n.yaml", drd=0, ded=0, crd=0)
    ours = trained(tmp_path / "b", data, teacher=str(teacher), model="yolo26n.yaml", drd=0, ded=0, crd=1)
    before, after = (weights(t.last) for t in (stock, ours))
    for tower in ("cv2", "cv3", "one2one_cv2", "one2one_cv3"):
        changed = [
            k for k in before if f".{tower}." in k and k.endswith("weight") and not torch.equal(before[k], after[k])
        ]
        assert changed, tower


def test_teacher_weights_and_statistics_are_bit_identical_after_training(tmp_path, data, teacher):
    from tskd_yolo import Trainer

    seen = {}

    def keep(when):
        def callback(trainer):
            model = trainer.distiller.teacher.model
            seen[when] = {k: v.clone() for k, v in model.state_dict().items()}
            assert not any(p.requires_grad or p.grad is not None for p in model.parameters())

        return callback

    trainer = Trainer(**settings(tmp_path, data, teacher=str(teacher), graph="trained"))
    trainer.add_callback("on_train_start", keep("before"))
    trainer.add_callback("on_train_epoch_end", keep("after"))
    trainer.train()
    assert same(seen["before"], seen["after"])


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD", "MuSGD"])
def test_adapters_are_in_the_optimizer_once_and_move_with_the_student(optimizer, tmp_path, data, teacher):
    from tskd_yolo import Trainer

    seen = {}

    def start(trainer):
        learned = list(trainer.distiller.learned.parameters())
        ids = [id(p) for group in trainer.optimizer.param_groups for p in group["params"]]
        assert len(ids) == len(set(ids)) and {id(p) for p in learned} <= set(ids)
        assert {id(p) for p in trainer.model.parameters()} <= set(ids)
        seen["before"] = [p.detach().clone() for p in learned]

    def end(trainer):
        pairs = zip(seen["before"], trainer.distiller.learned.parameters(), strict=True)
        seen["moved"] = [not torch.equal(a, b) for a, b in pairs if a.dim() > 1]

    trainer = Trainer(**settings(tmp_path, data, teacher=str(teacher), optimizer=optimizer, graph="trained"))
    trainer.add_callback("on_train_start", start)
    trainer.add_callback("on_train_epoch_end", end)
    trainer.train()
    assert seen["moved"] and all(seen["moved"])


def test_adapter_gradients_are_clipped_like_the_students(tmp_path, data, teacher):
    from tskd_yolo import Trainer

    norms = []

    def watch(trainer):
        parameters = list(trainer.distiller.learned.parameters())
        trainer.optimizer.register_step_pre_hook(
            lambda *_: norms.append(float(torch.stack([p.grad.norm() for p in parameters]).norm()))
        )

    trainer = Trainer(**settings(tmp_path, data, teacher=str(teacher), ded=1e5))
    trainer.add_callback("on_train_start", watch)
    trainer.train()
    assert norms and max(norms) <= 10.001 and max(norms) > 9.9


def test_an_interrupted_run_resumes_with_its_adapters(tmp_path, data, teacher):
    from ultralytics import YOLO

    from tskd_yolo import Trainer

    class Stop(Exception):
        pass

    kept = {}

    def interrupt(trainer):
        if trainer.epoch == 1:
            kept["state"] = {k: v.clone() for k, v in trainer.distiller.learned.state_dict().items()}
            kept["optimizer"] = len(trainer.optimizer.state_dict()["state"])
            raise Stop

    trainer = Trainer(**settings(tmp_path, data, teacher=str(teacher), epochs=3, graph="trained"))
    trainer.add_callback("on_model_save", interrupt)
    with pytest.raises(Stop):
        trainer.train()
    last = tmp_path / "run" / "weights" / "last.pt"

    restored = {}

    def compare(trainer):
        restored["same"] = same(trainer.distiller.learned.state_dict(), kept["state"])
        restored["optimizer"] = len(trainer.optimizer.state_dict()["state"])
        restored["start"] = trainer.start_epoch

    moved = tmp_path / "elsewhere.pt"  # the teacher may have moved meanwhile
    teacher_bytes = teacher.read_bytes()
    moved.write_bytes(teacher_bytes)
    model = YOLO(last)
    model.add_callback("on_train_start", compare)
    model.train(trainer=Trainer, resume=True, teacher=str(moved))
    assert restored == {"same": True, "optimizer": kept["optimizer"], "start": 2}
    assert [row["epoch"] for row in rows(tmp_path)] == [1, 2, 3]


def test_python_api_yolo_train_and_command_line_are_the_same_run(tmp_path, data, teacher):
    from ultralytics import YOLO

    from tskd_yolo import Trainer
    from tskd_yolo.cli import main

    trained(tmp_path / "a", data, teacher=str(teacher))
    YOLO("yolo11n.yaml").train(trainer=Trainer, **settings(tmp_path / "b", data, teacher=str(teacher)))
    arguments = settings(tmp_path / "c", data, teacher=str(teacher))
    assert main(["train", *(f"{key}={value}" for key, value in arguments.items())]) == 0
    results = [weights(tmp_path / who / "run" / "weights" / "last.pt") for who in "abc"]
    assert same(results[0], results[1]) and same(results[1], results[2])


def test_a_student_from_a_checkpoint_starts_from_its_weights(tmp_path, data, teacher):
    student = make_detector(tmp_path / "student.pt", "yolo11n.yaml", seed=11)
    seen = {}

    from tskd_yolo import Trainer

    trainer = Trainer(**settings(tmp_path, data, teacher=str(teacher), model=str(student)))
    trainer.add_callback("on_train_start", lambda t: seen.update(first=t.model.model[0].conv.weight.detach().clone()))
    trainer.train()
    assert torch.equal(seen["first"], weights(student)["model.0.conv.weight"])


@pytest.mark.parametrize(
    "more",
    [
        dict(freeze=5, cos_lr=True, patience=1),
        dict(multi_scale=0.5, rect=False, close_mosaic=1, epochs=2),
        dict(rect=True, classes=[0, 2]),
        dict(fraction=0.5, batch=2, nbs=2),
        dict(time=0.002, epochs=50),
        dict(variant="paper", drd=1000, crd=1000),
        dict(variant="paper", model="yolo26n.yaml", drd=1000, crd=1000),
    ],
    ids=lambda more: " ".join(f"{k}={v}" for k, v in more.items()),
)
def test_the_engines_own_options_work_while_distilling(more, tmp_path, data, teacher):
    if "26" in more.get("model", ""):
        teacher = make_detector(tmp_path / "teacher.pt", "yolo26s.yaml")
    trained(tmp_path, data, teacher=str(teacher), **more)
    for row in rows(tmp_path):
        assert all(0 < row[f"train/{term}_loss"] < 1e4 for term in ("drd", "ded", "crd"))


def test_one_class_is_distilled_with_single_cls(tmp_path, data):
    teacher = make_detector(tmp_path / "teacher.pt", names=("item",))
    trained(tmp_path, data, teacher=str(teacher), single_cls=True)
    assert rows(tmp_path)[0]["train/crd_loss"] > 0


def test_a_data_set_without_any_box_trains(tmp_path, teacher):
    data = tiny_data(tmp_path)
    for label in (tmp_path / "set" / "labels" / "train").glob("*.txt"):
        label.write_text("")
    trained(tmp_path, data, teacher=str(teacher))
    (row,) = rows(tmp_path)
    assert all(row[f"train/{term}_loss"] == row[f"train/{term}_loss"] for term in ("drd", "ded", "crd"))


def test_user_callbacks_see_a_plain_student_between_steps(tmp_path, data, teacher):
    import copy
    import io

    from ultralytics.nn.tasks import DetectionModel
    from ultralytics.utils.loss import v8DetectionLoss

    from tskd_yolo import Trainer

    seen = []

    def look(trainer):
        model = trainer.model
        assert type(model) is DetectionModel and type(model.criterion) is v8DetectionLoss
        assert not any(m._forward_hooks for m in model.modules())
        copy.deepcopy(model)
        torch.save(model, io.BytesIO())
        seen.append(True)

    trainer = Trainer(**settings(tmp_path, data, teacher=str(teacher)))
    trainer.add_callback("on_train_batch_end", look)
    trainer.train()
    assert seen


def test_tensorboard_receives_the_three_terms(tmp_path, data, teacher):
    pytest.importorskip("tensorboard")
    code = (
        "import sys\n"
        "from ultralytics import settings\n"
        "settings.update(tensorboard=True)\n"
        "from tskd_yolo.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    environment["YOLO_CONFIG_DIR"] = str(tmp_path / "config")
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    (tmp_path / "config" / "Ultralytics").mkdir(parents=True)
    for font in Path(os.environ["YOLO_CONFIG_DIR"], "Ultralytics").glob("*.ttf"):
        (tmp_path / "config" / "Ultralytics" / font.name).write_bytes(font.read_bytes())
    arguments = [f"{k}={v}" for k, v in settings(tmp_path, data, teacher=str(teacher)).items()]
    result = subprocess.run(
        [sys.executable, "-c", code, "train", *arguments], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert {"train/drd_loss", "train/ded_loss", "train/crd_loss"} <= set(events.Tags()["scalars"])


def test_the_command_line_resumes_an_interrupted_run(tmp_path, data, teacher):
    from tskd_yolo import Trainer
    from tskd_yolo.cli import main

    class Stop(Exception):
        pass

    def interrupt(trainer):
        raise Stop

    trainer = Trainer(**settings(tmp_path, data, teacher=str(teacher), epochs=2))
    trainer.add_callback("on_model_save", interrupt)
    with pytest.raises(Stop):
        trainer.train()
    assert main(["train", "resume", f"model={tmp_path / 'run' / 'weights' / 'last.pt'}"]) == 0
    assert [row["epoch"] for row in rows(tmp_path)] == [1, 2]


def test_a_bare_official_name_is_fetched_as_ultralytics_fetches_models(tmp_path, data, teacher, monkeypatch):
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


@pytest.mark.parametrize("balance", ["fixed", "share"])
def test_shares_and_cosines_are_columns_and_the_run_says_that_it_is_alive(balance, tmp_path, data, teacher, caplog):
    trained(tmp_path, data, teacher=str(teacher), balance=balance, drd=0.125, ded=0.25, crd=0.5, epochs=2, val=False)
    first, second = rows(tmp_path)
    for term, share in (("drd", 0.125), ("ded", 0.25), ("crd", 0.5)):
        assert first[f"share/{term}"] > 0 and -1 <= second[f"cosine/{term}"] <= 1
        assert first[f"cosine/{term}"] != 0
        if balance == "share":
            assert second[f"share/{term}"] == pytest.approx(share, rel=1e-3)
    assert "levels    stride 8: 64 -> 64 of 128   stride 16: " in caplog.text
    assert "stages    stride 4: 64 -> 64 of 128   stride 8: 128 -> 64 of 256   stride 16: 128 -> " in caplog.text
    assert caplog.text.count("first-epoch check passed: every term reaches the student on 1 process(es)") == 1


def test_terms_rise_and_fall_with_the_schedule(tmp_path, data, teacher):
    factors = dict(balance="fixed", ramp=2.0, fade=0.3)
    trained(tmp_path, data, teacher=str(teacher), epochs=3, lr0=1e-6, warmup_bias_lr=0.0, **factors)
    losses = [row["train/ded_loss"] for row in rows(tmp_path)]
    shares = [row["train/ded_loss"] / max(losses) for row in rows(tmp_path)]
    # Two batches an epoch: mean factors (0 + 0.25) / 2, (0.5 + 0.75) / 2 and (1 + 0.5 / 0.9) / 2.
    assert shares[0] == pytest.approx(0.125 / 0.778, rel=0.2) and shares[1] == pytest.approx(0.625 / 0.778, rel=0.2)


def test_a_run_in_which_a_term_cannot_reach_the_student_is_stopped_with_the_reason(tmp_path, data, teacher, capsys):
    from tskd_yolo.cli import main

    words = settings(tmp_path, data, teacher=str(teacher), freeze=23, epochs=3, crd=0)
    assert main(["train", *(f"{key}={value}" for key, value in words.items())]) == 1
    said = capsys.readouterr().err
    assert "drd does not reach the student: what it teaches is frozen" in said and "Traceback" not in said
    assert not rows_written(tmp_path)


def test_frozen_stages_leave_ded_out_with_a_warning_and_the_others_train(tmp_path, data, teacher, caplog):
    trained(tmp_path, data, teacher=str(teacher), freeze=10)
    assert "ded is left out: freeze=10 freezes every layer that it would teach" in caplog.text
    assert "stages " not in caplog.text
    (row,) = rows(tmp_path)
    assert row["train/ded_loss"] == 0 and row["train/drd_loss"] > 0 and row["train/crd_loss"] > 0


def rows_written(folder: Path) -> bool:
    return (folder / "run" / "results.csv").exists()
