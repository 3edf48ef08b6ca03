"""Data sets as they are written: links to originals, whole or not at all, and nothing of a stranger's is replaced."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import yaml

from tests.data.helpers import tree
from tskd_yolo.data import dataset
from tskd_yolo.data.convert.common import Options
from tskd_yolo.data.convert.voc import convert


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
    monkeypatch.setattr(Path, "hardlink_to", refuse)
    folder.convert()

    copy = folder.out / "images/train/a_1.png"
    assert not copy.is_symlink()
    assert copy.stat().st_nlink == 1
    assert copy.read_bytes() == (folder.images / "a_1.png").read_bytes()


def test_images_are_hard_links_where_only_those_can_be_made(folder, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no right")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    folder.convert()

    link = folder.out / "images/train/a_1.png"
    assert not link.is_symlink() and link.samefile(folder.images / "a_1.png")


def test_ultralytics_repairs_an_image_and_not_its_original(folder):
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.data.utils import check_det_dataset

    folder.add("a_3", ("hole", 1, 1, 9, 9), suffix=".jpg")
    original = folder.images / "a_3.jpg"
    original.write_bytes(original.read_bytes() + b"more behind its end")
    before = original.read_bytes()
    folder.convert()

    data = check_det_dataset(str(folder.out / "data.yaml"), autodownload=False)
    YOLODataset(img_path=data["train"], data=data, imgsz=32, augment=False)

    assert original.read_bytes() == before
    assert (folder.out / "images/train/a_3.jpg").read_bytes() != before


def test_what_is_there_is_compared_with_what_was_written(folder, monkeypatch):
    monkeypatch.setattr(dataset, "link_image", lambda *_: None)

    with pytest.raises(OSError, match="train: 0 images, 1 label files and 1 boxes are there after writing 1 images"):
        folder.convert()

    assert list(folder.out.parent.iterdir()) == []


def test_replacing_a_set_is_said(folder):
    from tests.helpers import logged

    with logged() as lines:
        folder.convert()
        assert not any("is replaced" in line for line in lines)
        folder.convert()
    assert sum("the data set that was there is replaced" in line for line in lines) == 1


def test_relative_folders_give_links_that_hold(folder, monkeypatch):
    monkeypatch.chdir(folder.images.parent)

    convert(
        Path("IMAGES"),
        Path("ANNOTATIONS"),
        Options(out=Path("here")),
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
        convert(folder.images, folder.annotations, Options(out=folder.images.parent))

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
