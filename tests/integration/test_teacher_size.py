"""A teacher that sees a larger image than the student, in whole runs."""

from __future__ import annotations

import pytest

from tests.helpers import kept_runs, rows, same, settings, tiny_data, weights
from tskd_yolo import Trainer
from tskd_yolo.distill.teacher import Teacher

pytestmark = pytest.mark.slow

SIZES = dict(imgsz=64, teacher_imgsz=96)


def sizes_seen(trainer, patch) -> dict[str, set[tuple[int, int]]]:
    """Heights and widths that student and teacher are shown while training."""
    seen: dict[str, set[tuple[int, int]]] = {"student": set(), "teacher": set()}
    ask = Teacher.with_stages

    def asked(self, images, *arguments):
        seen["teacher"].add(tuple(images.shape[2:]))
        return ask(self, images, *arguments)

    patch.setattr(Teacher, "with_stages", asked)
    trainer.add_callback(
        "on_train_start",
        lambda t: t.model.model[0].register_forward_pre_hook(
            lambda module, inputs: seen["student"].add(tuple(inputs[0].shape[2:])) if module.training else None
        ),
    )
    return seen


@pytest.mark.parametrize("model", [pytest.param("yolo11", marks=pytest.mark.soak), "yolo26"])
def test_each_sees_its_size_and_every_term_teaches(model, data, tmp_path, detector, monkeypatch):
    given = settings(tmp_path, data, teacher=str(detector(f"{model}s.yaml")), model=f"{model}n.yaml", **SIZES)
    trainer = Trainer(**given)
    seen = sizes_seen(trainer, monkeypatch)
    trainer.train()
    assert seen == {"student": {(64, 64)}, "teacher": {(96, 96)}}
    assert trainer.args.imgsz == 64 and trainer.test_loader.dataset.imgsz == 64
    (row,) = rows(tmp_path)
    assert all(0 < row[f"train/{term}_loss"] < 1e4 for term in ("drd", "ded", "crd"))


def test_the_start_tells_both_sizes_and_which_strides_are_paired(data, tmp_path, detector, caplog, no_end):
    like = str(detector("yolo11n.yaml"))  # as the student, but that it sees more
    Trainer(**settings(tmp_path, data, teacher=like, imgsz=64, teacher_imgsz=128)).train()
    (block,) = [r.message for r in caplog.records if "at 128 px" in r.message]
    assert "at 64 px" in block and "stride 8 from 16" in block
    assert "it is not larger than the student" not in caplog.text
    Trainer(**settings(tmp_path, data, teacher=like)).train()
    assert "it is not larger than the student" in caplog.text


@pytest.mark.soak
def test_kept_outputs_are_those_of_the_larger_images(tmp_path, teacher, no_end):
    data = tiny_data(tmp_path)
    given = dict(teacher=str(teacher), epochs=2, **SIZES)
    cold, warm, other = kept_runs(tmp_path, data, [given, given, {**given, "teacher_imgsz": 128, "epochs": 1}])
    assert (cold.asked, warm.asked) == (8, 0) and same(cold.weights, warm.weights)
    assert other.asked == 8, "another size has its own records"


def test_a_teacher_at_the_students_size_is_what_it_was_without(data, tmp_path, teacher, no_end):
    given = dict(teacher=str(teacher), val=False)
    Trainer(**settings(tmp_path / "a", data, **given)).train()
    Trainer(**settings(tmp_path / "b", data, **given, teacher_imgsz=64)).train()
    assert same(*(weights(tmp_path / name / "run" / "weights" / "last.pt") for name in "ab"))
