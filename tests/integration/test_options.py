"""Whole runs of a few steps on a CPU, with other families, optimizers, data and options than the defaults."""

from __future__ import annotations

import pytest
import torch

from tests.helpers import logged, rows, settings, tiny_data, trained, weights
from tskd_yolo import Trainer
from tskd_yolo.cli import main
from tskd_yolo.distill import reach

pytestmark = pytest.mark.slow


# Students -------------------------------------------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.parametrize("family", ["yolo12"])  # the others teach each other in test_families
def test_the_other_families_distil_too(family, tmp_path, data, detector):
    teacher = detector(f"{family}s.yaml")
    trained(tmp_path, data, teacher=str(teacher), model=f"{family}n.yaml")
    (row,) = rows(tmp_path)
    assert all(0 < row[f"train/{term}_loss"] < 1e4 for term in ("drd", "ded", "crd"))


def test_both_branches_of_a_dual_head_are_taught(tmp_path, data, detector, no_end):
    teacher = detector("yolo26s.yaml")
    stock = trained(tmp_path / "a", data, teacher=str(teacher), model="yolo26n.yaml", drd=0, ded=0, crd=0)
    ours = trained(tmp_path / "b", data, teacher=str(teacher), model="yolo26n.yaml", drd=0, ded=0, crd=1)
    before, after = (weights(t.last) for t in (stock, ours))
    for tower in ("cv2", "cv3", "one2one_cv2", "one2one_cv3"):
        changed = [
            k for k in before if f".{tower}." in k and k.endswith("weight") and not torch.equal(before[k], after[k])
        ]
        assert changed, tower


# Optimizers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["AdamW", pytest.param("SGD", marks=pytest.mark.soak), "MuSGD"])
def test_adapters_are_in_the_optimizer_once_and_move(optimizer, tmp_path, data, teacher, no_end):
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

    trainer = Trainer(**settings(tmp_path, data, teacher=str(teacher), optimizer=optimizer))
    trainer.add_callback("on_train_start", start)
    trainer.add_callback("on_train_epoch_end", end)
    trainer.train()
    assert seen["moved"] and all(seen["moved"])


def test_adapter_gradients_are_clipped_like_the_students(tmp_path, data, teacher, no_end):
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


# Options --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        dict(freeze=5, cos_lr=True, patience=1),
        dict(multi_scale=0.5, rect=False, close_mosaic=1, epochs=2),
        dict(rect=True, classes=[0, 2]),
        pytest.param(dict(fraction=0.5, batch=2, nbs=2), marks=pytest.mark.soak),
        dict(time=0.0005, epochs=50),
        pytest.param(dict(variant="paper", drd=1000, crd=1000), marks=pytest.mark.soak),
        dict(variant="paper", model="yolo26n.yaml", drd=1000, crd=1000),
    ],
    ids=lambda more: " ".join(f"{k}={v}" for k, v in more.items()),
)
def test_the_engines_own_options_work_while_distilling(more, tmp_path, data, detector, no_end):
    teacher = detector("yolo26s.yaml" if "26" in more.get("model", "") else "yolo11s.yaml")
    if "fraction" in more:  # another list of images: Ultralytics writes another label cache
        data = tiny_data(tmp_path)
    trained(tmp_path, data, teacher=str(teacher), **more)
    for row in rows(tmp_path):
        assert all(0 < row[f"train/{term}_loss"] < 1e4 for term in ("drd", "ded", "crd"))


@pytest.mark.soak
def test_terms_rise_and_fall_with_the_schedule(tmp_path, data, teacher, no_end):
    factors = dict(balance="fixed", ramp=2.0, fade=0.3)
    trained(tmp_path, data, teacher=str(teacher), epochs=3, lr0=1e-6, warmup_bias_lr=0.0, **factors)
    losses = [row["train/ded_loss"] for row in rows(tmp_path)]
    parts = [loss / max(losses) for loss in losses]
    # Two batches an epoch: mean factors (0 + 0.25) / 2, (0.5 + 0.75) / 2 and (1 + 0.5 / 0.9) / 2.
    assert parts[0] == pytest.approx(0.125 / 0.778, rel=0.2) and parts[1] == pytest.approx(0.625 / 0.778, rel=0.2)


def test_a_term_that_cannot_reach_the_student_stops_the_run(tmp_path, data, teacher, monkeypatch, capsys):
    monkeypatch.setattr(reach, "leave_out_unreachable", lambda *_: [])  # it would be refused before the first step
    words = settings(tmp_path, data, teacher=str(teacher), freeze=23, epochs=3, crd=0)
    assert main(["train", *(f"{key}={value}" for key, value in words.items())]) == 1
    said = capsys.readouterr().err
    assert "the first-epoch check failed, the run was stopped: " in said
    assert "drd does not reach the student: what it teaches is frozen" in said and "Traceback" not in said
    assert not (tmp_path / "run" / "results.csv").exists()


def test_frozen_stages_leave_ded_out_and_the_others_train(tmp_path, data, teacher, caplog, no_end):
    trained(tmp_path, data, teacher=str(teacher), freeze=10)
    assert "ded is left out: freeze=10 freezes every layer that it would teach" in caplog.text
    assert "stages " not in caplog.text
    (row,) = rows(tmp_path)
    assert row["train/ded_loss"] == 0 and row["train/drd_loss"] > 0 and row["train/crd_loss"] > 0


# Data -----------------------------------------------------------------------------------------------------------------


def test_one_class_is_distilled_with_single_cls(tmp_path, data, detector, no_end):
    teacher = detector(names=("item",))
    trained(tmp_path, data, teacher=str(teacher), single_cls=True)
    assert rows(tmp_path)[0]["train/crd_loss"] > 0


def test_a_data_set_without_any_box_trains(tmp_path, teacher, no_end):
    data = tiny_data(tmp_path)
    for label in (tmp_path / "set" / "labels" / "train").glob("*.txt"):
        label.write_text("")
    trained(tmp_path, data, teacher=str(teacher))
    (row,) = rows(tmp_path)
    assert all(row[f"train/{term}_loss"] == row[f"train/{term}_loss"] for term in ("drd", "ded", "crd"))


def test_drd_alone_needs_no_adapter(tmp_path, data, teacher, no_end):
    trainer = Trainer(**settings(tmp_path, data, teacher=str(teacher), ded=0, crd=0))
    with logged() as lines:
        trainer.train()
    said = "\n".join(lines)
    assert "adapters  none" in said and not list(trainer.distiller.learned.parameters())
    assert "every term reaches the student on 1 process(es), the teacher has not." in said
    assert rows(tmp_path)[0]["train/drd_loss"] > 0
