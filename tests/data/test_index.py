"""The index of a folder of images: what is read again, what is left out, and what becomes of a damaged one."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import logged
from tskd_yolo import files
from tskd_yolo.config import ConfigError
from tskd_yolo.data import index
from tskd_yolo.data.index import SUFFIX, Index, Paths, absolute, images, keep_heads

SUFFIXES = frozenset({"jpg", "png"})


@pytest.fixture
def root(tmp_path) -> Path:
    """A folder of five images in three folders, changed long ago."""
    root = tmp_path / "un"
    for name in ("a.jpg", "b.PNG", "notes.txt", "in/c.jpg", "in/deep er/d.png", "in/deep er/e.jpg", ".trash/f.jpg"):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(name.encode() * 9)
    settle(root)
    return root


def settle(root: Path) -> None:
    """Every folder was changed an hour ago."""
    for folder in (root, *(path for path in root.rglob("*") if path.is_dir())):
        past = folder.stat().st_mtime_ns - 3600 * 10**9
        os.utime(folder, ns=(past, past))


def opened(root: Path) -> Index:
    return Index(str(root), SUFFIXES, lambda name: root.parent / "kept" / name)


def found(root: Path) -> Paths:
    return images([str(root)], suffixes=SUFFIXES, kept=lambda name: root.parent / "kept" / name)


def names(root: Path, paths: Paths) -> list[str]:
    return [os.path.relpath(path, root) for path in paths]


ALL = ["a.jpg", "b.PNG", "in/c.jpg", "in/deep er/d.png", "in/deep er/e.jpg"]


def test_all_images_below_a_folder_are_found_in_order(root):
    paths = found(root)
    assert names(root, paths) == ALL and len(paths) == 5
    assert paths[-1] == str(root / ALL[-1]) and paths[1:3] == [str(root / name) for name in ALL[1:3]]
    assert list(pickle.loads(pickle.dumps(paths))) == list(paths)


def test_the_second_time_only_what_changed_is_read(root):
    assert opened(root).read == 3
    assert (root.parent / f"un{SUFFIX}").exists()
    assert opened(root).read == 0
    (root / "in" / "new.jpg").write_bytes(b"new")
    again = opened(root)
    assert again.read == 1 and names(root, Paths(again.folders)) == [*ALL[:3], "in/new.jpg", *ALL[3:]]
    assert opened(root).read == 1, "a folder that has just changed may change again within the tick of its clock"
    settle(root)
    assert opened(root).read == 3 and opened(root).read == 0, "times went back"
    shutil.rmtree(root / "in" / "deep er")
    settle(root / "in")
    again = opened(root)
    assert again.read == 1 and names(root, Paths(again.folders)) == [*ALL[:3], "in/new.jpg"]


def test_links_are_followed_and_one_that_leads_back_is_not(root, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.jpg").write_bytes(b"x")
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "round").symlink_to(root)
    (root / "gone.jpg").symlink_to(tmp_path / "nothing")
    paths = found(root)
    assert names(root, paths) == ["a.jpg", "b.PNG", "gone.jpg", *ALL[2:], "link/x.jpg"]
    assert paths.sizes.tolist()[2] == -1 and min(np.delete(paths.sizes, 2)) > 0


@pytest.mark.parametrize("content", [b"", b"no index", b"PK\x03\x04 cut short"])
def test_a_damaged_index_is_made_anew(content, root):
    opened(root)
    (root.parent / f"un{SUFFIX}").write_bytes(content)
    assert opened(root).read == 3 and opened(root).read == 0


def test_an_index_that_cannot_lie_beside_is_kept_elsewhere(root, monkeypatch):
    whole = files.replace

    def refusing(path, data):
        if Path(path).parent == root.parent:
            raise PermissionError(13, "Permission denied")
        whole(path, data)

    monkeypatch.setattr(files, "replace", refusing)
    with logged() as lines:
        opened(root)
    assert any("cannot lie beside it (Permission denied), it is in" in line for line in lines)
    assert opened(root).read == 0
    monkeypatch.setattr(files, "replace", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    shutil.rmtree(root.parent / "kept")
    with logged() as lines:
        opened(root)
    assert any("could not be kept (Permission denied): it is made every time" in line for line in lines)


def test_lists_and_globs_are_sources_too(root, tmp_path):
    (tmp_path / "list.txt").write_text("./un/a.jpg\n\nun/in/c.jpg\nun/notes.txt\n")
    sources = absolute(["list.txt", "un/**/*.png", "un/in"], tmp_path)
    paths = images(sources, suffixes=SUFFIXES, kept=lambda name: tmp_path / name)
    assert names(root, paths) == ["a.jpg", "in/c.jpg", "in/deep er/d.png", "in/c.jpg", *ALL[3:]]
    twice = images([str(root), str(root / "in")], suffixes=SUFFIXES, kept=lambda name: tmp_path / name)
    assert names(root, twice) == ALL, "a folder in a folder counts once"


def test_what_is_not_there_or_empty_is_told_in_a_sentence(tmp_path):
    with pytest.raises(ConfigError) as error:
        absolute(["nowhere", "none.txt"], tmp_path)
    assert error.value.problems == [
        f"unlabelled: {tmp_path / name} was not found; give a folder of images, a .txt list or a glob."
        for name in ("nowhere", "none.txt")
    ]
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "empty", tmp_path / "*.jpg"):
        with pytest.raises(ConfigError, match="there is no image in"):
            images([str(source)], suffixes=SUFFIXES, kept=lambda name: tmp_path / name)


def test_a_list_that_is_no_text_is_told_in_a_sentence(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"bl\xe4ch.png\n")
    with pytest.raises(ConfigError, match="latin.txt is no text in UTF-8"):
        images([str(tmp_path / "latin.txt")], suffixes=SUFFIXES, kept=lambda name: tmp_path / name)


def test_an_image_that_has_gone_is_no_twin_and_stops_nothing(root, tmp_path):
    original, twin = tmp_path / "archive.jpg", tmp_path / "train.jpg"
    for file in (original, twin):
        file.write_bytes(b"\xff" * 5000)
    (root / "link.jpg").symlink_to(original)
    settle(root)
    paths = found(root)
    assert len(paths.same_as([str(twin)])) == 1
    original.unlink()
    assert paths.same_as([str(twin)]) == {}, "its beginning is known, its content is not"


def test_files_that_begin_alike_are_not_read_whole(root, tmp_path, monkeypatch):
    border = b"\0" * 20_000
    for name, middle in (("a.jpg", b"1"), ("b.jpg", b"2")):
        (root / name).write_bytes(border + middle * 100 + border)
    (tmp_path / "train.jpg").write_bytes(border + b"3" * 100 + border)
    monkeypatch.setattr(index.files, "digest", lambda file: pytest.fail(f"{file} was read"))
    assert found(root).same_as([str(tmp_path / "train.jpg")]) == {}


def test_images_of_equal_content_are_found_and_little_is_read(root, tmp_path, monkeypatch):
    (tmp_path / "train.jpg").write_bytes((root / ALL[3]).read_bytes())
    (tmp_path / "long.jpg").write_bytes(b"1" * 10)
    heads = []
    head = index._head
    monkeypatch.setattr(index, "_head", lambda file: (heads.append(file), head(file))[1])
    paths = found(root)
    same = paths.same_as([str(tmp_path / "train.jpg"), str(tmp_path / "long.jpg"), str(tmp_path / "gone.jpg")])
    assert paths.heads_read == 2, "two of that size"
    assert same == {3: str(tmp_path / "train.jpg")} and str(root / ALL[0]) not in heads
    rest = paths.without(same)
    assert names(root, rest) == [name for name in ALL if name != ALL[3]]
    assert rest.same_as([str(tmp_path / "train.jpg")]) == {}, "what was left out is not found again"
    keep_heads(paths, [str(root)], suffixes=SUFFIXES, kept=lambda name: tmp_path / name)
    heads.clear()
    assert found(root).same_as([str(tmp_path / "train.jpg")]).keys() == {3}
    assert not any(file.startswith(str(root)) for file in heads), "known from the index"
