"""timm models as backbones: what they give, how a checkpoint holds them, and where their weights come from."""

from __future__ import annotations

import copy
import io
import os
import pickletools
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from ultralytics.nn.tasks import DetectionModel

from tests.helpers import make_detector, timm_yaml
from tskd_yolo import ConfigError, backbones, compat
from tskd_yolo.backbones import TimmBackbone, TimmModel
from tskd_yolo.config import folder

YAMLS = sorted((folder("cfg") / "models").glob("*.yaml"))
SMALL = "test_resnet"


def weights_of(name: str = SMALL, seed: int = 5, **more: object) -> dict[str, torch.Tensor]:
    """The tensors of a whole model of timm's, with a classifier, drawn at random."""
    torch.manual_seed(seed)
    model = timm.create_model(name, **more)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(1e-4, 2e-2)  # so small that eps matters
    return {key: value.contiguous() for key, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """A checkpoint of timm's."""
    file = tmp_path_factory.mktemp("timm") / "weights.safetensors"
    save_file(weights_of(), file)
    return file


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A detector with a timm backbone, as Ultralytics saves one at the end of a run: in half precision."""
    made = tmp_path_factory.mktemp("detector")
    detector = make_detector(made / "best.pt", str(timm_yaml(made)))
    content = torch.load(detector, weights_only=False)
    torch.save({**content, "model": content["model"].half()}, detector)
    return detector


@pytest.fixture
def no_network(monkeypatch):
    """No connection is asked for."""
    asked: list[object] = []
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: asked.append(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address, **_: asked.append(address) or [])
    yield
    assert asked == []


# What it gives --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("yaml", YAMLS, ids=lambda yaml: yaml.stem)
def test_every_model_yaml_has_levels_of_stride_8_16_and_32(yaml):
    detector = DetectionModel(str(yaml), nc=3, verbose=False).eval()
    assert detector.stride.tolist() == [8, 16, 32]
    backbone, rows = (
        backbones.of(detector),
        [args for *_, module, args in detector.yaml["backbone"] if module == "Index"],
    )
    assert [backbone.widths[place] for _, place in rows] == [channels for channels, _ in rows]
    with torch.no_grad():
        assert detector(torch.zeros(1, 3, 64, 96))[0].shape == (1, 7, 8 * 12 + 4 * 6 + 2 * 3)


def test_yaml_files_are_those_that_the_issue_names():
    wanted = "resnet18", "resnet50", "resnet101", "mobilenetv4", "convnext", "vit"
    assert [sum(yaml.stem.startswith(f"timm-{name}") for yaml in YAMLS) for name in wanted] == [1] * len(YAMLS)


def test_a_timm_model_gives_timms_maps_of_normalised_images(file):
    model = TimmModel(SMALL).eval()
    backbones.load_weights(model, key="pretrained", file=file)
    own = timm.create_model(SMALL, features_only=True, pretrained=True, pretrained_cfg_overlay={"file": str(file)})
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        expected = own.eval()((images - 0.5) / 0.5)[-4:]  # its own mean and deviation are 0.5
        for a, b in zip(model(images), expected, strict=True):
            torch.testing.assert_close(a, b)
    assert model.strides == [4, 8, 16, 32] and model.widths == [32, 48, 192, 96]


def test_in_a_detector_batch_norms_keep_their_eps(tmp_path):
    detector = DetectionModel(str(timm_yaml(tmp_path)), nc=3, verbose=False)
    norms = {type(m).__name__: (m.eps, m.momentum) for m in detector.modules() if isinstance(m, nn.BatchNorm2d)}
    assert norms == {"BatchNorm": (1e-5, 0.1), "BatchNorm2d": (1e-3, 0.03)}


def test_images_of_one_channel_are_normalised_by_the_mean(tmp_path):
    detector = DetectionModel(str(timm_yaml(tmp_path)), ch=1, nc=3, verbose=False).eval()
    backbone = backbones.of(detector)
    assert backbone.channels == 1 and backbone.mean.shape == (1, 1, 1, 1)
    with torch.no_grad():
        assert detector(torch.rand(1, 1, 64, 64))[0].shape[1] == 7


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet81", "timm: it has no model 'resnet81'; did you mean 'resnet1"),
        ("hf-hub:someone/model", "timm: it has no model 'hf-hub:someone/model'"),
        ("local-dir:/tmp", "timm: it has no model 'local-dir:/tmp'"),
        ("../resnet18", "timm: it has no model '../resnet18'"),
        ("resnet18.none", "timm: it has no weights resnet18.none; it has resnet18.a1_in1k"),
    ],
)
def test_a_name_that_timm_does_not_know_is_refused(name, words, no_network):
    with pytest.raises(ConfigError) as refused:
        TimmBackbone(name)
    assert words in refused.value.problems[0]


def test_patches_that_no_detector_has_are_refused(monkeypatch):
    with pytest.raises(ConfigError, match=r"maps of vit_small_patch14_dinov2 have stride 14, and the images of a dete"):
        TimmBackbone("vit_small_patch14_dinov2", maps=1)
    with pytest.raises(ConfigError, match="test_resnet gives no 9 maps of images of any size"):
        TimmBackbone(SMALL, maps=9)


# In a checkpoint ------------------------------------------------------------------------------------------------------


def test_a_checkpoint_holds_no_class_of_timms(checkpoint):
    with zipfile.ZipFile(checkpoint) as archive:
        (pickled,) = [archive.read(name) for name in archive.namelist() if name.endswith("/data.pkl")]
    named = {argument for code, argument, _ in pickletools.genops(pickled) if code.name == "GLOBAL"}
    assert {name for name in named if not name.startswith(("torch", "ultralytics"))} == {
        "tskd_yolo.backbones TimmBackbone", "collections OrderedDict", "__builtin__ set",
    }  # fmt: skip


def test_a_pickled_backbone_is_what_it_was(checkpoint):
    trained = torch.load(checkpoint, weights_only=False)["model"]
    backbone = backbones.of(trained).float().train()
    backbone.body.conv1[0].weight.requires_grad_(False)
    buffer, state = io.BytesIO(), torch.get_rng_state()
    torch.save(trained.half(), buffer)
    again = backbones.of(torch.load(io.BytesIO(buffer.getvalue()), weights_only=False))
    assert torch.equal(state, torch.get_rng_state())
    assert {k: (v.dtype, v.sum()) for k, v in again.state_dict().items()} == {
        k: (v.dtype, v.sum()) for k, v in backbone.state_dict().items()
    }
    assert [p.requires_grad for p in again.parameters()].count(False) == 1 and again.training
    assert {key: getattr(again, key) for key in ("i", "f", "type", "np")} == {
        "i": 0, "f": -1, "type": "tskd_yolo.backbones.TimmBackbone", "np": backbone.np,
    }  # fmt: skip
    assert torch.equal(again.mean, TimmModel(SMALL).mean), "is not rounded with the weights"


def test_a_copied_backbone_shares_nothing_and_draws_nothing(checkpoint):
    detector, state = compat.load(checkpoint, key="model")[0], torch.get_rng_state()
    twin = copy.deepcopy(detector)
    assert torch.equal(state, torch.get_rng_state())
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(detector(images)[0], twin(images)[0])
        backbones.of(twin).body.conv1[0].weight.zero_()
        assert not torch.equal(detector(images)[0], twin(images)[0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda model: setattr(model, "extra", timm.create_model(SMALL)), "asks for timm.models.resnet.ResNet"),
        (lambda model: setattr(model, "extra", timm.layers.BatchNormAct2d(3)), "asks for timm.layers.norm_act.Batch"),
        (lambda model: setattr(model, "extra", backbones.load_weights), "asks for tskd_yolo.backbones.load_weights"),
        (lambda model: setattr(backbones.of(model), "name", "hf-hub:a/b"), "holds what cannot be built (timm: it has"),
    ],
)
def test_what_else_a_file_may_name_of_timm_is_refused(change, words, checkpoint, tmp_path, no_network):
    content = torch.load(checkpoint, weights_only=False)
    change(content["model"])
    torch.save(content, tmp_path / "strange.pt")
    with compat.guarded(), pytest.raises(ConfigError) as refused:
        compat.load(tmp_path / "strange.pt", key="model")
    assert f"strange.pt {words}" in refused.value.problems[0]


def run(code: str, checkpoint: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, str(checkpoint)], capture_output=True, text=True, env={**os.environ, **env}
    )


@pytest.mark.slow
def test_plain_yolo_loads_it_after_one_import(checkpoint):
    yolo = "import sys\nfrom ultralytics import YOLO\nprint(YOLO(sys.argv[1]).task)"
    given = "import tskd_yolo.backbones\n" + yolo
    assert run(given, checkpoint).stdout.splitlines()[-1:] == ["detect"], "which asks for safe loading itself"
    assert run(given, checkpoint, ULTRALYTICS_SAFE_LOAD="0").stdout.splitlines()[-1:] == ["detect"]
    refused = run(yolo, checkpoint, ULTRALYTICS_SAFE_LOAD="1")
    assert refused.returncode and "references types outside" in refused.stderr


# Weights --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_weights_come_from_a_file(suffix, file, tmp_path):
    given = file
    if suffix == "pth":  # as timm's training script saves it
        given = tmp_path / "last.pth"
        torch.save({"state_dict": {f"module.{k}": v for k, v in weights_of().items()}, "epoch": 3}, given)
    model = TimmBackbone(SMALL)
    backbones.load_weights(model, key="pretrained", file=given)
    own = weights_of()
    assert all(torch.equal(value, own[key]) for key, value in model.body.state_dict().items())


def test_weights_of_rgb_are_brought_to_grey(file):
    model = TimmModel(SMALL, channels=1)
    backbones.load_weights(model, key="pretrained", file=file)
    assert next(model.body.parameters()).shape[1] == 1


def test_a_file_that_is_not_of_the_model_is_refused(tmp_path, file):
    save_file(weights_of("test_convnext"), tmp_path / "other.safetensors")
    save_file(dict(list(weights_of().items())[:30]), tmp_path / "part.safetensors")
    (tmp_path / "words.bin").write_text("garbage")
    torch.save({"state_dict": {"a": os.system}}, tmp_path / "code.pth")
    for name, words in {
        "other.safetensors": "lacks weights of test_resnet; give a checkpoint of this model",
        "part.safetensors": "lacks weights of test_resnet",
        "words.bin": "could not be loaded into test_resnet",
        "code.pth": "could not be loaded into test_resnet (weights_only=True blocked",
        "none.pth": "was not found; give a checkpoint of timm's test_resnet",
    }.items():
        with pytest.raises(ConfigError) as refused:
            backbones.load_weights(TimmModel(SMALL), key="pretrained", file=tmp_path / name)
        assert f"{name} {words}" in refused.value.problems[0]


def in_cache(folder: Path, weights: Path, repository: str, name: str) -> None:
    """A file in the cache of the Hugging Face hub, as the hub's own client would have put it there."""
    place = folder / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("abc")
    (place / "snapshots" / "abc").mkdir(parents=True)
    (place / "snapshots" / "abc" / name).symlink_to(weights)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """The cache of the hub, with nothing in it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_offline_weights_are_looked_for_in_the_cache_alone(no_network, hub):
    with pytest.raises(ConfigError) as refused:
        backbones.load_weights(TimmModel(SMALL), key="pretrained")
    assert refused.value.problems == [
        "pretrained: the weights timm/test_resnet.r160_in1k of test_resnet cannot be loaded (they are in no cache, and "
        "there is no network); give a file."
    ]


def test_weights_in_the_cache_of_the_hub_are_taken(no_network, hub, file):
    in_cache(hub, file, "timm/test_resnet.r160_in1k", "model.safetensors")
    model, same = TimmModel(SMALL), TimmModel(SMALL)
    backbones.load_weights(model, key="pretrained")
    backbones.load_weights(same, key="pretrained", file=file)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), same.state_dict().values(), strict=True))


def test_where_the_network_may_be_used_weights_are_fetched(monkeypatch, hub, file):
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    asked: list[object] = []

    def fetch(repository: str, name: str) -> str:
        asked.append((repository, name))
        if name == "model.safetensors":
            raise EntryNotFoundError("404: there is no such file")
        raise OSError("the hub is down")

    monkeypatch.setattr(backbones, "ONLINE", True)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    with pytest.raises(ConfigError, match=r"of test_resnet cannot be loaded \(the hub is down\); give a file"):
        backbones.load_weights(TimmModel(SMALL), key="pretrained")
    assert asked == [("timm/test_resnet.r160_in1k", name) for name in ("model.safetensors", "pytorch_model.bin")]
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_: str(file))
    backbones.load_weights(TimmModel(SMALL), key="pretrained")
