"""Where the timm backbone of a student gets its first weights, in our trainer and in plain ones."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import logged, make_detector, same, settings, timm_file, timm_yaml
from tskd_yolo import ConfigError, Trainer, backbones
from tskd_yolo.compare.trainers import PlainTrainer
from tskd_yolo.train import backbone
from tskd_yolo.train.backbone import BackboneTrainer, names, weights_file


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with the YAML of a student, a checkpoint of timm's for its backbone, and a detector of the same kind."""
    folder = tmp_path_factory.mktemp("timm")
    timm_file(folder / "timm.safetensors")
    make_detector(folder / "detector.pt", str(timm_yaml(folder)))
    return folder


@pytest.fixture
def start(made, tmp_path, data, teacher, at_hand):
    """The student that a trainer starts from, and what is said of it."""

    def begin(kind: type = Trainer, **more: Any) -> tuple[Any, list[str]]:
        given = {"model": str(made / "timm-test_resnet.yaml"), **more}
        values = settings(tmp_path, data, **given, **({"teacher": str(teacher)} if kind is Trainer else {}))
        trainer = kind(**values) if kind is Trainer else kind(overrides=values)
        with logged() as lines:
            trainer.setup_model()
        return trainer.model, [line for line in lines if "the backbone" in line]

    return begin


def first_weight(detector: Any) -> torch.Tensor:
    return next(backbones.of(detector).body.parameters())


def in_file(file: Path) -> torch.Tensor:
    """The first weight of a backbone with the weights of a file."""
    model = backbones.TimmModel("test_resnet")
    backbones.load_weights(model, key="pretrained", file=file)
    return next(model.body.parameters())


@pytest.mark.parametrize("kind", [Trainer, PlainTrainer, BackboneTrainer])
def test_a_checkpoint_of_timms_is_taken_by_every_trainer(kind, start, made):
    student, said = start(kind, pretrained=str(made / "timm.safetensors"))
    assert torch.equal(first_weight(student), in_file(made / "timm.safetensors")) and said == []


@pytest.mark.parametrize("more", [{}, {"pretrained": "timm.safetensors"}], ids=str)
def test_arms_of_a_comparison_start_from_the_same_student(more, start, made, monkeypatch):
    monkeypatch.chdir(made)
    ours, theirs = (start(kind, **more)[0].state_dict() for kind in (Trainer, PlainTrainer))
    assert same(ours, theirs)


@pytest.mark.parametrize("kind", [Trainer, PlainTrainer, BackboneTrainer])
def test_weights_that_nobody_asked_for_are_missed_in_words(kind, start):
    _, said = start(kind)
    (line,) = said
    assert line.startswith("WARNING ") and "the backbone starts from random weights. pretrained: the weights " in line
    assert line.endswith("cannot be loaded (they are in no cache, and there is no network); give a file.")
    assert start(kind, pretrained=False)[1] == []


def test_processes_go_on_where_there_are_no_weights(start, monkeypatch):
    left: list[int] = []

    @contextlib.contextmanager
    def first(rank: int) -> Iterator[None]:
        yield
        left.append(rank)  # the others wait for this, as in Ultralytics' own

    monkeypatch.setattr(backbone, "torch_distributed_zero_first", first)
    start()
    assert left == [-1]


def test_weights_that_were_asked_for_and_are_missed_are_an_error(start, tmp_path):
    with pytest.raises(ConfigError, match=r"pretrained: the weights timm/test_resnet.* no network\); give a file"):
        start(pretrained=True)
    assert not (tmp_path / "run").exists()


def test_what_yolo_train_gives_for_everyone_nobody_asked_for(start):
    assert "the backbone starts from random weights" in start(pretrained=True, mode="train")[1][0]


def test_a_detector_as_pretrained_goes_in_as_in_ultralytics(start, made):
    student, said = start(pretrained=str(made / "detector.pt"))
    expected = torch.load(made / "detector.pt", weights_only=False)["model"]
    assert torch.equal(first_weight(student), first_weight(expected)) and said == []
    student, said = start(model=str(made / "detector.pt"))
    assert torch.equal(first_weight(student), first_weight(expected)) and said == [], "and starts nothing anew"


def test_a_detectors_backbone_can_be_replaced(start, made):
    student, _ = start(model=str(made / "detector.pt"), pretrained=str(made / "timm.safetensors"))
    assert torch.equal(first_weight(student), in_file(made / "timm.safetensors"))
    expected = torch.load(made / "detector.pt", weights_only=False)["model"]
    assert torch.equal(student.model[-1].cv2[0][0].conv.weight, expected.model[-1].cv2[0][0].conv.weight)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"pretrained": "none.safetensors"}, "pretrained: none.safetensors was not found; give a checkpoint of timm's"),
        ({"pretrained": "none.pt"}, "pretrained: none.pt was not found; give a detector's checkpoint"),
        ({"pretrained": "timm.safetensors", "model": "yolo11n.yaml"}, "ends in '.safetensors', not in '.pt'; give a"),
    ],
)
def test_weights_of_another_kind_are_refused(more, words, start, made, monkeypatch):
    monkeypatch.chdir(made)
    with pytest.raises(ConfigError) as refused:
        start(**more)
    assert words in refused.value.problems[0] and len(refused.value.problems) == 1


def test_what_pretrained_names_is_told_by_its_ending():
    assert [weights_file(value) for value in (True, False, None, "a.pt", "a.PT")] == [None] * 5
    assert weights_file("a/b.bin") == Path("a/b.bin")
    rows = [[-1, 1, "TimmBackbone", ["resnet18", "c2"]], [0, 1, "Index", [128, 1]]]
    assert names({"backbone": rows}) == ["resnet18"] and names({"backbone": rows[1:]}) == []
