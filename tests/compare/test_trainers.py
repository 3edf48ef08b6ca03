"""The trainers of a comparison train in the same memory format, start alike, and leave checkpoints for everyone."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from ultralytics.nn.tasks import load_checkpoint

from tests.compare.helpers import asked, own_files
from tests.helpers import DEVICE
from tskd_yolo import compat
from tskd_yolo.compare.plan import checked
from tskd_yolo.compare.runs import found
from tskd_yolo.compare.trainers import DistilledTrainer, PlainTrainer, memory_format


@pytest.fixture
def trained(files, tmp_path, monkeypatch):
    """Trains an arm for an epoch; what its networks and images were like in the first step."""

    monkeypatch.setattr(compat, "channels_last_pays", lambda: True)

    def train(trainer, **more):
        plan = checked(asked(files, tmp_path / "out"))
        run = trainer(overrides={**plan.common, "model": "yolo11n.yaml", "save_dir": str(tmp_path / "run"), **more})
        formats = {}

        def look(trainer):
            model = trainer.model
            parts = {"student": getattr(model, "student_model", model)}
            if hasattr(model, "teacher_model"):
                parts["teacher"] = model.teacher_model
            formats.update({name: memory_format(network) for name, network in parts.items()})

        def see(module, inputs):
            formats.setdefault("images", inputs[0].is_contiguous(memory_format=torch.channels_last))

        run.add_callback("on_train_batch_start", look)
        run.add_callback(
            "on_train_start",
            lambda t: getattr(t.model, "student_model", t.model).model[0].register_forward_pre_hook(see),
        )
        run.train()
        return run, formats

    return train


@pytest.mark.slow
def test_plain_training_has_our_memory_format(trained, tmp_path):
    run, formats = trained(PlainTrainer)
    assert formats == {"student": "channels_last", "images": DEVICE == "cpu"}
    start = json.loads((tmp_path / "run" / "start.json").read_text())
    assert start["memory_format"] == formats["student"]
    for name in ("last.pt", "best.pt"):
        assert memory_format(load_checkpoint(str(run.wdir / name))[0]) == "contiguous", "older versions load it too"


@pytest.mark.slow
def test_teacher_of_distill_model_has_our_memory_format(trained, files):
    run, formats = trained(PlainTrainer, distill_model=str(files / "teacher.pt"))
    assert formats == {"student": "channels_last", "teacher": "channels_last", "images": DEVICE == "cpu"}
    assert memory_format(load_checkpoint(str(run.wdir / "last.pt"))[0]) == "contiguous"


@pytest.mark.slow
def test_channels_last_can_be_switched_off_for_all(trained):
    assert trained(PlainTrainer, channels_last=False)[1] == {"student": "contiguous", "images": False}


@pytest.mark.soak
@pytest.mark.slow
def test_with_a_teacher_cache_files_are_the_same_but_not_views(trained, files, tmp_path):
    starts = []
    for trainer, more in ((PlainTrainer, {}), (DistilledTrainer, {"teacher_cache": "ram"})):
        teacher = {"teacher": str(files / "teacher.pt"), **more} if more else {}
        trained(trainer, seed=5, **teacher)
        starts.append(json.loads((tmp_path / "run" / "start.json").read_text()))
    plain, cached = starts
    assert plain["weights"] == cached["weights"] and plain["files"] == cached["files"]
    assert plain["images"] != cached["images"]


@pytest.mark.slow
def test_what_an_earlier_run_left_in_the_cache_is_told(trained, files, tmp_path):
    own = own_files(files, tmp_path / "own")  # the cache lies beside the labels
    given = {"teacher": str(own / "teacher.pt"), "data": str(own / "tiny.yaml"), "teacher_cache": "disk", "seed": 6}
    shares = []
    for _ in range(2):
        trained(DistilledTrainer, **given)
        shares.append(found(tmp_path / "run"))
        shutil.rmtree(tmp_path / "run")
    assert shares == [0, 1] and found(tmp_path / "nowhere") is None
