"""What is done between the engine's set-up and the first step."""

from __future__ import annotations

from types import SimpleNamespace

import cv2
import pytest
import torch
from torch import nn

from tests.helpers import NAMES
from tskd_yolo import compat
from tskd_yolo.config import ConfigError
from tskd_yolo.distill import teacher
from tskd_yolo.train import prepare


@pytest.mark.parametrize(
    ("device", "asked", "pays", "taken"),
    [
        ("cpu", None, True, True),
        ("cpu", True, True, True),
        ("cpu", False, True, False),
        ("cpu", None, False, False),
        ("cuda", None, True, False),
        ("mps", True, True, False),
    ],
)
def test_only_on_a_cpu_the_layout_is_ours(device, asked, pays, taken, monkeypatch):
    monkeypatch.setattr(compat, "channels_last_pays", lambda: pays)
    assert prepare.in_channels_last(SimpleNamespace(channels_last=asked), torch.device(device)) is taken


def test_student_parameters_keep_their_names_beside_adapters():
    student, learned = nn.Module(), nn.ModuleDict({"neck": nn.Linear(2, 2)})
    student.model = nn.Sequential(nn.Linear(2, 2))
    names = dict(prepare.with_adapters(student, learned).named_parameters())
    assert {name for name in names if not name.startswith("tskd.")} == set(dict(student.named_parameters()))
    assert names["tskd.neck.weight"] is learned["neck"].weight


def test_adapters_are_clipped_before_each_step_and_nothing_else():
    student, adapter = (nn.Parameter(torch.zeros(4)) for _ in range(2))
    optimizer = torch.optim.SGD([student, adapter], lr=1.0)
    prepare.clip_adapters(optimizer, [adapter])
    for parameter in (student, adapter):
        parameter.grad = torch.full((4,), 50.0)
    optimizer.step()
    assert float(adapter.detach().norm()) == pytest.approx(prepare.MAX_NORM, rel=1e-4)
    assert torch.equal(student, torch.full((4,), -50.0))


def test_an_image_is_reduced_by_position():
    images = torch.zeros(1, 3, 128, 128)
    images[:, :, 32:64, 96:112] = 1
    small = prepare.reduced(images, 64)
    assert small.shape == (1, 3, 64, 64)
    middle = (small[0, 0] > 0.5).nonzero()
    assert middle.min(dim=0).values.tolist() == [16, 48] and middle.max(dim=0).values.tolist() == [31, 55]


@pytest.mark.parametrize("ratio", [1.5, 1.75, 2])
def test_an_image_is_reduced_as_the_engine_reduces_it(ratio):
    images = (torch.rand(1, 3, round(64 * ratio), round(64 * ratio)) * 255).round()
    expected = cv2.resize(images[0].permute(1, 2, 0).numpy(), (64, 64), interpolation=cv2.INTER_LINEAR)
    torch.testing.assert_close(
        prepare.reduced(images, 64)[0].permute(1, 2, 0), torch.from_numpy(expected), atol=0.5, rtol=0
    )


@pytest.mark.parametrize("overlap", [True, False])
def test_masks_are_reduced_with_their_images(overlap):
    side, instances = 128, 1 if overlap else 0
    masks = torch.zeros(instances, side // 4, side // 4, dtype=torch.uint8)
    masks[:, 8:16, 24:28] = 2  # numbers of instances, which are not to be mixed
    batch = {"img": torch.zeros(1, 3, side, side), "masks": masks, "bboxes": torch.zeros(1, 4)}
    small = prepare.reduced_batch(batch, 64)
    assert small["img"].shape == (1, 3, 64, 64) and small["bboxes"] is batch["bboxes"] and "sem_masks" not in small
    assert small["masks"].shape == (instances, 16, 16) and small["masks"].dtype == torch.uint8
    if overlap:
        found = small["masks"][0].nonzero()
        assert found.min(dim=0).values.tolist() == [4, 12] and found.max(dim=0).values.tolist() == [7, 13]
        assert small["masks"].unique().tolist() == [0, 2]
    assert batch["masks"].shape[1] == 32, "the batch that was given stays as it is"


@pytest.mark.parametrize(
    ("asked", "coarsest", "given"),
    [(None, 32, None), (128, 32, (128, True)), (None, 64, (64, False)), (128, 64, (128, False))],
)
def test_teachers_see_the_validated_split_in_their_shape(asked, coarsest, given, monkeypatch):
    monkeypatch.setattr(teacher, "strides", lambda head: [8, 16, head])
    distiller = SimpleNamespace(config=SimpleNamespace(teacher_imgsz=asked), teachers=[SimpleNamespace(head=coarsest)])
    trainer = SimpleNamespace(
        data={"val": "images/val", "test": "images/test"},
        args=SimpleNamespace(imgsz=64, split="test"),
        stride=32,
        test_loader=SimpleNamespace(batch_size=4),
    )

    def loader(place, **_):
        assert place == "images/test"
        return SimpleNamespace(size=trainer.args.imgsz, dataset=SimpleNamespace(rect=True))

    trainer.get_dataloader = loader
    found = prepare.teacher_loader(trainer, distiller)
    assert found is trainer.test_loader if given is None else (found.size, found.dataset.rect) == given


@pytest.mark.parametrize(
    ("amp", "by_engine", "decided"),
    [(True, True, True), (True, False, False), ("fp32", False, False), ("bf16", True, "bf16")],
)
def test_mixed_precision_is_what_the_engine_made_of_it(amp, by_engine, decided):
    args = SimpleNamespace(amp=amp)
    assert prepare.as_decided(args, amp=by_engine).amp == decided and args.amp == amp


def ready(on: dict, left: list[str], monkeypatch, caplog) -> str:
    """What is said where these terms are on and some of them turn out to be out of reach."""
    distiller = SimpleNamespace(on=dict(on), learned=nn.Module(), meter=SimpleNamespace(scale=1.0, total=None))
    monkeypatch.setattr(
        prepare.reach, "leave_out_unreachable", lambda found, _: [found.on.pop(key) and key for key in left]
    )
    processes = SimpleNamespace(broadcast=list, count=1)
    prepare.make_ready(distiller, None, args=SimpleNamespace(freeze=None), scaled=False, processes=processes)
    return caplog.text


def test_only_freezing_is_told_of_as_freezing(monkeypatch, caplog):
    with pytest.raises(ConfigError, match="freezes every layer"):
        ready({"ded": 4.0}, ["ded"], monkeypatch, caplog)
    caplog.clear()
    assert "ded is left out" in ready({"ded": 4.0, "crd": 1.0}, ["ded"], monkeypatch, caplog)
    caplog.clear()
    assert "every term was switched off before the interruption" in ready({}, [], monkeypatch, caplog)


def test_classes_that_are_left_out_are_so_in_one_class_too(data):
    args = SimpleNamespace(single_cls=True, classes=[0], data=str(data))
    theirs = dict(enumerate([*NAMES, "another"]))
    whole = dict(enumerate(NAMES))
    assert prepare._asked(theirs, {0: "item"}, whole, None, args).members == [[0, 6]]
    mapped = prepare._asked(theirs, {0: "item"}, whole, {"another": NAMES[1]}, args)
    assert mapped.members == [[0]], "what is mapped to a class that is left out is left out too"
    args.classes = None
    assert prepare._asked(theirs, {0: "item"}, whole, None, args).members == [list(range(7))]


@pytest.mark.parametrize(
    ("given", "share"),
    [
        ({"model": "a.yaml"}, 0.3), ({"model": "a.yaml", "ded": 2.0}, 2.0),
        ({"model": "a.yaml", "pretrained": "a.pt"}, None),
        ({"model": "a.pt"}, None), ({"model": "a.pt", "pretrained": False}, 0.3),
        ({"model": "a.yaml", "variant": "paper"}, 1.0),
    ],
)  # fmt: skip
def test_a_student_that_was_given_weights_has_their_share(given, share):
    assert prepare.ded_if_trained(given, {"ded": 0.3}) == share
