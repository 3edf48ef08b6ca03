"""A teacher is validated once per validation set, and again where anything that decides its score is another."""

from __future__ import annotations

import hashlib
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tskd_yolo import hashing
from tskd_yolo.hashing import Score, hash_tensors

SCORE = {
    "metrics/mAP50(B)": 0.5,
    "metrics/mAP50-95(B)": 0.25,
    "classes": [{"AP50": 0.5, "AP50-95": 0.25}, None],
}


@pytest.fixture
def given(tmp_path, monkeypatch):
    """A network, a validation set of two images, and arguments; what is kept lies in a folder of its own."""
    monkeypatch.setattr(hashing, "USER_CONFIG_DIR", tmp_path / "settings")
    files = [tmp_path / f"{name}.jpg" for name in "ab"]
    for file in files:
        file.write_bytes(b"image")
    label = dict(cls=np.zeros((1, 1), np.float32), bboxes=np.full((1, 4), 0.5, np.float32), segments=[])
    torch.manual_seed(0)
    return dict(
        network=torch.nn.Linear(2, 2),
        dataset=SimpleNamespace(
            im_files=[str(f) for f in files], labels=[dict(label), dict(label)], channels=3, rect=True
        ),
        args=SimpleNamespace(imgsz=64, conf=None),
    )


def test_a_score_is_found_again_by_whoever_asks_for_the_same(given):
    assert Score(**given).recall() == {}
    Score(**given).keep({**SCORE, "fitness": np.float64(0.3)})
    assert Score(**given).recall() == SCORE


def test_a_fingerprint_stays_what_users_disks_have(given, monkeypatch):
    """A literal of the first version: score files and caches are found by it."""
    monkeypatch.setattr(hashing, "versions", lambda: {"torch": "1"})
    network, dataset = torch.nn.Conv2d(2, 3, 2).to(memory_format=torch.channels_last), given["dataset"]
    network.register_buffer("count", torch.tensor(7))
    with torch.no_grad():
        network.weight.copy_(torch.arange(24.0).view(3, 2, 2, 2)), network.bias.copy_(torch.tensor([0.5, 0.25, -1.0]))
    file, label = dataset.im_files[0], dataset.labels[0]
    os.utime(file, ns=(10**18, 10**18))
    one = SimpleNamespace(im_files=[file], labels=[label])
    name = hashing.fingerprint({"imgsz": 64}, network=network, dataset=one, folder=os.path.dirname(file))
    assert name == "c44db4f7aff027f7d144c0b7d53178eacfdecd188d66aa246efb686d031afcc6"


def test_a_file_that_is_gone_has_a_fingerprint_of_its_own(given):
    def name() -> str:
        return hashing.fingerprint({}, network=given["network"], dataset=given["dataset"])

    there = name()
    file = given["dataset"].im_files[1]
    os.unlink(file)
    assert name() == name() != there
    gone = name()
    os.symlink(file, file)
    assert name() == gone, "a link to itself"
    given["dataset"].im_files[1] = f"{file}\udcff"  # bytes that are no text
    assert name() != gone


def test_tensors_are_hashed_by_their_elements_in_order():
    x = torch.arange(24, dtype=torch.float32).view(1, 2, 3, 4)
    expected = hashlib.sha256(x.numpy().tobytes()).hexdigest()
    assert (
        hash_tensors([x]).hexdigest() == hash_tensors([x.to(memory_format=torch.channels_last)]).hexdigest() == expected
    )
    assert hash_tensors(x[0]).hexdigest() == hash_tensors([x[:, 1:]], hash_tensors([x[:, :1]])).hexdigest() == expected
    others = [[x + 1e-6], [x.transpose(2, 3)], [x.half()], [x.bfloat16()], [x, torch.tensor(1)], []]
    assert len({expected, *(hash_tensors(other).hexdigest() for other in others)}) == 7


def change_weights(given):
    with torch.no_grad():
        given["network"].weight[0, 0] += 1e-6


def change_image(given):
    os.utime(given["dataset"].im_files[1], (1, 1))


def change_label(given):
    given["dataset"].labels[0]["bboxes"] = np.full((1, 4), 0.4, np.float32)


def change_size(given):
    given["args"].imgsz = 96


def fewer_images(given):
    given["dataset"].im_files.pop()
    given["dataset"].labels.pop()


def in_grey(given):
    given["dataset"].channels = 1


def as_squares(given):
    given["dataset"].rect = False


CHANGES = [change_weights, change_image, change_label, change_size, fewer_images, in_grey, as_squares]


@pytest.mark.parametrize("change", CHANGES)
def test_a_score_is_not_found_where_what_decides_it_changed(given, change):
    Score(**given).keep(SCORE)
    change(given)
    assert Score(**given).recall() == {}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1]",
        b'{"metrics/mAP50(B)": 0.5}',
        b'{"metrics/mAP50(B)": 0.5, "metrics/mAP50-95(B)": 0.2}',
        b'{"metrics/mAP50(B)": "x", "metrics/mAP50-95(B)": 0.2, "classes": []}',
        b'{"metrics/mAP50(B)": 0.5, "metrics/mAP50-95(B)": 0.2, "classes": 0}',
        b'{"metrics/mAP50(B)": 0.5, "metrics/mAP50-95(B)": 0.2, "classes": [0.5]}',
        b'{"metrics/mAP50(B)": 0.5, "metrics/mAP50-95(B)": 0.2, "classes": [{"AP50": 0.5}]}',
        b"\xff",
    ],
)
def test_a_damaged_score_is_as_good_as_none(given, content):
    score = Score(**given)
    score.keep(SCORE)
    score.file.write_bytes(content)
    assert score.recall() == {}


def test_an_unwritable_folder_is_told_and_stops_nothing(given, caplog):
    score = Score(**given)
    score.file.parent.parent.write_text("a file where the folder should be")
    score.keep(SCORE)
    assert "could not be kept" in caplog.text and score.recall() == {}
