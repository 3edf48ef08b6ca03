"""Pascal VOC folders, good and bad ones, become Ultralytics data sets or one clear message."""

import functools
import io
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.data.helpers import SIZE, VocFolder, annotation_xml, tree
from tskd_yolo.data.convert.common import Options
from tskd_yolo.data.convert.files import ConvertError
from tskd_yolo.data.convert.voc import convert
from tskd_yolo.data.dataset import Summary

# What comes out


def test_boxes_become_shares_of_the_image_in_pixels_from_zero(folder):
    summary = folder.convert()

    assert folder.labels("a_1") == [[1, 8 / 40, 10 / 20, 8 / 40, 10 / 20]]
    assert folder.labels("a_2", "val") == [[0, 0.5, 0.5, 1, 1]]
    assert summary == Summary(
        images={"train": 1, "val": 1},
        boxes={"train": {"dent": 0, "hole": 1}, "val": {"dent": 1, "hole": 0}},
        clipped=0,
        skipped=[],
        out=folder.out.resolve(),
        left_out={},
    )


def test_ultralytics_reads_what_was_made(folder):
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.data.utils import check_det_dataset

    folder.convert()
    data = check_det_dataset(str(folder.out / "data.yaml"), autodownload=False)
    dataset = YOLODataset(img_path=data["train"], data=data, imgsz=32, augment=False)

    assert dataset.labels[0]["cls"].tolist() == [[1]]
    assert dataset.labels[0]["bboxes"].tolist() == [pytest.approx([0.2, 0.5, 0.2, 0.5])]


def test_the_order_of_given_names_is_kept(folder):
    folder.convert(names=["hole", "unused", "dent"])

    assert folder.labels("a_1")[0][0] == 0
    assert folder.labels("a_2", "val")[0][0] == 2


def test_boxes_over_the_edge_are_clipped_and_counted(folder):
    folder.add("a_3", ("hole", -3, 5, 41.5, 15), ("hole", 0, 0, 40, 20))

    assert folder.convert().clipped == 1
    assert folder.labels("a_3") == [[1, 0.5, 0.5, 1, 0.5], [1, 0.5, 0.5, 1, 1]]


def test_an_annotation_without_objects_makes_a_background_image(folder):
    folder.add("a_3")

    assert folder.convert().images["train"] == 2
    assert (folder.out / "labels/train/a_3.txt").read_bytes() == b""


def test_a_filename_field_that_lies_is_not_believed(folder):
    folder.add("a_3", ("dent", 1, 1, 9, 9), filename="a_1.png")

    folder.convert()

    assert folder.labels("a_3")[0][0] == 0
    assert (folder.out / "images/train/a_3.png").is_file()


def test_the_class_comes_from_the_annotation_not_the_file_name(folder):
    folder.add("hole_7", ("dent", 1, 1, 9, 9))

    folder.convert()

    assert folder.labels("hole_7")[0][0] == 0


@pytest.mark.parametrize("suffix", [".JPG", ".Bmp", ".tiff"])
def test_image_suffixes_match_in_any_case(folder, suffix):
    folder.add("a_3", ("hole", 1, 1, 9, 9), suffix=suffix)

    folder.convert()

    assert (folder.out / "images/train" / f"a_3{suffix}").is_file()


def test_an_image_turned_by_exif_has_the_size_ultralytics_sees(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", SIZE).save(folder.images / "a_3.jpg", exif=exif)
    folder.xml("a_3", annotation_xml(("hole", 0, 0, 20, 10), size=(20, 40)))

    folder.convert()

    assert folder.labels("a_3") == [[1, 0.5, 0.125, 1, 0.25]]


def test_hidden_and_foreign_files_do_not_count(folder):
    (folder.images / "._a_1.png").write_bytes(b"resource fork")
    (folder.images / "Thumbs.db").write_bytes(b"")
    (folder.annotations / "._a_1.xml").write_bytes(b"resource fork")

    assert folder.convert().images == {"train": 1, "val": 1}


# Problems

BOMB = '<!DOCTYPE b [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><annotation><filename>&b;</filename></annotation>'
OUTSIDE = '<!DOCTYPE b [<!ENTITY a SYSTEM "file:///etc/passwd">]><annotation><filename>&a;</filename></annotation>'
DOCTYPE = "<!DOCTYPE annotation><annotation/>"


def break_box(*corners: object, name: str = "hole") -> Callable[[VocFolder], None]:
    """Adds ``bad.png`` with one good box and this one."""
    return lambda folder: folder.add("bad", ("hole", 1, 1, 9, 9), (name, *corners))


def break_xml(text: str) -> Callable[[VocFolder], None]:
    """Adds ``bad.png`` with this as its annotation."""

    def add(folder: VocFolder) -> None:
        folder.image("bad.png")
        folder.xml("bad", text)

    return add


def break_image(folder: VocFolder) -> None:
    folder.add("bad", ("hole", 1, 1, 9, 9))
    (folder.images / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")


def two_images(folder: VocFolder) -> None:
    folder.add("bad", ("hole", 1, 1, 9, 9))
    folder.image("bad.bmp", seed="another")


FILE_PROBLEMS = {
    "an annotation without image": (lambda f: f.xml("bad", annotation_xml()), "no image of this name"),
    "an image without annotation": (lambda f: f.image("bad.png"), "no XML of this name"),
    "an annotation that ends early": (break_xml("<annotation><object>"), "not readable as XML"),
    "an empty annotation": (break_xml(""), "not readable as XML"),
    "an unknown encoding": (break_xml('<?xml version="1.0" encoding="x-no"?><annotation/>'), "not readable as XML"),
    "an XML bomb": (break_xml(BOMB), "unsafe XML"),
    "an external entity": (break_xml(OUTSIDE), "unsafe XML"),
    "a DOCTYPE": (break_xml(DOCTYPE), "unsafe XML"),
    "another kind of XML": (break_xml("<html/>"), "<html>, expected <annotation>"),
    "an unreadable image": (break_image, "not readable as an image"),
    "another size": (break_xml(annotation_xml(size=(20, 40))), "says the image is 20 x 40, the file is 40 x 20"),
    "a size that is no number": (break_xml(annotation_xml(size=("wide", 20))), "says the image is wide x 20"),
}
BOX_PROBLEMS = {
    "a missing coordinate": (break_box(1, 2, 3), "ymax=missing"),
    "no box": (break_box(), "xmin=missing"),
    "NaN": (break_box("nan", 1, 9, 9), "xmin=nan"),
    "infinity": (break_box(1, 1, "inf", 9), "xmax=inf"),
    "an overflow": (break_box(1, 1, "1e999", 9), "xmax=1e999"),
    "no number": (break_box(1, "two", 9, 9), "ymin=two"),
    "an empty box": (break_box(3, 1, 3, 9), "empty or inverted"),
    "an inverted box": (break_box(1, 9, 9, 1), "empty or inverted"),
    "a box outside": (break_box(41, 1, 50, 9), "outside the image of 40 x 20"),
    "a box that only touches": (break_box(-5, 1, 0, 9), "outside the image"),
    "an unknown class": (break_box(1, 1, 9, 9, name="rust"), "class 'rust' is not one of dent, hole"),
    "no class name": (break_box(1, 1, 9, 9, name=" "), "has no class name"),
}
NAMES = ["dent", "hole"]


@pytest.mark.parametrize(("spoil", "message"), [*FILE_PROBLEMS.values(), *BOX_PROBLEMS.values()])
def test_a_problem_stops_the_conversion_and_leaves_nothing(folder, spoil, message):
    spoil(folder)

    with pytest.raises(ConvertError, match="^1 problem") as error:
        folder.convert(names=NAMES)

    assert message in str(error.value)
    assert error.value.problems[0].startswith("bad.")
    assert not folder.out.parent.exists()


@pytest.mark.parametrize(("spoil", "message"), FILE_PROBLEMS.values(), ids=FILE_PROBLEMS.keys())
def test_skip_leaves_a_bad_file_out_and_lists_it(folder, spoil, message):
    spoil(folder)

    summary = folder.convert(names=NAMES, skip=True)

    assert len(summary.skipped) == 1
    assert message in summary.skipped[0]
    assert summary.images == {"train": 1, "val": 1}


@pytest.mark.parametrize(("spoil", "message"), BOX_PROBLEMS.values(), ids=BOX_PROBLEMS.keys())
def test_skip_leaves_a_bad_box_out_and_keeps_the_others(folder, spoil, message):
    spoil(folder)

    summary = folder.convert(names=NAMES, skip=True)

    assert len(summary.skipped) == 1
    assert message in summary.skipped[0]
    assert folder.labels("bad") == [[1, 5 / 40, 5 / 20, 8 / 40, 8 / 20]]


def test_all_problems_come_in_one_message(folder):
    for number, (spoil, _) in enumerate([*FILE_PROBLEMS.values(), *BOX_PROBLEMS.values()]):
        spoil(folder)
        for part in (folder.images, folder.annotations):
            for file in part.glob("bad.*"):
                file.rename(part / f"bad_{number}{file.suffix}")

    with pytest.raises(ConvertError) as error:
        folder.convert(names=NAMES)

    assert len(error.value.problems) == len(FILE_PROBLEMS) + len(BOX_PROBLEMS)
    assert str(error.value).count("\n") == len(error.value.problems)


def test_two_images_of_one_stem_are_a_problem(folder):
    two_images(folder)

    with pytest.raises(ConvertError, match="bad.png: bad.bmp has the same stem and another content"):
        folder.convert()


def test_copies_of_one_image_are_one_image(folder):
    folder.add("a_3", ("hole", 1, 1, 9, 9))
    (folder.images / "other").mkdir()
    shutil.copy(folder.images / "a_3.png", folder.images / "other" / "a_3.png")
    with Image.open(folder.images / "a_3.png") as image:
        image.save(folder.images / "a_3.bmp")  # the same pixels in another file

    summary = folder.convert()

    assert summary.images == {"train": 2, "val": 1}
    assert summary.left_out == {"copies of a file in another folder": 2}


def test_of_two_images_of_one_stem_neither_is_taken(folder):
    two_images(folder)

    summary = folder.convert(skip=True)

    assert summary.images == {"train": 1, "val": 1} and len(summary.skipped) == 1


def test_subfolders_are_searched_too(folder):
    folder.add("a_3", ("hole", 1, 1, 9, 9))
    for part in (folder.images, folder.annotations):
        (part / "more").mkdir()
        for file in part.glob("a_3.*"):
            file.rename(part / "more" / file.name)

    assert folder.convert().images["train"] == 2


def test_images_without_xml_are_background_where_that_is_said(folder):
    folder.image("a_3.png")

    assert folder.convert(background=True).images["train"] == 2
    assert folder.labels("a_3") == []


def test_a_broken_xml_makes_no_background_image(folder):
    break_xml("<annotation>")(folder)

    assert folder.convert(background=True, skip=True).images["train"] == 1


def test_an_image_with_two_xmls_makes_no_background_image(folder):
    folder.add("a_3", ("hole", 1, 1, 9, 9))
    old = folder.annotations / "old" / "a_3.xml"
    old.parent.mkdir()
    old.write_text((folder.annotations / "a_3.xml").read_text().replace("9", "8"))

    summary = folder.convert(background=True, skip=True)

    assert summary.images["train"] == 1 and len(summary.skipped) == 1


def test_classes_may_be_renamed(folder):
    convert(
        folder.images,
        folder.annotations,
        Options(out=folder.out, names=("pit", "dent")),
        split=lambda stem: "val" if stem == "a_2" else "train",
        renamed={"hole": "pit"},
    )

    assert folder.labels("a_1")[0][0] == 0


def test_missing_folders_are_named(folder):
    with pytest.raises(ConvertError, match="nowhere: no such folder"):
        convert(Path("nowhere"), folder.annotations, Options(out=folder.out))


@pytest.mark.parametrize("answer", ["training", None])
def test_an_unknown_split_is_a_problem(folder, answer):
    with pytest.raises(ConvertError, match=f"a_1.png: split is {answer!r}"):
        folder.convert(split=lambda stem: answer)


@pytest.mark.parametrize("skip", [False, True])
def test_nothing_to_validate_on_is_a_problem_even_with_skip(folder, skip):
    with pytest.raises(ConvertError, match="No usable image falls into 'val'"):
        folder.convert(split=lambda stem: "train", skip=skip)


def test_no_box_at_all_is_a_problem_unless_names_are_given(folder):
    for stem in ("a_1", "a_2"):
        folder.xml(stem, annotation_xml())

    with pytest.raises(ConvertError, match="no class is known"):
        folder.convert()
    assert folder.convert(names=["hole"]).boxes == {"train": {"hole": 0}, "val": {"hole": 0}}


# Any XML whatsoever

TEXT = st.text(max_size=6)
NUMBER = st.one_of(
    st.floats(-60, 60), st.floats(), st.integers(), st.sampled_from(["", "nan", "-inf", "1_0", "٣"]), TEXT
)
TAG = st.sampled_from(["annotation", "object", "bndbox", "size", "width", "name", "xmin", "part"])


def escape(value: object) -> str:
    """Text as XML would carry it; control characters stay, so that some files do not parse."""
    return str(value).replace("&", "&amp;").replace("<", "&lt;")


OBJECT = st.tuples(st.sampled_from(["hole", "rust", ""]), NUMBER, NUMBER, NUMBER, NUMBER)
SHAPED = st.builds(
    lambda objects, size: annotation_xml(
        *(tuple(map(escape, item)) for item in objects),
        size=(escape(size[0]), escape(size[1])),
    ),
    st.lists(OBJECT, max_size=3),
    st.one_of(st.just(SIZE), st.tuples(NUMBER, NUMBER)),
)
NESTED = st.recursive(
    NUMBER.map(escape),
    lambda inner: st.builds(lambda t, c: f"<{t}>{''.join(c)}</{t}>", TAG, st.lists(inner, max_size=4)),
)
ROOTED = NESTED.map(lambda inner: f"<annotation>{inner}</annotation>")
ANY_XML = st.one_of(SHAPED, ROOTED, NESTED, st.text()).map(lambda text: text.encode("utf-8", "replace")) | st.binary()


@pytest.fixture(scope="module")
def fuzzed():
    with tempfile.TemporaryDirectory() as root:
        folder = VocFolder(Path(root))
        folder.image("any.png")
        yield folder


@functools.cache
def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (width, height), 128).save(file, format="png")
    return file.getvalue()


SIDE = st.integers(1, 60)
ANY_IMAGE = st.just(png(*SIZE)) | st.builds(png, SIDE, SIDE) | st.binary(max_size=60) | st.binary(max_size=60).map(
    lambda tail: png(*SIZE)[:40] + tail
)  # fmt: skip


def convert_anything(fuzzed: VocFolder, content: bytes, image: bytes) -> None:
    """A valid data set or ConvertError comes out, with ``skip`` too, and no half of a folder is left either way."""
    (fuzzed.annotations / "any.xml").write_bytes(content)
    (fuzzed.images / "any.png").write_bytes(image)
    kept = fuzzed.convert(skip=True)
    assert kept.images["val"] == 1 and kept.images["train"] in {1, 2}
    before = tree(fuzzed.out)

    try:
        fuzzed.convert()
    except ConvertError as error:
        assert all(problem.startswith("any.") for problem in error.problems) and kept.skipped
        assert tree(fuzzed.out) == before
    else:
        assert not kept.skipped
        for _, x, y, width, height in fuzzed.labels("any"):
            assert width > 0 and height > 0
            assert -1e-6 <= x - width / 2 <= x + width / 2 <= 1 + 1e-6
            assert -1e-6 <= y - height / 2 <= y + height / 2 <= 1 + 1e-6
    assert [path.name for path in fuzzed.out.parent.iterdir()] == [fuzzed.out.name]


@pytest.mark.slow
@settings(max_examples=80, suppress_health_check=list(HealthCheck))
@given(content=ANY_XML, image=ANY_IMAGE)
@example(content=b"<annotation/>", image=png(*SIZE))
@example(content=annotation_xml(("hole", "-1e308", 0, "1e308", 5)).encode(), image=png(*SIZE))
@example(content=b"\xff\xfe<\x00", image=png(*SIZE))
@example(content=b"<annotation>" * 20_000 + b"</annotation>" * 20_000, image=png(*SIZE))
def test_anything_gives_a_data_set_or_a_voc_error(fuzzed, content, image):
    convert_anything(fuzzed, content, image)


@pytest.mark.soak
@settings(max_examples=10_000, derandomize=False, suppress_health_check=list(HealthCheck))
@given(content=ANY_XML, image=ANY_IMAGE)
def test_ten_thousand_folders_give_a_data_set_or_a_voc_error(fuzzed, content, image):
    convert_anything(fuzzed, content, image)
