"""Data sets by name, on toys in their authors' layouts: where each is found, its classes, its split, its flaws."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.data.helpers import SIZE, VocFolder, annotation_xml, boxes, draw_image, placed, tree
from tests.helpers import logged
from tskd_yolo.cli import help_text
from tskd_yolo.data.convert.files import ConvertError
from tskd_yolo.data.sets import GC10_RENAMED, MAGNETIC_TILE_FOLDERS, NEU_NAMES, SETS, prepare

ROOT = Path(__file__).parents[2]


# Toys -----------------------------------------------------------------------------------------------------------------


def make_neu(
    root: Path, *, images: str = "IMAGES", annotations: str = "ANNOTATIONS", numbers: tuple[int, ...] = (240, 241)
) -> Path:
    """NEU-DET: per class one image to train and one to validate on."""
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


def make_gc10(root: Path) -> Path:
    """GC10-DET: folders of images by number, all XML files in ``lable``, and its flaws."""
    source = root / "GC10-DET"
    (source / "lable").mkdir(parents=True)

    def add(number: int, stem: str, *names: str) -> None:
        draw_image(source / str(number) / f"{stem}.jpg", seed=stem)
        objects = [(name, 1, 2, 11, 12) for name in names]
        (source / "lable" / f"{stem}.xml").write_text(annotation_xml(*objects, filename=f"{stem}.jpg"))

    words = [word for word in GC10_RENAMED if word != "10_yaozhed"]
    for number, word in enumerate(words, start=1):
        for k in range(6):
            add(number, f"img_{number:02d}_{k:05d}", word)
    add(10, "img_both", "10_yaozhed", "1_chongkong")
    add(10, "img_d", "10_yaozhe", "d")
    draw_image(source / "3" / "img_alone.jpg")
    shutil.copy(source / "1" / "img_01_00000.jpg", source / "2")
    return source


def make_deeppcb(root: Path) -> Path:
    """DeepPCB: groups, templates, and lists whose image names lack ``_test``."""
    source = root / "DeepPCB"
    data = source / "PCBData"
    lists: dict[str, list[str]] = {"trainval": [], "test": []}
    for k in range(40):
        name = f"000410{k:02d}"
        for kind in ("test", "temp"):
            draw_image(data / "group00041" / "00041" / f"{name}_{kind}.jpg")
        boxes = data / "group00041" / "00041_not" / f"{name}.txt"
        boxes.parent.mkdir(exist_ok=True)
        boxes.write_text(f"1 2 11 12 {k % 6 + 1}\n20 5 30 15 6\n")
        line = f"group00041/00041/{name}.jpg group00041/00041_not/{name}.txt"
        lists["test" if k >= 30 else "trainval"].append(line)
    for name, lines in lists.items():
        (data / f"{name}.txt").write_text("\n".join(lines))
    return source


def make_severstal(root: Path, *, joined: bool = False) -> Path:
    """Severstal: a CSV of run lengths in one of its two forms, for some of the images."""
    source = root / "Severstal"
    rows = ["ImageId_ClassId,EncodedPixels" if joined else "ImageId,ClassId,EncodedPixels"]
    for k in range(24):
        name = f"{k:08x}.jpg"
        draw_image(source / "train_images" / name)
        for number in range(1, 5):
            # Down the columns: rows 3 to 7 of columns 2 to 5, and a speck.
            pixels = " ".join(f"{column * SIZE[1] + 4} 5" for column in range(2, 6)) + f" {30 * SIZE[1] + 1} 1"
            if k % 3 == 0 and number == k // 3 % 4 + 1:
                rows.append(f"{name}_{number},{pixels}" if joined else f"{name},{number},{pixels}")
            elif joined:
                rows.append(f"{name}_{number},")
    (source / "train.csv").write_text("\n".join(rows) + "\n")
    (source / "test_images").mkdir()
    draw_image(source / "test_images" / "f.jpg")
    return source


def make_magnetic_tile(root: Path) -> Path:
    """Magnetic tile: a folder per class, masks beside the images."""
    source = root / "Magnetic-Tile"
    for folder in (*MAGNETIC_TILE_FOLDERS, "MT_Free"):
        for k in range(12):
            file = source / folder / "Imgs" / f"exp1_num_{len(folder)}{k:03d}.jpg"
            draw_image(file)
            mask = np.zeros((SIZE[1], SIZE[0]), np.uint8)
            if folder != "MT_Free":
                mask[3:8, 2:6] = 255
                mask[15:18, 30:38] = 255
                mask[0, 39] = 255  # a speck
            Image.fromarray(mask).save(file.with_suffix(".png"))
    return source


MAKERS: dict[str, Callable[[Path], Path]] = {
    "neu": make_neu,
    "neu3": lambda root: make_neu(root, numbers=(200, 201, 241)),
    "gc10": make_gc10,
    "deeppcb": make_deeppcb,
    "severstal": make_severstal,
    "magnetic_tile": make_magnetic_tile,
}


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty datasets folder of Ultralytics', and no variable that names an original."""
    folder = tmp_path / "datasets"
    folder.mkdir()
    monkeypatch.setattr("ultralytics.utils.DATASETS_DIR", folder)
    monkeypatch.setattr("ultralytics.data.utils.DATASETS_DIR", folder)
    for chosen in SETS.values():
        monkeypatch.delenv(chosen.variable, raising=False)
    return folder


# Every set ------------------------------------------------------------------------------------------------------------


def test_every_set_has_a_data_yaml_of_its_name_and_a_toy():
    files = {file.stem for file in (ROOT / "datasets").glob("*.yaml")} - {"demo"}
    assert files == {*SETS} == {*MAKERS}
    assert all(f"{name}.yaml" in help_text() for name in files)


@pytest.mark.parametrize("name", SETS)
def test_the_data_yaml_says_how_to_obtain_and_cite_the_set(name):
    text = (ROOT / f"datasets/{name}.yaml").read_text(encoding="utf-8")
    chosen = SETS[name]
    for part in ("# Cite: ", "# Licence: ", "# Obtain: ", f"export {chosen.variable}=", f"folder as {chosen.title}."):
        assert part in text
    assert tuple(yaml.safe_load(text)["names"].values()) == chosen.names


@pytest.mark.parametrize("name", SETS)
def test_ultralytics_prepares_a_set_from_its_yaml(name, tmp_path, datasets, monkeypatch):
    from ultralytics.data.utils import check_det_dataset

    source = MAKERS[name](tmp_path / "raw")
    before = tree(source)
    monkeypatch.setenv(SETS[name].variable, str(source))
    data = check_det_dataset(str(ROOT / f"datasets/{name}.yaml"))

    made = yaml.safe_load((data["path"] / "data.yaml").read_text())
    assert data["path"].parent == datasets and made["names"] == data["names"]
    for split in ("train", "val", "test"):
        assert (split in data) == (split in made)
        if split in data:
            assert len(list(Path(data[split]).iterdir())) > 0
    assert tree(source) == before


@pytest.mark.parametrize("name", SETS)
def test_a_set_is_found_in_the_datasets_folder(name, tmp_path, datasets):
    MAKERS[name](datasets)

    assert prepare(name, tmp_path / "out").images["train"] > 0


@pytest.mark.parametrize("name", SETS)
def test_a_missing_set_says_where_to_get_and_put_it(name, tmp_path, datasets, monkeypatch):
    chosen = SETS[name]
    monkeypatch.setenv(chosen.variable, "/no/such/place")

    with pytest.raises(FileNotFoundError) as error:
        prepare(name, tmp_path / "out")

    said = str(error.value)
    places = ("/no/such/place".replace("/", os.sep), str(datasets / chosen.title))
    for part in (*places, "http", f"set the environment variable {chosen.variable} ", *chosen.parts[0].split("|")):
        assert part in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", SETS)
def test_training_with_a_missing_set_is_one_sentence(name, tmp_path, datasets, monkeypatch, capsys, teacher):
    from tskd_yolo.cli import main

    monkeypatch.chdir(tmp_path)
    assert main(["train", f"data={name}.yaml", f"teacher={teacher}", "model=yolo11n.yaml", "epochs=1"]) == 1
    said = capsys.readouterr().err
    assert f"{SETS[name].title} not found" in said and SETS[name].variable in said and "Traceback" not in said


def test_a_given_source_is_the_only_place_looked_at(tmp_path, datasets, monkeypatch):
    monkeypatch.setenv("TSKD_NEU", str(make_neu(tmp_path)))

    with pytest.raises(FileNotFoundError, match="elsewhere"):
        prepare("neu", tmp_path / "out", tmp_path / "elsewhere")


def test_a_set_that_is_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no data set is called 'coco'; expected one of neu, neu3"):
        prepare("coco", tmp_path)


# NEU-DET --------------------------------------------------------------------------------------------------------------


def test_neu_has_a_fixed_split_and_a_fixed_order_of_classes(tmp_path):
    summary = prepare("neu", tmp_path / "out", make_neu(tmp_path))

    assert summary.boxes == {"train": dict.fromkeys(NEU_NAMES, 1), "val": dict.fromkeys(NEU_NAMES, 1)}
    assert (tmp_path / "out/labels/train/inclusion_240.txt").read_text() == "1 0.15 0.35 0.25 0.5\n"
    assert (tmp_path / "out/labels/val/inclusion_241.txt").is_file()


def test_neu_in_three_splits_has_a_test_split(tmp_path):
    summary = prepare("neu3", tmp_path / "out", make_neu(tmp_path, numbers=(1, 200, 201, 240, 241, 300)))

    assert summary.images == {"train": 12, "val": 12, "test": 12}
    for place, numbers in {"train": (1, 200), "val": (201, 240), "test": (241, 300)}.items():
        names = {file.name for file in (tmp_path / "out/labels" / place).iterdir()}
        assert names == {f"{name}_{k}.txt" for name in NEU_NAMES for k in numbers}


def test_neu_folders_are_found_in_any_letter_case(tmp_path):
    source = make_neu(tmp_path, images="images", annotations="Annotations")

    assert prepare("neu", tmp_path / "out", source).images["val"] == 6


def test_a_stranger_among_the_neu_images_is_named(tmp_path):
    source = make_neu(tmp_path)
    (source / "IMAGES/crazing_240.jpg").rename(source / "IMAGES/stranger.jpg")
    (source / "ANNOTATIONS/crazing_240.xml").rename(source / "ANNOTATIONS/stranger.xml")

    with pytest.raises(ConvertError, match="stranger.jpg: .*crazing_1"):
        prepare("neu", tmp_path / "out", source)


@pytest.mark.slow
@pytest.mark.skipif("TSKD_NEU" not in os.environ, reason="TSKD_NEU does not name a folder with the real NEU-DET")
def test_the_real_neu_has_the_published_images_and_boxes(tmp_path):
    summary = prepare("neu", tmp_path / "out", Path(os.environ["TSKD_NEU"]))

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


@pytest.mark.slow
@pytest.mark.skipif("TSKD_NEU" not in os.environ, reason="TSKD_NEU does not name a folder with the real NEU-DET")
def test_the_real_neu_in_three_splits_is_as_its_yaml_says(tmp_path):
    summary = prepare("neu3", tmp_path / "out", Path(os.environ["TSKD_NEU"]))

    lines = (ROOT / "datasets/neu3.yaml").read_text(encoding="utf-8")
    for split, images in summary.images.items():
        boxes = sum(summary.boxes[split].values())
        assert f"{split}: images/{split} # {images:,} images, {boxes:,} boxes" in lines


# The others -----------------------------------------------------------------------------------------------------------


def test_gc10s_flaws_are_skipped_and_told_by_file(tmp_path):
    with logged() as lines:
        summary = prepare("gc10", tmp_path / "out", make_gc10(tmp_path))

    assert sum(summary.images.values()) == 62
    assert summary.left_out == {"copies of a file in another folder": 1}
    assert [problem.partition(". ")[0].partition(": ")[0] for problem in summary.skipped] == [
        "img_alone.jpg",
        "img_d.xml, object 2",
    ]
    assert all(any(problem in line and "WARNING" in line for line in lines) for problem in summary.skipped)


def test_gc10s_two_spellings_are_one_class(tmp_path):
    prepare("gc10", tmp_path / "out", make_gc10(tmp_path))

    assert [row[0] for row in boxes(tmp_path / "out", "img_both")] == [9, 0]
    assert [row[0] for row in boxes(tmp_path / "out", "img_10_00000")] == [9]


def test_gc10_in_its_other_layout_is_the_same(tmp_path):
    source = make_gc10(tmp_path)
    first = prepare("gc10", tmp_path / "one", source)
    (source / "images/images").mkdir(parents=True)
    for number in range(1, 11):
        (source / str(number)).rename(source / "images/images" / f"class_{number}")
    (source / "label").mkdir()
    (source / "lable").rename(source / "label/label")
    second = prepare("gc10", tmp_path / "two", source)

    assert placed(tmp_path / "one") == placed(tmp_path / "two") and first.boxes == second.boxes


def test_deeppcbs_lists_decide_its_test_split(tmp_path):
    summary = prepare("deeppcb", tmp_path / "out", make_deeppcb(tmp_path))

    found = placed(tmp_path / "out")
    assert {stem for stem, split in found.items() if split == "test"} == {f"000410{k}_test" for k in range(30, 40)}
    assert 0 < summary.images["val"] < summary.images["train"] and sum(summary.images.values()) == 40
    assert boxes(tmp_path / "out", "00041001_test") == [(1, 1, 2, 11, 12), (5, 20, 5, 30, 15)]


def test_deeppcb_is_found_by_the_folder_of_its_lists_too(tmp_path):
    source = make_deeppcb(tmp_path)

    assert sum(prepare("deeppcb", tmp_path / "out", source / "PCBData").images.values()) == 40


@pytest.mark.parametrize("joined", [False, True])
def test_severstals_masks_become_boxes_in_both_forms(joined, tmp_path):
    summary = prepare("severstal", tmp_path / "out", make_severstal(tmp_path, joined=joined))

    assert sum(summary.images.values()) == 24 and not summary.skipped
    assert summary.left_out == {"regions of fewer than 10 pixels": 8}
    assert boxes(tmp_path / "out", f"{3:08x}") == [(1, 2, 3, 6, 8)]
    assert boxes(tmp_path / "out", f"{1:08x}") == []


def test_magnetic_tiles_masks_become_boxes_of_the_folders_class(tmp_path):
    summary = prepare("magnetic_tile", tmp_path / "out", make_magnetic_tile(tmp_path))

    assert sum(summary.images.values()) == 72 and not summary.skipped
    assert sum((Counter(found) for found in summary.boxes.values()), Counter()) == dict.fromkeys(
        MAGNETIC_TILE_FOLDERS.values(), 24
    )
    assert summary.left_out == {"regions of fewer than 10 pixels": 60}
