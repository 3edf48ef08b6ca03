"""DeepPCB's layout: groups, lists whose names lack ``_test``, and lines of boxes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.helpers import boxes, draw_image, placed
from tskd_yolo.data.convert.common import Options
from tskd_yolo.data.convert.deeppcb import TYPES, convert, read_boxes, root_of
from tskd_yolo.data.convert.files import ConvertError

GROUP = "group00041/00041"


class PcbFolder:
    """Twenty tested images with their templates, half of them in each list."""

    def __init__(self, root: Path) -> None:
        self.root, self.out = root / "PCBData", root.parent / f"{root.name}-set"
        for k in range(20):
            for kind in ("test", "temp"):
                draw_image(self.root / GROUP / f"{k:03d}_{kind}.jpg")
            self.boxes(k, "1 2 11 12 3")
        self.lists(range(10), range(10, 20))

    def boxes(self, k: int, *lines: str) -> None:
        file = self.root / f"{GROUP}_not" / f"{k:03d}.txt"
        file.parent.mkdir(exist_ok=True)
        file.write_text("\n".join(lines))

    def lists(self, *numbers: range) -> None:
        for name, chosen in zip(("trainval.txt", "test.txt"), numbers, strict=True):
            lines = [f"{GROUP}/{k:03d}.jpg {GROUP}_not/{k:03d}.txt" for k in chosen]
            (self.root / name).write_text("\n".join(lines))

    def add(self, line: str) -> None:
        with open(self.root / "trainval.txt", "a") as file:
            file.write(f"\n{line}\n\n")

    def convert(self, source: Path | None = None, **options: object):
        return convert(source or self.root, Options(out=self.out, **{"val": 0.4, **options}))


@pytest.fixture
def pcb(tmp_path: Path) -> PcbFolder:
    return PcbFolder(tmp_path / "DeepPCB")


def test_lists_decide_and_trainval_is_divided_by_content(pcb):
    summary = pcb.convert()

    assert {stem for stem, split in placed(pcb.out).items() if split == "test"} == {
        f"{k:03d}_test" for k in range(10, 20)
    }
    assert summary.images["train"] + summary.images["val"] == 10
    assert [*summary.boxes["train"]] == [*TYPES.values()]


def test_templates_are_not_taken(pcb):
    pcb.convert()
    assert all(stem.endswith("_test") for stem in placed(pcb.out))


def test_the_folder_around_is_taken_too(pcb):
    assert root_of(pcb.root.parent) == pcb.root == root_of(pcb.root)
    assert sum(pcb.convert(pcb.root.parent).images.values()) == 20


def test_without_lists_every_tested_image_is_divided_by_content(pcb):
    for name in ("trainval.txt", "test.txt"):
        (pcb.root / name).unlink()
    summary = pcb.convert(test=0.3)

    assert sum(summary.images.values()) == 20 and min(summary.images.values()) > 0
    assert boxes(pcb.out, "004_test") == [(2, 1, 2, 11, 12)]


def test_commas_and_empty_lines_are_read_too(pcb):
    pcb.boxes(0, "1,2,11,12,1", "", "3, 4, 9, 9, 6")
    pcb.boxes(1)
    pcb.convert()

    assert boxes(pcb.out, "000_test") == [(0, 1, 2, 11, 12), (5, 3, 4, 9, 9)]
    assert boxes(pcb.out, "001_test") == []


NOT = f"{GROUP}_not/000.txt"
PROBLEMS = {
    "four words": (lambda f: f.boxes(0, "1 2 3 4"), f"{NOT}, line 1: expected 'x1 y1 x2 y2 type', got '1 2 3 4'"),
    "words": (lambda f: f.boxes(0, "1 2 x 4 1"), f"{NOT}, line 1: '1 2 x 4 1', expected four finite numbers"),
    "no area": (lambda f: f.boxes(0, "5 2 5 9 1"), f"{NOT}, line 1: '5 2 5 9 1' is empty or inverted"),
    "outside": (lambda f: f.boxes(0, "50 2 55 9 1"), f"{NOT}, line 1: '50 2 55 9 1' lies outside the image"),
    "the background": (lambda f: f.boxes(0, "1 2 5 9 0"), f"{NOT}, line 1: class '0' is not one of open, short"),
    "a broken file": (lambda f: (f.root / NOT).write_bytes(b"\xff\xfe\x00"), f"{NOT}: not readable as text"),
    "no boxes": (lambda f: (f.root / NOT).unlink(), f"{GROUP}/000_test.jpg: no boxes {NOT} in"),
    "no image": (lambda f: f.add(f"{GROUP}/x.jpg {NOT}"), f"{GROUP}/x_test.jpg: no such image in"),
    "a name outside": (lambda f: f.add(f"../../x.jpg {NOT}"), "../../x_test.jpg: no such image in"),
    "a line of one word": (lambda f: f.add("x"), "trainval.txt, line 11: expected image and boxes, got 'x'"),
    "a line again": (lambda f: f.add(f"{GROUP}/001.jpg {NOT}"), "trainval.txt, line 11: "),
    "in both lists": (lambda f: f.lists(range(11), range(10, 20)), "test.txt, line 1: "),
    "in no list": (lambda f: f.lists(range(9), range(10, 20)), f"{GROUP}/009_test.jpg: neither trainval.txt nor"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), PROBLEMS.values(), ids=PROBLEMS.keys())
def test_a_problem_is_told_by_file_and_skipped_if_asked(spoil, message, pcb):
    spoil(pcb)

    with pytest.raises(ConvertError) as error:
        pcb.convert()
    (problem,) = error.value.problems
    assert problem.startswith(message) and not pcb.out.exists()
    assert pcb.convert(skip=True).skipped == [problem]


def test_images_without_boxes_are_background_where_that_is_said(pcb):
    (pcb.root / NOT).unlink()
    assert sum(pcb.convert(background=True).images.values()) == 20


def test_a_folder_of_something_else_is_told(tmp_path):
    with pytest.raises(ConvertError, match="has neither trainval.txt nor test.txt nor images"):
        convert(tmp_path, Options(out=tmp_path / "set"))


@given(content=st.binary(max_size=80) | st.text("0123456789 ,.-\nnaif", max_size=60).map(str.encode))
def test_any_text_gives_boxes_or_an_error(content, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "any.txt"
    file.write_bytes(content)
    try:
        found = list(read_boxes(file, "any.txt"))
    except ConvertError as error:
        assert all(problem.startswith("any.txt") for problem in error.problems)
    else:
        assert len(found) == sum(
            bool(line.replace(",", " ").strip()) for line in content.decode("utf-8-sig").splitlines()
        )
