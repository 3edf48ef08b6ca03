"""What the engine refuses; in whole runs: :mod:`tests.train.cases`."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tskd_yolo import ConfigError
from tskd_yolo.train import refusals

GOOD = {"optimizer": "auto", "device": "cpu", "amp": True}


@pytest.mark.parametrize("optimizer", ["auto", "SGD", "adamw", "MuSGD", "RMSProp"])
def test_every_optimizer_of_the_engine_is_taken(optimizer):
    assert refusals.of({**GOOD, "optimizer": optimizer}) == []


def test_all_that_is_wrong_is_told():
    found = refusals.of({"optimizer": "Foo", "device": 77, "amp": True})
    assert [sentence.partition(":")[0] for sentence in found] == ["optimizer", "device"]
    assert "'Foo' not found in list of available optimizers" in found[0] and "77 cannot be used here" in found[1]
    (sentence,) = refusals.of({**GOOD, "amp": "bf16"})
    assert sentence == "amp: bf16 needs a CUDA device, and this run has none; leave it out."


def test_what_is_ours_comes_out_of_the_engines_wrapper():
    ours = ConfigError(["data: x."])
    with pytest.raises(ConfigError) as caught, refusals.data_errors():
        raise RuntimeError("Dataset error") from ours
    assert caught.value is ours
    with pytest.raises(RuntimeError, match="another"), refusals.data_errors():
        raise RuntimeError("another")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("final batch=1 gives BatchNorm a single value per channel; change batch"), "batch: final batch=1"),
        (RuntimeError("freeze=3 froze the entire model"), "freeze: 3 leaves no parameter to train; freeze less."),
    ],
)
def test_a_users_mistake_in_set_up_is_a_sentence(error, sentence):
    with pytest.raises(ConfigError) as caught, refusals.setup_errors(SimpleNamespace(freeze=3, model="a.pt")):
        raise error
    assert caught.value.problems[0].startswith(sentence)


def test_a_fault_in_set_up_keeps_its_trace():
    with pytest.raises(ValueError, match="no user's"), refusals.setup_errors(SimpleNamespace(freeze=3, model="a.pt")):
        raise ValueError("no user's mistake")
