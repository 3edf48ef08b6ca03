"""The page: counts, contact sheets in order, names as text, nothing loaded from outside."""

from __future__ import annotations

import re

import cv2
import numpy as np
import pytest

from tests.autolabel.helpers import IMAGES, NAMES, THRESHOLDS
from tests.compare.test_report import Tags
from tskd_yolo import confidence
from tskd_yolo.autolabel import report, review
from tskd_yolo.autolabel.record import Detection, Labelled
from tskd_yolo.confidence import Detections


@pytest.fixture
def summary():
    drawn = np.random.default_rng(0)
    score = drawn.uniform(0.05, 1, 300).astype(np.float32)
    found = Detections(score, drawn.uniform(size=300) < score, np.arange(300) % 2, np.array([90, 90, 0]))
    sheets, counts = report.count(IMAGES, 3)
    return {
        "teacher": [{"name": "<t>.pt", "sha256": "0" * 64}],
        "detector": {"imgsz": 64},
        "versions": {"tskd_yolo": "0.1.0", "timm": ""},
        "measured_for": 0.9,
        "confidence": confidence.of(found, dict(enumerate(NAMES))).row(),
        "notes": ["<c>: no threshold."],
        "counts": counts,
        "classes": report.rows(NAMES, THRESHOLDS, sheets),
    }


def write(summary, folder):
    for image in IMAGES[:1]:
        cv2.imwrite(str(folder / image.name), np.full((*image.size[::-1], 3), 200, np.uint8))
    sheets, _ = report.count(IMAGES, 3)
    rows = [row for image in IMAGES if (row := review.row(image, NAMES, THRESHOLDS))]
    report.write(summary, sheets, rows, image=lambda name: folder / name, out=folder)
    return (folder / report.PAGE).read_text(encoding="utf-8")


def test_counts_are_those_of_the_images(summary):
    assert summary["counts"] == {"images": 3, "empty": 2, "uncertain": 2}
    assert [list(row.values())[2:] for row in summary["classes"]] == [[1, 1, 1], [0, 0, 1], [0, 0, 1]]
    text = report.text(summary, report.Path("out"))
    assert "3 images, 2 of them without a label, 2 to review" in text and re.search(r"<c> +none +0 +0 +1\n", text)


def test_a_page_loads_nothing_and_names_are_text(summary, tmp_path):
    text = write(summary, tmp_path)
    tags = Tags(text).tags
    assert not {tag for tag, _ in tags} & {"script", "link", "iframe"} and "default-src 'none'" in text
    images = [attributes["src"] for tag, attributes in tags if tag == "img"]
    assert len(images) == 2 and all(src.startswith("data:image/jpeg;base64,") for src in images)
    assert not [value for _, a in tags for key, value in a.items() if key in {"src", "href"} and "://" in str(value)]
    assert "<c>" not in text and "&lt;c&gt;: no threshold." in text and "&lt;t&gt;.pt" in text
    words = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text.split("<main")[1]))
    for part in ("labelled 3 images", "Reliability", "Contact sheets", "sub/y &amp; z.png", "1.50", "90 % of the"):
        assert part in words, part


def test_without_a_validation_set_there_is_a_page_too(summary, tmp_path):
    text = write({**summary, "confidence": None, "measured_for": None, "notes": []}, tmp_path)
    assert "there were no labelled images to measure its precision on" in text and "<h2>Reliability" not in text


def test_a_sheet_has_the_most_and_the_least_certain():
    sheet = report.Sheet()
    for number in range(20):
        score = 0.5 + number / 50
        found = [Detection(0, score, (0, 0, 9, 9), True), Detection(0, score - 0.4, (0, 0, 9, 9), False)]
        sheet.add(Labelled(f"{number}.png", (9, 9), found), found)
    kinds = {kind: [row.score for row in rows] for kind, rows in sheet.kinds().items()}
    assert kinds["most"] == pytest.approx([0.5 + n / 50 for n in range(19, 11, -1)])
    assert kinds["least"] == pytest.approx([0.5 + n / 50 for n in range(8)])
    assert kinds["below"] == pytest.approx([0.1 + n / 50 for n in range(19, 11, -1)])
    assert (sheet.labels, sheet.images, sheet.uncertain) == (20, 20, 20)


def test_a_crop_shows_its_box_in_the_middle():
    image = np.zeros((400, 300, 3), np.uint8)
    image[100:300, 50:150] = 200
    tile = report.crop(image, (50, 100, 150, 300))
    middle = report.TILE // 2
    assert tile.shape == (report.TILE, report.TILE, 3) and (tile[middle, middle] == 200).all()
    assert tile[2, 2].max() == 0 and (tile == report.COLOUR).all(2).any()
