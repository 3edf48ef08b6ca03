"""What to review: the formula by hand, and the most uncertain image first."""

from __future__ import annotations

import csv

import pytest

from tests.autolabel.helpers import IMAGES, NAMES, THRESHOLDS
from tskd_yolo.autolabel import review


def test_uncertainty_is_that_by_hand():
    found = [review.uncertainty(image, THRESHOLDS) for image in IMAGES]
    assert found == [pytest.approx(2 * 0.45 / 0.6 - 1), pytest.approx(1 + 2 * 0.6 / 0.8 - 1), 0]


def test_the_list_has_the_most_uncertain_first(tmp_path):
    rows = [row for image in IMAGES if (row := review.row(image, NAMES, THRESHOLDS))]
    review.write(rows, tmp_path)
    with open(tmp_path / review.FILE, encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["image"] for row in table] == ["sub/y & z.png", "x.png"]
    assert table[0] == {"image": "sub/y & z.png", "uncertainty": "1.5", "detections": "2", "nearest_class": "<c>",
                        "score": "0.5", "threshold": "0.5"}  # fmt: skip


def test_images_without_a_doubt_are_a_list_for_training(tmp_path):
    review.write_certain((image.name for image in IMAGES if not image.uncertain), tmp_path)
    assert (tmp_path / review.CERTAIN).read_text() == "./images/train/z.png\n"
