"""What a detector misses at fixed false alarms, by hand; COCO's metrics beside Ultralytics' own."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import NAMES, make_detector, tiny_data
from tskd_yolo.compare.metrics import FALSE_ALARMS, Image, Judge, coco, findings, judge, miss_rates, misses, seen


def image(truth=(), found=(), file="a.png"):
    """An image of 100 x 200 pixels; truth rows (class, box), found rows (class, score, hit, box)."""
    boxes = np.array([row[-1] for row in truth], np.float32).reshape(-1, 4)
    found_boxes = np.array([row[-1] for row in found], np.float32).reshape(-1, 4)
    labels, found_labels = (np.array([row[0] for row in rows], int) for rows in (truth, found))
    score, hit = np.array([r[1] for r in found], np.float32), np.array([r[2] for r in found], bool)
    return Image(file, (100, 200), labels, boxes, found_labels, found_boxes, score, hit)


def test_the_miss_rate_at_fixed_false_alarms_by_hand():
    score = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    hit = np.array([1, 0, 1, 0, 0, 1], bool)
    rows = miss_rates(score=score, hit=hit, truths=5, images=2, at=[0, 0.5, 1, 1.5, 9])
    assert [row["miss"] for row in rows] == pytest.approx([4 / 5, 3 / 5, 3 / 5, 2 / 5, 2 / 5])
    assert [row["threshold"] for row in rows] == [0.9, 0.7, 0.6, 0.4, 0.4]


def test_detections_of_equal_score_come_and_go_together():
    score, hit = np.array([0.9, 0.5, 0.5]), np.array([1, 1, 0], bool)
    (row,) = miss_rates(score=score, hit=hit, truths=2, images=1, at=[0.5])
    assert row == {"false_alarms": 0.5, "miss": 0.5, "threshold": 0.9}


def test_nothing_found_misses_all_and_no_defect_has_no_miss_rate():
    none = np.zeros(0)
    assert miss_rates(score=none, hit=none, truths=3, images=2, at=[1])[0]["miss"] == 1
    assert miss_rates(score=none, hit=none, truths=0, images=2, at=[1])[0] == {
        "false_alarms": 1, "miss": None, "threshold": None
    }  # fmt: skip
    only_false = miss_rates(score=np.array([0.9]), hit=np.array([False]), truths=1, images=1, at=[0.1])
    assert only_false == [{"false_alarms": 0.1, "miss": 1.0, "threshold": None}]


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=30), st.integers(1, 9))
@settings(max_examples=60)
def test_more_false_alarms_never_miss_more_and_thresholds_hold(rows, images):
    score, hit = np.array([r[0] / 20 for r in rows], float), np.array([r[1] for r in rows], bool)
    told = miss_rates(score=score, hit=hit, truths=40, images=images, at=[0, 0.1, 0.5, 1, 3])
    missed = [row["miss"] for row in told]
    assert missed == sorted(missed, reverse=True)
    for row in told:
        kept = score >= (2 if row["threshold"] is None else row["threshold"])
        assert (kept & ~hit).sum() <= row["false_alarms"] * images + 1e-9
        assert row["miss"] == pytest.approx(1 - (kept & hit).sum() / 40)


def test_a_class_has_a_threshold_of_its_own():
    a, b = [0, 0, 10, 10], [20, 20, 40, 40]
    pair = [
        image([(0, a), (1, b)], [(0, 0.9, True, a), (1, 0.3, True, b)]),
        image([(1, b)], [(0, 0.8, False, a)]),
    ]
    assert misses(pair, at=[0])[0] == {"false_alarms": 0, "miss": pytest.approx(2 / 3), "threshold": pytest.approx(0.9)}
    assert misses(pair, of=1, at=[0])[0]["miss"] == pytest.approx(1 / 2)
    assert misses(pair, of=2, at=[0])[0]["miss"] is None


def test_what_was_seen_is_cut_at_one_false_alarm_and_relative():
    box = [20, 10, 100, 60]
    found = [(0, 0.9, True, box), (1, 0.5, False, box), (1, 0.4, False, box)]
    (row,) = seen([image([(0, box)], found)])
    assert row["truth"] == [[0, 0.1, 0.1, 0.5, 0.6]]
    assert [r[:3] for r in row["found"]] == [[0, 0.9, True], [1, 0.5, False]]
    json.dumps(row, allow_nan=False)


def test_cocos_metrics_of_a_perfect_a_blind_and_an_empty_set():
    small, large = [0, 0, 20, 20], [30, 0, 190, 90]
    truth = [(0, small), (1, large)]
    perfect = coco([image(truth, [(c, 0.9, True, box) for c, box in truth])])
    assert perfect["AP"] == perfect["AP50"] == perfect["AP small"] == perfect["AP large"] == 1
    assert perfect["AP medium"] is None, "nothing of that size is annotated"
    blind = coco([image(truth)])
    assert {name for name, value in blind.items() if value is None} == {"AP medium", "AR medium"}
    assert set(blind.values()) == {0.0, None}
    assert set(coco([image(), image()]).values()) == {None}


@pytest.fixture(scope="session")
def judged(tmp_path_factory):
    """A detector with random weights sees little; its truth with noise gives figures between 0 and 1."""
    root = tmp_path_factory.mktemp("judged")
    data = tiny_data(root, train=2, val=24)

    class Noisy(Judge):
        def update_metrics(self, preds, batch):
            import torch

            draw = torch.Generator().manual_seed(len(self.images))
            noisy = []
            for i in range(len(preds)):
                truth = self._prepare_batch(i, batch)
                boxes = truth["bboxes"] + 3 * torch.randn(truth["bboxes"].shape, generator=draw)
                wrong = torch.rand(3, 4, generator=draw) * 30 + torch.tensor([0.0, 0.0, 32.0, 32.0])
                count = len(boxes) + 3
                labels = torch.cat((truth["cls"], torch.randint(6, (3,), generator=draw).float()))
                score = torch.rand(count, generator=draw) * 0.9 + 0.05
                order = score.argsort(descending=True)
                all_boxes = torch.cat((boxes.reshape(-1, 4), wrong))
                noisy.append({"bboxes": all_boxes[order], "conf": score[order], "cls": labels[order],
                              "extra": torch.zeros(count, 0)})  # fmt: skip
            super().update_metrics(noisy, batch)

    args = dict(data=str(data), imgsz=64, batch=5, workers=0, device="cpu", plots=False, rect=True, mode="val")
    validator = Noisy(args=args, save_dir=root / "val")
    validator(model=str(make_detector(root / "detector.pt", "yolo11n.yaml")))
    return validator


def test_cocos_metrics_are_ultralytics_own_within_tolerance(judged):
    mine, box = coco(judged.images), judged.metrics.box
    assert 0.1 < box.map50 < 0.95, "a figure at an edge would compare nothing"
    assert mine["AP50"] == pytest.approx(box.map50, abs=0.02)
    assert mine["AP"] == pytest.approx(box.map, abs=0.02)


def test_findings_are_the_validators_with_hits_of_every_image(judged):
    figures = findings(judged)
    assert figures["images"] == 24 == len(judged.images)
    assert figures["mAP50-95"] == pytest.approx(judged.metrics.box.map, abs=1e-5)
    assert [c["name"] for c in figures["classes"]] == list(NAMES)
    assert sum(c["truths"] for c in figures["classes"]) == figures["truths"]
    assert [row["false_alarms"] for row in figures["misses"]] == list(FALSE_ALARMS)
    hits = sum(int(i.hit.sum()) for i in judged.images)
    (everything,) = misses(judged.images, at=[1e9])
    assert everything["miss"] == pytest.approx(1 - hits / figures["truths"])
    json.dumps(figures, allow_nan=False)


def test_boxes_are_kept_in_pixels_of_the_original_image(judged, tmp_path):
    from tskd_yolo.data.drawn import draw

    first = next(i for i in judged.images if i.file.endswith("strip_0003.png"))
    _, objects = draw((0, 1, 3), 64)
    assert sorted(map(tuple, first.truth_boxes.round().astype(int).tolist())) == sorted(o[1:] for o in objects)
    assert first.file == "images/val/strip_0003.png" and first.size == (64, 64)


def test_a_checkpoint_and_a_module_are_judged_alike(tmp_path):
    from ultralytics.nn.tasks import load_checkpoint

    data, file = tiny_data(tmp_path, train=2, val=4), make_detector(tmp_path / "detector.pt", "yolo11n.yaml")
    args = dict(data=str(data), imgsz=64, batch=4, workers=0, device="cpu")
    a, b = judge(file, tmp_path / "a", **args), judge(load_checkpoint(str(file))[0], tmp_path / "b", **args)
    assert findings(a) == findings(b) and seen(a.images) == seen(b.images)
