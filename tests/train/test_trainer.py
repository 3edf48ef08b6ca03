"""The trainer as a class: which hook points it fills, and how it travels. Whole runs are in ``tests/integration``."""

from __future__ import annotations

import pickle

import cloudpickle
import pytest
import torch
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils.callbacks import get_default_callbacks

import tskd_yolo
from tskd_yolo.train import hooks
from tskd_yolo.train.backbone import BackboneMixin
from tskd_yolo.train.giving_way import GivingWayMixin
from tskd_yolo.train.resumable import ResumableMixin
from tskd_yolo.train.trainer import DistillationMixin, Trainer
from tskd_yolo.train.unlabelled import UnlabelledMixin

MIXINS = DistillationMixin, ResumableMixin, GivingWayMixin, BackboneMixin, UnlabelledMixin

OWN = {
    "_use_whole_paths", "_processes", "_agree_on_folder", "_learned", "_open_cache", "_begin_epoch", "_end_epoch",
    "_image_size", "_watch_lead", "_agree_on_lead", "_settle_agreement", "_tell_agreement",
    "_workers", "_new_flow", "_find_others", "_labelled_views", "_see_others", "_confidence",
    "_doubt_others", "_tell_others", "_begin_missing", "_tell_missing", "_count_step",
}  # fmt: skip
"""What the mixins have besides the engine's hook points."""


@pytest.mark.parametrize("mixin", MIXINS)
def test_the_mixins_fill_hook_points_of_the_installed_engine(mixin):
    filled = {name for name, value in vars(mixin).items() if callable(value) or isinstance(value, property)}
    missing = {name for name in filled - OWN if not callable(getattr(DetectionTrainer, name, None))}
    assert filled and not missing, f"this Ultralytics does not call {missing}"


def test_every_hook_point_is_expected_to_be_called_or_exempt():
    filled = {name for mixin in MIXINS for name, value in vars(mixin).items() if callable(value)}
    events = {name for name in hooks.EXPECTED if name.startswith("on_")}
    assert {*hooks.EXPECTED, *hooks.EXEMPT} - events == filled - OWN - {"__init__"}
    assert not hooks.EXPECTED.keys() & hooks.EXEMPT.keys() and events <= get_default_callbacks().keys()


def test_a_hook_point_notes_that_it_was_called():
    trainer = object.__new__(Trainer)
    trainer.loss_names = ()
    trainer.label_loss_items()
    assert trainer.hooks_called == {"label_loss_items"}
    assert Trainer.label_loss_items.__doc__.startswith("Our terms exist in training only")


def test_the_engine_comes_after_the_mixins():
    assert Trainer.__mro__[:7] == (Trainer, *MIXINS, DetectionTrainer)


@pytest.mark.parametrize("fused", [False, True])  # a fused optimizer is called even where the step is skipped
def test_steps_that_a_loss_scaler_skips_do_not_count(fused):
    trainer, weight = object.__new__(Trainer), torch.nn.Parameter(torch.ones(1))
    trainer._steps, scaler = 0, torch.amp.GradScaler("cpu")
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=fused)
    optimizer.register_step_pre_hook(trainer._count_step)
    for factor in (float("inf"), 1.0, float("nan"), 1.0):
        optimizer.zero_grad()
        scaler.scale(weight.sum() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
    assert trainer._steps == 2


def test_the_class_is_pickled_by_reference():
    assert tskd_yolo.Trainer is Trainer and "Trainer" in Trainer.__name__  # or the engine's loggers leave it out
    for library in (pickle, cloudpickle):
        pickled = library.dumps(Trainer)
        assert pickle.loads(pickled) is Trainer and len(pickled) < 100


def test_val_columns_are_those_of_the_detection_loss():
    trainer = object.__new__(Trainer)
    trainer.loss_names = ("box_loss", "drd_loss", "crd_loss")
    assert trainer.label_loss_items() == ["train/box_loss", "train/drd_loss", "train/crd_loss"]
    assert trainer.label_loss_items(prefix="val") == ["val/box_loss"]
    items = {"box_loss": torch.tensor(1.0), "ded_loss": torch.tensor(2.0)}
    assert trainer.label_loss_items(items, prefix="val") == {"val/box_loss": 1.0}
    assert trainer.label_loss_items(items) == {"train/box_loss": 1.0, "train/ded_loss": 2.0}
