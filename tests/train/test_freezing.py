"""What ``freeze=`` may be: layers that are there, and not all of them."""

from __future__ import annotations

import pytest

from tskd_yolo.train import freezing

STUDENT = {"backbone": [[-1, 1, "Conv", [8, 3, 2]]] * 10, "head": [[-1, 1, "Conv", [8, 3, 2]]] * 4}


@pytest.mark.parametrize("freeze", [None, 0, 10, 13, [], [0, 1, 13], (2,), ["13.cv2", "4"], [0, "5"]])
def test_layers_that_are_there_may_be_frozen(freeze):
    assert freezing.wrong(STUDENT, freeze) == []


@pytest.mark.parametrize("freeze", ["abc", 1.5, -3, True, [-1], [14], [0, "a"], ["14.cv2"], [True], ["1x"]])
def test_what_names_no_layer_is_refused(freeze):
    (sentence,) = freezing.wrong(STUDENT, freeze)
    assert sentence.startswith("freeze: must be a number of layers, or a list of layers from 0 to 13, i.e. freeze=10")
    assert sentence.endswith(f"got {freeze!r}.")


@pytest.mark.parametrize("freeze", [14, 99, list(range(14))])
def test_something_has_to_be_left(freeze):
    assert freezing.wrong(STUDENT, freeze) == [
        f"freeze: {freeze} freezes every layer of the student, so nothing could be learned."
    ]
