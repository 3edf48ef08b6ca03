"""What others wrote is read or named: images, JSON, folders of them."""

from __future__ import annotations

import math
import pickle
import shutil

import pytest
from PIL import Image
from ultralytics.utils.patches import imread

from tests.data.helpers import draw_image
from tskd_yolo.data.convert.files import (
    IMAGES,
    ConvertError,
    Notes,
    by_stem,
    content_fraction,
    files_below,
    image_size,
    inside,
    is_file,
    number,
    read_json,
)


def test_the_error_survives_a_trip_to_another_process():
    error = ConvertError("a.xml: one.", "b.xml: two.")
    assert pickle.loads(pickle.dumps(error)).problems == ("a.xml: one.", "b.xml: two.")
    assert str(error) == "2 problem(s) in the data to convert:\n  a.xml: one.\n  b.xml: two."


def test_of_very_many_problems_the_rest_is_a_number():
    said = str(ConvertError(*(f"{k}.xml: bad." for k in range(1201))))
    assert said.startswith("1,201 problem(s)") and said.endswith("199.xml: bad.\n  and 1,001 more.")


def test_files_are_told_by_their_path_below_the_folder(tmp_path):
    for name in ("b.png", "a/c.JPG", "a/._c.jpg", ".hidden/d.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    notes = Notes()

    assert list(files_below(tmp_path, IMAGES, notes)) == ["a/c.JPG", "b.png"] and not notes.problems
    assert files_below(tmp_path / "nowhere", IMAGES, notes) == {} and "no such folder" in notes.problems[0]


def test_folders_that_are_links_are_read_once(tmp_path):
    folder, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    for name in ("in/own/a.png", "in/first/d.png", "elsewhere/deep/b.png", "elsewhere/.hidden/c.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    (folder / "link").symlink_to(elsewhere)
    (folder / "again").symlink_to(folder / "own")
    (folder / "first" / "again").symlink_to(folder / "own")
    (folder / "itself").symlink_to("itself")
    (elsewhere / "circle").symlink_to(folder)
    assert list(files_below(folder, IMAGES, Notes())) == ["first/d.png", "link/deep/b.png", "own/a.png"]


def test_copies_are_one_file_and_others_of_its_stem_are_none(tmp_path):
    for name in ("a/1.png", "a/2.png", "b/2.png"):
        draw_image(tmp_path / name)
    shutil.copy(tmp_path / "a/1.png", tmp_path / "b")
    Image.open(tmp_path / "a/1.png").save(tmp_path / "b/1.bmp")
    notes = Notes()

    found, unclear = by_stem(tmp_path, IMAGES, notes)
    assert [*found] == ["1"] and unclear == {"2"}
    assert notes.left_out == {"copies of a file in another folder": 2}
    assert len(notes.problems) == 1 and notes.problems[0].startswith("b/2.png: a/2.png has the same stem")


def test_a_broken_image_is_no_copy(tmp_path):
    draw_image(tmp_path / "a.png")
    (tmp_path / "a.bmp").write_bytes(b"nothing")
    notes = Notes()

    assert by_stem(tmp_path, IMAGES, notes) == ({}, {"a"}) and len(notes.problems) == 1


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("a.png", "a.png"), ("a/./b.png", "a/b.png"), ("a/../b.png", "b.png"), ("a\\b.png", "a/b.png"),
        ("../b.png", None), ("a/../../b.png", None), ("..", None), ("/etc/passwd", None), ("\\\\host\\b.png", None),
    ],
)  # fmt: skip
def test_a_name_that_leads_out_of_a_folder_is_none(name, path, tmp_path):
    assert inside(tmp_path, name) == (None if path is None else tmp_path / path)


def test_a_name_that_no_file_can_have_is_no_file(tmp_path):
    assert not is_file(tmp_path / "a\0b") and not is_file(tmp_path / ("a" * 5000))


def test_the_size_is_as_ultralytics_sees_it(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (40, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert image_size(tmp_path / "a.jpg", "a.jpg") == (20, 40)
    (tmp_path / "b.jpg").write_bytes(b"\xff\xd8nothing")
    with pytest.raises(ConvertError, match="x/b.jpg: not readable as an image"):
        image_size(tmp_path / "b.jpg", "x/b.jpg")


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_turned_image_has_the_size_that_is_read(suffix, orientation, tmp_path):
    exif, file = Image.Exif(), tmp_path / f"a.{suffix}"
    exif[0x0112] = orientation
    Image.new("RGB", (40, 20)).save(file, exif=exif)
    height, width, _ = imread(str(file)).shape
    assert image_size(file, "a") == (width, height)


def test_the_fraction_is_of_the_content_alone(tmp_path):
    first = draw_image(tmp_path / "a.png")
    shutil.copy(first, tmp_path / "b.bin")
    assert content_fraction(first) == content_fraction(tmp_path / "b.bin")
    fractions = sorted(content_fraction(draw_image(tmp_path / f"{k}.png")) for k in range(100))
    assert len(set(fractions)) == 100 and all(0 <= value < 1 for value in fractions)
    assert max(abs(value - k / 100) for k, value in enumerate(fractions)) < 0.2


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"{", "not readable"), (b"", "not readable"), (b"\xff\xfe{}", "not readable"), (b"[1]", "holds a list"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not readable"), (b"[" * 100_000, "not readable"), (b"null", "holds a None"),
    ],
    ids=repr,
)  # fmt: skip
def test_a_json_without_an_object_is_told(content, word, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ConvertError, match=f"a.json: {word}"):
        read_json(tmp_path / "a.json", "a.json")


def test_a_json_with_a_mark_in_front_is_read(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "a.json", "a.json") == {"a": 1}


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, 1.0), ("1.5", 1.5), (True, math.nan), (None, math.nan), ("x", math.nan), ([1], math.nan), (10**400, math.nan)],
    ids=lambda value: str(value)[:9],
)
def test_what_is_no_number_is_nan(value, expected):
    assert number(value) == pytest.approx(expected, nan_ok=True)


def test_images_are_those_that_ultralytics_reads():
    from ultralytics.data.utils import IMG_FORMATS

    assert {suffix.removeprefix(".") for suffix in IMAGES} == IMG_FORMATS
