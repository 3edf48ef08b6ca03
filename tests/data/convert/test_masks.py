"""Masks become boxes, by value, by folder or any; what is no mask is told."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from tests.data.helpers import SIZE, boxes, draw_image, placed, tree
from tskd_yolo.data.convert.common import Options
from tskd_yolo.data.convert.files import ConvertError, Notes
from tskd_yolo.data.convert.masks import convert, regions

VALUES = np.zeros((SIZE[1], SIZE[0]), np.uint8)
VALUES[3:8, 2:6] = 1
VALUES[15:18, 30:38] = 2
VALUES[8, 6] = 1  # touches the first region at a corner
VALUES[0, 20] = 1


class MaskFolder:
    """Images and masks: enough that every split has some, and ``a_0`` with the mask above."""

    def __init__(self, root: Path) -> None:
        self.images, self.masks, self.out = root / "IMAGES", root / "MASKS", root / "set"
        self.masks.mkdir()
        for k in range(20):
            draw_image(self.images / f"a_{k}.png", seed=f"a_{k}")
            self.mask(f"a_{k}.png", VALUES if k == 0 else 0 * VALUES)

    def mask(self, name: str, values: np.ndarray, **more: object) -> None:
        (self.masks / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(self.masks / name, **more)

    def convert(self, *, options: dict[str, object] | None = None, **more: object):
        return convert(self.images, Options(out=self.out, **(options or {})), **{"masks": self.masks, **more})

    def boxes(self, stem: str = "a_0") -> list[tuple[float, ...]]:
        return boxes(self.out, stem)


@pytest.fixture
def masks(tmp_path: Path) -> MaskFolder:
    return MaskFolder(tmp_path)


FIRST, SECOND, SPECK = (2, 3, 7, 9), (30, 15, 38, 18), (20, 0, 21, 1)


def test_every_region_is_a_box_of_one_class_by_default(masks):
    summary = masks.convert()

    assert sorted(masks.boxes()) == sorted([(0, *FIRST), (0, *SECOND), (0, *SPECK)])
    assert sum(summary.images.values()) == 20 and [*summary.boxes["train"]] == ["defect"]


def test_a_value_is_a_class(masks):
    masks.convert(classes={2: "dent", 1: "crack"})

    assert sorted(masks.boxes()) == sorted([(1, *FIRST), (1, *SPECK), (0, *SECOND)])


def test_two_values_may_be_one_class(masks):
    masks.convert(classes={1: "crack", 2: "crack"})

    assert sorted(masks.boxes()) == sorted([(0, *FIRST), (0, *SPECK), (0, *SECOND)])


def test_small_regions_are_left_out_and_counted(masks):
    summary = masks.convert(min_area=2)

    assert len(masks.boxes()) == 2 and summary.left_out == {"regions of fewer than 2 pixels": 1}


def test_the_folder_may_be_the_class(masks):
    for folder in ("crack", "good"):
        for k in range(20):
            draw_image(masks.images / folder / "deep" / f"{folder}{k}.png")
            masks.mask(f"{folder}/deep/{folder}{k}.png", VALUES if folder == "crack" else 0 * VALUES)
    for k in range(20):
        (masks.images / f"a_{k}.png").unlink()
        (masks.masks / f"a_{k}.png").unlink()

    summary = masks.convert(folders=True)
    assert [*summary.boxes["train"]] == ["crack"] and sum(summary.images.values()) == 40
    assert masks.convert(folders=True, renamed={"crack": "fissure"}).boxes["train"].keys() == {"fissure"}


def test_an_image_in_no_folder_has_no_class(masks):
    with pytest.raises(ConvertError, match="a_0.png: lies in no subfolder that could name its class"):
        masks.convert(folders=True)


def test_masks_lie_beside_the_images_where_no_folder_is_given(masks):
    for k in range(20):
        Image.open(masks.images / f"a_{k}.png").save(masks.images / f"a_{k}.jpg")
        (masks.masks / f"a_{k}.png").replace(masks.images / f"a_{k}.png")

    assert sum(masks.convert(masks=None).images.values()) == 20
    assert len(masks.boxes()) == 3 and (masks.out / "images" / placed(masks.out)["a_0"] / "a_0.jpg").is_file()


@pytest.mark.parametrize("kind", ["1", "P", "I;16", "RGB", "RGBA", "L tif"])
def test_masks_of_every_kind_are_read(kind, masks):
    image = Image.fromarray(VALUES)
    if kind == "P":
        image = image.copy()
        image.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 0] + [0] * 759)  # the second class is drawn in black
    elif kind == "I;16":
        image = Image.fromarray(VALUES.astype(np.uint16) * 300)
    elif kind != "L tif":
        image = image.point(lambda v: 255 * (v > 0)).convert(kind)
    (masks.masks / "a_0.png").unlink()
    image.save(masks.masks / ("a_0.tif" if kind == "L tif" else "a_0.png"))
    masks.convert()
    assert sorted(masks.boxes()) == sorted([(0, *FIRST), (0, *SECOND), (0, *SPECK)])


def test_grey_values_in_three_channels_are_values(masks):
    masks.mask("a_0.png", np.repeat(VALUES[..., None], 3, axis=2))
    masks.convert(classes={1: "a", 2: "b"})
    assert len(masks.boxes()) == 3


def broken(masks: MaskFolder) -> None:
    (masks.masks / "a_0.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")


def cut(masks: MaskFolder) -> None:
    content = (masks.masks / "a_0.png").read_bytes()
    (masks.masks / "a_0.png").write_bytes(content[: len(content) // 2])


def coloured(masks: MaskFolder) -> None:
    colour = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    colour[2:5, 2:5, 1] = 1
    masks.mask("a_0.png", colour)


PROBLEMS = {
    "an image without a mask": (lambda m: (m.masks / "a_0.png").unlink(), "a_0.png: no mask of this name"),
    "a mask without an image": (lambda m: (m.images / "a_0.png").unlink(), "a_0.png: no image of this name"),
    "a broken mask": (broken, "a_0.png: not readable as an image"),
    "a mask that ends early": (cut, "a_0.png: not readable as an image"),
    "a mask of another size": (
        lambda m: m.mask("a_0.png", VALUES.T),
        "a_0.png: says the image is 20 x 40, the file is",
    ),
    "a value without a class": (
        lambda m: m.mask("a_0.png", VALUES * 3),
        "a_0.png: holds the value 3, which is no class",
    ),
    "colours": (coloured, "a_0.png: is a colour image"),
    "real numbers": (
        lambda m: [(m.masks / "a_0.png").unlink(), m.mask("a_0.tif", VALUES.astype(np.float32))],
        "a_0.tif: holds real numbers",
    ),
    "two masks": (lambda m: m.mask("a_0.bmp", VALUES), "a_0.png: a_0.bmp is a mask of this name, too"),
}


@pytest.mark.parametrize(("spoil", "message"), PROBLEMS.values(), ids=PROBLEMS.keys())
def test_a_problem_is_told_by_file_and_skipped_if_asked(spoil, message, masks):
    spoil(masks)

    with pytest.raises(ConvertError) as error:
        masks.convert(classes={1: "a", 2: "b"})
    (problem,) = error.value.problems
    assert message in problem and not masks.out.exists()
    summary = masks.convert(classes={1: "a", 2: "b"}, options={"skip": True, "names": ["a", "b"]})
    assert summary.skipped == [problem]
    assert sum(summary.images.values()) == (20 if "too" in message else 19)


def test_images_without_a_mask_may_be_background(masks):
    (masks.masks / "a_1.png").unlink()
    assert sum(masks.convert(options={"background": True}).images.values()) == 20


def test_masks_in_the_folder_of_the_images_are_no_images(masks):
    inner = masks.images / "masks"
    masks.masks.rename(inner)
    (inner / "a_1.png").unlink()
    summary = masks.convert(masks=inner, options={"background": True})
    assert sum(summary.images.values()) == 20 and len(masks.boxes()) == 3


def test_images_in_the_folder_of_the_masks_are_no_masks(masks):
    inner = masks.masks / "images"
    masks.images.rename(inner)
    masks.images = inner
    assert sum(masks.convert().images.values()) == 20 and len(masks.boxes()) == 3


MASK = arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 1))


@given(mask=MASK, least=st.integers(1, 4))
def test_boxes_hold_all_pixels_of_their_regions(mask, least):
    notes = Notes()
    found = regions("a", mask > 0, "x", least, notes)

    covered = np.zeros_like(mask)
    for box in found:
        x1, y1, x2, y2 = map(int, box.corners)
        assert 0 <= x1 < x2 <= mask.shape[1] and 0 <= y1 < y2 <= mask.shape[0]
        inner = mask[y1:y2, x1:x2]
        assert min(inner[0].any(), inner[-1].any(), inner[:, 0].any(), inner[:, -1].any())
        covered[y1:y2, x1:x2] = 1
    if least == 1:
        assert not (mask & ~covered & 1).any() and not notes.left_out


ANY_FILE = st.binary(max_size=200) | MASK.map(lambda mask: png(mask)) | MASK.map(lambda mask: png(mask)[:60])


def png(mask: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(mask).save(file, format="png")
    return file.getvalue()


@pytest.fixture(scope="module")
def fuzzed():
    with tempfile.TemporaryDirectory() as root:
        yield MaskFolder(Path(root))


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(content=ANY_FILE)
def test_any_mask_gives_a_data_set_or_an_error(fuzzed, content):
    (fuzzed.masks / "a_0.png").write_bytes(content)
    kept = fuzzed.convert(options={"skip": True})
    before = tree(fuzzed.out)
    try:
        fuzzed.convert()
    except ConvertError as error:
        assert all(problem.startswith("a_0.png: ") for problem in error.problems) and kept.skipped
        assert tree(fuzzed.out) == before
    else:
        assert not kept.skipped
