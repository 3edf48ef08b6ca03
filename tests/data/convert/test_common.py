"""Checking, splitting by content and writing, whatever the layout."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.data.helpers import SIZE, boxes, draw_image, placed
from tskd_yolo.data.convert.common import Box, Found, Options, build
from tskd_yolo.data.convert.files import ConvertError, Notes


def found(root: Path, *names: str, **more: object) -> list[Found]:
    """Images of their own content, each with a box."""
    return [
        Found(draw_image(root / name), name, [Box(name, "hole", (4, 5, 12, 15))], name, **more)  # type: ignore[arg-type]
        for name in names
    ]


def convert(items: list[Found], out: Path, notes: Notes | None = None, **more: object):
    sources = [item.image.parent for item in items]
    return build(items, notes or Notes(), Options(out=out, **more), sources=sources)  # type: ignore[arg-type]


NAMES = [f"{k}.png" for k in range(200)]


def test_the_shares_are_of_the_images(tmp_path):
    summary = convert(found(tmp_path / "a", *NAMES), tmp_path / "out", val=0.2, test=0.3)

    assert 25 <= summary.images["val"] <= 55 and 42 <= summary.images["test"] <= 78
    assert sum(summary.images.values()) == 200


def test_an_image_keeps_its_split_whatever_else_there_is(tmp_path):
    convert(found(tmp_path / "a", *NAMES), tmp_path / "out")
    before = placed(tmp_path / "out")
    few = found(tmp_path / "a", *NAMES[:100])
    convert(few, tmp_path / "out")

    assert placed(tmp_path / "out").items() <= before.items()


def test_a_test_split_takes_nothing_from_val(tmp_path):
    convert(found(tmp_path / "a", *NAMES), tmp_path / "one")
    convert(found(tmp_path / "a", *NAMES), tmp_path / "two", test=0.4)

    one, two = placed(tmp_path / "one"), placed(tmp_path / "two")
    assert {k for k, v in one.items() if v == "val"} == {k for k, v in two.items() if v == "val"}


def test_two_copies_of_an_image_are_never_in_two_splits(tmp_path):
    first = found(tmp_path / "a", *NAMES[:60])
    copies = []
    for item in first:
        name = f"copy_{item.name}"
        shutil.copy(item.image, tmp_path / "a" / name)
        copies.append(Found(tmp_path / "a" / name, name, item.boxes, name))
    convert([*first, *copies], tmp_path / "out", test=0.2)

    split = placed(tmp_path / "out")
    assert all(split[f"copy_{k}"] == split[str(k)] for k in range(60)) and len(set(split.values())) == 3


def test_a_layout_decides_among_which_splits(tmp_path):
    fixed = found(tmp_path / "a", *NAMES[:50], among=("test",))
    divided = found(tmp_path / "b", *[f"b{name}" for name in NAMES[:50]], among=("train", "val"))
    convert([*fixed, *divided], tmp_path / "out", val=0.5, test=0.3)

    split = placed(tmp_path / "out")
    assert {split[str(k)] for k in range(50)} == {"test"} and {split[f"b{k}"] for k in range(50)} == {"train", "val"}


def two(root: Path) -> list[Found]:
    return [*found(root, "a.png", among=("train",)), *found(root, "b.png", among=("val",))]


def test_images_of_one_name_get_their_folders_into_it(tmp_path):
    items = [*found(tmp_path / "in", "x/1.png", "y/1.png", "2.png", among=("train",)), *two(tmp_path / "in")]
    convert(items, tmp_path / "out")

    assert sorted(placed(tmp_path / "out")) == ["2", "a", "b", "x__1", "y__1"]
    assert boxes(tmp_path / "out", "x__1") == [(0, 4, 5, 12, 15)]


def test_names_that_differ_in_letter_case_only_are_told(tmp_path):
    items = [*found(tmp_path / "in", "c.png", "C.png", "c.bmp", among=("train",)), *two(tmp_path / "in")]
    with pytest.raises(ConvertError) as error:
        convert(items, tmp_path / "out")
    assert [problem.partition(":")[0] for problem in error.value.problems] == ["C.png", "c.bmp"]


BOXES = {
    "no number": ((1, 2, float("nan"), 9), "expected four finite numbers"),
    "infinity": ((1, 2, float("inf"), 9), "expected four finite numbers"),
    "no area": ((3, 2, 3, 9), "is empty or inverted"),
    "inverted": ((1, 9, 9, 1), "is empty or inverted"),
    "outside": ((41, 1, 50, 9), f"lies outside the image of {SIZE[0]} x {SIZE[1]}"),
}


@pytest.mark.parametrize(("corners", "message"), BOXES.values(), ids=BOXES.keys())
def test_a_box_that_is_none_is_told_or_left_out(corners, message, tmp_path):
    items = two(tmp_path / "in")
    items[0] = Found(
        items[0].image, "a.png", [Box("a.txt, line 1", "hole", corners), *items[0].boxes], "", None, ("train",)
    )

    with pytest.raises(ConvertError, match=f"a.txt, line 1: .*{message}"):
        convert(items, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    summary = convert(items, tmp_path / "out", skip=True)
    assert len(summary.skipped) == 1 and boxes(tmp_path / "out", "a") == [(0, 4, 5, 12, 15)]


def test_what_was_left_out_on_purpose_stops_nothing_and_is_said(tmp_path):
    notes = Notes()
    notes.left_out.update({"crowds": 3, "nothing": 0})

    summary = convert(two(tmp_path / "in"), tmp_path / "out", notes)

    assert summary.left_out == {"crowds": 3}
    assert "; left out: 3 crowds\nboxes per class: hole 2" in str(summary)


def test_an_image_that_goes_while_it_is_read_is_told(tmp_path):
    items = [*two(tmp_path / "in"), *found(tmp_path / "in", "c.png")]
    items[2].image.unlink()

    with pytest.raises(ConvertError, match="c.png: not readable as an image"):
        convert(items, tmp_path / "out")


@pytest.mark.parametrize("place", ["in", "in/out", "in/more/out", "."])
def test_the_new_folder_is_apart_from_what_is_read(place, tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(FileExistsError, match="Choose another folder"):
        convert(two(tmp_path / "in"), tmp_path / place)
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["a.png", "b.png", "in"]


@pytest.mark.parametrize("val", [0, 1, -0.1, 1.5, float("nan")])
def test_a_share_that_leaves_a_split_empty_is_refused(val, tmp_path):
    with pytest.raises(ValueError, match="val must be a share between 0 and 1"):
        Options(out=tmp_path, val=val)


@pytest.mark.parametrize("test", [-0.1, 0.8, 1, float("nan")])
def test_a_test_share_that_leaves_nothing_is_refused(test, tmp_path):
    with pytest.raises(ValueError, match="test must be a share from 0 to below 1 - val"):
        Options(out=tmp_path, test=test)


@pytest.mark.parametrize("names", [[], ["hole", "hole"]])
def test_names_must_be_different(names, tmp_path):
    with pytest.raises(ValueError, match="different class names"):
        Options(out=tmp_path, names=names)
