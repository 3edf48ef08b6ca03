"""Teachers as one detector: classes brought together, boxes fused as by hand, mistakes told."""

from __future__ import annotations

import pytest
import torch
import yaml

from tskd_yolo.autolabel import teachers
from tskd_yolo.autolabel.plan import checked
from tskd_yolo.config import ConfigError


def plan(*files, **more):
    base = {"source": "s", "out": "o", "device": "cpu", "imgsz": 64, "conf": 0.5}
    return checked({**base, "teacher": [str(file) for file in files], **more})


def said(*rows):
    boxes, scores, labels = ([row[i] for row in rows] for i in range(3))
    return {"bboxes": torch.tensor(boxes).reshape(-1, 4), "conf": torch.tensor(scores), "cls": torch.tensor(labels)}


def test_two_teachers_are_fused_as_by_hand():
    first = [said(((0.0, 0.0, 40.0, 40.0), 0.9, 0.0), ((60.0, 60.0, 90.0, 90.0), 0.5, 1.0))]
    second = [said(((0.0, 0.0, 40.0, 48.0), 0.3, 0.0), ((60.0, 60.0, 90.0, 90.0), 0.4, 2.0))]
    (found,) = teachers.fuse([first, second], teachers.groups([[0, 1], [0, 1, 2]]), (100, 200))
    # Class 0: both, corners weighted by score. Class 1: one of the two that know it. Class 2: the only one that does.
    assert found["cls"].tolist() == [0, 2, 1] and found["conf"].tolist() == pytest.approx([0.6, 0.4, 0.25])
    lower = (0.9 * 40 + 0.3 * 48) / 1.2
    assert found["bboxes"].tolist()[0] == pytest.approx([0, 0, 40, lower], abs=1e-3)


def test_what_one_of_several_hardly_sees_is_left_out():
    low, nothing = [said(((0.0, 0.0, 40.0, 40.0), 0.06, 0.0), ((5.0, 5.0, 5.0, 9.0), 0.9, 0.0))], [said()]
    (found,) = teachers.fuse([low, nothing], teachers.groups([[0], [0]]), (64, 64))
    assert len(found["conf"]) == 0 and found["bboxes"].shape == (0, 4)
    (found,) = teachers.fuse([nothing, nothing], teachers.groups([[0], [0]]), (64, 64))
    assert len(found["cls"]) == 0


def test_one_teacher_and_two_look_at_images(sure, sure_too):
    alone = teachers.load(plan(sure), None)
    images = torch.rand(2, 3, 64, 64)
    own = alone.look()(images)
    assert alone.names[2] == "patches" and "fusion" not in alone.settings() and len(own) == 2
    both = teachers.load(plan(sure, sure_too), None)
    found = both.look()(images)
    assert both.settings()["fusion"]["iou"] == 0.55 and [len(f["sha256"]) for f in both.files] == [64, 64]
    assert all((each["conf"].diff() <= 0).all() and len(each["conf"]) for each in [*own, *found])


def test_augmentation_reaches_the_detector(sure):
    images = torch.rand(1, 3, 64, 64)
    plain, more = (teachers.load(plan(sure, augment=flag), None).look()(images)[0] for flag in (False, True))
    assert not torch.equal(plain["conf"][:5], more["conf"][:5])


def test_classes_are_those_of_the_data(sure, tmp_path):
    (tmp_path / "map.yaml").write_text(yaml.safe_dump({"crazing": "net", "patches": None}))
    data = {"names": {0: "scratches", 1: "net", 2: "else"}, "channels": 3}
    found = teachers.load(plan(sure, data="d.yaml", classes_map=str(tmp_path / "map.yaml")), data)
    assert found.names == data["names"] and found.classes[0].members == [[5], [0], []]
    assert {*found.look()(torch.rand(1, 3, 64, 64))[0]["cls"].tolist()} <= {0.0, 1.0}
    (tmp_path / "map.yaml").write_text(yaml.safe_dump({"cracks": "net"}))
    with pytest.raises(ConfigError, match="the teacher has no class 'cracks'"):
        teachers.load(plan(sure, data="d.yaml", classes_map=str(tmp_path / "map.yaml")), data)


def test_teachers_that_cannot_label_are_refused(sure, detector, tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.pt was not found"):
        teachers.load(plan(sure, tmp_path / "gone.pt"), None)
    with pytest.raises(ConfigError, match=r"sure\.pt knows none of the data's classes"):
        teachers.load(plan(sure, data="d.yaml"), {"names": {0: "cat"}, "channels": 3})
    with pytest.raises(ConfigError, match=r"the head of yolov10n-7\.pt has no test-time augmentation"):
        teachers.load(plan(detector("yolov10n.yaml"), augment=True), None)
    with pytest.raises(ConfigError, match="takes images of 3 channels and the data has 5"):
        teachers.load(plan(sure, data="d.yaml"), {"names": {0: "patches"}, "channels": 5})


def test_the_size_is_that_of_the_teachers_training(sure, sure_too, tmp_path):
    assert teachers.load(plan(sure, imgsz=None), None).imgsz == 64
    content = torch.load(sure_too, weights_only=False)
    content["train_args"]["imgsz"] = 96
    torch.save(content, tmp_path / "small.pt")
    assert teachers.load(plan(tmp_path / "small.pt", imgsz=None), None).imgsz == 96
    with pytest.raises(ConfigError, match=r"trained at different sizes \(sure\.pt 64, small\.pt 96\); give imgsz="):
        teachers.load(plan(sure, tmp_path / "small.pt", imgsz=None), None)
