"""Files are written whole or not at all, and results.csv is cut back to what a checkpoint knows."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from tskd_yolo import files


def test_a_file_is_replaced_by_fsync_rename_and_folder_fsync(tmp_path, monkeypatch):
    order: list[str] = []
    folder = os.stat(tmp_path).st_ino
    fsync, rename = os.fsync, os.replace

    def record_fsync(descriptor: int) -> None:
        order.append("fsync folder" if os.fstat(descriptor).st_ino == folder else "fsync file")
        fsync(descriptor)

    def record_rename(a, b) -> None:
        assert Path(a).read_bytes() == b"new" and Path(b).read_bytes() == b"old"
        order.append("rename")
        rename(a, b)

    (tmp_path / "file").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_rename)
    files.WholePath(tmp_path / "file").write_bytes(b"new")
    assert order == ["fsync file", "rename", "fsync folder"]
    assert [f.name for f in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_bytes() == b"new"


def test_a_file_that_could_not_be_written_stays_what_it_was(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        files.replace(tmp_path / "file", b"new")
    assert [f.name for f in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_bytes() == b"old"


def test_a_path_joined_to_a_whole_path_is_one_too(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(files, "replace", lambda path, data: written.append((Path(path).name, data)))
    assert (files.WholePath(tmp_path) / "a" / "b.pt").write_bytes(bytearray(b"new")) == 3
    assert written == [("b.pt", b"new")]


def test_a_path_without_a_way_from_the_folder_stays_whole(tmp_path, monkeypatch):
    assert files.relative(tmp_path / "a" / "b.png", tmp_path) == str(Path("a") / "b.png")

    def another_drive(path, folder):
        raise ValueError("path is on mount 'E:', start on mount 'D:'")

    monkeypatch.setattr(files.os.path, "relpath", another_drive)
    assert files.relative("E:/b.png", "D:/set") == "E:/b.png"


def test_saved_tensors_and_json_come_back(tmp_path):
    files.save(tmp_path / "a.pt", {"weight": torch.ones(2)})
    assert torch.load(tmp_path / "a.pt")["weight"].tolist() == [1, 1]
    files.write_json(tmp_path / "a.json", {"name": "Riß", "value": 0.5})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"name": "Riß", "value": 0.5} and "Riß" in text and text.endswith("}\n")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_that_no_reader_takes_is_not_written(value, tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "a.json", [value])
    assert not list(tmp_path.iterdir())


def copied(*_: object) -> None:
    raise OSError("no links here")


@pytest.mark.parametrize("link", [os.link, copied], ids=["link", "copy"])
def test_the_checkpoint_before_is_kept_with_links_and_without(link, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", link)
    last, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    files.keep(last, previous)  # there is none yet
    assert not list(tmp_path.iterdir())
    for content in (b"one", b"two"):
        files.replace(last, content)
        files.keep(last, previous)
        assert previous.read_bytes() == content
    files.replace(last, b"three")
    assert previous.read_bytes() == b"two" and {f.name for f in tmp_path.iterdir()} == {"last.pt", "previous.pt"}


def test_a_full_disk_leaves_no_part_of_a_copy(tmp_path, monkeypatch):
    def full(source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError("no room")

    monkeypatch.setattr(os, "link", copied)
    monkeypatch.setattr(shutil, "copyfile", full)
    (tmp_path / "last.pt").write_bytes(b"whole")
    with pytest.raises(OSError, match="no room"):
        files.keep(tmp_path / "last.pt", tmp_path / "previous.pt")
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize(
    ("lines", "epochs", "left"),
    [
        (["1,a", "2,b", "3,c"], 2, ["1,a", "2,b"]),
        (["1,a", "2,b", "2,c"], 2, ["1,a", "2,c"]),  # the row that was written again
        (["1,a", "2"], 2, ["1,a"]),  # torn
        (["2,b", " 1,a"], 2, [" 1,a", "2,b"]),
        (["1,a"], 0, []),
    ],
)
def test_results_are_cut_to_whole_epochs_each_once(lines, epochs, left, tmp_path):
    file = tmp_path / "results.csv"
    file.write_text("\n".join(["epoch,loss", *lines]))
    files.cut(file, epochs=epochs)
    assert file.read_text().splitlines() == ["epoch,loss", *left]


def test_columns_that_are_new_are_nan_in_rows_that_are_there(tmp_path):
    csv = tmp_path / "results.csv"
    csv.write_text("epoch,time,share/drd,lr\n1,2.5,0.1,0.01\n2,5,0.2,0.02\n")
    assert files.set_columns(csv, ["epoch", "time", "lr", "share/drd(neck)"]) == ["share/drd"]
    assert csv.read_text() == "epoch,time,lr,share/drd(neck)\n1,2.5,0.01,nan\n2,5,0.02,nan\n"
    assert files.set_columns(csv, ["epoch", "time", "lr", "share/drd(neck)"]) == []


def test_a_file_that_fits_is_left_as_it_is(tmp_path):
    csv = tmp_path / "results.csv"
    csv.write_text("epoch,time,lr\n1,2.5,0.01\n")
    before = csv.stat().st_mtime_ns
    assert files.set_columns(csv, ["epoch", "time", "lr"]) == [] and csv.stat().st_mtime_ns == before
