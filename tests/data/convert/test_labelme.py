"""labelme's JSON files become a data set: each shape a box; what is none is told."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.data.helpers import SIZE, boxes, draw_image, tree
from tskd_yolo.data.convert import labelme as module
from tskd_yolo.data.convert.common import Options
from tskd_yolo.data.convert.files import ConvertError, Notes
from tskd_yolo.data.convert.labelme import convert


def shape(label: Any, points: Any, kind: Any = "rectangle", **more: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}, **more}


class LabelmeFolder:
    """Images with a JSON beside each, a rectangle on each."""

    def __init__(self, root: Path) -> None:
        self.images, self.out = root / "images", root / "set"
        for k in range(20):
            draw_image(self.images / f"a_{k}.jpg", seed=f"a_{k}")
            self.write(f"a_{k}", shape("hole", [[12, 15], [4, 5]]))

    def write(self, stem: str, *shapes: Any, folder: Path | None = None, **more: Any) -> None:
        content = {
            "version": "5.5.0", "flags": {}, "shapes": list(shapes), "imagePath": f"{stem}.jpg", "imageData": "AAAA",
            "imageHeight": SIZE[1], "imageWidth": SIZE[0], **more,
        }  # fmt: skip
        ((folder or self.images) / f"{stem}.json").write_text(json.dumps(content), encoding="utf-8")

    def convert(self, annotations: Path | None = None, **options: Any):
        return convert(self.images, Options(out=self.out, **options), annotations=annotations)


@pytest.fixture
def labelme(tmp_path: Path) -> LabelmeFolder:
    return LabelmeFolder(tmp_path)


SHAPES = {
    "rectangle": ([[4, 5], [12, 15]], (4, 5, 12, 15)),
    "a rectangle from below": ([[12, 15], [4, 5]], (4, 5, 12, 15)),
    "polygon": ([[10, 2], [14.5, 8], [8, 12], [3, 7]], (3, 2, 14.5, 12)),
    "circle": ([[20, 10], [23, 14]], (15, 5, 25, 15)),
    "line": ([[1, 2], [5, 9]], (1, 2, 5, 9)),
    "linestrip": ([[1, 2], [5, 9], [8, 3]], (1, 2, 8, 9)),
    "mask": ([[4, 5], [12, 15]], (4, 5, 12, 15)),
}


@pytest.mark.parametrize("kind", SHAPES)
def test_a_shape_becomes_the_smallest_box_around_it(kind, labelme):
    points, expected = SHAPES[kind]
    labelme.write("a_0", shape("hole", points, kind.split()[-1] if kind in ("polygon", "circle") else kind.split()[0]))
    labelme.convert()

    assert boxes(labelme.out, "a_0") == [(0, *expected)]


def test_a_shape_without_a_type_is_a_polygon(labelme):
    labelme.write("a_0", {"label": "hole", "points": [[1, 2], [5, 2], [3, 9]]})
    labelme.convert()

    assert boxes(labelme.out, "a_0") == [(0, 1, 2, 5, 9)]


def test_a_circle_over_the_edge_is_clipped(labelme):
    labelme.write("a_0", shape("hole", [[1, 10], [1, 13]], "circle"))

    assert labelme.convert().clipped == 1
    assert boxes(labelme.out, "a_0") == [(0, 0, 7, 4, 13)]


def test_classes_are_the_labels_sorted_or_as_given(labelme):
    labelme.write("a_0", shape("dent", [[1, 2], [5, 9]]))
    labelme.convert()
    assert boxes(labelme.out, "a_0")[0][0] == 0
    labelme.convert(names=["hole", "dent"])
    assert boxes(labelme.out, "a_0")[0][0] == 1
    with pytest.raises(ConvertError, match="a_0.json, shape 1: class 'dent' is not one of hole"):
        labelme.convert(names=["hole"])


def test_the_image_is_the_one_that_the_json_names(labelme):
    draw_image(labelme.images / "photo 1.png")
    labelme.write("notes", shape("hole", [[1, 2], [5, 9]]), imagePath="..\\old\\photo 1.png")
    labelme.convert()

    assert boxes(labelme.out, "photo 1") == [(0, 1, 2, 5, 9)]


def test_a_json_whose_image_was_renamed_is_found_by_its_own_name(labelme):
    labelme.write("a_0", shape("hole", [[1, 2], [5, 9]]), imagePath="gone.jpg")
    labelme.convert()

    assert boxes(labelme.out, "a_0") == [(0, 1, 2, 5, 9)]


def test_renamed_files_do_not_get_boxes_of_one_another(labelme):
    """Renumbered files: the image that imagePath names is there, and is another one now."""
    (labelme.images / "a_0.json").rename(labelme.images / "b_7.json")
    draw_image(labelme.images / "b_7.jpg")
    with pytest.raises(ConvertError, match="b_7.json: its imagePath leads to a_0.jpg, and b_7.jpg has its name."):
        labelme.convert(background=True)
    summary = labelme.convert(background=True, skip=True)
    assert sum(summary.images.values()) == 19 and len(summary.skipped) == 1, "neither of the two is background"


def test_many_jsons_are_looked_up_and_not_searched(tmp_path, monkeypatch):
    for number in range(40):
        draw_image(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.json").write_text('{"shapes": [], "imagePath": "gone.jpg"}')
    asked, stem = [], module._stem
    monkeypatch.setattr(module, "_stem", lambda name: asked.append(name) or stem(name))
    found = list(module._read(tmp_path, tmp_path, Options(out=tmp_path / "out"), Notes()))
    assert len(found) == 40 and len(asked) <= 4 * 40


def test_jsons_may_lie_in_folders_of_their_own(labelme, tmp_path):
    for file in labelme.images.glob("*.json"):
        (tmp_path / "jsons").mkdir(exist_ok=True)
        file.rename(tmp_path / "jsons" / file.name)
    draw_image(labelme.images / "more" / "a_0.jpg", seed="another")
    (tmp_path / "jsons" / "more").mkdir()
    labelme.write("a_0", shape("hole", [[1, 2], [5, 9]]), folder=tmp_path / "jsons" / "more")

    assert sum(labelme.convert(tmp_path / "jsons").images.values()) == 21
    assert boxes(labelme.out, "more__a_0") == [(0, 1, 2, 5, 9)] and boxes(labelme.out, "a_0") == [(0, 4, 5, 12, 15)]


def test_images_without_a_json_are_background_where_that_is_said(labelme):
    (labelme.images / "a_0.json").unlink()
    with pytest.raises(ConvertError, match="^1 problem.*\n  a_0.jpg: no JSON in"):
        labelme.convert()
    assert sum(labelme.convert(background=True).images.values()) == 20
    assert boxes(labelme.out, "a_0") == []


@pytest.mark.parametrize("content", ["{", '{"shapes": 3, "imagePath": "a_0.jpg"}'])
def test_an_image_with_a_broken_json_is_no_background(content, labelme):
    (labelme.images / "a_0.json").write_text(content)

    summary = labelme.convert(background=True, skip=True)
    assert sum(summary.images.values()) == 19 and len(summary.skipped) == 1


PROBLEMS = {
    "no list": (lambda f: f.write("a_0", shapes=None), "a_0.json: has no list of shapes"),
    "no points": (lambda f: f.write("a_0", shape("hole", [])), "a_0.json, shape 1: has no points"),
    "points of one number": (lambda f: f.write("a_0", shape("hole", [[1], [2]])), "has a point that is no pair"),
    "words": (lambda f: f.write("a_0", shape("hole", [["x", 1], [2, 3]])), "expected four finite numbers"),
    "a point": (lambda f: f.write("a_0", shape("hole", [[3, 4]], "point")), "point (3, 4, 3, 4) is empty or inverted"),
    "a flat line": (lambda f: f.write("a_0", shape("hole", [[1, 2], [9, 2]], "line")), "is empty or inverted"),
    "a circle of one point": (lambda f: f.write("a_0", shape("hole", [[3, 4]], "circle")), "is a circle of 1 points"),
    "outside": (lambda f: f.write("a_0", shape("hole", [[50, 4], [60, 9]])), "lies outside the image of 40 x 20"),
    "no label": (lambda f: f.write("a_0", shape(None, [[1, 2], [3, 4]])), "a_0.json, shape 1: has no class name"),
    "no object": (lambda f: f.write("a_0", 3), "a_0.json, shape 1: is a int, expected an object"),
    "another size": (lambda f: f.write("a_0", imageWidth=50), "a_0.json: says the image is 50 x 20, the file is"),
    "a JSON without image": (lambda f: f.write("b"), "b.json: no image has its name, and there is none called b.jpg"),
    "two for one image": (lambda f: f.write("b", imagePath="a_1.jpg"), "b.json: a_1.json describes a_1.jpg, too"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), PROBLEMS.values(), ids=PROBLEMS.keys())
def test_a_problem_is_told_by_file_and_skipped_if_asked(spoil, message, labelme):
    spoil(labelme)

    with pytest.raises(ConvertError) as error:
        labelme.convert()
    (problem,) = error.value.problems
    assert message in problem and not labelme.out.exists()
    assert labelme.convert(skip=True, names=["hole"]).skipped == [problem]


@pytest.fixture(scope="module")
def fuzzed():
    with tempfile.TemporaryDirectory() as root:
        yield LabelmeFolder(Path(root))


KEYS = ["label", "points", "shape_type", "shapes", "imagePath", "imageWidth", "imageHeight"]
ATOM = st.none() | st.booleans() | st.integers(-5, 60) | st.floats() | st.text(max_size=5) | st.just("circle")
VALUE = st.recursive(
    ATOM, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
)
SHAPE = st.builds(shape, ATOM, VALUE | st.lists(st.lists(ATOM, min_size=2, max_size=2), max_size=4), ATOM)
ANY_JSON = (
    st.builds(lambda shapes, path: {"shapes": shapes, "imagePath": path}, st.lists(SHAPE, max_size=3), ATOM) | VALUE
)


@pytest.mark.slow
@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(content=ANY_JSON.map(lambda content: json.dumps(content).encode()) | st.binary(max_size=50))
@example(content=b'{"shapes": [{"label": "a", "points": [[1e999, 1], [2, 3]], "shape_type": "circle"}]}')
def test_any_json_gives_a_data_set_or_an_error(fuzzed, content):
    (fuzzed.images / "a_0.json").write_bytes(content)
    kept = fuzzed.convert(skip=True)
    before = tree(fuzzed.out)
    try:
        fuzzed.convert()
    except ConvertError as error:
        assert error.problems and kept.skipped and tree(fuzzed.out) == before
    else:
        assert not kept.skipped
