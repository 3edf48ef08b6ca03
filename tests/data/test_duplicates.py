"""Images in both splits: copies under other names, the same picture saved anew, and steel that only looks alike."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from tskd_yolo.data import drawn, duplicates
from tskd_yolo.data.duplicates import Hashes, same_files, same_pictures


def picture(number: int, size: int = 200) -> Image.Image:
    return Image.fromarray(cv2.cvtColor(drawn.draw((5, 0, number), size)[0], cv2.COLOR_BGR2RGB))


def saved(folder: Path, images: dict[str, Image.Image], **more) -> list[str]:
    folder.mkdir(exist_ok=True)
    for name, image in images.items():
        image.save(folder / name, **more)
    return [str(folder / name) for name in images]


def steel(seed: int, size: int = 200, contrast: float = 1.0) -> Image.Image:
    """A blank sheet: shading that all have in common, and grain of its own."""
    coarse = np.random.default_rng(0).uniform(80, 160, (5, 5)).astype(np.float32)
    shading = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    grain = cv2.GaussianBlur(np.random.default_rng(1 + seed).normal(0, 30 * contrast, (size, size)), (0, 0), 1.5)
    return Image.fromarray(np.clip(shading + grain, 0, 255).astype(np.uint8))


def found(train: list[str], val: list[str], tmp_path: Path) -> list[duplicates.Twin]:
    hashes = Hashes(tmp_path / "kept" / "hashes.json")
    return same_pictures(dict(zip(train, hashes(train))), dict(zip(val, hashes(val))))


def test_copies_are_found_under_other_names(tmp_path):
    train = saved(tmp_path / "train", {f"{i}.png": picture(i) for i in range(3)})
    val = saved(tmp_path / "val", {"new.png": picture(7), "copy.png": picture(1)})
    assert [(Path(t.val).name, Path(t.train).name) for t in same_files(train, val)] == [("copy.png", "1.png")]
    gone = str(Path(val[0]).with_name("gone.png"))
    assert same_files([*train, gone], [gone, *val]) == same_files(train, val), "what cannot be read is no twin"


def test_files_that_begin_alike_are_no_copies(tmp_path):
    files = [tmp_path / name for name in "abc"]
    for file, end in zip(files, (b"x", b"y", b"x"), strict=True):
        file.write_bytes(b"0" * 10_000 + end)
    twins = same_files([str(files[0])], [str(files[1]), str(files[2])])
    assert [Path(t.val).name for t in twins] == ["c"]


ALTERED = {
    "saved anew": lambda image, file: image.save(file, "JPEG", quality=50),
    "half the size": lambda image, file: image.resize((100, 100), Image.Resampling.LANCZOS).save(file, "PNG"),
    "twice the size": lambda image, file: image.resize((400, 400), Image.Resampling.BICUBIC).save(file, "PNG"),
    "brighter": lambda image, file: ImageEnhance.Brightness(image).enhance(1.15).save(file, "PNG"),
    "grey": lambda image, file: image.convert("L").save(file, "PNG"),
    "moved by a pixel": lambda image, file: image.transform(
        image.size, Image.Transform.AFFINE, (1, 0, 1, 0, 1, 1)
    ).save(file, "PNG"),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", ALTERED)
def test_a_picture_is_found_again_however_it_was_saved(how, tmp_path):
    train = saved(tmp_path / "train", {f"{i}.png": picture(i) for i in range(12)})
    (tmp_path / "val").mkdir()
    altered = tmp_path / "val" / "again"
    ALTERED[how](picture(4), altered)
    others = saved(tmp_path / "val", {f"{i}.png": picture(100 + i) for i in range(6)})
    (twin,) = found(train, [str(altered), *others], tmp_path)
    assert (twin.val, Path(twin.train).name) == (str(altered), "4.png") and twin.correlation >= duplicates.ALIKE


def test_steel_that_looks_alike_is_not_accused(tmp_path):
    """Their hashes agree, as all have the same shading: the fine detail that is an image's own decides."""
    sheets = saved(tmp_path / "sheets", {f"{i}.png": steel(i) for i in range(30)})
    blank = saved(tmp_path / "blank", {f"{i}.png": steel(i, contrast=0.02) for i in range(30)})
    flat = saved(tmp_path / "flat", {f"{i}.png": Image.new("L", (200, 200), 120 + i) for i in range(30)})
    for files in (sheets, blank, flat):
        half = len(files) // 2
        words = Hashes(tmp_path / "none.json")(files)
        assert list(duplicates._candidates(words[half:], words[:half])), "no candidate: this tests nothing"
        assert found(files[:half], files[half:], tmp_path) == []


def test_nothing_is_nothing(tmp_path):
    files = saved(tmp_path / "train", {"a.png": picture(1)})
    assert same_files([], files) == same_files(files, []) == found([], files, tmp_path) == found(files, [], tmp_path)


def test_hashes_are_kept_by_content_and_pictures_not_read_again(tmp_path, monkeypatch):
    files = saved(tmp_path / "train", {f"{i}.png": picture(i) for i in range(3)})
    kept = tmp_path / "kept" / "hashes.json"
    first = Hashes(kept)
    words = first(files)
    first.keep()
    read: list[str] = []
    perceptual = duplicates._perceptual
    monkeypatch.setattr(duplicates, "_perceptual", lambda path: read.append(path) or perceptual(path))
    digest = duplicates.files.digest
    hashed: list[str] = []
    monkeypatch.setattr(duplicates.files, "digest", lambda path: hashed.append(path) or digest(path))
    assert Hashes(kept)(files) == words and (read, hashed) == ([], [])
    os.utime(files[0], (1, 1))  # touched: read, but its content is known
    assert Hashes(kept)(files) == words and (read, hashed) == ([], files[:1])
    picture(9).save(files[1])
    again = Hashes(kept)
    assert again(files)[1] != words[1] and read == files[1:2]
    again.keep()
    assert len(json.loads(kept.read_text())["hashes"]) == 3  # what nobody asks for is forgotten


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"files": 1, "hashes": {}}', '{"files": {}}'])
def test_a_damaged_file_of_hashes_is_as_good_as_none(content, tmp_path):
    files = saved(tmp_path / "train", {"a.png": picture(1)})
    (tmp_path / "hashes.json").write_text(content)
    assert Hashes(tmp_path / "hashes.json")(files) == Hashes(tmp_path / "none.json")(files)


def test_a_picture_that_cannot_be_read_is_like_no_other(tmp_path):
    files = saved(tmp_path / "train", {"a.png": picture(1)})
    (tmp_path / "cut.png").write_bytes(Path(files[0]).read_bytes()[:2000])
    assert Hashes(tmp_path / "none.json")([str(tmp_path / "cut.png")]) == [""]
    assert found(files, [str(tmp_path / "cut.png")], tmp_path) == []


def test_hashes_are_compared_in_blocks(monkeypatch):
    monkeypatch.setattr(duplicates, "PAIRS", 4)
    rng = np.random.default_rng(0)
    train = [f"{n:016x}" for n in rng.integers(0, 2**63, 3)]
    near, far = f"{int(train[1], 16) ^ 0xFFF:016x}", f"{int(train[1], 16) ^ 0x1FFF:016x}"
    assert list(duplicates._candidates([train[2], far, near], train)) == [(0, [2]), (2, [1])]


def deep(image: Image.Image) -> Image.Image:
    """The same picture with 16 bits."""
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


def test_pictures_of_16_bits_are_told_apart(tmp_path):
    train = saved(tmp_path / "train", {f"{i}.png": deep(picture(i)) for i in range(3)})
    val = saved(tmp_path / "val", {"new.png": deep(picture(7)), "again.tif": deep(picture(1)), "8.png": picture(2)})
    assert Image.open(train[0]).mode.startswith("I") and len({*Hashes(tmp_path / "h.json")(train)}) == 3
    twins = found(train, val, tmp_path)
    assert [(Path(t.val).name, Path(t.train).name) for t in twins] == [("again.tif", "1.png"), ("8.png", "2.png")]


def test_blank_pictures_are_not_compared_in_pairs(tmp_path, monkeypatch):
    train, val = (
        saved(tmp_path / split, {f"{i}.png": Image.new("L", (64, 64), 100 + i) for i in range(4)})
        for split in ("train", "val")
    )
    monkeypatch.setattr(duplicates, "alike", lambda *_: pytest.fail("a pair was compared"))
    assert found(train, val, tmp_path) == []
