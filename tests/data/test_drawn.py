"""Drawn strip images: the same for everybody, with boxes that fit what was drawn."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.data.helpers import tree
from tskd_yolo.data import drawn
from tskd_yolo.data.drawn import KINDS, NAMES, draw, prepare
from tskd_yolo.data.sets import NEU_NAMES


def test_classes_are_those_of_neu_in_the_same_order():
    assert NAMES == NEU_NAMES


@pytest.mark.parametrize("size", [64, 128, 200])
def test_an_image_is_grey_and_its_boxes_lie_on_it(size):
    for seed in range(20):
        image, objects = draw(seed, size)

        assert image.shape == (size, size, 3) and image.dtype == np.uint8
        assert (image == image[..., :1]).all()
        assert len(objects) <= 4
        for index, x1, y1, x2, y2 in objects:
            assert 0 <= index < len(NAMES)
            assert 0 <= x1 < x2 <= size and 0 <= y1 < y2 <= size


def test_an_image_too_small_for_fine_defects_is_refused():
    with pytest.raises(ValueError, match="at least 64 pixels, got 32"):
        draw(0, 32)


def test_one_seed_gives_one_image_and_another_seed_another():
    first, boxes = draw(3)
    again, same_boxes = draw(3)

    assert (first == again).all() and boxes == same_boxes
    assert (first != draw(4)[0]).any()


def test_every_class_and_background_images_occur():
    objects = [draw((0, 0, number))[1] for number in range(120)]

    assert {index for found in objects for index, *_ in found} == set(range(len(NAMES)))
    assert 1 <= sum(not found for found in objects) <= 24
    assert max(map(len, objects)) == 4


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(8))
def test_a_defect_fills_its_box_and_hardly_shows_outside(name, seed):
    canvas = np.full((128, 128), 120, np.float32)

    x1, y1, x2, y2 = KINDS[name].draw(canvas, np.random.default_rng(seed), (30, 20, 80, 100))

    change = np.abs(canvas - 120)
    inside = change[y1:y2, x1:x2]
    edges = (inside[0], inside[-1], inside[:, 0], inside[:, -1])
    assert min(edge.max() for edge in edges) > drawn.VISIBLE * change.max()
    inside[:] = 0
    assert change.max() <= 15
    assert (x1, y1) >= (30, 20) and x2 <= 80 and y2 <= 100


@pytest.mark.parametrize("name", NAMES)
def test_defects_can_be_seen(name):
    for seed in range(8):
        canvas = np.full((128, 128), 120, np.float32)

        KINDS[name].draw(canvas, np.random.default_rng(seed), (30, 20, 80, 100))

        assert np.abs(canvas - 120).max() > 15


def test_the_set_is_the_same_every_time(tmp_path):
    prepare(tmp_path / "a", train=6, val=3)
    first = tree(tmp_path / "a")
    prepare(tmp_path / "a", train=6, val=3)

    assert tree(tmp_path / "a") == first
    assert sum(name.endswith(".png") for name in first) == sum(name.endswith(".txt") for name in first) == 9


def test_validation_images_do_not_depend_on_training_images(tmp_path):
    prepare(tmp_path / "a", train=2, val=3)
    prepare(tmp_path / "b", train=5, val=3)

    assert tree(tmp_path / "a/images/val") == tree(tmp_path / "b/images/val")
    assert not set(tree(tmp_path / "b/images/train").values()) & set(tree(tmp_path / "b/images/val").values())


def test_test_images_change_no_other(tmp_path):
    prepare(tmp_path / "a", train=2, val=3)
    prepare(tmp_path / "b", train=2, val=3, test=4)

    asked, others = tree(tmp_path / "b/images/test"), tree(tmp_path / "b/images")
    assert len(set(asked.values())) == 4 and len({*others.values()}) == 2 + 3 + 4
    assert tree(tmp_path / "a/images/train") == tree(tmp_path / "b/images/train")
    assert tree(tmp_path / "a/images/val") == tree(tmp_path / "b/images/val")
    assert "test: images/test" in (tmp_path / "b/data.yaml").read_text()
    assert "test:" not in (tmp_path / "a/data.yaml").read_text()


def test_labels_are_the_boxes_as_shares_of_the_image(tmp_path):
    prepare(tmp_path / "a", train=4, val=1, size=64, seed=5)

    for number in range(4):
        lines = (tmp_path / f"a/labels/train/strip_{number:04d}.txt").read_text().splitlines()
        for line, (index, x1, y1, x2, y2) in zip(lines, draw((5, 0, number), 64)[1], strict=True):
            expected = [index, (x1 + x2) / 128, (y1 + y2) / 128, (x2 - x1) / 64, (y2 - y1) / 64]
            assert [float(word) for word in line.split()] == pytest.approx(expected)


def test_a_foreign_folder_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")

    with pytest.raises(FileExistsError, match="not made by tskd-yolo"):
        prepare(tmp_path, train=1, val=1)


def test_ultralytics_prepares_the_set_from_its_yaml(tmp_path, monkeypatch):
    from ultralytics.data import utils

    monkeypatch.setattr(utils, "DATASETS_DIR", tmp_path)
    monkeypatch.setattr(drawn, "prepare", partial(prepare, train=5, val=3))  # the whole set takes seconds
    data = utils.check_det_dataset(str(Path(__file__).parents[2] / "datasets/demo.yaml"))

    assert data["path"] == tmp_path / "tskd-demo"
    assert tuple(data["names"].values()) == NAMES
    assert len(list(Path(data["train"]).iterdir())) == 5
    assert len(list(Path(data["val"]).iterdir())) == 3
