"""COCO's instances become a data set; what leads elsewhere, repeats or lacks something is told."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.data.helpers import SIZE, boxes, draw_image, placed, tree
from tskd_yolo.data.convert.coco import convert
from tskd_yolo.data.convert.common import NO_BOX_LEFT, Options
from tskd_yolo.data.convert.files import ConvertError


class CocoFolder:
    """Twenty images in one JSON, a box on each; categories whose ids are not contiguous."""

    def __init__(self, root: Path) -> None:
        self.root, self.images, self.out = root, root / "images", root / "set"
        self.content = self.instances(20)

    def instances(self, count: int, folder: str = "", first: int = 0) -> dict[str, Any]:
        names = [f"a_{first + k}.png" for k in range(count)]
        for name in names:
            draw_image(self.images / folder / name, seed=name)
        return {
            "info": {},
            "images": [
                {"id": 100 + k, "file_name": name, "width": SIZE[0], "height": SIZE[1]} for k, name in enumerate(names)
            ],
            "annotations": [
                {"id": k, "image_id": 100 + k, "category_id": 90 if k % 2 else 7, "bbox": [4, 5, 8, 10], "iscrowd": 0}
                for k in range(count)
            ],
            "categories": [{"id": 90, "name": "hole"}, {"id": 7, "name": "dent"}, {"id": 44, "name": "unused"}],
        }

    def write(self, content: Any = None, name: str = "instances.json") -> Path:
        (self.root / name).write_text(json.dumps(self.content if content is None else content), encoding="utf-8")
        return self.root / name

    def convert(self, files: dict[str, Path] | None = None, **options: Any):
        return convert(self.images, files or {"train": self.write()}, Options(out=self.out, **options))


@pytest.fixture
def coco(tmp_path: Path) -> CocoFolder:
    return CocoFolder(tmp_path)


def test_classes_are_the_categories_in_the_order_of_their_ids(coco):
    summary = coco.convert()

    assert [*summary.boxes["train"]] == ["dent", "unused", "hole"]
    assert boxes(coco.out, "a_0") == [(0, 4, 5, 12, 15)] and boxes(coco.out, "a_1") == [(2, 4, 5, 12, 15)]


def test_given_names_order_the_classes(coco):
    coco.convert(names=["hole", "dent"])

    assert boxes(coco.out, "a_0")[0][0] == 1


def test_one_json_is_divided_by_content(coco):
    summary = coco.convert(val=0.3, test=0.3)

    assert min(summary.images.values()) >= 1 and sum(summary.images.values()) == 20


def test_crowds_are_left_out_and_counted(coco):
    for row in coco.content["annotations"][:3]:
        row.update(iscrowd=1, segmentation={"counts": "x", "size": [1, 1]})
    coco.content["annotations"][0].pop("bbox")

    assert coco.convert().left_out == {"crowds (iscrowd)": 3}
    assert boxes(coco.out, "a_0") == []


def test_an_image_without_annotations_is_a_background_image(coco):
    del coco.content["annotations"][0]

    assert sum(coco.convert().images.values()) == 20
    assert boxes(coco.out, "a_0") == []


@pytest.mark.parametrize("value", ["0", 0, None, False, "no"])
def test_what_is_no_crowd_stays(value, coco):
    coco.content["annotations"][0]["iscrowd"] = value
    assert coco.convert().left_out == {}


def test_an_image_whose_only_box_is_broken_is_no_background(coco):
    (image,) = {row["image_id"] for row in coco.content["annotations"][:1]}
    for row in coco.content["annotations"]:
        if row["image_id"] == image:
            row["bbox"] = "here"
    summary = coco.convert(skip=True)
    assert sum(summary.images.values()) == len(coco.content["images"]) - 1 and summary.left_out == {NO_BOX_LEFT: 1}


def test_images_that_no_json_lists_are_counted(coco):
    draw_image(coco.images / "stranger.png")

    assert coco.convert().left_out == {"images that no JSON lists": 1}


def test_a_json_per_split_with_folders_of_their_names(coco):
    train = coco.write(coco.instances(6, "train2017"), "instances_train2017.json")
    val = coco.write(coco.instances(5, "val2017", first=50), "instances_val2017.json")
    test = coco.write(coco.instances(4, "test", first=80), "elsewhere.json")

    summary = coco.convert({"train": train, "val": val, "test": test})

    assert summary.images == {"train": 6, "val": 5, "test": 4}
    assert placed(coco.out)["a_50"] == "val" and placed(coco.out)["a_83"] == "test"


def test_images_of_one_name_in_two_splits_are_told_apart(coco):
    train = coco.write(coco.instances(3, "train"), "train.json")
    val = coco.write(coco.instances(3, "val"), "val.json")
    for k in range(20):
        (coco.images / f"a_{k}.png").unlink(missing_ok=True)

    assert coco.convert({"train": train, "val": val}).images == {"train": 3, "val": 3}
    assert "train__a_0" in placed(coco.out) and "val__a_0" in placed(coco.out)


def test_classes_of_several_jsons_are_put_together_by_name(coco):
    other = coco.instances(5, first=50)
    other["categories"] = [{"id": 1, "name": "new"}, {"id": 2, "name": "hole"}]
    for row in other["annotations"]:
        row["category_id"] = 2
    files = {"train": coco.write(), "val": coco.write(other, "val.json")}

    summary = coco.convert(files)

    assert [*summary.boxes["val"]] == ["dent", "unused", "hole", "new"] and summary.boxes["val"]["hole"] == 5


def edit(key: str, index: int = 0, **values: Any):
    """Changes one row; a value of None takes the key away."""

    def change(coco: CocoFolder) -> None:
        row = coco.content[key][index]
        for name, value in values.items():
            row.pop(name, None)
            if value is not None:
                row[name] = value

    return change


def replace(key: str, value: Any):
    return lambda coco: coco.content.update({key: value})


BOXES = {
    "no bbox": (edit("annotations", bbox=None), "annotation 0: has no bbox of four numbers"),
    "a short bbox": (edit("annotations", bbox=[1, 2, 3]), "annotation 0: has no bbox of four numbers"),
    "words": (
        edit("annotations", bbox=[1, 2, "x", 4]),
        "annotation 0: bbox [1, 2, 'x', 4], expected four finite numbers",
    ),
    "NaN": (edit("annotations", bbox=[1, 2, float("nan"), 4]), "annotation 0: bbox [1, 2, nan, 4], expected four"),
    "no area": (edit("annotations", bbox=[1, 2, 0, 4]), "annotation 0: bbox [1, 2, 0, 4] is empty or inverted"),
    "outside": (
        edit("annotations", bbox=[50, 2, 3, 4]),
        "annotation 0: bbox [50, 2, 3, 4] lies outside the image of 40",
    ),
    "another category": (edit("annotations", category_id=8), "annotation 0: category_id 8 is none of the categories"),
    "another image": (edit("annotations", image_id=1), "annotation 0: image_id 1 is none of the images"),
    "an unhashable image": (edit("annotations", image_id=[1]), "annotation 0: image_id [1] is none of the images"),
    "no object": (lambda c: c.content["annotations"].append(3), "annotation 21: is a int, expected an object"),
    "an empty name": (edit("categories", 1, name=""), "has no class name"),
}
FILES = {
    "another size": (edit("images", width=41), "a_0.png: says the image is 41 x 20, the file is 40 x 20"),
    "a missing image": (edit("images", file_name="b.png"), "no image b.png in"),
    "a name outside": (edit("images", file_name="../a.png"), "no image ../a.png in"),
    "no name": (edit("images", file_name=None), "no image None in"),
    "a name with NUL": (edit("images", file_name="a\0b.png"), "no image a\0b.png in"),
    "a listed image again": (edit("images", file_name="a_1.png"), "a_1.png is listed in instances.json, too"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), [*BOXES.values(), *FILES.values()], ids=[*BOXES, *FILES])
def test_a_problem_is_told_by_file_and_skipped_if_asked(spoil, message, coco):
    draw_image(coco.root / "a.png")
    spoil(coco)

    with pytest.raises(ConvertError) as error:
        coco.convert()
    assert all(
        problem.startswith("instances.json, ") or "instances.json: " in problem for problem in error.value.problems
    )
    assert message in error.value.problems[0] and not coco.out.exists()
    summary = coco.convert(skip=True, names=["dent", "hole", "unused"])
    left_out = summary.left_out.get(NO_BOX_LEFT, 0)  # half of the images have boxes of the class without a name
    assert summary.skipped and sum(summary.images.values()) in (19 - left_out, 20 - left_out) and left_out <= 10


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (replace("images", None), "has no list of images. Is it COCO's"),
        (lambda c: [c.content.pop(key) for key in ("annotations", "categories")], "annotations and of categories"),
        (edit("images", 1, id=100), "images: 2 have the id 100, so nobody knows whose is whose"),
        (edit("images", 1, id="x"), "images: 1 have no whole number as their id"),
        (replace("categories", [{"id": 7, "name": "a"}, {"id": 7, "name": "b"}]), "categories: 2 have the id 7"),
        (replace("images", [1, None]), "images: 2 have no whole number as their id"),
    ],
)
def test_a_json_that_is_not_cocos_is_told(spoil, message, coco):
    spoil(coco)
    with pytest.raises(ConvertError) as error:
        coco.convert()
    assert message in error.value.problems[0] and not coco.out.exists()


def test_a_json_that_cannot_be_read_is_told(coco):
    file = coco.write()
    file.write_text("{")
    with pytest.raises(ConvertError, match="instances.json: not readable as JSON"):
        coco.convert({"train": file})


@pytest.fixture(scope="module")
def fuzzed():
    with tempfile.TemporaryDirectory() as root:
        yield CocoFolder(Path(root))


ATOM = st.none() | st.booleans() | st.integers(-2, 110) | st.floats() | st.sampled_from(["a_0.png", "../a", "x", ""])
VALUE = st.recursive(
    ATOM, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["id", "bbox"]), inner)
)
KEYS = ["id", "file_name", "width", "height", "image_id", "category_id", "bbox", "iscrowd", "name"]
ROW = st.dictionaries(st.sampled_from(KEYS), VALUE, max_size=7) | VALUE


@pytest.mark.slow
@settings(max_examples=80, suppress_health_check=list(HealthCheck))
@given(images=st.lists(ROW, max_size=3), annotations=st.lists(ROW, max_size=3), categories=st.lists(ROW, max_size=3))
@example(images=[{"id": 1, "file_name": "a_0.png"}], annotations=[], categories=[])
def test_any_rows_give_a_data_set_or_an_error(fuzzed, images, annotations, categories):
    good = fuzzed.content
    content = {
        "images": [*good["images"][1:], *images],
        "annotations": [*good["annotations"][1:], *annotations],
        "categories": [*good["categories"], *categories],
    }
    before = tree(fuzzed.out)
    try:
        fuzzed.convert({"train": fuzzed.write(content)})
    except ConvertError as error:
        assert error.problems and tree(fuzzed.out) == before
