"""A run whose student overtakes its teacher."""

from __future__ import annotations

import pytest
import torch

from tests.helpers import logged, rows, settings
from tskd_yolo import Trainer
from tskd_yolo.distill.agreement import Agreement
from tskd_yolo.train import giving_way


@pytest.mark.slow
def test_terms_give_way_and_that_is_said(tmp_path, data, detector, no_end, monkeypatch):
    seen, weights = [], []
    monkeypatch.setattr(giving_way, "best", lambda taught, known, count: [0.2, 0.4, 0.1, None, None, None])
    scores = [{"AP50-95": score} for score in (0.2 + 0.07 / 3, 0.3, 0.16, 0, 0, 0)]
    trainer = Trainer(**settings(tmp_path, data, teacher=str(detector("yolo11n.yaml")), epochs=2, balance="share"))
    trainer.add_callback("on_train_epoch_start", lambda t: seen.append(t.distiller.common_factor))
    trainer.add_callback("on_train_epoch_end", lambda t: weights.append(t.distiller.terms[-1].weights))
    trainer.add_callback(
        "on_train_epoch_end", lambda t: monkeypatch.setattr(giving_way.summary, "class_scores", lambda _: scores)
    )
    with logged() as lines:
        trainer.train()
    assert seen == [1, pytest.approx(0.5)]
    assert weights[0] is None and weights[1].tolist() == pytest.approx([1, 2, 0, 2, 2, 2])
    (line,) = [line for line in lines if "give way" in line]
    assert line.endswith("count 0.50 of what they were set to, and not in patches.")
    shares = [row["share/drd(neck)"] for row in rows(tmp_path)]
    assert shares[0] == pytest.approx(1, rel=0.01) and shares[1] < 0.9 * shares[0]


@pytest.mark.slow
def test_terms_give_way_where_answers_and_labels_part(tmp_path, data, detector, no_end, monkeypatch):
    settled = []

    def see(agreement, cosine):
        settled.append(agreement.settled)
        agreement.cosine, agreement.most, agreement.factor = map(torch.tensor, (0.1, 0.4, 0.1))

    monkeypatch.setattr(Agreement, "see", see)
    teacher = str(detector("yolo11n.yaml"))
    with logged() as lines:
        Trainer(**settings(tmp_path, data, teacher=teacher, epochs=4, balance="share", drd=1, ded=4, crd=1)).train()
    assert settled == [False, True], "measured in the first and in the fifth of eight steps"
    (line,) = [line for line in lines if "of what they were set to" in line]
    assert line.endswith(
        "a cosine of 0.10 with that of the labels, and had 0.40: the terms count 0.10 of what they were set to."
    )
    for row in rows(tmp_path):
        shares = [row[f"share/{where}"] for where in ("drd(neck)", "ded(stride16)", "crd(neck)")]
        assert shares == pytest.approx([0.1, 0.4, 0.1], rel=0.01)


@pytest.mark.parametrize(("batches", "beginning"), [(10, 10), (3000, 0.15625)])
def test_the_beginning_is_counted_in_images_too(batches, beginning):
    class Run(giving_way.GivingWayMixin):
        pass

    run, agreement = object.__new__(Run), Agreement()
    run.train_loader, run.batch_size, run.epochs = [None] * batches, 32, 100
    distiller = type("D", (), {"agreement": agreement})()
    run._settle_agreement(distiller, beginning - 0.01)
    assert not agreement.settled
    run._settle_agreement(distiller, beginning)
    assert agreement.settled


@pytest.mark.slow
def test_where_nothing_is_left_at_half_the_teacher_rests(tmp_path, data, detector, no_end, monkeypatch):
    asked: list[int] = []
    cosines = [torch.tensor(0.1), torch.tensor(0.4)]
    monkeypatch.setattr(
        Agreement, "see", lambda a, _: vars(a).update(cosine=cosines[0], most=cosines[1], factor=torch.tensor(0.009))
    )
    trainer = Trainer(**settings(tmp_path, data, teacher=str(detector("yolo11n.yaml")), epochs=4, balance="share"))
    trainer.add_callback("on_train_start", lambda t: watch(t.distiller, lambda: asked.append(t.epoch)))
    with logged() as lines:
        trainer.train()
    assert {*asked} == {0, 1}
    assert [line.rpartition(": ")[2] for line in lines if "had 0.40" in line] == [
        "the terms count 0.01 of what they were set to.",
        "the terms have given way.",
    ]
    assert [row["train/crd_loss"] > 0 for row in rows(tmp_path)] == [True, True, False, False]


@pytest.mark.slow
def test_where_all_have_given_way_the_teacher_rests(tmp_path, data, detector, no_end, monkeypatch):
    monkeypatch.setattr(giving_way, "best", lambda taught, known, count: [0.2] * count)
    monkeypatch.setattr(giving_way.summary, "class_scores", lambda _: [{"AP50-95": 0.3}] * 6)
    asked: list[int] = []
    trainer = Trainer(**settings(tmp_path, data, teacher=str(detector("yolo11n.yaml")), epochs=2))
    trainer.add_callback("on_train_start", lambda t: watch(t.distiller, lambda: asked.append(t.epoch)))
    with logged() as lines:
        trainer.train()
    assert asked and {*asked} == {0}, "it was asked in the first epoch, and then no more"
    assert any("the terms have given way" in line for line in lines)
    first, second = rows(tmp_path)
    assert first["train/crd_loss"] > 0 and second["train/crd_loss"] == 0 < second["train/box_loss"]


@pytest.mark.slow
def test_a_run_whose_teacher_rests_goes_on(tmp_path, data, detector, no_end, monkeypatch):
    monkeypatch.setattr(giving_way, "best", lambda taught, known, count: [0.2] * count)
    monkeypatch.setattr(giving_way.summary, "class_scores", lambda _: [{"AP50-95": 0.3}] * 6)
    trainer = Trainer(**settings(tmp_path, data, teacher=str(detector("yolo11n.yaml")), epochs=3))

    def stop(trainer):
        if trainer.epoch == 1:
            raise KeyError("stop")

    trainer.add_callback("on_model_save", stop)
    with pytest.raises(KeyError, match="stop"):
        trainer.train()
    with logged() as lines:
        Trainer(resume=str(tmp_path / "run" / "weights" / "last.pt")).train()
    assert not any("have given way" in line for line in lines), "it was said before"
    assert not any("first-epoch check" in line for line in lines)
    assert [row["train/crd_loss"] > 0 for row in rows(tmp_path)] == [True, False, False]
    assert [row["epoch"] for row in rows(tmp_path)] == [1, 2, 3]


def watch(distiller, note) -> None:
    outputs = distiller.panel.outputs
    distiller.panel.outputs = lambda *a: (note(), outputs(*a))[1]


def test_without_validation_nothing_is_watched_and_that_is_said():
    class Run(giving_way.GivingWayMixin):
        pass

    run, distiller = object.__new__(Run), type("D", (), {"lead": None, "past_lead": None})()
    known = type("C", (), {"known": [0, 1]})()
    distiller.teachers = [type("T", (), {"classes": known})()]
    run.args, run.data = type("A", (), {"val": False})(), {"names": {0: "a", 1: "b"}}
    run.config = type("C", (), {"give_way": 0.2})()
    with logged() as lines:
        run._watch_lead(distiller, [{}])
    assert distiller.lead is None and "val=False" in lines[0]
    run.args.val = True
    run._watch_lead(distiller, [{"classes": [{"AP50-95": 0.3}, None]}])
    assert distiller.lead.teacher[0] == pytest.approx(0.3)
    distiller.lead, run.config.give_way = None, 0.0
    run._watch_lead(distiller, [{}])
    assert distiller.lead is None
