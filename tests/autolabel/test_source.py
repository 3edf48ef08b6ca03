"""Images to label: found in every way, named without a clash, and read as Ultralytics reads them."""

from __future__ import annotations

import os
import shutil

import cv2
import numpy as np
import pytest
import torch

from tskd_yolo.autolabel import source
from tskd_yolo.config import ConfigError

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "images/b.jpg", "sub/c.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "in" / name), np.full((20, 40, 3), (255, 0, 0), np.uint8))
    (tmp_path / "in" / "notes.txt").write_text("no image")
    return tmp_path / "in"


def test_a_folder_gives_its_images_by_their_path(folder):
    found = source.find(str(folder))
    assert sorted(found) == ["a.png", "images_/b.jpg", "sub/c.png"]  # Ultralytics takes the last folder images
    assert found["images_/b.jpg"] == folder / "images" / "b.jpg"


def test_lists_patterns_and_single_files_name_images(folder):
    text = folder.parent / "list.txt"
    text.write_text("# some\nin/a.png\n\nin/sub/c.png\nin/a.png\n")
    assert sorted(source.find(str(text))) == ["in/a.png", "in/sub/c.png"]
    assert sorted(source.find(str(folder / "**" / "*.png"))) == ["a.png", "sub/c.png"]
    assert list(source.find(str(folder / "a.png"))) == ["a.png"]
    text.write_text("in/gone.png\n")
    with pytest.raises(ConfigError, match=r"1 files of .*list\.txt are not there, the first is"):
        source.find(str(text))


def test_no_image_and_a_shared_label_file_are_refused(folder):
    with pytest.raises(ConfigError, match="holds no image"):
        source.find(str(folder / "none"))
    (folder / "a.jpg").write_bytes((folder / "a.png").read_bytes())
    with pytest.raises(ConfigError, match=r"a\.jpg and a\.png would have one label file"):
        source.find(str(folder))


def test_names_do_not_depend_on_which_files_there_are(folder):
    pattern, text = str(folder / "*" / "**" / "*.png"), folder.parent / "list.txt"
    text.write_text("in/sub/c.png\n")
    before = source.find(pattern), source.find(str(text))
    (folder / "line2").mkdir()
    (folder / "line2" / "c.png").write_bytes((folder / "a.png").read_bytes())
    text.write_text("in/sub/c.png\nin/a.png\n")
    assert [list(found) for found in before] == [["sub/c.png"], ["in/sub/c.png"]]
    assert sorted(source.find(pattern)) == ["line2/c.png", "sub/c.png"]
    assert sorted(source.find(str(text))) == ["in/a.png", "in/sub/c.png"]


def test_a_pattern_does_not_find_what_is_written(folder, caplog):
    out = folder / "auto"
    (out / "images" / "train").mkdir(parents=True)
    (out / "images" / "train" / "a.png").symlink_to(folder / "a.png")
    assert sorted(source.find(str(folder / "**" / "*.png"), out=out)) == ["a.png", "sub/c.png"]
    assert f"1 images in {out} are left out" in caplog.text


def test_a_folder_named_as_another_was_renamed_keeps_its_files(folder):
    (folder / "images_").mkdir()
    (folder / "images_" / "b.jpg").write_bytes((folder / "images" / "b.jpg").read_bytes())
    found = source.find(str(folder))
    assert found["images_/b.jpg"] == folder / "images" / "b.jpg"
    assert found["images__/b.jpg"] == folder / "images_" / "b.jpg"


def test_a_listed_file_elsewhere_has_its_whole_path(folder):
    lists = folder.parent / "lists"
    lists.mkdir()
    (lists / "list.txt").write_text(f"{folder / 'a.png'}\n")
    assert list(source.find(str(lists / "list.txt"))) == [str(folder / "a.png").lstrip("/")]
    inside = lists / str(folder / "a.png").lstrip("/")
    inside.parent.mkdir(parents=True)
    inside.write_bytes((folder / "a.png").read_bytes())
    (lists / "list.txt").write_text(f"{folder / 'a.png'}\n{inside}\n")
    with pytest.raises(ConfigError, match="would both be .*a.png; rename or move one of them"):
        source.find(str(lists / "list.txt"))


def test_a_list_may_begin_with_a_byte_order_mark(folder):
    text = folder.parent / "list.txt"
    text.write_text("in/a.png\n", encoding="utf-8-sig")
    assert list(source.find(str(text))) == ["in/a.png"]
    text.write_bytes(b"in/\xff.png\n")
    with pytest.raises(ConfigError, match=r"list\.txt must be text in UTF-8"):
        source.find(str(text))


def test_a_name_that_is_no_utf8_is_left_out_and_told(folder, caplog):
    shutil.copy(folder / "a.png", os.fsencode(folder) + b"/d\xff.png")
    assert sorted(source.find(str(folder))) == ["a.png", "images_/b.jpg", "sub/c.png"]
    assert "1 images have names that are not UTF-8 and are left out, the first is b'd\\xff.png'" in caplog.text


def test_a_batch_is_padded_and_boxes_come_back(folder):
    cv2.imwrite(str(folder / "tall.png"), np.zeros((64, 16, 3), np.uint8))
    (folder / "bad.png").write_text("broken")
    files = {name: folder / name for name in ("a.png", "tall.png", "bad.png")}
    (batch,) = source.batches(files, imgsz=64, stride=32, batch=8, device=CPU)
    assert batch.unreadable == ["bad.png"] and [row.size for row in batch.read] == [(20, 40), (64, 16)]
    assert batch.images.shape == (2, 3, 96, 96) and batch.images[0, 0, 0, 0] == pytest.approx(source.GREY / 255)
    # 40 x 20 became 64 x 32 in the middle of 96 x 96: blue from (16, 32) to (80, 64).
    assert batch.images[0, :, 32, 16].tolist() == [0, 0, 1] and batch.images[0, 2, 31, 16] < 1
    found = batch.boxes(0, torch.tensor([[16.0, 32.0, 80.0, 64.0], [32.0, 40.0, 999.0, 56.0]]))
    assert found.tolist() == [[0, 0, 40, 20], [10, 5, 40, 15]]


def test_only_unreadable_images_are_a_batch_too(folder):
    (folder / "bad.png").write_text("broken")
    (batch,) = source.batches({"bad.png": folder / "bad.png"}, imgsz=64, stride=32, batch=8, device=CPU)
    assert batch.unreadable == ["bad.png"] and batch.read == [] and len(batch.images) == 0


def test_images_are_seen_as_in_validation(data):
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.data.utils import check_det_dataset

    found = check_det_dataset(str(data))
    dataset = YOLODataset(img_path=found["val"], data=found, imgsz=96, augment=False, rect=True, batch_size=4, pad=0.5)
    files = dict(zip(dataset.im_files, map(source.Path, dataset.im_files)))
    (batch,) = source.batches(files, imgsz=96, stride=32, batch=4, device=CPU)
    theirs = torch.stack([dataset[index]["img"] for index in range(4)]).float() / 255
    assert torch.equal(batch.images, theirs)
