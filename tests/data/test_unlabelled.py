"""Images without labels: the share of a batch, the order, the same views for the same seed, and unreadable files."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from ultralytics.data.utils import check_det_dataset

from tests.data.helpers import stock
from tskd_yolo.data.unlabelled import Flow, Stream, UnlabelledSet, joined, parts, read


@pytest.fixture
def pictures(tmp_path) -> list[str]:
    """Seven images of several sizes, each of one grey level."""
    (tmp_path / "un").mkdir()
    names = [str(tmp_path / "un" / f"{i}.png") for i in range(7)]
    for i, name in enumerate(names):
        cv2.imwrite(name, np.full((40 + 10 * i, 60, 3), 30 * i, np.uint8))
    return names


def make(files: list[str], data: Path, **more) -> UnlabelledSet:
    return UnlabelledSet(files, data=check_det_dataset(str(data)), args=stock(data, **more)[1], imgsz=64)


def flow(files: list[str], data: Path, **more) -> Flow:
    given = dict(batch=3, seed=0, views=None, workers=0)
    return Flow(make(files, data), **{**given, **more})


@pytest.mark.parametrize(
    ("batch", "share", "expected"),
    [(32, 0.5, (16, 16)), (32, 0.25, (24, 8)), (2, 0.9, (1, 1)), (3, 0.01, (2, 1)), (5, 0.5, (3, 2)), (1, 0.5, (1, 1))],
)
def test_a_share_of_a_batch_is_rounded_and_never_empty(batch, share, expected):
    assert parts(batch, share) == expected


def test_every_pass_has_every_image_and_each_process_its_own(pictures, data):
    views = flow(pictures, data).views
    one = Stream(views, batch=4, seed=3)
    numbers = [number for batch in islice(one, 7) for number in batch]  # 28 places, four passes
    for passed in range(4):
        part = numbers[7 * passed : 7 * passed + 7]
        assert sorted(number % 7 for number in part) == list(range(7)) and {n // 7 for n in part} == {passed}
    both = [Stream(views, batch=2, seed=3, rank=rank, processes=2) for rank in range(2)]
    halves = [list(islice(stream, 7)) for stream in both]
    assert [n for pair in zip(*halves, strict=True) for batch in pair for n in batch] == numbers
    later = Stream(views, batch=4, seed=3)
    later.step = 5
    assert [n for batch in islice(later, 2) for n in batch] == numbers[20:]
    assert list(islice(Stream(views, batch=4, seed=4), 7)) != [numbers[i : i + 4] for i in range(0, 28, 4)]


@pytest.mark.slow
def test_a_step_has_the_same_images_whoever_reads_them(pictures, data):
    first = flow(pictures, data)
    batches = [first.batch(step) for step in range(4)]
    later, two = flow(pictures, data), flow(pictures, data, workers=2)
    torch.rand(3)
    assert torch.equal(later.batch(2)["img"], batches[2]["img"])
    for step in range(4):
        batch = two.batch(step)
        assert torch.equal(batch["img"], batches[step]["img"]) and batch["im_file"] == batches[step]["im_file"]
    two.close()
    assert not torch.equal(flow(pictures, data, seed=1).batch(0)["img"], batches[0]["img"])
    state = torch.get_rng_state()
    first.batch(4)
    assert torch.equal(torch.get_rng_state(), state), "labelled images are augmented as if there were no others"


def test_they_have_no_box_and_are_augmented_among_themselves(pictures, data):
    item = make(pictures, data, mosaic=1.0)[2]
    assert item["img"].shape == (3, 64, 64) and item["cls"].shape == (0, 1) and item["bboxes"].shape == (0, 4)
    plain = flow(pictures, data)
    plain.close_mosaic(stock(data, mosaic=1.0)[1])
    assert plain.batch(0)["img"].shape == (3, 3, 64, 64) and plain.views.closed


def test_nothing_is_read_or_listed_before_it_is_asked_for(data):
    class Million:
        def __len__(self):
            return 1_000_000

        def __getitem__(self, i):
            raise AssertionError("asked")

    dataset = make(Million(), data)
    assert len(dataset) == len(dataset.labels) == 1_000_000


def cv2_written(file: Path, image: np.ndarray) -> str:
    cv2.imwrite(str(file), image)
    return str(file)


def test_an_unreadable_image_is_named_and_another_stands_for_it(pictures, data, tmp_path):
    Path(pictures[2]).write_bytes(b"no image")
    Path(pictures[3]).unlink()
    Path(pictures[4]).write_bytes(b"")
    found = flow(pictures, data, batch=7)
    for step in range(3):
        assert found.batch(step)["img"].shape[0] == 7
    assert set(found.missing) == set(pictures[2:5])
    dataset = make(pictures, data)
    four = np.zeros((20, 20, 4), np.uint8)
    assert read(cv2_written(tmp_path / "four.png", four), 4).shape == (20, 20, 4)
    assert read(cv2_written(tmp_path / "deep.png", np.full((9, 9, 4), 256, np.uint16)), 4).dtype == np.uint8
    assert read(cv2_written(tmp_path / "three.png", four[..., :3]), 4) is None, "of other channels than the data"
    image, size, _ = dataset.load_image(2)
    assert size == (90, 60) and image.shape == (64, 43, 3) and dataset.unreadable == pictures[2:5]


def test_a_folder_of_nothing_readable_gives_grey_images(tmp_path, data):
    (tmp_path / "a.jpg").write_bytes(b"x")
    found = flow([str(tmp_path / "a.jpg")], data, batch=2)
    assert found.batch(0)["img"].shape[0] == 2 and list(found.missing) == [str(tmp_path / "a.jpg")]
    assert (make([str(tmp_path / "a.jpg")], data).load_image(0)[0] == 114).all()


def test_a_joined_batch_has_labelled_images_first(pictures, data):
    views = flow(pictures, data)
    own = stock(data)[0]
    labelled = own.collate_fn([own[i] for i in range(2)])
    other = views.batch(0)
    batch = joined({**labelled, "view": [4, 5]}, other, torch.device("cpu"), views=100)
    assert batch["labelled"] == 2 and batch["img"].shape[0] == 5 and torch.equal(batch["img"][2:], other["img"])
    assert batch["im_file"] == [*labelled["im_file"], *other["im_file"]]
    assert batch["view"] == [4, 5, *(100 + number for number in other["view"])]
    assert batch["bboxes"] is labelled["bboxes"] and Counter(batch["batch_idx"].tolist()).keys() <= {0, 1}
