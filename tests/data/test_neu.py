"""NEU-DET in its authors' layout: where it is found, its split, and the published counts."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

from tests.data.helpers import VocFolder
from tskd_yolo.data import neu as neu_module
from tskd_yolo.data.neu import NEU_NAMES, neu
from tskd_yolo.data.voc import VocError

ROOT = Path(__file__).parents[2]


def make_neu(
    root: Path, *, images: str = "IMAGES", annotations: str = "ANNOTATIONS", numbers: tuple[int, ...] = (240, 241)
) -> Path:
    """A toy in NEU-DET's layout: per class one image to train and one to validate on."""
    folder = VocFolder(root / "made")
    for file in [*folder.images.iterdir(), *folder.annotations.iterdir()]:
        file.unlink()
    for name in NEU_NAMES:
        for k in numbers:
            folder.add(f"{name}_{k}", (name, 1, 2, 11, 12), suffix=".jpg")
    source = root / "NEU-DET"
    source.mkdir()
    shutil.move(folder.images, source / images)
    shutil.move(folder.annotations, source / annotations)
    return source


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty datasets folder of Ultralytics', and no TSKD_NEU."""
    folder = tmp_path / "datasets"
    folder.mkdir()
    monkeypatch.setattr("ultralytics.utils.DATASETS_DIR", folder)
    monkeypatch.setattr("ultralytics.data.utils.DATASETS_DIR", folder)
    monkeypatch.delenv("TSKD_NEU", raising=False)
    return folder


def test_neu_has_a_fixed_split_and_a_fixed_order_of_classes(tmp_path):
    summary = neu(tmp_path / "out", make_neu(tmp_path))

    assert summary.boxes == {"train": dict.fromkeys(NEU_NAMES, 1), "val": dict.fromkeys(NEU_NAMES, 1)}
    assert (tmp_path / "out/labels/train/inclusion_240.txt").read_text() == "1 0.15 0.35 0.25 0.5\n"
    assert (tmp_path / "out/labels/val/inclusion_241.txt").is_file()


@pytest.mark.parametrize("split", ["three", (200, 240)])
def test_neu_in_three_splits_has_a_test_split(split, tmp_path):
    summary = neu(tmp_path / "out", make_neu(tmp_path, numbers=(1, 200, 201, 240, 241, 300)), split=split)

    assert summary.images == {"train": 12, "val": 12, "test": 12}
    for place, numbers in {"train": (1, 200), "val": (201, 240), "test": (241, 300)}.items():
        names = {file.name for file in (tmp_path / "out/labels" / place).iterdir()}
        assert names == {f"{name}_{k}.txt" for name in NEU_NAMES for k in numbers}


@pytest.mark.parametrize("split", ["four", (240, 200), (0, 10)])
def test_a_split_that_is_none_is_refused(split, tmp_path):
    with pytest.raises(ValueError, match="split must be one of two, three or two rising limits"):
        neu(tmp_path / "out", make_neu(tmp_path), split=split)


def test_neu_folders_are_found_in_any_letter_case(tmp_path):
    assert neu(tmp_path / "out", make_neu(tmp_path, images="images", annotations="Annotations")).images["val"] == 6


def test_neu_is_found_by_the_environment_variable(tmp_path, datasets, monkeypatch):
    monkeypatch.setenv("TSKD_NEU", str(make_neu(tmp_path)))

    assert neu(tmp_path / "out").images == {"train": 6, "val": 6}


def test_neu_is_found_in_the_datasets_folder(tmp_path, datasets):
    make_neu(datasets)

    assert neu(tmp_path / "out").images == {"train": 6, "val": 6}


def test_a_missing_neu_says_where_it_was_looked_for(tmp_path, datasets, monkeypatch):
    monkeypatch.setenv("TSKD_NEU", "/no/such/place")

    with pytest.raises(FileNotFoundError) as error:
        neu(tmp_path / "out")

    for part in (
        "/no/such/place",
        str(datasets / "NEU-DET"),
        neu_module.NEU_PAGE,
        "IMAGES and ANNOTATIONS",
        "set the environ",
    ):
        assert part.replace("/", os.sep) in str(error.value).replace("/", os.sep)


def test_a_given_source_is_the_only_place_looked_at(tmp_path, datasets, monkeypatch):
    monkeypatch.setenv("TSKD_NEU", str(make_neu(tmp_path)))

    with pytest.raises(FileNotFoundError, match="elsewhere"):
        neu(tmp_path / "out", tmp_path / "elsewhere")


def test_a_stranger_among_the_neu_images_is_named(tmp_path):
    source = make_neu(tmp_path)
    (source / "IMAGES/crazing_240.jpg").rename(source / "IMAGES/stranger.jpg")
    (source / "ANNOTATIONS/crazing_240.xml").rename(source / "ANNOTATIONS/stranger.xml")

    with pytest.raises(VocError, match="stranger.jpg: .*crazing_1"):
        neu(tmp_path / "out", source)


def test_ultralytics_prepares_neu_from_its_yaml(tmp_path, datasets, monkeypatch):
    from ultralytics.data.utils import check_det_dataset

    monkeypatch.setenv("TSKD_NEU", str(make_neu(tmp_path)))
    data = check_det_dataset(str(ROOT / "datasets/neu.yaml"))

    assert data["path"] == datasets / "neu-det-yolo"
    assert tuple(data["names"].values()) == NEU_NAMES
    assert len(list(Path(data["val"]).iterdir())) == 6


def test_ultralytics_prepares_the_three_splits_apart(tmp_path, datasets, monkeypatch):
    from ultralytics.data.utils import check_det_dataset

    monkeypatch.setenv("TSKD_NEU", str(make_neu(tmp_path, numbers=(200, 201, 241))))
    two, three = (check_det_dataset(str(ROOT / "datasets" / f"{name}.yaml")) for name in ("neu", "neu3"))

    assert three["path"] == datasets / "neu-det-yolo-3" and three["names"] == two["names"]
    assert [len(list(Path(three[split]).iterdir())) for split in ("train", "val", "test")] == [6, 6, 6]
    assert [len(list(Path(two[split]).iterdir())) for split in ("train", "val")] == [12, 6]


@pytest.mark.skipif("TSKD_NEU" not in os.environ, reason="TSKD_NEU does not name a folder with the real NEU-DET")
def test_the_real_neu_has_the_published_images_and_boxes(tmp_path):
    summary = neu(tmp_path / "out", Path(os.environ["TSKD_NEU"]))

    total = Counter(summary.boxes["train"]) + Counter(summary.boxes["val"])
    assert summary.images == {"train": 1440, "val": 360}
    assert {split: sum(boxes.values()) for split, boxes in summary.boxes.items()} == {"train": 3335, "val": 854}
    assert total == {
        "inclusion": 1011,
        "patches": 881,
        "crazing": 689,
        "rolled-in_scale": 628,
        "scratches": 548,
        "pitted_surface": 432,
    }
    assert (summary.clipped, summary.skipped) == (0, [])
    elsewhere = 0
    for file in (tmp_path / "out/labels").rglob("*.txt"):
        own = NEU_NAMES.index(file.stem.rpartition("_")[0])
        elsewhere += sum(int(line.split()[0]) != own for line in file.read_text().splitlines())
    assert elsewhere == 188


@pytest.mark.skipif("TSKD_NEU" not in os.environ, reason="TSKD_NEU does not name a folder with the real NEU-DET")
def test_the_real_neu_in_three_splits_is_as_its_yaml_says(tmp_path):
    summary = neu(tmp_path / "out", Path(os.environ["TSKD_NEU"]), split="three")

    lines = (ROOT / "datasets/neu3.yaml").read_text(encoding="utf-8")
    for split, images in summary.images.items():
        boxes = sum(summary.boxes[split].values())
        assert f"{split}: images/{split} # {images:,} images, {boxes:,} boxes" in lines
