"""What the teacher says of views, kept: the same terms as live, whatever happened to the file, and never another's."""

from __future__ import annotations

import errno
import mmap
import os
import pickle
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.data.test_views import make as make_views
from tests.distill.test_distiller import NAMES, make, make_batch, make_student
from tests.helpers import make_detector, settings, tiny_data, weights
from tskd_yolo.config import ConfigError
from tskd_yolo.data.views import Views
from tskd_yolo.distill import cache
from tskd_yolo.distill import records as records_module
from tskd_yolo.distill.cache import Cache, key
from tskd_yolo.distill.features import TeacherOutputs
from tskd_yolo.distill.records import Layout, Store, pack, unpack
from tskd_yolo.losses.standardize import Map, standardize


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("teachers")
    return {kind: make_detector(folder / f"{kind}.pt", f"yolo{kind}.yaml", NAMES) for kind in ("11s", "26s")}


def records(count: int = 5, size: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size), dtype=np.uint8)


def test_a_map_out_of_its_record_is_the_map_in_eight_bits():
    features = torch.randn(4, 24, 6, 5) * torch.linspace(0.01, 30, 24).view(1, -1, 1, 1) + 3
    kept = unpack(pack(TeacherOutputs({"neck": [features]}, {}))).maps["neck"][0]()
    plain = standardize(features)
    assert isinstance(kept, Map) and kept.image(kept.cells).shape == features.shape
    assert 0 < (kept.cells - plain.cells).abs().max() < 0.03 and (kept.cells - plain.cells).abs().mean() < 0.01
    assert kept.cells.mean(dim=(0, 1)).abs().max() < 1e-3
    constant = TeacherOutputs({"neck": [torch.full((2, 3, 4, 4), 7.0)]}, {})
    flat = unpack(pack(constant)).maps["neck"][0]()
    assert flat.cells.abs().max() < 1e-3  # a map without any variation stays one


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


def test_a_record_is_there_only_when_it_was_written_whole(tmp_path):
    for file in (tmp_path / "a.tskd", None):
        store, data = Store(5, 64, file, {}), records()
        assert store.read(2)[1] == 0 and not store.read(2)[0].any() and store.whole() == 0
        store.write(2, data[2])
        record, state = store.read(2)
        assert state == 1 and (record == data[2]).all() and store.whole() == 1
        store._put(store._start + 2 * 64 + 10, b"\x00\x01\x02")
        record, state = store.read(2)
        assert state == -1 and not record.any()
        store.write(2, data[2])
        assert store.read(2)[1] == 1 and store.read(1)[1] == 0


def test_records_are_found_again_under_their_header_only(tmp_path):
    file, data = tmp_path / "a.tskd", records()
    Store(5, 64, file, {"key": "x"}).write(3, data[3])
    again = Store(5, 64, file, {"key": "x"})
    assert (again.read(3)[0] == data[3]).all() and again.lasting
    assert (pickle.loads(pickle.dumps(again)).read(3)[0] == data[3]).all()
    assert Store(5, 64, file, {"key": "y"}).whole() == 0  # made anew
    assert not Store(5, 64, None, {}).lasting


@pytest.mark.parametrize("damage", ["cut", "header", "empty"])
def test_a_file_that_is_damaged_as_a_whole_is_made_anew(damage, tmp_path):
    file = tmp_path / "a.tskd"
    Store(5, 64, file, {}).write(3, records()[3])
    content = file.read_bytes()
    file.write_bytes({"cut": content[:-70], "header": b"x" + content[1:], "empty": b""}[damage])
    store = Store(5, 64, file, {})
    assert store.whole() == 0 and file.stat().st_size == len(content)
    store.write(3, records()[3])
    assert Store(5, 64, file, {}).read(3)[1] == 1


@pytest.mark.parametrize("moment", ["record", "sum"])
def test_a_kill_while_writing_loses_the_record_being_written(moment, tmp_path):
    file = tmp_path / "a.tskd"
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom tests.distill.test_cache import records\n"
        "from tskd_yolo.distill.records import Store\n"
        "store, data = Store(5, 64, Path(sys.argv[1]), {}), records()\n"
        "store.write(0, data[0]); store.write(1, data[1]); store.write(4, data[0])\n"
        "put, left = store._put, [2 if sys.argv[2] == 'sum' else 1]\n"
        "def dying(place, data):\n"
        "    left[0] -= 1\n"
        "    if left[0]:\n"
        "        return put(place, data)\n"
        "    put(place, data[: len(data) // 4])\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "store._put = dying\n"
        "store.write(4, data[4])\n"  # over another one: both states are torn
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.run([sys.executable, "-c", code, str(file), moment], env=environment, timeout=120)
    assert run.returncode == -signal.SIGKILL
    store = Store(5, 64, file, {})
    assert [store.read(n)[1] for n in range(5)] == [1, 1, 0, 0, -1]


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

    own = dict(views=2, teacher_cache="disk", cache_limit=20.0, seed=0, close_mosaic=0)
    args = SimpleNamespace(**{**vars(get_cfg(overrides=dict(imgsz=64))), **own, **more})
    views = make_views(data, views=args.views, imgsz=args.imgsz)
    distiller = make(make_student(), checkpoint)
    return dict(distiller=distiller, views=views, args=args, epochs=10)


def key_of(data: Path, checkpoint: Path, **more) -> str:
    given = run_of(data, checkpoint, **more)
    header = {"views": given["args"].views}
    folder = cache._folder(given["views"].dataset)
    dataset = given["views"].dataset
    return key(header, teacher=given["distiller"].teacher, dataset=dataset, args=given["args"], folder=folder)


def test_whatever_a_record_depends_on_changes_the_key(tmp_path, files):
    data, teacher = tiny_data(tmp_path), files["11s"]
    plain = key_of(data, teacher)
    assert plain == key_of(data, teacher)
    other = make_detector(tmp_path / "other.pt", names=NAMES, seed=8)
    found = [plain, key_of(data, other)]
    found += [key_of(data, teacher, **more) for more in (dict(hsv_h=0.2), dict(imgsz=96), dict(seed=1), dict(views=3))]
    assert key_of(data, teacher, epochs=7, batch=3, lr0=0.5) == plain  # nothing that a record depends on
    label, *_ = sorted((tmp_path / "set" / "labels" / "train").glob("*.txt"))
    label.write_text("0 0.5 0.5 0.25 0.25\n")
    found.append(key_of(data, teacher))
    image, *_ = sorted((tmp_path / "set" / "images" / "train").glob("*.png"))
    os.utime(image, (1, 1))
    found.append(key_of(data, teacher))
    assert len(set(found)) == 8


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
    assert not list(tmp_path.rglob("*.tskd"))


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
    taken = found.store.file.stat().st_blocks * 512
    assert told == 16 * (found.layout.size + 8) and told <= taken <= told + 64 * 1024
    given["args"].close_mosaic = 4
    assert cache._size(found.layout, 8, given["args"], 10) == 2 * told  # as many views without mosaic
    assert cache._size(found.layout, 8, given["args"], 5) == 8 * 3 * (found.layout.size + 8)  # one epoch with mosaic


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path, files, monkeypatch):
    given = run_of(tiny_data(tmp_path), files["11s"])
    monkeypatch.setattr(
        records_module, "_make", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
    )
    assert "Permission denied" in refused(given)[0] and "give ram" in refused(given)[0]


# Whole runs -----------------------------------------------------------------------------------------------------------


class Watch:
    """What a run asked of teacher and transforms, and its loss items step by step."""

    def __init__(self, trainer) -> None:
        self.items: list[dict[str, float]] = []
        self.asked = self.drawn = 0
        trainer.add_callback("on_train_start", self.begin)
        trainer.add_callback("on_train_batch_end", self.step)

    def begin(self, trainer) -> None:
        views = trainer.train_loader.dataset
        views.draw = partial(self.draw, Views.draw, views)

    def draw(self, draw, views, number):
        self.drawn += 1
        return draw(views, number)

    def step(self, trainer) -> None:
        self.items.append({k: float(v) for k, v in trainer.loss_items.items()})
        self.asked = trainer.distiller.cache.computed


def run(folder: Path, data: Path, teacher: Path, stop: int = 0, **more) -> Watch:
    from tskd_yolo import Trainer

    given = settings(folder, data, teacher=str(teacher), val=False, epochs=3, close_mosaic=0, views=2)
    trainer = Trainer(**({**given, **more} if "resume" not in more else more))
    watch = Watch(trainer)
    if stop:
        trainer.add_callback("on_fit_epoch_end", partial(stopping, epoch=stop))
    if stop:
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    else:
        trainer.train()
    return watch


def stopping(trainer, epoch: int) -> None:
    if trainer.epoch + 1 == epoch:
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return make_detector(tmp_path_factory.mktemp("teacher") / "teacher.pt")


def cache_file(folder: Path) -> Path:
    (file,) = folder.rglob("*.tskd")
    return file


@pytest.mark.slow
def test_cold_warm_and_in_memory_runs_end_alike(tmp_path, teacher):
    data = tiny_data(tmp_path)
    cold = run(tmp_path / "cold", data, teacher, teacher_cache="disk")
    warm = run(tmp_path / "warm", data, teacher, teacher_cache="disk")
    memory = run(tmp_path / "memory", data, teacher, teacher_cache="ram")
    assert [w.asked for w in (cold, warm, memory)] == [16, 0, 16] == [w.drawn for w in (cold, warm, memory)]
    assert cold.items == warm.items == memory.items and len(cold.items) == 6
    ends = [weights(tmp_path / name / "run" / "weights" / "last.pt") for name in ("cold", "warm", "memory")]
    assert all(torch.equal(ends[0][k], end[k]) for end in ends[1:] for k in end)
    other = run(tmp_path / "other", data, teacher, teacher_cache="disk", crd=1, balance="share", epochs=2)
    assert other.asked == other.drawn == 0  # other weights find them, too
    own = run(tmp_path / "own", data, teacher, teacher_cache="disk", model="yolo11s.yaml", epochs=1)
    assert own.asked == own.drawn == 8  # a student that is compared on other channels of the teacher has its own


@pytest.mark.slow
def test_the_first_epoch_has_the_terms_of_live_distillation(tmp_path, teacher, monkeypatch):
    data = tiny_data(tmp_path)
    kept = run(tmp_path / "kept", data, teacher, teacher_cache="ram", epochs=1)
    monkeypatch.setattr(Cache, "__call__", lambda self, images, batch, ask: ask(images))  # the same views, live
    live = run(tmp_path / "live", data, teacher, teacher_cache="ram", epochs=1)
    first, same = kept.items[0], live.items[0]
    for term in ("drd_loss", "ded_loss", "crd_loss"):
        assert first[term] == pytest.approx(same[term], rel=1e-2) and first[term] != same[term]
    assert {k: v for k, v in first.items() if "_loss" in k and k[:3] in ("box", "cls", "dfl")}.items() <= same.items()


@pytest.mark.slow
def test_damaged_records_are_made_anew_and_the_run_is_the_same(tmp_path, teacher, caplog):
    data = tiny_data(tmp_path)
    whole = run(tmp_path / "a", data, teacher, teacher_cache="disk")
    file = cache_file(tmp_path)
    content = bytearray(file.read_bytes())
    size = (len(content) - mmap.PAGESIZE) // 32
    for place in (len(content) - 17 * size - 100, len(content) - 20 * size):  # in two views of the first kind
        content[place] ^= 255
    file.write_bytes(content)
    caplog.clear()
    torn = run(tmp_path / "b", data, teacher, teacher_cache="disk")
    assert 0 < torn.asked <= 2 and torn.items == whole.items
    assert sum("are damaged, they" in r.message for r in caplog.records) == 1
    assert run(tmp_path / "c", data, teacher, teacher_cache="disk").asked == 0


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_the_records_that_are_there(tmp_path, teacher):
    data = tiny_data(tmp_path)
    first = run(tmp_path, data, teacher, stop=1, teacher_cache="disk")
    assert first.asked == 8
    last = tmp_path / "run" / "weights" / "last.pt"
    second = run(tmp_path, data, teacher, resume=str(last))
    assert second.asked == second.drawn == 8 and len(second.items) == 4  # the second view; the first is there


@pytest.mark.slow
def test_the_last_epochs_without_mosaic_have_their_own_records(tmp_path, teacher):
    data = tiny_data(tmp_path)
    watch = run(tmp_path, data, teacher, teacher_cache="ram", views=1, close_mosaic=2, plots=True)
    assert watch.asked == 16  # eight with mosaic, eight without


@pytest.mark.slow
def test_a_run_above_the_limit_leaves_no_folder(tmp_path, teacher):
    with pytest.raises(ConfigError, match="cache_limit"):
        run(tmp_path, tiny_data(tmp_path), teacher, teacher_cache="disk", cache_limit=1e-6)
    assert not (tmp_path / "run").exists()
