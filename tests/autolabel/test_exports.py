"""Files for CVAT and Label Studio give the same boxes back."""

from __future__ import annotations

import json

import pytest
from defusedxml import ElementTree

from tests.autolabel.helpers import IMAGES, NAMES
from tskd_yolo.autolabel import exports

LABELS = {image.name: [(NAMES[found.label], found.box) for found in image.labels] for image in IMAGES}


def test_cvat_reads_the_same_boxes(tmp_path):
    root = ElementTree.parse(exports.cvat(IMAGES, NAMES, 3, "t.pt", tmp_path)).getroot()
    assert root.tag == "annotations" and root.findtext("version") == "1.1" and root.findtext("meta/task/size") == "3"
    assert [label.text for label in root.findall("meta/task/labels/label/name")] == NAMES
    found = {}
    for number, image in enumerate(root.findall("image")):
        assert image.get("id") == str(number)
        corners = ("xtl", "ytl", "xbr", "ybr")
        boxes = [(box.get("label"), tuple(float(box.get(c)) for c in corners)) for box in image.findall("box")]
        found[image.get("name")] = boxes
    assert found == LABELS and (root.find("image").get("width"), root.find("image").get("height")) == ("100", "50")


def test_label_studio_reads_the_same_boxes(tmp_path):
    tasks = json.loads(exports.labelstudio(IMAGES, NAMES, 3, "t.pt", tmp_path).read_text(encoding="utf-8"))
    assert [task["data"]["image"].partition("?d=")[2] for task in tasks] == [
        "images/train/x.png", "images/train/sub/y%20%26%20z.png", "images/train/z.png",
    ]  # fmt: skip
    for image, task in zip(IMAGES, tasks):
        (prediction,) = task["predictions"]
        assert prediction["model_version"] == "t.pt" and len(prediction["result"]) == len(image.labels)
        for result, label in zip(prediction["result"], image.labels):
            value, (width, height) = result["value"], (result["original_width"], result["original_height"])
            x, y = value["x"] * width / 100, value["y"] * height / 100
            box = (x, y, x + value["width"] * width / 100, y + value["height"] * height / 100)
            assert (width, height) == image.size and box == pytest.approx(label.box, abs=1e-3)
            assert value["rectanglelabels"] == [NAMES[label.label]] and result["score"] == label.score
    assert tasks[0]["predictions"][0]["score"] == 0.9 and tasks[1]["predictions"][0]["score"] == 0.0


def test_a_file_takes_its_place_when_it_is_whole(tmp_path):
    def broken():
        yield IMAGES[0]
        raise OSError("gone")

    (tmp_path / "cvat.xml").write_text("before")
    with pytest.raises(OSError, match="gone"):
        exports.cvat(broken(), NAMES, 3, "t.pt", tmp_path)
    assert (tmp_path / "cvat.xml").read_text() == "before" and len(list(tmp_path.iterdir())) == 1
