"""Run-length masks in a CSV, in both of Kaggle's forms; what is none is told by its line."""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.data.helpers import SIZE, boxes, draw_image, tree
from tskd_yolo.data.convert.common import NO_BOX_LEFT, Options
from tskd_yolo.data.convert.files import ConvertError
from tskd_yolo.data.convert.rle import convert, decode

HEAD = "ImageId,ClassId,EncodedPixels"
COLUMN = "1 3"
"""The first three pixels of the first column."""


class RleFolder:
    """Images, and a CSV with a row for each."""

    def __init__(self, root: Path) -> None:
        self.images, self.csv, self.out = root / "train_images", root / "train.csv", root / "set"
        for k in range(20):
            draw_image(self.images / f"a_{k}.jpg", seed=f"a_{k}")
        self.write(*(f"a_{k}.jpg,1,{COLUMN}" for k in range(20)))

    def write(self, *rows: str, head: str = HEAD) -> None:
        self.csv.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")

    def row(self, first: str) -> None:
        """The CSV with another row for a_0.jpg."""
        self.write(first, *(f"a_{k}.jpg,1,{COLUMN}" for k in range(1, 20)))

    def convert(self, *, options: dict[str, object] | None = None, **more: object):
        return convert(self.images, self.csv, Options(out=self.out, **(options or {})), **more)


@pytest.fixture
def rle(tmp_path: Path) -> RleFolder:
    return RleFolder(tmp_path)


def encode(mask: np.ndarray) -> str:
    """Run lengths of a mask, pixel by pixel: slow and plain."""
    pixels = [value for column in range(mask.shape[1]) for value in mask[:, column]]
    words, start = [], None
    for place, value in enumerate([*pixels, 0], start=1):
        if value and start is None:
            start = place
        elif not value and start is not None:
            words += [start, place - start]
            start = None
    return " ".join(map(str, words))


@given(mask=arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 1)))
def test_decoding_undoes_encoding(mask):
    height, width = mask.shape
    assert (decode(encode(mask), (width, height), "a") == mask).all()


def test_pixels_are_counted_down_the_columns_from_one(rle):
    height = SIZE[1]
    rle.row(f"a_0.jpg,1,{2 * height + 4} 3 {3 * height + 4} 3")
    rle.convert()

    assert boxes(rle.out, "a_0") == [(0, 2, 3, 4, 6)]


def test_the_older_form_is_read_too(rle):
    rows = [f"a_{k}.jpg_{c},{COLUMN if c == 2 else ''}" for k in range(20) for c in (1, 2)]
    rle.write(*rows, head="ImageId_ClassId,EncodedPixels")
    summary = rle.convert()

    assert [*summary.boxes["train"]] == ["2"] and boxes(rle.out, "a_0") == [(0, 0, 0, 1, 3)]


def test_classes_have_the_names_that_are_given_in_their_order(rle):
    rle.row(f"a_0.jpg,4,{COLUMN}")
    rle.convert(classes={4: "dent", 1: "crack"})

    assert boxes(rle.out, "a_0")[0][0] == 0 and boxes(rle.out, "a_1")[0][0] == 1


def test_images_without_a_row_are_background_where_that_is_said(rle):
    rle.write(*(f"a_{k}.jpg,1,{COLUMN}" for k in range(1, 20)))
    with pytest.raises(ConvertError, match="^1 problem.*\n  a_0.jpg: no row in train.csv"):
        rle.convert()
    assert sum(rle.convert(options={"background": True}).images.values()) == 20
    assert boxes(rle.out, "a_0") == []


def test_small_regions_are_left_out_and_counted(rle):
    assert rle.convert(min_area=3).left_out == {}
    rle.row("a_0.jpg,1,1 2 10 4")
    assert rle.convert(min_area=3).left_out == {"regions of fewer than 3 pixels": 1}


def test_a_mask_may_be_longer_than_pythons_usual_field(rle):
    text = " ".join(["1 3", *(" " * 100 for _ in range(2000))])
    rle.row(f"a_0.jpg,1,{text}9 1")
    before = csv.field_size_limit()
    rle.convert()

    assert len(boxes(rle.out, "a_0")) == 2 and csv.field_size_limit() == before


ROWS = {
    "an odd number": ("a_0.jpg,1,1 2 3", "line 2: EncodedPixels has 3 numbers, expected pairs"),
    "no number": ("a_0.jpg,1,1 x", "line 2: EncodedPixels holds a word that is no number"),
    "zero": ("a_0.jpg,1,0 3", "line 2: EncodedPixels has the run '0 3' after pixel 0, expected ascending runs"),
    "no length": ("a_0.jpg,1,4 0", "the run '4 0'"),
    "a negative length": ("a_0.jpg,1,4 -2", "the run '4 -2'"),
    "overlap": ("a_0.jpg,1,4 5 8 2", "the run '8 2' after pixel 8"),
    "beyond the image": ("a_0.jpg,1,799 3", "line 2: EncodedPixels leads to pixel 801, the image has 40 x 20"),
    "a huge number": (f"a_0.jpg,1,{'9' * 5000} 3", "line 2: EncodedPixels holds a word that is no number"),
    "another class": (f"a_0.jpg,7,{COLUMN}", "line 2: ClassId '7' is not one of 1"),
    "no class": (f"a_0.jpg,,{COLUMN}", "line 2: has no image or no class"),
    "no image": (f",1,{COLUMN}", "line 2: has no image or no class"),
    "a missing image": (f"b.jpg,1,{COLUMN}", "line 2: no image b.jpg in"),
    "an image elsewhere": (f"../b.jpg,1,{COLUMN}", "line 2: no image ../b.jpg in"),
}


@pytest.mark.parametrize(("row", "message"), ROWS.values(), ids=ROWS.keys())
def test_a_row_with_a_problem_is_told_and_skipped_if_asked(row, message, rle):
    rle.row(row)

    with pytest.raises(ConvertError) as error:
        rle.convert(classes={1: "crack"}, options={"background": True})
    (problem,) = error.value.problems
    assert problem.startswith("train.csv, ") and message in problem and not rle.out.exists()
    summary = rle.convert(classes={1: "crack"}, options={"background": True, "skip": True})
    broken = row.startswith("a_0.jpg")  # something is on this image, so it is no background
    assert summary.skipped == [problem] and sum(summary.images.values()) == 20 - broken
    assert summary.left_out == ({NO_BOX_LEFT: 1} if broken else {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has the columns none, expected ImageId,ClassId,EncodedPixels or"),
        (b"a,b\n1,2\n", "has the columns a, b, expected"),
        (b"\xff\xfe\x00", "not readable as CSV"),
    ],
)
def test_a_csv_of_something_else_is_told(content, message, rle):
    rle.csv.write_bytes(content)
    with pytest.raises(ConvertError, match=f"train.csv: {message}"):
        rle.convert(options={"background": True})


@pytest.fixture(scope="module")
def fuzzed():
    with tempfile.TemporaryDirectory() as root:
        yield RleFolder(Path(root))


WORD = st.sampled_from(["a_0.jpg", "a_1.jpg", "1", "2", ""]) | st.text(max_size=4)
PIXELS = st.lists(st.integers(-2, 900), max_size=6).map(lambda numbers: " ".join(map(str, numbers)))
ROW = st.tuples(WORD, WORD, PIXELS | WORD).map(",".join)
ANY_CSV = st.lists(ROW, max_size=4).map(lambda rows: "\n".join([HEAD, *rows]).encode("utf-8", "replace"))


@pytest.mark.slow
@settings(max_examples=80, suppress_health_check=list(HealthCheck))
@given(content=ANY_CSV | st.binary(max_size=80))
@example(content=HEAD.encode() + b'\na_0.jpg,1,"1 2')
@example(content=HEAD.encode() + b"\na_0.jpg,1,1 2,3,4\n")
def test_any_csv_gives_a_data_set_or_an_error(fuzzed, content):
    fuzzed.csv.write_bytes(content)
    before = tree(fuzzed.out)
    try:
        summary = fuzzed.convert(options={"background": True, "names": ["1"]})
    except ConvertError as error:
        assert error.problems and tree(fuzzed.out) == before
    else:
        assert sum(summary.images.values()) == 20 and not summary.skipped
