"""A timm model without a detection head, in the shape of a detector."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F

from tests.helpers import timm_file
from tskd_yolo import ConfigError
from tskd_yolo.distill import feature_model, teacher
from tskd_yolo.distill.feature_model import FeatureModel
from tskd_yolo.distill.features import StageReader, channels, neck_width, strides, towers


def test_a_convolutional_model_has_the_strides_of_a_detector():
    model = FeatureModel("test_resnet").eval()
    head = model.model[-1]
    assert strides(head) == [4, 8, 16, 32] and [neck_width(head, s) for s in (8, 16, 32)] == [48, 192, 96]
    assert towers(head) == {} and channels(model) == 3
    stages = StageReader(model)
    assert (stages.strides, stages.widths, stages.places) == ([4, 8, 16], [32, 48, 192], [0, 1, 2])
    with torch.no_grad():
        maps = model(torch.rand(2, 3, 64, 96))
    assert [m.shape[2:] for m in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]


def test_patches_stand_where_the_student_has_cells():
    model = FeatureModel("vit_small_patch14_dinov2").eval()
    assert strides(model.model[-1]) == [16] and StageReader(model).strides == [16]
    seen = []
    model.model[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        (features,) = model(images)
    assert features.shape == (1, 384, 4, 6) and seen[0].shape[2:] == (4 * 14, 6 * 14)
    expected = F.interpolate(images, (56, 84), mode="bicubic", antialias=True).clamp(0, 1)
    torch.testing.assert_close(seen[0], expected)


def test_a_model_that_puts_channels_last_is_read_like_any_other():
    model = FeatureModel("swin_tiny_patch4_window7_224").eval()
    with torch.no_grad():
        maps = model(torch.rand(1, 3, 64, 96))
    assert [m.shape[1:] for m in maps] == [(96, 16, 24), (192, 8, 12), (384, 4, 6), (768, 2, 3)]
    assert model.model[0].widths == [96, 192, 384, 768]


def test_an_image_between_is_enlarged_to_the_next_multiple():
    model = FeatureModel("test_vit").eval()
    with torch.no_grad():
        assert model(torch.rand(1, 3, 65, 48))[0].shape[2:] == (5, 3)


def test_images_are_normalised_as_timm_says(tmp_path):
    model = feature_model.load(f"timm:test_resnet:{timm_file(tmp_path / 'w.safetensors', 'test_resnet')}")
    own = timm.create_model("test_resnet", features_only=True, pretrained=True,
                            pretrained_cfg_overlay={"file": str(tmp_path / "w.safetensors")}).eval()  # fmt: skip
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for a, b in zip(model(images), own(images * 2 - 1)[-4:], strict=True):
            torch.testing.assert_close(a, b)


def test_it_is_loaded_as_a_teacher_and_keeps_its_whole_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    timm_file(tmp_path / "w.safetensors", "test_vit")
    model = teacher.load("timm:test_vit:w.safetensors")
    assert isinstance(model, FeatureModel) and model.pt_path == f"timm:test_vit:{tmp_path / 'w.safetensors'}"
    assert feature_model.whole_path("timm:test_vit") == "timm:test_vit"
    assert feature_model.whole_path(Path("a.pt")) == str(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("timm:test_vit", "random ones teach nothing, so give them as teacher=timm:test_vit:FILE."),
        ("timm:resnet81", "teacher: timm:resnet81 cannot be built (timm: it has no model 'resnet81'; did you mean"),
        ("timm:", "teacher: timm: cannot be built (timm: it has no model ''; see timm.list_models())."),
        ("timm:test_vit:none.bin", "teacher: none.bin was not found; give a checkpoint of timm's test_vit."),
        ("timm:mixer_s16_224", "cannot be built (timm: mixer_s16_224 gives no 4 maps of images of any size (MlpMixer"),
    ],
)
def test_what_cannot_teach_is_refused(given, words):
    with pytest.raises(ConfigError) as refused:
        teacher.load(given)
    (problem,) = refused.value.problems
    assert words in problem and problem.startswith("teacher: ") and problem.endswith(".")
