"""What the teacher says of views, kept: the same terms as live, whatever happened to the file, and never another's."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.data.helpers import make as make_views
from tests.distill.helpers import NAMES, make, make_batch, make_student
from tests.helpers import make_detector, tiny_data
from tskd_yolo.config import ConfigError
from tskd_yolo.distill import cache
from tskd_yolo.distill import records as records_module
from tskd_yolo.distill.cache import Cache, key
from tskd_yolo.distill.records import Layout, Store, pack, unpack


@pytest.mark.slow
@pytest.mark.parametrize(("model", "kind"), [("yolo11n.yaml", "11s"), ("yolo26n.yaml", "26s")])
def test_the_terms_out_of_records_are_those_of_the_live_teacher(model, kind, files):
    student, batch = make_student(model), make_batch(boxes=5)
    distiller = make(student, files[kind], drd=1, ded=1, crd=1)
    kept = pack(distiller.teacher_outputs(batch["img"]))
    layout = Layout(kept, start=48)
    table = torch.zeros(len(batch["img"]), layout.size, dtype=torch.uint8)
    layout.join(kept, table)
    back = layout.split(table)
    assert kept.keys() == back.keys() and all(torch.equal(kept[k], back[k]) for k in kept)
    assert not table[:, :48].any()  # the view's own bytes
    found = {}
    for name, outputs in (("live", distiller.teacher_outputs(batch["img"])), ("kept", unpack(back))):
        step = distiller.attach(student, batch["img"])
        step.teacher = outputs
        values = step.losses(step.read(student(batch["img"])), batch).values
        found[name] = {k: v.item() for k, v in values.items()}
        distiller.detach()
    assert found["live"].keys() == found["kept"].keys() and len(found["live"]) == (4 if kind == "26s" else 3)
    for term, value in found["live"].items():
        assert found["kept"][term] == pytest.approx(value, rel=5e-3), term
    assert found["live"] != found["kept"]  # they do come from somewhere else


def test_no_more_is_kept_than_the_terms_that_are_on_read(files):
    images = make_batch()["img"]
    sizes = {}
    for off in ("drd", "ded", "crd"):
        on = dict(drd=0, ded=0, crd=0) | {off: 1}
        sizes[off] = set(pack(make(make_student(), files["11s"], **on).teacher_outputs(images)))
    assert not any(sizes[a] & sizes[b] for a, b in (("drd", "ded"), ("ded", "crd"), ("crd", "drd")))
    for term, kind in (("drd", "map"), ("ded", "stage")):
        assert {t for t, names in sizes.items() if any(name.startswith(kind) for name in names)} == {term}


def test_what_is_kept_stays_when_a_term_is_switched_off(files):
    distiller, images = make(make_student(), files["11s"], drd=1, ded=1, crd=1), make_batch()["img"]
    before = set(pack(distiller.teacher_outputs(images)))
    del distiller.on["ded"]  # as after an epoch of values that are not finite
    assert set(pack(distiller.teacher_outputs(images))) == before


def test_on_a_full_disk_the_teacher_is_asked_and_the_run_goes_on(caplog):
    layout = Layout({"map0.codes": torch.zeros(1, 4)})
    store = Store(3, layout.size, None, {})
    store._put = lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device"))
    found = Cache(layout, store)
    found._keep([0, 1], torch.zeros(2, layout.size, dtype=torch.uint8))
    found._keep([0, 1], torch.zeros(2, layout.size, dtype=torch.uint8))
    assert sum("cannot be kept any more" in r.message for r in caplog.records) == 1


# What a cache belongs to ----------------------------------------------------------------------------------------------


def run_of(data: Path, checkpoint: Path, **more):
    """What :func:`tskd_yolo.distill.cache.prepare` is given."""
    from ultralytics.cfg import get_cfg

    own = dict(views=2, teacher_cache="disk", cache_limit=20.0, seed=0, close_mosaic=0, teacher_imgsz=None)
    args = SimpleNamespace(**{**vars(get_cfg(overrides=dict(imgsz=64))), **own, **more})
    views = make_views(data, views=args.views, imgsz=args.imgsz)
    distiller = make(make_student(), checkpoint)
    return dict(distiller=distiller, views=views, args=args, epochs=10)


def key_of(data: Path, checkpoint: Path, **more) -> str:
    given = run_of(data, checkpoint, **more)
    header = {"views": given["args"].views}
    folder = cache._folder(given["views"].dataset)
    dataset = given["views"].dataset
    return key(header, panel=given["distiller"].panel, dataset=dataset, args=given["args"], folder=folder)


@pytest.mark.slow
def test_whatever_a_record_depends_on_changes_the_key(tmp_path, files):
    data, teacher = tiny_data(tmp_path), files["11s"]
    plain = key_of(data, teacher)
    assert plain == key_of(data, teacher)
    other = make_detector(tmp_path / "other.pt", names=NAMES, seed=8)
    found = [plain, key_of(data, other)]
    others = dict(hsv_h=0.2), dict(imgsz=96), dict(teacher_imgsz=128), dict(seed=1), dict(views=3), dict(task="pose")
    found += [key_of(data, teacher, **more) for more in others]
    assert key_of(data, teacher, epochs=7, batch=3, lr0=0.5) == plain  # nothing that a record depends on
    label, *_ = sorted((tmp_path / "set" / "labels" / "train").glob("*.txt"))
    label.write_text("0 0.5 0.5 0.25 0.25\n")
    found.append(key_of(data, teacher))
    image, *_ = sorted((tmp_path / "set" / "images" / "train").glob("*.png"))
    os.utime(image, (1, 1))
    found.append(key_of(data, teacher))
    assert len(set(found)) == 10


def test_data_that_moved_with_its_cache_has_the_same_key(tmp_path, files):
    data = tiny_data(tmp_path / "a")
    before = key_of(data, files["11s"])
    shutil.move(tmp_path / "a", tmp_path / "b")
    moved = tmp_path / "b" / "tiny.yaml"
    moved.write_text(data_text := moved.read_text().replace(str(tmp_path / "a"), str(tmp_path / "b")))
    assert str(tmp_path / "b") in data_text
    for labels in (tmp_path / "b" / "set" / "labels").glob("*.cache"):
        labels.unlink()
    assert key_of(moved, files["11s"]) == before


def test_a_cache_too_large_for_limit_disk_or_memory_is_refused(tmp_path, files, monkeypatch):
    given = run_of(tiny_data(tmp_path), files["11s"], cache_limit=1e-6)
    (sentence,) = refused(given)
    assert "8 images in views=2" in sentence and "cache_limit is 1e-06 GB; raise it, or take fewer views" in sentence
    given["args"].cache_limit = 20
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    assert "0.00 GB are free on the disk" in refused(given)[0]
    given["args"].teacher_cache = "ram"
    monkeypatch.setattr(cache.psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    (sentence,) = refused(given)
    assert "of memory free" in sentence and "teacher_cache=disk" in sentence
    monkeypatch.setattr(cache.psutil, "virtual_memory", lambda: SimpleNamespace(available=10**9))
    if Path("/dev/shm").is_dir():  # processes share a file there, and it may be smaller than the memory
        assert "0.00 GB are free in /dev/shm" in refused({**given, "shared": "x"})[0]
    assert not list(tmp_path.rglob("*.tskd"))


def test_a_cache_lies_beside_the_first_labels_that_are_there(tmp_path, files):
    given = run_of(tiny_data(tmp_path), files["11s"])
    dataset = given["views"].dataset
    background = tmp_path / "without" / "images" / "train"
    background.mkdir(parents=True)
    shutil.move(dataset.im_files[0], background / "a.png")
    dataset.im_files[0] = str(background / "a.png")
    found = cache.prepare(**given)
    assert found.stores[0].file.parent == (tmp_path / "set" / "labels").resolve()


def refused(given: dict) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        cache.prepare(**given)
    return caught.value.problems


def test_the_size_that_is_told_is_the_size_that_it_takes(tmp_path, files):
    given = run_of(tiny_data(tmp_path), files["11s"])
    found = cache.prepare(**given)
    for number in range(2 * 8):
        found.store.write(number, np.full(found.layout.size, 1, np.uint8))
    told = cache._size(found.layout, 8, given["args"], 10)
    taken = found.stores[0].file.stat().st_blocks * 512
    assert told == 16 * (found.layout.size + 8) and told <= taken <= told + 64 * 1024
    given["args"].close_mosaic = 4
    assert cache._size(found.layout, 8, given["args"], 10) == 2 * told  # as many views without mosaic
    assert cache._size(found.layout, 8, given["args"], 5) == 8 * 3 * (found.layout.size + 8)  # one epoch with mosaic
    assert cache._size(found.layout, 8, given["args"], 5, often=True) == 2 * told  # as of images without labels
    given["args"].close_mosaic = 0
    assert cache._size(found.layout, 8, given["args"], 5, often=True) == told


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path, files, monkeypatch):
    given = run_of(tiny_data(tmp_path), files["11s"])
    monkeypatch.setattr(
        records_module, "_make", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
    )
    assert "Permission denied" in refused(given)[0] and "give ram" in refused(given)[0]
