"""Runs that keep teacher outputs: cold, warm and in memory alike, whatever happened to the file."""

from __future__ import annotations

import mmap
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.helpers import DEVICE, copied_data, settings, tiny_data, weights, without_end
from tskd_yolo import Trainer
from tskd_yolo.config import ConfigError
from tskd_yolo.data.views import Views
from tskd_yolo.distill.cache import Cache

pytestmark = pytest.mark.slow


class Watch:
    """What a run asked of teacher and transforms, and its loss items step by step."""

    def __init__(self, trainer: Any) -> None:
        self.items: list[dict[str, float]] = []
        self.asked = self.drawn = 0
        trainer.add_callback("on_train_start", self.begin)
        trainer.add_callback("on_train_batch_end", self.step)

    def begin(self, trainer: Any) -> None:
        views = trainer.train_loader.dataset
        views.draw = partial(self.draw, Views.draw, views)

    def draw(self, draw: Any, views: Views, number: int) -> Any:
        self.drawn += 1
        return draw(views, number)

    def step(self, trainer: Any) -> None:
        self.items.append({k: float(v) for k, v in trainer.loss_items.items()})
        self.asked = trainer.distiller.cache.computed


def run(folder: Path, data: Path, teacher: Path, stop: int = 0, **more: Any) -> Watch:
    """Three epochs, two views of each image; up to the end of epoch ``stop`` if it is given."""
    given = settings(folder, data, teacher=str(teacher), val=False, epochs=3, close_mosaic=0, views=2)
    trainer = Trainer(**({**given, **more} if "resume" not in more else more))
    watch = Watch(trainer)
    if stop:
        trainer.add_callback("on_fit_epoch_end", partial(stopping, epoch=stop))
    with without_end(), pytest.raises(KeyboardInterrupt) if stop else nullcontext():
        trainer.train()
    return watch


def stopping(trainer: Any, epoch: int) -> None:
    if trainer.epoch + 1 == epoch:
        raise KeyboardInterrupt


class Cold(NamedTuple):
    """The first run on a data set: its data with the records beside it, what was asked, and the weights at the end."""

    data: Path
    watch: Watch
    weights: dict[str, torch.Tensor]


def last(folder: Path) -> dict[str, torch.Tensor]:
    return weights(folder / "run" / "weights" / "last.pt")


@pytest.fixture(scope="session")
def cold(tmp_path_factory, teacher) -> Cold:
    folder = tmp_path_factory.mktemp("cold")
    data = tiny_data(folder)
    watch = run(folder, data, teacher, teacher_cache="disk")
    return Cold(data, watch, last(folder))


def test_cold_warm_and_in_memory_runs_end_alike(cold, tmp_path, teacher):
    data = copied_data(cold.data, tmp_path)
    warm = run(tmp_path / "warm", data, teacher, teacher_cache="disk")
    memory = run(tmp_path / "memory", data, teacher, teacher_cache="ram")
    assert [w.asked for w in (cold.watch, warm, memory)] == [16, 0, 16] == [w.drawn for w in (cold.watch, warm, memory)]
    assert cold.watch.items == warm.items == memory.items and len(warm.items) == 6
    ends = [cold.weights, *(last(tmp_path / name) for name in ("warm", "memory"))]
    assert all(torch.equal(ends[0][k], end[k]) for end in ends[1:] for k in end)
    other = run(tmp_path / "other", data, teacher, teacher_cache="disk", crd=1, balance="share", epochs=2)
    assert other.asked == other.drawn == 0  # other weights find them, too
    own = run(tmp_path / "own", data, teacher, teacher_cache="disk", model="yolo11s.yaml", epochs=1)
    assert own.asked == own.drawn == 8  # a student that is compared on other channels of the teacher has its own


def test_the_first_epoch_has_the_terms_of_live_distillation(cold, data, tmp_path, teacher, monkeypatch):
    monkeypatch.setattr(Cache, "__call__", lambda self, images, batch, ask: ask(images))  # the same views, live
    live = run(tmp_path, data, teacher, teacher_cache="ram", epochs=1)
    first, same = cold.watch.items[0], live.items[0]
    for term in ("drd_loss", "ded_loss", "crd_loss"):
        assert first[term] == pytest.approx(same[term], rel=1e-2)
        assert first[term] != same[term] or DEVICE != "cpu"  # records are float16, and elsewhere what is live is, too
    assert {k: v for k, v in first.items() if "_loss" in k and k[:3] in ("box", "cls", "dfl")}.items() <= same.items()


def test_damaged_records_are_made_anew_and_the_run_is_the_same(cold, tmp_path, teacher, caplog):
    data = copied_data(cold.data, tmp_path)
    (file,) = tmp_path.rglob("*.tskd")
    content = bytearray(file.read_bytes())
    size = (len(content) - mmap.PAGESIZE) // 32
    for place in (len(content) - 17 * size - 100, len(content) - 20 * size):  # in two views of the first kind
        content[place] ^= 255
    file.write_bytes(content)
    caplog.clear()
    torn = run(tmp_path / "b", data, teacher, teacher_cache="disk")
    assert 0 < torn.asked <= 2 and torn.items == cold.watch.items
    assert sum("are damaged, they" in r.message for r in caplog.records) == 1
    assert run(tmp_path / "c", data, teacher, teacher_cache="disk", epochs=2).asked == 0


def test_a_resumed_run_goes_on_with_the_records_that_are_there(tmp_path, teacher):
    data = tiny_data(tmp_path)
    first = run(tmp_path, data, teacher, stop=1, teacher_cache="disk")
    assert first.asked == 8
    second = run(tmp_path, data, teacher, resume=str(tmp_path / "run" / "weights" / "last.pt"))
    assert second.asked == second.drawn == 8 and len(second.items) == 4  # the second view; the first is there


@pytest.mark.soak
def test_the_last_epochs_without_mosaic_have_their_own_records(tmp_path, data, teacher):
    watch = run(tmp_path, data, teacher, teacher_cache="ram", views=1, close_mosaic=2, plots=True)
    assert watch.asked == 16  # eight with mosaic, eight without


def test_a_run_above_the_limit_leaves_no_folder(tmp_path, data, teacher):
    with pytest.raises(ConfigError, match="cache_limit"):
        run(tmp_path, data, teacher, teacher_cache="disk", cache_limit=1e-6)
    assert not (tmp_path / "run").exists()
