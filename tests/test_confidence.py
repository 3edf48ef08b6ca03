"""Thresholds, reliability and temperature, on detections whose figures are worked out by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from ultralytics.data import build_dataloader
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import check_det_dataset

from tskd_yolo import confidence, files
from tskd_yolo.confidence import NEVER, Detections

NAMES = {0: "a", 1: "b"}


def table(*rows: tuple[float, bool, int], truths=(20, 0)) -> Detections:
    score, right, label = (np.array(column) for column in zip(*rows))
    return Detections(score.astype(np.float32), right, label, np.array(truths))


def series(rights: str) -> tuple[np.ndarray, np.ndarray]:
    """Detections with scores 0.99, 0.98, ...; a 1 is right."""
    return 0.99 - 0.01 * np.arange(len(rights)), np.array([c == "1" for c in rights])


def test_a_threshold_is_the_lowest_score_that_is_good_enough():
    score, right = series("111111111011110000")
    found = confidence.threshold(score, right, truths=20, precision=0.9)
    # 14 of 15 are right with the fifteenth, 13 of 14 before it; with the sixteenth 13 of 15.
    assert (found.detections, found.recall, found.found) == (14, 13 / 20, True)
    assert found.score == pytest.approx(0.86) and found.precision == pytest.approx(13 / 14)
    assert found.lowest == pytest.approx(0.6853, abs=1e-3)  # Wilson's interval of 13 of 14


def test_precision_may_fall_and_rise_again_above_it():
    score, right = series("0" + "1" * 9 + "000")
    assert confidence.threshold(score, right, truths=9).score == pytest.approx(0.90)
    assert confidence.threshold(score, right, truths=9, precision=0.95).found is False


def test_detections_of_equal_score_come_together():
    score, right = np.full(20, 0.5), np.array([True] * 17 + [False] * 3)
    assert confidence.threshold(score, right, truths=17).score == NEVER
    assert confidence.threshold(score, right, truths=17, precision=0.85).detections == 20


@pytest.mark.parametrize(
    ("rights", "truths", "reason"),
    [
        ("1" * 9, 9, "no threshold, 9 detections on the validation set are too few (10 are needed)"),
        ("10" * 10, 10, "no threshold, its detections nowhere reach a precision of 0.9"),
        ("0" * 12, 0, "no threshold, the validation set has no object of this class"),
        ("", 3, "no threshold, 0 detections on the validation set are too few (10 are needed)"),
    ],
)
def test_a_class_without_a_threshold_says_why(rights, truths, reason):
    found = confidence.threshold(*series(rights), truths=truths)
    assert (found.score, found.reason, found.precision, found.found) == (NEVER, reason, None, False)


def test_bins_and_their_error_are_those_by_hand():
    score = np.array([0.15, 0.15, 0.95, 0.85, 1.0])
    bins = confidence.reliability(score, np.array([True, False, True, True, False]))
    assert [(part.low, part.high, part.detections) for part in bins] == [(0.1, 0.2, 2), (0.8, 0.9, 1), (0.9, 1.0, 2)]
    assert [part.precision for part in bins] == [0.5, 1.0, 0.5]
    # (2 * |0.5 - 0.15| + 1 * |1 - 0.85| + 2 * |0.5 - 0.975|) / 5
    assert confidence.calibration_error(bins) == pytest.approx((0.7 + 0.15 + 0.95) / 5)
    assert confidence.calibration_error([]) is None


@pytest.mark.parametrize("heat", [0.5, 1.0, 3.0])
def test_a_temperature_is_found_again(heat):
    drawn = np.random.default_rng(0)
    chance = drawn.uniform(0.05, 0.95, 20000)
    right = drawn.uniform(size=20000) < chance
    score = confidence.scale(chance, 1 / heat)  # as sure of themselves as this temperature mends
    found = confidence.temperature(score, right)
    assert found == pytest.approx(heat, rel=0.05)
    after = confidence.calibration_error(confidence.reliability(confidence.scale(score, found), right))
    assert after < 0.02


@pytest.mark.parametrize("right", [np.ones(20, bool), np.zeros(20, bool)])
def test_without_both_kinds_there_is_no_temperature(right):
    assert confidence.temperature(np.linspace(0.1, 0.9, 20), right) is None


def test_classes_have_thresholds_of_their_own():
    rows = [(s, r, 0) for s, r in zip(*series("1" * 12 + "0000"))] + [(0.3, False, 1)]
    found = confidence.of(table(*rows), NAMES)
    assert found.thresholds == [pytest.approx(0.87), NEVER] and found.classes[0].threshold.detections == 13
    assert (found.classes[0].truths, found.classes[0].detections, found.classes[1].detections) == (20, 16, 1)
    assert found.told()[0] == "b: no threshold, the validation set has no object of this class"
    assert found.told()[1].startswith("expected calibration error 0.")
    assert found.told(thresholds=False) == found.told()[1:]
    first, other = sorted(found.classes, key=lambda each: each.error, reverse=True)
    assert found.told()[2] == f"by class {first.name} {first.error:.3f}, {other.name} {other.error:.3f}"
    assert json.loads(json.dumps(found.row(), allow_nan=False))["classes"][1]["threshold"]["precision"] is None


def test_nothing_found_is_a_case():
    empty = Detections(np.zeros(0, np.float32), np.zeros(0, bool), np.zeros(0, int), np.array([3, 0]))
    found = confidence.of(empty, NAMES)
    assert (found.thresholds, found.error, found.temperature, found.bins) == ([NEVER, NEVER], None, None, [])


# From a detector ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loader(data):
    found = check_det_dataset(str(data))
    dataset = YOLODataset(img_path=found["val"], data=found, imgsz=64, augment=False, rect=True, batch_size=4)
    return build_dataloader(dataset, 4, workers=0, shuffle=False)


def told(loader):
    """A detector that says the labels of this loader's images, and once a class that is not there."""
    batches = iter(list(loader))

    def seen(images):
        batch, found = next(batches), []
        for index in range(len(images)):
            own = batch["batch_idx"] == index
            centre, size = batch["bboxes"][own].split(2, dim=1)
            boxes = images.shape[-1] * torch.cat((centre - size / 2, centre + size / 2), dim=1)
            boxes = torch.cat((boxes, torch.tensor([[0.0, 0.0, 2.0, 2.0]])))
            label = torch.cat((batch["cls"][own][:, 0], torch.tensor([5.0])))
            found.append({"bboxes": boxes, "conf": torch.linspace(0.9, 0.1, len(label)), "cls": label})
        return found

    return seen


def test_detections_are_matched_with_the_labels_of_a_set(loader):
    found = confidence.detections(told(loader), loader=loader, device=torch.device("cpu"))
    labels = np.concatenate([label["cls"][:, 0] for label in loader.dataset.labels]).astype(int)
    assert (found.truths == np.bincount(labels, minlength=6)).all()
    assert len(found.score) == len(labels) + 4 and found.right.sum() == len(labels)
    assert (found.score[~found.right] == np.float32(0.1)).all() and (found.label[~found.right] == 5).all()


def test_what_was_found_is_kept_by_what_decides_it(loader, loaded, monkeypatch):
    asked = []
    monkeypatch.setattr(confidence, "detections", lambda *a, **k: asked.append(1) or table((0.5, True, 0)))
    given = dict(loader=loader, device=torch.device("cpu"))
    for size in (64, 64, 96):
        found = confidence.measured(lambda images: [], [loaded[0]], settings={"imgsz": size}, **given)
        assert found.score.tolist() == [0.5] and found.right.tolist() == [True]
    assert len(asked) == 2
    monkeypatch.setattr(files, "replace", lambda *a: (_ for _ in ()).throw(OSError("full")))
    confidence.measured(lambda images: [], [loaded[0]], settings={"imgsz": 128}, **given)  # told, and no failure
    assert len(asked) == 3


def test_a_damaged_file_is_measured_again(tmp_path):
    for content in (b"", b"PK\x03\x04 cut"):
        (tmp_path / "kept.npz").write_bytes(content)
        assert confidence._recalled(tmp_path / "kept.npz") is None
    assert confidence._recalled(tmp_path / "none.npz") is None


def test_a_detector_is_looked_through_as_in_validation(detector):
    from tskd_yolo.distill.teacher import Teacher, load

    model = load(detector("yolo11n.yaml"))
    teacher = Teacher(model, like=model, names=model.names)
    for layers in teacher.head.cv3:  # scores that are worth a look
        torch.nn.init.constant_(layers[-1].bias, -1.5)
    found = confidence.look(teacher.detector(), max_det=7)(torch.rand(2, 3, 64, 64))
    assert [len(each["conf"]) for each in found] == [7, 7] and found[0]["bboxes"].shape == (7, 4)
    assert (found[0]["conf"] >= confidence.FLOOR).all() and (found[0]["conf"].diff() <= 0).all()


def test_a_slow_batch_loses_no_detection(monkeypatch):
    clock = iter(range(0, 10**6, 100))
    monkeypatch.setattr("ultralytics.utils.nms.time.time", lambda: next(clock))
    rows = torch.tensor([[50.0, 50.0, 20.0, 20.0, 0.9]]).T.repeat(4, 1, 1)  # one box in each of four images
    found = confidence.look(lambda images: rows)(torch.zeros(4, 3, 64, 64))
    assert [len(each["conf"]) for each in found] == [1, 1, 1, 1]
