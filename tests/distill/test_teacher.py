"""The teacher: what may become one, and that it gives what the model gave, frozen."""

from __future__ import annotations

import copy
from pathlib import Path

import cv2
import pytest
import torch
from ultralytics.nn.tasks import ClassificationModel, DetectionModel, RTDETRDetectionModel
from ultralytics.utils.ops import xywh2xyxy, xyxy2xywh

from tests.distill.helpers import NAMES
from tests.distill.helpers import load as loaded
from tests.helpers import make_detector
from tskd_yolo.config import ConfigError
from tskd_yolo.distill.features import ENTRY_STAGE, StageReader, neck_width
from tskd_yolo.distill.teacher import Teacher, in_channels, load
from tskd_yolo.losses.tails import renormalize

KINDS = "yolov8n.yaml", "yolo11n.yaml", "yolo26n.yaml"


def named(names) -> dict[int, str]:
    return dict(enumerate(names))


@pytest.fixture(scope="session")
def files(detector) -> dict[str, Path]:
    return {kind: detector(kind, NAMES) for kind in KINDS}


@pytest.fixture(scope="module")
def student() -> DetectionModel:
    return DetectionModel("yolo11n.yaml", nc=3, verbose=False)


def frozen(file: Path, student, names=NAMES, responses=True) -> Teacher:
    return Teacher(loaded(file), like=student, names=named(names), responses=responses)


def raw(model: DetectionModel, images: torch.Tensor) -> dict:
    """Head output per branch of the plain model in eval mode."""
    with torch.no_grad():
        outputs = model.eval()(images)[1]
    return outputs if "one2many" in outputs else {"one2many": outputs}


def joined(levels: dict, branch: str, what: str) -> torch.Tensor:
    return torch.cat([getattr(level.responses[branch], what).flatten(2) for level in levels.values()], dim=2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_folded_teacher_gives_the_plain_models_outputs(kind, files, student):
    images = torch.rand(2, 3, 64, 64)
    plain = raw(loaded(files[kind]), images)
    levels = frozen(files[kind], student)(images)
    assert list(levels[8].responses) == list(plain)
    for branch, outputs in plain.items():
        torch.testing.assert_close(joined(levels, branch, "boxes"), outputs["boxes"], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(joined(levels, branch, "scores"), outputs["scores"], rtol=1e-4, atol=1e-4)
    for level, feature in zip(levels.values(), plain["one2many"]["feats"]):
        torch.testing.assert_close(level.features, feature, rtol=1e-4, atol=1e-4)


def test_it_is_frozen_and_running_it_changes_nothing_in_it(files, student):
    teacher = frozen(files["yolo26n.yaml"], student)
    assert not any(p.requires_grad for p in teacher.model.parameters())
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in teacher.model.modules())
    before = {k: v.clone() for k, v in teacher.model.state_dict().items()}
    levels = teacher(torch.rand(2, 3, 64, 64, requires_grad=True))
    tensors = [t for level in levels.values() for r in level.responses.values() for t in r]
    assert not any(t.requires_grad for t in [*tensors, *(level.features for level in levels.values())])
    assert all(torch.equal(v, before[k]) for k, v in teacher.model.state_dict().items())
    assert not any(m._forward_hooks for m in teacher.model.modules())


def test_a_pass_that_fails_leaves_no_hook(files, student):
    teacher = frozen(files["yolo11n.yaml"], student)
    with pytest.raises(ValueError, match="images of 5 channels"):
        teacher(torch.rand(1, 5, 64, 64))
    assert not any(m._forward_hooks for m in teacher.model.modules())


def test_its_size_is_counted_and_its_detector_decodes_boxes(files, student):
    plain = loaded(files["yolo11n.yaml"])
    count = sum(p.numel() for p in plain.parameters())
    teacher = frozen(files["yolo11n.yaml"], student)
    assert teacher.params == count and teacher.name == files["yolo11n.yaml"].name
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(teacher.detector()(images)[0], plain.eval()(images)[0], rtol=1e-3, atol=1e-3)
    assert teacher.head.training and not teacher.detector().model[-1].training


@pytest.mark.parametrize("model", ["yolov8n-seg.yaml", "yolo26n-seg.yaml"])
def test_a_teacher_makes_prototypes_only_where_it_is_judged(model, detector, student):
    teacher, made = frozen(detector(model, NAMES), student), []
    prototypes = teacher.head.proto
    prototypes.register_forward_hook(lambda *_: made.append(True))
    assert [level.features.shape[2] for level in teacher(torch.rand(1, 3, 64, 64)).values()] == [8, 4, 2]
    assert not made and teacher.head.proto is prototypes
    (_, masks), _ = teacher.detector()(torch.rand(1, 3, 64, 64))
    assert made and masks.shape == (1, 32, 16, 16)


def test_it_runs_in_the_dtype_it_is_cast_to(files, student):
    teacher = frozen(files["yolo11n.yaml"], student)
    teacher.cast(torch.bfloat16)
    levels = teacher(torch.rand(1, 3, 64, 64))
    assert levels[8].features.dtype == torch.bfloat16
    assert next(teacher.detector().parameters()).dtype == torch.float32


# Teachers with queries ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def queries(detector) -> Path:
    return detector("yolov8n-rtdetr.yaml", NAMES)


def test_a_decoder_gives_features_scores_and_queries(queries, student):
    images, teacher, entered = torch.rand(2, 3, 64, 96), frozen(queries, student), []
    handle = teacher.head.register_forward_pre_hook(lambda _, inputs: entered.extend(inputs[0]))
    with torch.no_grad():
        _, (boxes, scores, *_) = teacher.model(images)
    handle.remove()
    levels = teacher(images)
    assert list(levels) == [8, 16, 32] and teacher.reader.strides == [8, 16, 32]
    for (stride, level), features in zip(levels.items(), entered, strict=True):
        assert torch.equal(level.features, features) and not level.responses
        assert level.scores.shape == (2, 3, 64 // stride, 96 // stride)
        assert neck_width(teacher.head, stride) == features.shape[1]
    torch.testing.assert_close(xyxy2xywh(levels.queries.boxes), boxes[-1])
    assert torch.equal(levels.queries.scores, scores[-1])
    with torch.no_grad():  # folding changes next to nothing; which of many like queries are chosen may change
        plain = loaded(queries).eval()(images)[1][1][-1]
    torch.testing.assert_close(plain.amax(dim=(1, 2)), scores[-1].amax(dim=(1, 2)), rtol=1e-2, atol=1e-2)
    assert frozen(queries, student, responses=False)(images).queries is None


def test_its_detections_come_in_pixels(queries, student):
    images, detector = torch.rand(1, 3, 64, 96), frozen(queries, student).detector()
    with torch.no_grad():
        found = detector(images)
        detector._forward_hooks.clear()
        plain = detector(images)[0]
    torch.testing.assert_close(found[..., :4], xywh2xyxy(plain[..., :4]) * torch.tensor([96, 64, 96, 64]))
    assert found.shape == (1, plain.shape[1], 6) and torch.equal(found[..., 4:], plain[..., 4:])


def test_a_decoder_runs_in_the_dtype_it_is_cast_to(queries, student):
    teacher = frozen(queries, student)
    teacher(torch.rand(1, 3, 64, 64))  # makes anchors, in float32
    teacher.cast(torch.bfloat16)
    levels = teacher(torch.rand(1, 3, 64, 64))
    assert levels.queries.scores.dtype == torch.bfloat16 and levels.queries.scores.isfinite().all()
    with torch.no_grad():
        assert teacher.detector()(torch.rand(1, 3, 64, 64)).dtype == torch.float32


def test_classes_of_a_decoder_are_brought_into_order(queries, student):
    images, order = torch.rand(2, 3, 64, 64), [2, 0, 1]
    straight = frozen(queries, student)(images).queries
    turned = frozen(queries, student, names=[NAMES[i] for i in order])(images).queries
    torch.testing.assert_close(turned.boxes, straight.boxes)
    torch.testing.assert_close(turned.scores, straight.scores[..., order])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "stages"),
    [("rtdetr-l", [128, 512, 1024]), ("rtdetr-resnet50", [256, 512, 1024])],
    ids=["HGNet", "ResNet"],
)
def test_backbones_of_rtdetr_are_read_by_stride(model, stages, student):
    plain = RTDETRDetectionModel(f"{model}.yaml", nc=3, verbose=False)
    plain.names = named(NAMES)
    teacher = Teacher(plain, like=student, names=named(NAMES), responses=True)
    found = StageReader(teacher.model)
    assert found.strides == [4, 8, 16] and found.widths == stages and teacher.reader.strides == [8, 16, 32]
    levels, maps = teacher.with_stages(torch.rand(1, 3, 64, 64), found)
    assert [m.shape[1:] for m in maps] == [(width, 64 // s, 64 // s) for width, s in zip(stages, (4, 8, 16))]
    assert [level.features.shape[1] for level in levels.values()] == [256] * 3


# Channels -------------------------------------------------------------------------------------------------------------


def test_grey_images_come_three_times_and_rgb_ones_as_luminance():
    grey, colour = torch.rand(2, 1, 4, 4), torch.rand(2, 3, 4, 4)
    assert torch.equal(in_channels(grey, 3), torch.cat([grey] * 3, dim=1))
    expected = cv2.cvtColor(colour[0].permute(1, 2, 0).numpy(), cv2.COLOR_RGB2GRAY)
    torch.testing.assert_close(in_channels(colour, 1)[0, 0], torch.from_numpy(expected), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(in_channels(in_channels(grey, 3), 1), grey)
    assert in_channels(colour, 3) is colour
    with pytest.raises(ValueError, match="images of 4 channels cannot be brought to 3"):
        in_channels(torch.rand(1, 4, 2, 2), 3)


@pytest.mark.parametrize("own", [1, 3])
def test_teacher_and_detector_take_grey_and_rgb(own, detector, student):
    teacher = frozen(detector("yolo11n.yaml", NAMES, channels=own), student)
    assert teacher.channels == own
    for given in (1, 3):
        images = torch.rand(1, given, 64, 64)
        brought = in_channels(images, own)
        assert torch.equal(teacher(images)[8].features, teacher(brought)[8].features)
        with torch.no_grad():
            assert torch.equal(teacher.detector()(images)[0], teacher.detector()(brought)[0])


# Order of classes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["yolo11n.yaml", "yolo26n.yaml"])
def test_a_teacher_of_another_class_order_gives_permuted_logits(kind, files, student):
    images, order = torch.rand(2, 3, 64, 64), [2, 0, 1]  # no permutation that is its own inverse
    ours = [NAMES[i] for i in order]
    straight, turned = frozen(files[kind], student), frozen(files[kind], student, names=ours)
    assert straight.classes.alike and not turned.classes.alike
    before, after = straight(images), turned(images)
    for stride in before:
        for branch in before[stride].responses:
            a, b = before[stride].responses[branch], after[stride].responses[branch]
            torch.testing.assert_close(b.scores, a.scores[:, order])
            torch.testing.assert_close(b.boxes, a.boxes)
            through = turned.tails(stride, branch, ENTRY_STAGE).score(a.class_features)
            torch.testing.assert_close(through, a.scores[:, order], rtol=1e-4, atol=1e-4)
    assert list(turned.detector().names.values()) == ours


def test_names_are_matched_without_case_and_blanks(files, student):
    assert frozen(files["yolo11n.yaml"], student, names=(" Crack", "PIT", "scale ")).classes.alike


@pytest.mark.parametrize("kind", KINDS)
def test_the_tails_of_the_teachers_activations_give_its_outputs(kind, files, student):
    teacher = frozen(files[kind], student)
    for stride, level in teacher(torch.rand(2, 3, 64, 64)).items():
        for branch, outputs in level.responses.items():
            tails = teacher.tails(stride, branch, ENTRY_STAGE)
            for tail, features, said in (
                (tails.box, outputs.box_features, outputs.boxes),
                (tails.score, outputs.class_features, outputs.scores),
            ):
                torch.testing.assert_close(tail(features), said, rtol=1e-4, atol=1e-4)
                again = tail(renormalize(features, features))
                torch.testing.assert_close(again, said, rtol=1e-3, atol=1e-3)


# What may become a teacher --------------------------------------------------------------------------------------------


def problem(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path)
    (sentence,) = caught.value.problems
    assert sentence.startswith("teacher: ") and sentence.endswith(".") and path.name in sentence
    assert "\n" not in sentence
    return sentence


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    assert "was not found" in problem(tmp_path / "nothing.pt")
    assert "is a folder" in problem(tmp_path)


@pytest.mark.parametrize("content", [b"", b"garbage" * 100, b"PK\x03\x04 cut off"], ids=["empty", "text", "cut"])
def test_a_file_that_is_no_checkpoint_is_named(content, tmp_path):
    file = tmp_path / "teacher.pt"
    file.write_bytes(content)
    assert "is empty, cut short or no checkpoint at all" in problem(file)


@pytest.mark.parametrize("content", [{"weights": 1}, [1, 2], {"model": {"a": torch.zeros(1)}}], ids=str)
def test_a_checkpoint_without_a_model_is_named(content, tmp_path):
    torch.save(content, tmp_path / "teacher.pt")
    assert "holds no model" in problem(tmp_path / "teacher.pt")


def test_a_classifier_is_named_as_one(tmp_path):
    model = ClassificationModel("yolo11n-cls.yaml", nc=3, verbose=False)
    model.args, model.task = {}, "classify"
    torch.save({"model": model, "train_args": {"task": "classify"}}, tmp_path / "teacher.pt")
    assert "classif" in problem(tmp_path / "teacher.pt").lower()


def test_a_detector_is_loaded_in_float32_with_its_names_and_path(files):
    model = load(str(files["yolo11n.yaml"]))
    assert model.names == named(NAMES) and Path(model.pt_path) == files["yolo11n.yaml"]
    assert all(p.dtype == torch.float32 and p.device.type == "cpu" for p in model.parameters())


TWICE = "Pit", "crack", "pit"


def test_two_classes_of_one_name_on_both_sides_keep_both_outputs(tmp_path, student):
    """Names that are equal but for case match as multisets; each output must then be used once."""
    file = make_detector(tmp_path / "teacher.pt", "yolo11n.yaml", TWICE)
    plain, images = load(file), torch.rand(1, 3, 64, 64)
    scores = raw(copy.deepcopy(plain), images)["one2many"]["scores"]
    said = joined(frozen(file, student, names=TWICE)(images), "one2many", "scores")
    torch.testing.assert_close(said, scores, rtol=1e-4, atol=1e-4)
