"""Data sets as they are written: links to originals, whole or not at all, and nothing of a stranger's is replaced."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import yaml

from tests.data.helpers import tree
from tskd_yolo.data import dataset
from tskd_yolo.data.voc import convert


def test_data_yaml_names_folders_and_classes(folder):
    folder.convert()

    assert yaml.safe_load((folder.out / "data.yaml").read_text()) == {
        "path": str(folder.out.resolve()),
        "train": "images/train",
        "val": "images/val",
        "names": {0: "dent", 1: "hole"},
    }


def test_one_line_says_what_was_made(folder, caplog):
    with caplog.at_level(logging.INFO, logger="ultralytics"):
        logging.getLogger("ultralytics").addHandler(caplog.handler)
        try:
            folder.convert()
        finally:
            logging.getLogger("ultralytics").removeHandler(caplog.handler)

    assert "train 1 images with 1 boxes, val 1 images with 1 boxes; 0 boxes clipped, 0 problems" in caplog.text


def test_a_test_split_is_written_when_there_is_one(folder):
    folder.add("a_3", ("hole", 1, 1, 9, 9))

    summary = folder.convert(split={"a_1": "train", "a_2": "val", "a_3": "test"}.__getitem__)

    assert summary.images == {"train": 1, "val": 1, "test": 1}
    assert yaml.safe_load((folder.out / "data.yaml").read_text())["test"] == "images/test"


def test_a_share_splits_by_stem_alone(folder):
    for number in range(3, 60):
        folder.add(f"a_{number}", ("hole", 1, 1, 9, 9))
    first = folder.convert(split=0.3)
    before = {path.stem for path in (folder.out / "images/val").iterdir()}
    for number in range(60, 80):
        folder.add(f"a_{number}", ("hole", 1, 1, 9, 9))
    folder.convert(split=0.3)
    after = {path.stem for path in (folder.out / "images/val").iterdir()}

    assert 8 <= first.images["val"] <= 28
    assert before == {stem for stem in after if int(stem[2:]) < 60}


def test_images_are_links_and_the_originals_stay_as_they_are(folder):
    before = tree(folder.images) | tree(folder.annotations)

    folder.convert()

    link = folder.out / "images/train/a_1.png"
    assert link.resolve() == (folder.images / "a_1.png").resolve()
    assert tree(folder.images) | tree(folder.annotations) == before


@pytest.mark.parametrize("error", [OSError("no right"), NotImplementedError()])
def test_images_are_copied_where_links_cannot_be_made(folder, monkeypatch, error):
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Path, "symlink_to", refuse)
    folder.convert()

    copy = folder.out / "images/train/a_1.png"
    assert not copy.is_symlink()
    assert copy.read_bytes() == (folder.images / "a_1.png").read_bytes()


def test_relative_folders_give_links_that_hold(folder, monkeypatch):
    monkeypatch.chdir(folder.images.parent)

    convert(
        images=Path("IMAGES"),
        annotations=Path("ANNOTATIONS"),
        out=Path("here"),
        split=lambda s: "val" if "2" in s else "train",
    )

    assert Path("here/images/val/a_2.png").is_file()


def test_a_second_run_gives_the_same(folder):
    first, files = folder.convert(), tree(folder.out)

    assert folder.convert() == first
    assert tree(folder.out) == files


def test_a_second_run_replaces_what_is_no_longer_there(folder):
    folder.add("a_3", ("hole", 1, 1, 9, 9))
    folder.convert()
    (folder.images / "a_3.png").unlink()
    (folder.annotations / "a_3.xml").unlink()

    folder.convert()

    assert [path.name for path in (folder.out / "images/train").iterdir()] == ["a_1.png"]


def test_an_empty_folder_may_be_filled(folder):
    folder.out.mkdir(parents=True)

    assert folder.convert().images == {"train": 1, "val": 1}


@pytest.mark.parametrize("name", ["notes.txt", "data.yaml"])
def test_a_foreign_folder_is_refused_and_left_alone(folder, name):
    folder.out.mkdir(parents=True)
    (folder.out / name).write_text("path: mine\n")

    with pytest.raises(FileExistsError, match="not made by tskd-yolo"):
        folder.convert()

    assert tree(folder.out.parent) == {f"set/{name}": b"path: mine\n"}


def test_a_file_in_the_place_of_the_folder_is_refused(folder):
    folder.out.parent.mkdir()
    folder.out.write_text("mine")

    with pytest.raises(FileExistsError):
        folder.convert()


def test_the_folder_with_the_originals_is_never_replaced(folder):
    (folder.images.parent / "data.yaml").write_text(dataset.MARKER + "\n")

    with pytest.raises(FileExistsError, match="Choose another"):
        convert(images=folder.images, annotations=folder.annotations, out=folder.images.parent)

    assert (folder.images / "a_1.png").is_file()


def test_a_crash_leaves_nothing_behind(folder, monkeypatch):
    monkeypatch.setattr(dataset, "_write_labels", lambda *_: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        folder.convert()

    assert list(folder.out.parent.iterdir()) == []


def test_a_crash_keeps_the_former_set(folder, monkeypatch):
    folder.convert()
    before = tree(folder.out.parent)
    rename = Path.rename

    def rename_all_but_new(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError("disk gone")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", rename_all_but_new)
    with pytest.raises(OSError, match="disk gone"):
        folder.convert()

    assert tree(folder.out.parent) == before


@pytest.mark.parametrize("split", [0, 1, -0.1, 1.5, float("nan")])
def test_a_share_that_leaves_a_split_empty_is_refused(folder, split):
    with pytest.raises(ValueError, match="between 0 and 1"):
        folder.convert(split=split)
