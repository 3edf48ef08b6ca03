"""Random numbers go on as if nothing had happened, and inside a seeded block they depend on its numbers only."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from tskd_yolo.rng import seeded, undisturbed

guards = pytest.mark.parametrize("guard", [undisturbed, lambda: seeded(1, 2)], ids=["undisturbed", "seeded"])


def numbers() -> tuple:
    """A number from each generator, and torch's seed."""
    return random.random(), float(np.random.rand()), float(torch.rand(())), torch.initial_seed()


def start() -> None:
    random.seed(5), np.random.seed(5), torch.manual_seed(5)


@guards
def test_random_numbers_go_on_as_if_nothing_was_drawn(guard):
    start()
    plain = numbers()
    start()
    with guard():
        numbers(), torch.manual_seed(9), random.seed(9), np.random.seed(9), torch.randn(100)
    assert numbers() == plain


@guards
def test_random_numbers_go_on_after_an_error(guard):
    start()
    plain = numbers()
    start()
    with pytest.raises(ZeroDivisionError), guard():
        numbers(), 1 / 0
    assert numbers() == plain


@guards
def test_a_guard_inside_a_guard_disturbs_neither(guard):
    start()
    plain = numbers()
    start()
    with guard():
        with seeded(3):
            inside = numbers()
        with undisturbed():
            numbers()
        with seeded(3):
            assert numbers() == inside
    assert numbers() == plain


def test_numbers_inside_depend_on_the_seeds_and_their_order():
    with seeded(1, 2):
        inside = numbers()
    with seeded(1, 2):
        assert numbers() == inside
    with seeded(2, 1):
        assert numbers() != inside


def test_seeded_numbers_are_those_that_kept_views_were_drawn_by():
    seeds = [int(n) for n in np.random.SeedSequence((1, 2)).generate_state(3)]
    expected = random.Random(seeds[0]).random(), np.random.RandomState(seeds[1]).rand()
    drawn = torch.rand((), generator=torch.Generator().manual_seed(seeds[2]))
    with seeded(1, 2):
        assert numbers() == (*expected, float(drawn), seeds[2])


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="torch forks the states of MPS there")
def test_undisturbed_restores_the_states_of_every_cuda_device(monkeypatch):
    states = {0: "first", 1: "second"}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: states[device])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: states.update({device: state}))
    with undisturbed():
        states.update({0: "drawn", 1: "drawn"})
    assert states == {0: "first", 1: "second"}


def test_seeded_touches_no_cuda_device(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("CUDA was touched")

    for name in ("_lazy_init", "get_rng_state", "set_rng_state", "manual_seed", "manual_seed_all", "device_count"):
        monkeypatch.setattr(torch.cuda, name, refuse)
    with seeded(1):
        numbers()
    with pytest.raises(AssertionError, match="CUDA was touched"), undisturbed():
        numbers()
