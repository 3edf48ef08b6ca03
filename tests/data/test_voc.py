"""Pascal VOC folders, good and bad ones, become Ultralytics data sets or one clear message."""

import functools
import io
import logging
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from tskd_yolo.data import dataset
from tskd_yolo.data.dataset import Summary
from tskd_yolo.data.voc import VocError, convert

SIZE = (40, 20)  # width and height of the test images, different so that a swap shows

Object = tuple[str, object, object, object, object]


def object_xml(name: object, *corners: object) -> str:
    """One <object> of an annotation."""
    keys = ("xmin", "ymin", "xmax", "ymax")
    box = "".join(f"<{key}>{value}</{key}>" for key, value in zip(keys, corners))
    return f"<object><name>{name}</name><bndbox>{box}</bndbox></object>"


def annotation_xml(*objects: Object, size: tuple[object, object] = SIZE, filename: str = "") -> str:
    """An annotation file."""
    stated = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>1</depth></size>"
    found = "".join(object_xml(*item) for item in objects)
    return f"<annotation><filename>{filename}</filename>{stated}{found}</annotation>"


class VocFolder:
    """A Pascal VOC folder to fill: ``a_1`` trains, ``a_2`` validates, and both are fine."""

    def __init__(self, root: Path) -> None:
        self.images, self.annotations, self.out = root / "IMAGES", root / "ANNOTATIONS", root / "made" / "set"
        self.images.mkdir(parents=True)
        self.annotations.mkdir()
        self.add("a_1", ("hole", 4, 5, 12, 15))
        self.add("a_2", ("dent", 0, 0, 40, 20))

    def add(self, stem: str, *objects: Object, suffix: str = ".png", **more: object) -> None:
        self.image(stem + suffix)
        self.xml(stem, annotation_xml(*objects, **more))

    def image(self, name: str) -> None:
        Image.new("L", SIZE, 128).save(self.images / name)

    def xml(self, stem: str, text: str) -> None:
        (self.annotations / f"{stem}.xml").write_text(text, encoding="utf-8")

    def convert(self, *, split: Callable[[str], str] | float = lambda s: "val" if s == "a_2" else "train", **more):
        return convert(images=self.images, annotations=self.annotations, out=self.out, split=split, **more)

    def labels(self, stem: str, split: str = "train") -> list[list[float]]:
        text = (self.out / "labels" / split / f"{stem}.txt").read_text()
        return [[float(word) for word in line.split()] for line in text.splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> VocFolder:
    return VocFolder(tmp_path)


def tree(root: Path) -> dict[str, bytes]:
    """Every file below a folder with what is in it."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


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
    )


def test_data_yaml_names_folders_and_classes(folder):
    folder.convert()

    assert yaml.safe_load((folder.out / "data.yaml").read_text()) == {
        "path": str(folder.out.resolve()),
        "train": "images/train",
        "val": "images/val",
        "names": {0: "dent", 1: "hole"},
    }


def test_ultralytics_reads_what_was_made(folder):
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.data.utils import check_det_dataset

    folder.convert()
    data = check_det_dataset(str(folder.out / "data.yaml"), autodownload=False)
    dataset = YOLODataset(img_path=data["train"], data=data, imgsz=32, augment=False)

    assert dataset.labels[0]["cls"].tolist() == [[1]]
    assert dataset.labels[0]["bboxes"].tolist() == [pytest.approx([0.2, 0.5, 0.2, 0.5])]


def test_one_line_says_what_was_made(folder, caplog):
    with caplog.at_level(logging.INFO, logger="ultralytics"):
        logging.getLogger("ultralytics").addHandler(caplog.handler)
        try:
            folder.convert()
        finally:
            logging.getLogger("ultralytics").removeHandler(caplog.handler)

    assert "train 1 images with 1 boxes, val 1 images with 1 boxes; 0 boxes clipped, 0 problems" in caplog.text


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


def test_a_test_split_is_written_when_there_is_one(folder):
    folder.add("a_3", ("hole", 1, 1, 9, 9))

    summary = folder.convert(split={"a_1": "train", "a_2": "val", "a_3": "test"}.__getitem__)

    assert summary.images == {"train": 1, "val": 1, "test": 1}
    assert yaml.safe_load((folder.out / "data.yaml").read_text())["test"] == "images/test"


def test_a_share_splits_by_stem_alone(folder):
    for number in range(3, 60):
        folder.add(f"a_{number}", ("hole", 1, 1, 9, 9))
    first = folder.convert(split=0.3)
    before = {path.stem for path in (folder.out / "images/val").iterdir()}
    for number in range(60, 80):
        folder.add(f"a_{number}", ("hole", 1, 1, 9, 9))
    folder.convert(split=0.3)
    after = {path.stem for path in (folder.out / "images/val").iterdir()}

    assert 8 <= first.images["val"] <= 28
    assert before == {stem for stem in after if int(stem[2:]) < 60}


# Originals, repetition, crashes


def test_images_are_links_and_the_originals_stay_as_they_are(folder):
    before = tree(folder.images) | tree(folder.annotations)

    folder.convert()

    link = folder.out / "images/train/a_1.png"
    assert link.resolve() == (folder.images / "a_1.png").resolve()
    assert tree(folder.images) | tree(folder.annotations) == before


@pytest.mark.parametrize("error", [OSError("no right"), NotImplementedError()])
def test_images_are_copied_where_links_cannot_be_made(folder, monkeypatch, error):
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Path, "symlink_to", refuse)
    folder.convert()

    copy = folder.out / "images/train/a_1.png"
    assert not copy.is_symlink()
    assert copy.read_bytes() == (folder.images / "a_1.png").read_bytes()


def test_relative_folders_give_links_that_hold(folder, monkeypatch):
    monkeypatch.chdir(folder.images.parent)

    convert(
        images=Path("IMAGES"),
        annotations=Path("ANNOTATIONS"),
        out=Path("here"),
        split=lambda s: "val" if "2" in s else "train",
    )

    assert Path("here/images/val/a_2.png").is_file()


def test_a_second_run_gives_the_same(folder):
    first, files = folder.convert(), tree(folder.out)

    assert folder.convert() == first
    assert tree(folder.out) == files


def test_a_second_run_replaces_what_is_no_longer_there(folder):
    folder.add("a_3", ("hole", 1, 1, 9, 9))
    folder.convert()
    (folder.images / "a_3.png").unlink()
    (folder.annotations / "a_3.xml").unlink()

    folder.convert()

    assert [path.name for path in (folder.out / "images/train").iterdir()] == ["a_1.png"]


def test_an_empty_folder_may_be_filled(folder):
    folder.out.mkdir(parents=True)

    assert folder.convert().images == {"train": 1, "val": 1}


@pytest.mark.parametrize("name", ["notes.txt", "data.yaml"])
def test_a_foreign_folder_is_refused_and_left_alone(folder, name):
    folder.out.mkdir(parents=True)
    (folder.out / name).write_text("path: mine\n")

    with pytest.raises(FileExistsError, match="not made by tskd-yolo"):
        folder.convert()

    assert tree(folder.out.parent) == {f"set/{name}": b"path: mine\n"}


def test_a_file_in_the_place_of_the_folder_is_refused(folder):
    folder.out.parent.mkdir()
    folder.out.write_text("mine")

    with pytest.raises(FileExistsError):
        folder.convert()


def test_the_folder_with_the_originals_is_never_replaced(folder):
    (folder.images.parent / "data.yaml").write_text(dataset.MARKER + "\n")

    with pytest.raises(FileExistsError, match="Choose another"):
        convert(images=folder.images, annotations=folder.annotations, out=folder.images.parent)

    assert (folder.images / "a_1.png").is_file()


def test_a_crash_leaves_nothing_behind(folder, monkeypatch):
    monkeypatch.setattr(dataset, "_write_labels", lambda *_: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        folder.convert()

    assert list(folder.out.parent.iterdir()) == []


def test_a_crash_keeps_the_former_set(folder, monkeypatch):
    folder.convert()
    before = tree(folder.out.parent)
    rename = Path.rename

    def rename_all_but_new(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError("disk gone")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", rename_all_but_new)
    with pytest.raises(OSError, match="disk gone"):
        folder.convert()

    assert tree(folder.out.parent) == before


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
    folder.image("bad.bmp")


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

    with pytest.raises(VocError, match="^1 problem") as error:
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

    with pytest.raises(VocError) as error:
        folder.convert(names=NAMES)

    assert len(error.value.problems) == len(FILE_PROBLEMS) + len(BOX_PROBLEMS)
    assert str(error.value).count("\n") == len(error.value.problems)


def test_two_images_of_one_stem_are_a_problem(folder):
    two_images(folder)

    with pytest.raises(VocError, match="bad.bmp has the same stem"):
        folder.convert()


def test_missing_folders_are_named(folder):
    with pytest.raises(VocError, match="nowhere: no such folder"):
        convert(images=Path("nowhere"), annotations=folder.annotations, out=folder.out)


@pytest.mark.parametrize("answer", ["training", None])
def test_an_unknown_split_is_a_problem(folder, answer):
    with pytest.raises(VocError, match=f"a_1.png: split is {answer!r}"):
        folder.convert(split=lambda stem: answer)


@pytest.mark.parametrize("skip", [False, True])
def test_nothing_to_validate_on_is_a_problem_even_with_skip(folder, skip):
    with pytest.raises(VocError, match="No usable image falls into 'val'"):
        folder.convert(split=lambda stem: "train", skip=skip)


def test_no_box_at_all_is_a_problem_unless_names_are_given(folder):
    for stem in ("a_1", "a_2"):
        folder.xml(stem, annotation_xml())

    with pytest.raises(VocError, match="no class is known"):
        folder.convert()
    assert folder.convert(names=["hole"]).boxes == {"train": {"hole": 0}, "val": {"hole": 0}}


@pytest.mark.parametrize("split", [0, 1, -0.1, 1.5, float("nan")])
def test_a_share_that_leaves_a_split_empty_is_refused(folder, split):
    with pytest.raises(ValueError, match="between 0 and 1"):
        folder.convert(split=split)


@pytest.mark.parametrize("names", [[], ["hole", "hole"]])
def test_names_must_be_different(folder, names):
    with pytest.raises(ValueError, match="different class names"):
        folder.convert(names=names)


def test_the_error_survives_a_trip_to_another_process():
    assert pickle.loads(pickle.dumps(VocError("a.xml: one.", "b.xml: two."))).problems == ("a.xml: one.", "b.xml: two.")


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
    """A valid data set or VocError comes out, with ``skip`` too, and no half of a folder is left either way."""
    (fuzzed.annotations / "any.xml").write_bytes(content)
    (fuzzed.images / "any.png").write_bytes(image)
    kept = fuzzed.convert(skip=True)
    assert kept.images["val"] == 1 and kept.images["train"] in {1, 2}
    before = tree(fuzzed.out)

    try:
        fuzzed.convert()
    except VocError as error:
        assert all(problem.startswith("any.") for problem in error.problems) and kept.skipped
        assert tree(fuzzed.out) == before
    else:
        assert not kept.skipped
        for _, x, y, width, height in fuzzed.labels("any"):
            assert width > 0 and height > 0
            assert -1e-6 <= x - width / 2 <= x + width / 2 <= 1 + 1e-6
            assert -1e-6 <= y - height / 2 <= y + height / 2 <= 1 + 1e-6
    assert [path.name for path in fuzzed.out.parent.iterdir()] == [fuzzed.out.name]


@settings(max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(content=ANY_XML, image=ANY_IMAGE)
@example(content=b"<annotation/>", image=png(*SIZE))
@example(content=annotation_xml(("hole", "-1e308", 0, "1e308", 5)).encode(), image=png(*SIZE))
@example(content=b"\xff\xfe<\x00", image=png(*SIZE))
@example(content=b"<annotation>" * 20_000 + b"</annotation>" * 20_000, image=png(*SIZE))
def test_anything_gives_a_data_set_or_a_voc_error(fuzzed, content, image):
    convert_anything(fuzzed, content, image)


@pytest.mark.soak
@settings(max_examples=10_000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(content=ANY_XML, image=ANY_IMAGE)
def test_ten_thousand_folders_give_a_data_set_or_a_voc_error(fuzzed, content, image):
    convert_anything(fuzzed, content, image)
