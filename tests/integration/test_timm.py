"""Whole runs of a student with a timm backbone: every mode reads its checkpoint, and its export is plain."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import tskd_yolo
from tests.helpers import (
    logged,
    make_detector,
    rows,
    same,
    settings,
    timm_file,
    timm_yaml,
    trained,
    weights,
    without_end,
)
from tskd_yolo import Trainer, backbones
from tskd_yolo.cli import main
from tskd_yolo.config import folder

pytestmark = pytest.mark.slow
SAID = "the student has a timm backbone: tskd-yolo and tskd_yolo.load() read its checkpoint, plain YOLO() after"


@pytest.fixture(scope="module")
def run(tmp_path_factory, data) -> tuple[Path, list[str]]:
    """The folder of a run of two epochs with timm backbones in student and teacher, and what it said."""
    folder = tmp_path_factory.mktemp("run")
    teacher = make_detector(folder / "teacher.pt", str(timm_yaml(folder, "test_convnext")))
    with logged() as lines:
        trained(folder, data, teacher=str(teacher), model=str(timm_yaml(folder)), epochs=2, drd=0.05, ded=4, crd=1)
    return folder, lines


def test_every_term_teaches_and_what_is_needed_is_said_once(run):
    folder, lines = run
    assert all(row[f"train/{term}_loss"] > 0 for row in rows(folder) for term in ("drd", "ded", "crd"))
    assert sum(SAID in line for line in lines) == 1
    assert any("first-epoch check passed" in line for line in lines)
    assert any("stages    stride 4: 32 ->" in line for line in lines), "of the list that the backbone gives"


def test_every_mode_of_the_command_line_reads_it(run, data, tmp_path, monkeypatch):
    best, images = run[0] / "run" / "weights" / "best.pt", data.parent / "set" / "images" / "val"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tskd-yolo"])
    monkeypatch.setattr("ultralytics.cfg.ARGV", sys.argv)  # its entry point reads the process's own arguments
    modes = {"val": [f"data={data}", "workers=0", "plots=False"], "predict": [f"source={images}"], "export": []}
    for mode, more in modes.items():
        assert main([mode, f"model={best}", "imgsz=64", "device=cpu", f"project={tmp_path}", *more]) == 0
    assert best.with_suffix(".torchscript").exists()


def same_outputs(checkpoint: Path) -> bool:
    """Whether the ONNX file of a detector gives what the detector gives, by plain operators."""
    file = tskd_yolo.load(checkpoint).export(format="onnx", imgsz=64, simplify=False, verbose=False, device="cpu")
    session, images = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]), torch.rand(1, 3, 64, 64)
    (given,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        expected = tskd_yolo.load(checkpoint).model.float().eval()(images)[0].numpy()
    np.testing.assert_allclose(given, expected, rtol=1e-3, atol=1e-3)
    return {node.domain for node in onnx.load(file).graph.node} == {""}


def test_its_onnx_file_needs_nothing_of_ours(run, tmp_path):
    best = tmp_path / "best.pt"
    best.write_bytes((run[0] / "run" / "weights" / "best.pt").read_bytes())
    assert same_outputs(best)


@pytest.mark.soak
def test_a_transformer_is_exported_too(tmp_path):
    yaml = folder("cfg") / "models" / "timm-vit_small_patch16_dinov3.yaml"
    assert same_outputs(make_detector(tmp_path / "vit.pt", str(yaml)))


def feature_teacher(folder: Path) -> str:
    """A value of ``teacher=`` that names a timm model without a head, with random weights in a file."""
    return f"timm:test_vit:{timm_file(folder / 'vit.safetensors', 'test_vit')}"


@pytest.mark.parametrize("more", [{}, {"teacher_cache": "ram", "views": 2}, {"teacher_imgsz": 128}], ids=str)
def test_a_model_without_a_head_teaches_drd_and_ded(more, tmp_path, data, no_end):
    with logged() as lines:
        trainer = trained(tmp_path, data, teacher=feature_teacher(tmp_path), **more)
    (row,) = rows(tmp_path)
    assert row["train/drd_loss"] > 0 and row["train/ded_loss"] > 0 and row["train/crd_loss"] == 0
    said = "\n".join(lines)
    assert "crd       off: the teacher has no detection head; its maps teach DRD and DED" in said
    assert "first-epoch check passed" in said and "next to nothing" not in said and "is validated" not in said
    assert "classes   " not in said
    assert trainer.args.teacher.startswith("timm:test_vit:/")


def test_an_interrupted_run_goes_on(tmp_path, data):
    model, teacher = timm_yaml(tmp_path), feature_teacher(tmp_path)

    class Stopped(Exception):
        pass

    def stop(trainer: Trainer) -> None:
        if trainer.epoch == 1:
            raise Stopped

    with without_end():
        trainer = Trainer(**settings(tmp_path, data, teacher=str(teacher), model=str(model), epochs=3))
        trainer.add_callback("on_train_epoch_start", stop)
        with pytest.raises(Stopped):
            trainer.train()
        saved = weights(trainer.last)
        resumed = Trainer(resume=True, model=str(trainer.last))
        with logged() as lines:
            resumed.train()
    assert len(rows(tmp_path)) == 3 and not same(saved, weights(trainer.last))
    assert backbones.of(resumed.model) is not None and not any("random weights" in line for line in lines)
