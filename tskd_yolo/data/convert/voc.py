"""Pascal VOC: a folder of images and one XML per image.

convert(Path("IMAGES"), Path("ANNOTATIONS"), Options(out=Path("my-set")))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import parse

from tskd_yolo.data.convert.common import Box, Found, Options, build
from tskd_yolo.data.convert.files import IMAGES, ConvertError, Notes, by_stem, number
from tskd_yolo.data.dataset import SPLITS, Summary


def convert(
    images: Path,
    annotations: Path,
    options: Options,
    *,
    split: Callable[[str], str] | None = None,
    renamed: Mapping[str, str] | None = None,
) -> Summary:
    """Turns a Pascal VOC folder into an Ultralytics data set.

    Image and XML belong together when they have the same file stem, in whatever subfolders they lie; the XML's
    ``filename`` is not read, since it is often wrong. Classes come from the XML's objects. Coordinates are taken as
    they are, from 0 to the image's width and height. An XML without objects makes a background image. ``difficult``
    objects count like all others.

    Args:
        images: Folder of the images, with any suffix Ultralytics reads.
        annotations: Folder of the XML files.
        options: What every conversion takes.
        split: A function from an image's file stem to "train", "val" or "test", which may raise ValueError for a stem
            it does not know. Without it the images' content decides.
        renamed: Class names by what the XML files call them, where that differs.

    Raises:
        ConvertError, FileExistsError: As :func:`~tskd_yolo.data.convert.common.build`.
    """
    notes = Notes()
    found = _read(Path(images), Path(annotations), options, split, renamed or {}, notes)
    return build(found, notes, options, sources=(images, annotations))


def _read(
    images: Path,
    annotations: Path,
    options: Options,
    split: Callable[[str], str] | None,
    renamed: Mapping[str, str],
    notes: Notes,
) -> Iterator[Found]:
    """Yields the images in order of their stems; notes what has no partner."""
    pictures, doubted = by_stem(images, IMAGES, notes)
    xmls, unclear = by_stem(annotations, frozenset((".xml",)), notes)
    for stem in sorted((pictures.keys() | xmls.keys()) - doubted - unclear):  # those are told
        if stem not in pictures:
            notes.problems.append(f"{xmls[stem].name}: no image of this name in {images}. Add it or remove the XML.")
            continue
        image = pictures[stem]
        if stem not in xmls and not options.background:
            notes.problems.append(
                f"{image.name}: no XML of this name in {annotations}. Add one (without objects if there is "
                "nothing on the image) or remove the image."
            )
            continue
        try:
            among = SPLITS if split is None else (_split_of(image, split),)
            boxes, size = _objects(xmls[stem], renamed) if stem in xmls else ([], None)
        except ConvertError as error:
            notes.problems.extend(error.problems)
        else:
            name = image.relative_to(images).as_posix()
            yield Found(image, name, boxes, f"{stem}.xml", size, among)


def _split_of(image: Path, split: Callable[[str], str]) -> str:
    """The split of one image; ConvertError if the function knows none for it."""
    try:
        name = split(image.stem)
    except ValueError as error:
        raise ConvertError(f"{image.name}: the split function refuses it ({error}). Rename or remove it.") from error
    if name not in SPLITS:
        raise ConvertError(f"{image.name}: split is {name!r}, expected one of {SPLITS}. Correct the split function.")
    return name


def _objects(xml: Path, renamed: Mapping[str, str]) -> tuple[list[Box], tuple[object, object] | None]:
    """The objects of an annotation file, and the image's size where it states one."""
    root = _parse(xml)
    boxes = []
    for count, item in enumerate(root.findall("object"), start=1):
        name = (item.findtext("name") or "").strip()
        texts = {key: (item.findtext(f"bndbox/{key}") or "").strip() for key in ("xmin", "ymin", "xmax", "ymax")}
        x1, y1, x2, y2 = map(number, texts.values())
        stated = ", ".join(f"{key}={text or 'missing'}" for key, text in texts.items())
        boxes.append(Box(f"{xml.name}, object {count}", renamed.get(name, name), (x1, y1, x2, y2), stated))
    width, height = ((root.findtext(f"size/{key}") or "").strip() for key in ("width", "height"))
    return boxes, (_side(width), _side(height)) if width or height else None


def _side(text: str) -> float | str:
    """A stated width or height as a number, as it stands where it is none."""
    value = number(text)
    return text if value != value else int(value) if value.is_integer() else value


def _parse(xml: Path) -> Element:
    """The root of an annotation file. DOCTYPE and entities are refused: they can read files or fill the memory."""
    try:
        root: Element | None = parse(xml, forbid_dtd=True).getroot()
    except DefusedXmlException as error:
        raise ConvertError(f"{xml.name}: unsafe XML ({error}). Remove its DOCTYPE and entities.") from error
    except (ParseError, ValueError, LookupError, OSError) as error:
        raise ConvertError(f"{xml.name}: not readable as XML ({error}). Repair or remove it.") from error
    if root is None or root.tag != "annotation":
        tag = None if root is None else root.tag
        raise ConvertError(f"{xml.name}: starts with <{tag}>, expected <annotation>. Is it a Pascal VOC file?")
    return root
