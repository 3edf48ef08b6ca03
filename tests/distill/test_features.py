"""What is read from a pass of the head, against what its layers gave."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import yaml
from torch import nn
from ultralytics.nn.tasks import DetectionModel, yaml_model_load

from tskd_yolo.distill.features import ENTRY_STAGE, STAGE_STRIDES, Capture, HeadReader, StageReader, strides, towers

MODELS = "yolov8n.yaml", "yolo11n.yaml", "yolo26n.yaml"
BRANCHES = {
    "yolov8n.yaml": ["one2many"],
    "yolo11n.yaml": ["one2many"],
    "yolo26n.yaml": ["one2many", "one2one"],
}


@pytest.fixture(scope="module")
def models() -> dict[str, DetectionModel]:
    return {name: DetectionModel(name, nc=3, verbose=False).eval() for name in MODELS}


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("stage", [0, ENTRY_STAGE])
@pytest.mark.parametrize("name", MODELS)
def test_levels_are_what_the_heads_convolutions_gave(name, stage, training, models):
    model = models[name]
    head = model.model[-1]
    head.training = training  # raw outputs, or decoded boxes beside them
    reader = HeadReader(head, responses=True, entry_stage=stage)
    gave = {}
    handles = [
        stage.register_forward_hook(lambda module, _, output: gave.update({id(module): output}))
        for pair in towers(head).values()
        for tower in pair
        for layers in tower
        for stage in layers
    ]
    capture = Capture()
    reader.attach(capture)
    with torch.no_grad():
        predictions = model(torch.rand(2, 3, 64, 96))
    levels = reader.read(predictions, capture.caught)
    for handle in handles:
        handle.remove()
    capture.detach()
    assert list(levels) == [8, 16, 32]
    for index, (stride, level) in enumerate(levels.items()):
        assert list(level.responses) == BRANCHES[name]
        assert level.features.shape[2:] == (64 // stride, 96 // stride)
        for branch, response in level.responses.items():
            box, score = (tower[index] for tower in towers(head)[branch])
            for found, layer in (
                (response.boxes, box[-1]),
                (response.scores, score[-1]),
                (response.box_features, box[stage]),
                (response.class_features, score[stage]),
            ):
                assert torch.equal(found, gave[id(layer)])


@pytest.mark.parametrize("name", MODELS)
def test_neck_features_are_the_tensors_that_came_into_the_head(name, models):
    model = models[name]
    head, entered = model.model[-1], []
    handle = head.register_forward_pre_hook(lambda _, inputs: entered.extend(inputs[0]))
    with torch.no_grad():
        levels = HeadReader(head, responses=False).read(model(torch.rand(1, 3, 64, 64)), {})
    handle.remove()
    assert all(level.features is tensor for level, tensor in zip(levels.values(), entered))
    assert all(not level.responses for level in levels.values())


def test_student_features_of_a_dual_head_carry_their_gradient(models):
    """The second branch sees detached maps; the features must be those that are not."""
    model = models["yolo26n.yaml"]
    model.model[-1].training = True
    levels = HeadReader(model.model[-1], responses=False).read(model(torch.rand(1, 3, 64, 64)), {})
    assert all(level.features.requires_grad for level in levels.values())


def test_no_hook_remains_after_detach(models):
    model = models["yolo26n.yaml"]
    capture = Capture()
    HeadReader(model.model[-1], responses=True).attach(capture)
    assert hooks(model) == 2 * 2 * 3  # branches, towers, levels
    with torch.no_grad():
        model(torch.rand(1, 3, 64, 64))
    assert len(capture.caught) == 2 * 2 * 3
    capture.detach()
    assert hooks(model) == 0
    capture.detach()
    copy.deepcopy(model)
    torch.save(model, io.BytesIO())


def test_a_reader_of_features_only_needs_no_hook(models):
    HeadReader(models["yolo11n.yaml"].model[-1], responses=False).attach(Capture())
    assert hooks(models["yolo11n.yaml"]) == 0


def test_strides_and_towers_name_what_the_head_has(models):
    for name, model in models.items():
        assert strides(model.model[-1]) == [8, 16, 32]
        assert list(towers(model.model[-1])) == BRANCHES[name]


@pytest.mark.parametrize("name", ["yolov8n.yaml", "yolo11s.yaml", "yolo12n.yaml", "yolo26n.yaml"])
def test_stages_are_the_last_maps_at_their_strides(name):
    model = DetectionModel(name, nc=3, verbose=False).eval()
    gave: dict[int, torch.Tensor] = {}
    for layer in model.model:
        layer.register_forward_hook(lambda m, _, output: gave.update({m.i: output}))
    reader, capture = StageReader(model), Capture()
    reader.attach(capture, keep=lambda place, features: features * (place + 1))
    with torch.no_grad():
        model(torch.rand(1, 3, 64, 96))
    maps = reader.read(capture.caught)
    assert len(maps) == len(reader.widths) == len(STAGE_STRIDES) == 3 and reader.numbers == [2, 4, 6]
    for place, (stride, layer) in enumerate(zip(STAGE_STRIDES, reader.numbers, strict=True)):
        assert torch.equal(maps[place], gave[layer] * (place + 1)) and maps[place].shape[1] == reader.widths[place]
        assert gave[layer].shape[2:] == (64 // stride, 96 // stride)
        assert gave[layer + 1].shape[2] * 2 == gave[layer].shape[2]


def test_stages_of_a_model_of_ones_own_are_found_by_stride(tmp_path):
    """One more layer in front of the backbone: every fixed number would be wrong."""
    content = {k: v for k, v in yaml_model_load("yolo11n.yaml").items() if k not in {"yaml_file", "scale"}}
    content["backbone"] = [[-1, 1, "Conv", [16, 3, 1]], *content["backbone"]]
    moved = [
        [[f + 1 if f > 0 else f for f in row[0]] if isinstance(row[0], list) else row[0], *row[1:]]
        for row in content["head"]
    ]
    file = tmp_path / "yolo11n-mine.yaml"
    file.write_text(yaml.safe_dump({**content, "head": moved}))
    model = DetectionModel(str(file), nc=3, verbose=False)
    reader = StageReader(model)
    assert (
        reader.numbers == [3, 5, 7]
        and reader.widths == StageReader(DetectionModel("yolo11n.yaml", nc=3, verbose=False)).widths
    )


def test_a_stage_that_a_backbone_lacks_is_not_read(models):
    model = copy.deepcopy(models["yolo11n.yaml"])
    model.yaml["backbone"] = model.yaml["backbone"][:5]
    found = StageReader(model)
    assert found.strides == [4, 8] and found.numbers == [2, 4] and len(found.layers) == len(found.widths) == 2
    assert found.only([8]).strides == [8] and found.only([8]).numbers == [4] and found.only([]).layers == []


def test_looking_for_stages_changes_nothing_in_a_model():
    model = DetectionModel("yolo11n.yaml", nc=3, verbose=False).train()
    model.model[0].eval()  # a frozen layer's batch norm stays as it is
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    StageReader(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert modes == [module.training for module in model.modules()] and hooks(model) == 0
    assert torch.equal(state, torch.get_rng_state())
