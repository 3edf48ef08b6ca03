"""Views: the same image and boxes for the same number, whoever draws it, when, and after what."""

from __future__ import annotations

import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from ultralytics.data import build_dataloader

from tests.data.helpers import equal, make, stock
from tests.helpers import task_data, tiny_data
from tskd_yolo.data.views import BOXES, Kept, of_views


def seen(data: Path, workers: int, epochs: int, start: int = 0, **more) -> dict[int, dict]:
    """Everything that a loader gives in some epochs, by number; a number that comes again has to be the same."""
    views = make(data, **more)
    loader = build_dataloader(views, 4, workers, shuffle=True, device="cpu")
    passes = of_views(loader)
    found: dict[int, dict] = {}
    try:
        for epoch in range(start, start + epochs):
            passes.begin(epoch)
            for batch in loader:
                for k, number in enumerate(batch["view"]):
                    assert number // len(views) == epoch % views.views
                    own = batch["batch_idx"] == k
                    item = {key: batch[key][own] for key in ("cls", "bboxes")}
                    item.update(img=batch["img"][k], im_file=batch["im_file"][k])
                    assert number not in found or equal(found[number], item)
                    found[number] = item
    finally:
        loader.close()
    return found


def test_a_number_is_the_same_view_whoever_draws_it_and_when(data):
    alone, again, two = seen(data, 0, 4), seen(data, 0, 2), seen(data, 2, 4)
    assert len(alone) == len(again) == len(two) == 16
    assert all(equal(alone[n], again[n]) and equal(alone[n], two[n]) for n in alone)
    views = make(data)
    assert all(equal(views[n], alone[n]) for n in reversed(range(16)))  # another order, after another past
    assert all(views[n]["im_file"] == views[n % 8]["im_file"] for n in range(16))


def test_views_of_an_image_and_of_another_seed_differ(data):
    views, other = make(data), make(data, seed=1)
    assert all(not torch.equal(views[n]["img"], views[n + 8]["img"]) for n in range(8))
    assert sum(torch.equal(views[n]["img"], other[n]["img"]) for n in range(16)) == 0


def test_ultralytics_own_set_draws_anew(data):
    dataset, _ = stock(data)
    assert any(not torch.equal(dataset[n]["img"], dataset[n]["img"]) for n in range(8))


@pytest.mark.parametrize("cache", [False, "ram", "disk"])
def test_images_that_ultralytics_keeps_are_not_changed_in_place(cache, tmp_path):
    data = tiny_data(tmp_path, train=3)
    settings = dict(cache=cache, mosaic=0.0, mixup=0.0, cutmix=0.0, degrees=0.0, translate=0.0, scale=0.0, hsv_v=0.9)
    views = make(data, **settings)
    first = [views[0] for _ in range(3)]  # read once, then out of what is kept
    assert equal(first[0], first[1]) and equal(first[0], first[2])


def test_the_runs_random_numbers_go_on_as_if_no_view_was_drawn(data):
    views = make(data)

    def numbers() -> tuple:
        return random.random(), float(np.random.rand()), float(torch.rand(())), torch.initial_seed()

    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    plain = numbers()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    views[3]
    assert numbers() == plain


def test_without_mosaic_the_last_epochs_have_views_of_their_own(data):
    views, cfg = make(data, mosaic=1.0), stock(data, mosaic=1.0)[1]
    before = views[0]
    assert [views.slot(e) for e in range(4)] == [0, 1, 0, 1]
    views.close_mosaic(cfg)
    assert [views.slot(e) for e in range(4)] == [2, 3, 2, 3] and views.slots == 4
    assert not torch.equal(before["img"], views[2 * 8]["img"]) and equal(views[16], views[16])


def test_after_the_loader_began_anew_passes_go_on_at_the_epoch(data):
    loader = build_dataloader(make(data, views=8), 4, 2, shuffle=True, device="cpu")
    passes = of_views(loader)
    try:
        for epoch, restarts in ((3, False), (4, False), (5, True), (6, False)):
            if restarts:  # as in the engine: workers have read ahead, into the epoch that begins
                passes.restart(epoch)
                loader.reset()
            passes.begin(epoch)
            assert {number // 8 for batch in loader for number in batch["view"]} == {epoch}
    finally:
        loader.close()


def test_a_set_of_views_can_be_sent_to_a_process_that_is_no_fork(data):
    views = make(data)
    sent = pickle.loads(pickle.dumps(views))
    assert all(equal(views[n], sent[n]) for n in range(16))


def test_a_view_comes_out_of_its_record_as_it_went_in(data):
    views, kept = make(data), Kept(64, 3)
    for number in range(16):
        view = views.draw(number)
        record = np.zeros(kept.size, np.uint8)
        kept.put(view, record)
        back = kept.get(record, view["im_file"])
        assert set(back) == set(view) and equal(back, view)
        assert torch.equal(back["batch_idx"], view["batch_idx"])
        assert all(tuple(view[key]) == back[key] for key in ("ori_shape", "resized_shape", "ratio_pad"))


def test_a_view_with_rotated_boxes_comes_out_as_it_went_in(tmp_path):
    views = make(task_data(tmp_path, "obb"), task="obb")
    view = views.draw(0)
    record = np.zeros(views.kept.size, np.uint8)
    views.kept.put(view, record)
    back = views.kept.get(record, view["im_file"])
    assert view["bboxes"].shape[1] == 5 and len(view["bboxes"]) and equal(back, view)
    Kept(64, 3).put(view, other := np.zeros(Kept(64, 3).size, np.uint8))
    assert not other.any(), "a record for upright boxes takes no rotated ones"


@pytest.mark.parametrize("task", ["segment", "pose"])
def test_views_with_masks_or_key_points_are_drawn_again(task, tmp_path):
    views = make(task_data(tmp_path, task), task=task)
    record = np.zeros(views.kept.size, np.uint8)
    assert record.size == 0, "no room is taken for what is not kept"
    views.kept.put(views.draw(0), record)
    assert views.kept.get(record, "") is None and equal(views[0], views[0])


def test_what_does_not_fit_into_a_record_is_left_out_of_it(data):
    views, kept = make(data), Kept(64, 3)
    view = views.draw(0)
    many = {**view, "cls": torch.zeros(BOXES + 1, 1), "bboxes": torch.zeros(BOXES + 1, 4)}
    for odd in (many, {**view, "masks": 1}, {**view, "img": view["img"][:, :32]}):
        record = np.zeros(kept.size, np.uint8)
        kept.put(odd, record)
        assert not record.any() and kept.get(record, "") is None
