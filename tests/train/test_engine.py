"""Ultralytics' engine under the mixin: what its parts are given."""

from __future__ import annotations

from ultralytics.utils import DEFAULT_CFG_DICT, IterableSimpleNamespace

from tskd_yolo.config import DEFAULTS
from tskd_yolo.train.engine import engine_arguments


def test_the_engines_validator_is_given_the_engines_keys_only():
    args = IterableSimpleNamespace(**DEFAULT_CFG_DICT, **DEFAULTS)
    assert vars(engine_arguments(args)) == DEFAULT_CFG_DICT and set(DEFAULTS) <= set(vars(args))
