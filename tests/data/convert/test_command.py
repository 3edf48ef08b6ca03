"""``tskd-yolo convert``: every format from its words to a data set, and every mistake in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.data.convert.test_coco import CocoFolder
from tests.data.convert.test_deeppcb import PcbFolder
from tests.data.convert.test_labelme import LabelmeFolder
from tests.data.convert.test_masks import VALUES, MaskFolder
from tests.data.convert.test_rle import RleFolder
from tests.data.helpers import VocFolder, boxes, draw_image, placed
from tests.helpers import logged
from tskd_yolo.cli import help_text, main
from tskd_yolo.data.convert.command import FORMATS


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs ``convert`` with words in an empty folder, and gives its exit code and what stood on standard error."""
    monkeypatch.chdir(tmp_path)

    def convert(*words: str) -> tuple[int, str]:
        capsys.readouterr()
        code = main(["convert", *words])
        said = capsys.readouterr().err
        assert "Traceback" not in said and said.startswith("tskd-yolo: ") == (code != 0)
        return code, said

    return convert


def make(name: str, root: Path) -> list[str]:
    """A folder in a layout, and the words that name it."""
    if name == "voc":
        voc = VocFolder(root)
        for k in range(3, 23):
            voc.add(f"a_{k}", ("hole", 1, 1, 9, 9))
        return [f"images={voc.images}", f"annotations={voc.annotations}"]
    if name == "coco":
        coco = CocoFolder(root)
        return [f"images={coco.images}", f"annotations={coco.write()}"]
    if name == "labelme":
        return [f"images={LabelmeFolder(root).images}"]
    if name == "masks":
        masks = MaskFolder(root)
        return [f"images={masks.images}", f"masks={masks.masks}"]
    if name == "rle":
        rle = RleFolder(root)
        return [f"images={rle.images}", f"annotations={rle.csv}"]
    return [f"source={PcbFolder(root / 'DeepPCB').root}"]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_makes_a_data_set_and_counts_it(name, run, tmp_path):
    with logged() as lines:
        assert run(name, *make(name, tmp_path), "out=made", "val=0.3") == (0, "")

    content = yaml.safe_load((tmp_path / "made/data.yaml").read_text())
    images = {split: len(list((tmp_path / "made" / content[split]).iterdir())) for split in ("train", "val")}
    (line,) = [line for line in lines if "boxes clipped" in line]
    assert all(f"{split} {count} images with " in line for split, count in images.items())
    assert f"{tmp_path / 'made'}: " in line and min(images.values()) > 0


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_in_the_help(name):
    (line,) = [line for line in help_text().splitlines() if f"tskd-yolo convert {name} " in line]
    assert all(f"{key}=" in line for key in FORMATS[name].required) and "out=FOLDER" in line


@pytest.mark.parametrize("name", FORMATS)
def test_everything_that_is_missing_is_told_at_once(name, run):
    code, said = run(name)
    wanted = [*FORMATS[name].required, "out"]
    assert code == 1 and said.count(": missing; write ") == len(wanted)
    assert all(f"{key}: missing; write {key}=F" in said for key in wanted)


def test_all_mistakes_are_told_at_once(run, tmp_path):
    words = ["images=nowhere", "val=2", "test=x", "skipp", "min_area=0.5", "names=a,a", "background=maybe", "color=1"]
    code, said = run("masks", *words)

    assert code == 1
    for sentence in (
        "images: nowhere is no folder; name the folder to read.",
        "out: missing; write out=FOLDER.",
        "val: must be a fraction between 0 and 1, got '2'.",
        "test: must be a fraction from 0 to below 1, got 'x'.",
        "skipp: is not an argument; did you mean 'skip'?",
        "min_area: must be a whole number of pixels from 1 on, got '0.5'.",
        "names: must be different names",
        "background: must be True or False, got 'maybe'.",
        "color: is not an argument",
    ):
        assert said.count(sentence) == 1, sentence
    assert said.startswith("tskd-yolo: 9 problems found") and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "the format is missing; write 'tskd-yolo convert FORMAT', one of voc, coco"),
        (["images=a"], "the format is missing"),
        (["cocos"], "convert: 'cocos' is no format; did you mean 'coco'? The formats are voc, coco"),
        (["xml"], "convert: 'xml' is no format; the formats are voc, coco, labelme, masks, rle, deeppcb."),
    ],
)
def test_a_format_that_is_none_is_told(words, sentence, run):
    code, said = run(*words)
    assert code == 1 and sentence in said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["val=0.6", "test=0.5"], "test: val and test must leave images to train on, got 0.6 and 0.5."),
        (["val=0"], "val: must be a fraction between 0 and 1, got '0'."),
        (["val=instances.json"], "val: must be a fraction between 0 and 1, got 'instances.json'."),
        (["names=a,b,a"], "names: must be different names"),
        (["names=a,,b"], "names: must be different names"),
        (["min_area=3"], "min_area: is not an argument"),
        (["masks=a"], "masks: is not an argument"),
    ],
)
def test_words_that_cannot_be_meant_are_told(words, sentence, run, tmp_path):
    code, said = run("voc", *make("voc", tmp_path), "out=made", *words)
    assert code == 1 and sentence in said and not (tmp_path / "made").exists()


@pytest.mark.parametrize("names", ["1:a,b", "x:a", "1:a,1:b", "-1:a", "1:", "0:background,1:a", "[]"])
def test_names_of_values_that_are_none_are_told(names, run, tmp_path):
    code, said = run("masks", *make("masks", tmp_path), "out=made", f"names={names}")
    assert code == 1 and "names: " in said and not (tmp_path / "made").exists()


def test_problems_in_the_data_are_told_by_file(run, tmp_path):
    words = make("voc", tmp_path)
    (tmp_path / "ANNOTATIONS/a_5.xml").unlink()
    code, said = run("voc", *words, "out=made")
    assert code == 1 and "1 problem(s)" in said and "a_5.png: no XML of this name" in said
    with logged() as lines:
        assert run("voc", *words, "out=made", "skip") == (0, "")
    assert any("left out: a_5.png: no XML" in line for line in lines)
    assert run("voc", *words, "out=made", "background") == (0, "")
    assert "a_5" in placed(tmp_path / "made")


def test_a_folder_of_the_users_own_is_refused(run, tmp_path):
    words = make("labelme", tmp_path)
    (tmp_path / "made").mkdir()
    (tmp_path / "made/notes.txt").write_text("mine")
    code, said = run("labelme", *words, "out=made")
    assert (
        code == 1
        and "not made by tskd-yolo" in said
        and [*(tmp_path / "made").iterdir()] == [tmp_path / "made/notes.txt"]
    )


def test_names_are_taken_as_they_stand(run, tmp_path):
    words = make("rle", tmp_path)
    assert run("rle", *words, "out=2024", "names=1:1e3") == (0, "")
    assert yaml.safe_load((tmp_path / "2024/data.yaml").read_text())["names"] == {0: "1e3"}


@pytest.mark.parametrize(
    ("names", "expected"),
    [("crack", {0: "crack"}), ("crack,dent", {0: "crack", 1: "dent"}), ("[2:dent, 1:crack]", {0: "dent", 1: "crack"})],
)
def test_names_say_which_value_is_which(names, expected, run, tmp_path):
    assert run("masks", *make("masks", tmp_path), "out=made", f"names={names}", "min_area=2") == (0, "")
    assert yaml.safe_load((tmp_path / "made/data.yaml").read_text())["names"] == expected
    assert len(boxes(tmp_path / "made", "a_0")) == 2


def test_folders_give_the_classes_and_names_their_order(run, tmp_path):
    masks = MaskFolder(tmp_path)
    for k in range(20):
        for folder in ("crack", "dent"):
            draw_image(masks.images / folder / f"{folder}_{k}.jpg")
            masks.mask(f"{folder}/{folder}_{k}.png", VALUES)
    for file in (*masks.images.glob("*.png"), *masks.masks.glob("*.png")):
        file.unlink()
    words = [f"images={masks.images}", f"masks={masks.masks}", "folders", "names=dent,crack"]
    assert run("masks", *words, "out=made") == (0, "")
    assert boxes(tmp_path / "made", "crack_0")[0][0] == 1


def test_a_json_may_be_given_for_each_split(run, tmp_path):
    coco = CocoFolder(tmp_path)
    words = [f"images={coco.images}", f"annotations={coco.write()}"]
    for split, first in (("val", 50), ("test", 80)):
        words.append(f"{split}={coco.write(coco.instances(4, first=first), f'{split}.json')}")
    assert run("coco", *words, "out=made") == (0, "")
    found = placed(tmp_path / "made")
    assert [found[f"a_{k}"] for k in (0, 19, 50, 83)] == ["train", "train", "val", "test"]
    code, said = run("coco", *words[:2], "val=nowhere.json", "out=made")
    assert code == 1 and "val: nowhere.json is no file; name the file to read." in said
