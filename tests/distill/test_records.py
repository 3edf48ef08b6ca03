"""Records of teacher outputs: what comes back out of them, and what a kill or damage leaves of their file."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from tskd_yolo.distill.features import TeacherOutputs
from tskd_yolo.distill.records import Store, Stores, pack, unpack
from tskd_yolo.losses.standardize import Map, standardize


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


def test_runs_that_start_together_write_into_one_file(tmp_path, monkeypatch):
    file, data, exists = tmp_path / "a.tskd", records(), Path.exists
    first = Store(5, 64, file, {})
    first.write(3, data[3])
    monkeypatch.setattr(Path, "exists", lambda self: self != file and exists(self))  # not yet, when it looks
    second = Store(5, 64, file, {})
    second.write(4, data[4])
    assert (first.read(4)[0] == data[4]).all() and (second.read(3)[0] == data[3]).all()
    assert [path.name for path in tmp_path.iterdir()] == ["a.tskd"]


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


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.distill.test_records import records
from tskd_yolo.distill.records import Store

for moment, writes in (("record", 1), ("sum", 2)):
    if child := os.fork():
        print(moment, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        continue
    store, data = Store(5, 64, Path(sys.argv[1], moment), {}), records()
    store.write(0, data[0]); store.write(1, data[1]); store.write(4, data[0])
    put, left = store._put, [writes]
    def dying(place, data):
        left[0] -= 1
        if left[0]:
            return put(place, data)
        put(place, data[: len(data) // 4])
        os.kill(os.getpid(), signal.SIGKILL)
    store._put = dying
    store.write(4, data[4])  # over another one: both states are torn
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """A folder with two files, whose writers were killed while they wrote a record and its checksum."""
    folder = tmp_path_factory.mktemp("killed")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder)], env=environment, timeout=120, capture_output=True, text=True
    )
    assert run.stdout.split() == ["record", str(-signal.SIGKILL), "sum", str(-signal.SIGKILL)], run.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["record", "sum"])
def test_a_kill_while_writing_loses_the_record_being_written(moment, killed):
    store = Store(5, 64, killed / moment, {})
    assert [store.read(n)[1] for n in range(5)] == [1, 1, 0, 0, -1]


def test_stores_are_numbered_one_after_the_other():
    parts = [Store(count, 64, None, {}) for count in (2, 3)]
    together, data = Stores(parts), records()
    for number in range(5):
        together.write(number, data[number])
    assert together.whole() == 5 and [part.whole() for part in parts] == [2, 3]
    assert all(np.array_equal(together.read(number)[0], data[number]) for number in range(5))
    assert np.array_equal(parts[1].read(0)[0], data[2])


def test_a_closed_store_holds_no_memory(tmp_path):
    for file in (tmp_path / "a.tskd", None):
        store = Store(5, 64, file, {})
        held = weakref.ref(store._bytes)
        store.close()
        assert held() is None and store.count == 0
