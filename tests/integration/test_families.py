"""Teachers of another kind than the student, in whole runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.helpers import kept_runs, logged, rows, same, settings, tiny_data, trained
from tskd_yolo import Trainer
from tskd_yolo.config import ConfigError

pytestmark = pytest.mark.slow

TERMS = "drd", "ded", "crd"


@pytest.fixture(scope="session")
def queries(shared, detector) -> Path:
    """An RT-DETR whose random queries are as large as the defects that are drawn."""

    def make(file: Path) -> None:
        content = torch.load(detector("yolov8n-rtdetr.yaml"), weights_only=False)
        content["model"].model[-1].enc_bbox_head.layers[-1].bias.data[2:] = 1.5
        torch.save(content, file)

    return shared("queries.pt", make)


@pytest.mark.soak
@pytest.mark.parametrize(("teacher", "model"), [("yolov8n", "yolo26n"), ("yolov10n", "yolo11n")])
def test_a_family_teaches_another(teacher, model, tmp_path, data, detector):
    with logged() as lines:
        trained(tmp_path, data, teacher=str(detector(f"{teacher}.yaml")), model=f"{model}.yaml")
    (row,) = rows(tmp_path)
    assert all(0 < row[f"train/{term}_loss"] < 1e4 for term in TERMS)
    untaught = [line for line in lines if "untaught  one2one: the teacher's head has no such branch" in line]
    assert len(untaught) == (model == "yolo26n")


def test_an_rtdetr_teaches_by_its_queries(tmp_path, data, queries):
    with logged() as lines:
        trained(tmp_path, data, teacher=str(queries), model="yolo26n.yaml", imgsz=128)
    (row,) = rows(tmp_path)
    assert all(0 < row[f"train/{term}_loss"] < 1e4 for term in TERMS)
    (block,) = [line for line in lines if "what is distilled" in line]
    assert "queries   the teacher's queries teach the locations of annotated boxes" in block and "untaught" not in block


@pytest.mark.soak
def test_kept_queries_are_those_of_the_live_teacher(tmp_path, queries, no_end):
    data = tiny_data(tmp_path)
    given = dict(teacher=str(queries), epochs=2, imgsz=128)
    cold, warm = kept_runs(tmp_path, data, [given, given])
    assert (cold.asked, warm.asked) == (8, 0) and same(cold.weights, warm.weights)


@pytest.mark.soak
def test_an_rtdetr_sees_larger_images(tmp_path, data, queries, no_end):
    Trainer(**settings(tmp_path, data, teacher=str(queries), imgsz=64, teacher_imgsz=128)).train()
    (row,) = rows(tmp_path)
    assert row["train/drd_loss"] > 0 and row["train/ded_loss"] > 0


def test_levels_without_a_partner_are_told(tmp_path, data, detector, no_end):
    with logged() as lines:
        given = dict(teacher=str(detector("yolo11n.yaml")), model="yolov8n-p6.yaml")
        Trainer(**settings(tmp_path, data, **given)).train()
    (row,) = rows(tmp_path)
    assert all(0 < row[f"train/{term}_loss"] < 1e4 for term in TERMS)
    assert "levels of stride [64] are in one network only" in "\n".join(lines)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (dict(imgsz=96), "teacher: its coarsest level has stride 64 and the 96 px of its images are no multiple of it"),
        (
            dict(model="yolov8n-p6.yaml", teacher_imgsz=96),
            "teacher: its coarsest level has stride 64 and the 96 px of its",
        ),
        (
            dict(model="yolov8n-p6.yaml", imgsz=70, teacher_imgsz=96),
            "teacher_imgsz: must be at least imgsz, which is 128 px",
        ),
        (dict(rect=True), "rect: the teacher's coarsest level has stride 64, and rect="),
        (dict(multi_scale=0.5), "multi_scale: the teacher's coarsest level has stride 64"),
    ],
    ids=["size", "size of its own", "size below", "rect", "multi_scale"],
)
def test_images_that_a_coarser_teacher_cannot_take(more, words, tmp_path, data, detector):
    trainer = Trainer(**settings(tmp_path, data, teacher=str(detector("yolov8n-p6.yaml")), exist_ok=False, **more))
    with pytest.raises(ConfigError, match=words):
        trainer.train()
    assert not (tmp_path / "run").exists()


def test_a_coarser_teacher_is_validated_on_square_images(tmp_path, data, detector, no_end):
    trainer = trained(tmp_path, data, teacher=str(detector("yolov8n-p6.yaml")))  # at 64 px the engine's are of 96
    (row,) = rows(tmp_path)
    assert all(0 < row[f"train/{term}_loss"] < 1e4 for term in TERMS) and trainer.facts is not None


@pytest.mark.soak
def test_the_paper_has_nothing_to_compare_with_queries(tmp_path, data, queries, no_end):
    given = dict(teacher=str(queries), variant="paper", imgsz=128)
    with logged() as lines:
        Trainer(**settings(tmp_path, data, **given)).train()
    assert "crd       off: variant=paper has a cross response only" in "\n".join(lines)
    with pytest.raises(ConfigError, match="it can teach this student nothing .crd: variant=paper has a cross"):
        Trainer(**settings(tmp_path / "alone", data, **given, drd=0, ded=0, exist_ok=False)).train()
