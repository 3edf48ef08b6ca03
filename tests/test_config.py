"""Our keys: documented, apart from Ultralytics' own, and checked without a surprise."""

from __future__ import annotations

import dataclasses
import math
import pickle
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ultralytics.utils import DEFAULT_CFG_DICT

from tskd_yolo.arguments import parse
from tskd_yolo.config import (
    DEFAULTS,
    TERMS,
    Config,
    ConfigError,
    build,
    folder,
    problems,
    teachers,
    with_variant,
)
from tskd_yolo.train import checks

GOOD = {**DEFAULTS, "teacher": "teacher.pt"}


def test_the_defaults_lack_nothing_but_the_teacher():
    (sentence,) = problems(DEFAULTS)
    assert sentence.startswith("teacher: missing")
    built = build(GOOD)
    rest = {key: value for key, value in GOOD.items() if key not in TERMS}
    assert built == Config(**rest, weights={term: DEFAULTS[term] for term in TERMS})
    assert built.weights == {"drd": 0, "ded": 0.1, "crd": 1}


@pytest.mark.parametrize(
    ("given", "files"),
    [
        ("a.pt", ["a.pt"]),
        ("[a.pt,b.pt]", ["a.pt", "b.pt"]),
        ("['a.pt', \"b c.pt\"]", ["a.pt", "b c.pt"]),
        (["a.pt", Path("b.pt")], ["a.pt", "b.pt"]),
        (Path("a.pt"), ["a.pt"]),
    ],
)
def test_teachers_are_one_file_or_several(given, files):
    assert teachers(given) == files
    assert build({**GOOD, "teacher": given}).teacher == (files if len(files) > 1 else files[0])


def test_our_keys_are_the_fields_of_config_and_ours_alone():
    fields = [field.name for field in dataclasses.fields(Config)]
    assert {*DEFAULTS} == {*fields, *TERMS} - {"weights"} and list(TERMS) == ["drd", "ded", "crd"]
    assert not set(DEFAULTS) & set(DEFAULT_CFG_DICT)


def test_every_key_of_the_default_file_says_its_type_and_meaning():
    lines = (folder("cfg") / "default.yaml").read_text(encoding="utf-8").splitlines()
    keys = [line for line in lines if line and not line.startswith("#")]
    assert len(keys) == len(DEFAULTS)
    for line in keys:
        assert re.fullmatch(r"[a-z_]+:( \S+)? # \((str|float|int|bool)\) .{20,}", line), line


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("value", [-1, -1e-9, math.nan, math.inf, -math.inf, "word", "1.0", None, True, [1]], ids=repr)
def test_a_weight_that_is_no_finite_number_from_zero_on_is_named(term, value):
    (sentence,) = problems({**GOOD, term: value})
    assert sentence.startswith(f"{term}: must be a finite number") and repr(value) in sentence


@pytest.mark.parametrize("key", ["cap", "floor", "ramp", "give_way", "fade"])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, "word", True], ids=repr)
def test_a_number_of_the_balance_out_of_its_bounds_is_named(key, value):
    words = "a fraction between 0 and 1" if key == "fade" else "a finite number >= 0"
    assert problems({**GOOD, key: value}) == [f"{key}: must be {words}, got {value!r}."]


def test_fade_is_a_part_of_the_run_and_floor_is_below_cap():
    assert problems({**GOOD, "fade": 1.5}) == ["fade: must be a fraction between 0 and 1, got 1.5."]
    assert problems({**GOOD, "floor": 5, "cap": 2}) == ["floor: must not be above cap=2, got 5."]


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("value", [0, 0.0, 1, 1e-30, 1e30])
def test_a_weight_from_zero_on_is_taken_as_a_float(term, value):
    built = build({**GOOD, term: value})
    assert built.weights[term] == value and isinstance(built.weights[term], float)


def test_an_integer_beyond_every_float_is_named_like_infinity():
    (sentence,) = problems({**GOOD, "drd": 10**400})
    assert sentence.startswith("drd:")


@pytest.mark.parametrize("key", ["balance", "variant"])
@pytest.mark.parametrize("value", ["foo", None, 1, "Fixed ", ["fixed"]], ids=repr)
def test_a_word_that_is_no_choice_is_named_with_the_choices(key, value):
    (sentence,) = problems({**GOOD, key: value})
    assert sentence.startswith(f"{key}: must be one of {DEFAULTS[key]}") and repr(value) in sentence


@pytest.mark.parametrize(
    ("given", "word"),
    [
        (dict(teacher_cache="gpu"), "teacher_cache: must be ram, disk or empty"),
        (dict(teacher_cache=True), "teacher_cache: must be ram, disk or empty"),
        (dict(teacher_imgsz=100), "teacher_imgsz: must be a whole number of pixels, a multiple of 32"),
        (dict(teacher_imgsz=128.0), "teacher_imgsz: must be a whole number of pixels, a multiple of 32"),
        (dict(teacher_imgsz=True), "teacher_imgsz: must be a whole number of pixels, a multiple of 32"),
        (dict(teacher_imgsz=320, imgsz=640), "teacher_imgsz: must be at least imgsz=640, got 320"),
        (dict(teacher_imgsz=320), "teacher_imgsz: must be at least imgsz=640"),
        (dict(teacher_imgsz=640, imgsz=320, rect=True), "teacher_imgsz: rect= gives images"),
        (dict(teacher_imgsz=640, imgsz=320, multi_scale=0.5), "teacher_imgsz: multi_scale= changes"),
        (dict(teacher_imgsz=640, imgsz=320, variant="paper"), "teacher_imgsz: variant=paper"),
        (dict(views=0), "views: must be a whole number from 1"),
        (dict(views=2.5), "views: must be a whole number from 1"),
        (dict(views=True), "views: must be a whole number from 1"),
        (dict(views=8), "views: views=8 needs teacher_cache=ram or disk"),
        (dict(cache_limit=0), "cache_limit: must be a finite number"),
        (dict(cache_limit=math.nan), "cache_limit: must be a finite number"),
        (dict(teacher_cache="ram", multi_scale=0.5), "teacher_cache: views are of one size"),
        (dict(teacher_cache="ram", rect=True), "teacher_cache: views are square"),
        (dict(teacher_cache="disk", variant="paper"), "teacher_cache: variant=paper"),
    ],
    ids=str,
)
def test_a_cache_of_the_teacher_that_cannot_be_is_refused(given, word):
    (sentence,) = problems({**GOOD, **given})
    assert sentence.startswith(word)


@pytest.mark.parametrize("size", [[640, 640], (640, 480)], ids=str)
def test_an_image_size_of_two_numbers_is_refused(size):
    (sentence,) = problems({**GOOD, "imgsz": size})
    assert sentence == f"imgsz: must be one number of pixels, got {size!r}; give the longer side, i.e. imgsz=640."


@pytest.mark.parametrize("device", ["0,1", [0, 1], "(0, 1)"], ids=str)
def test_several_devices_need_a_batch_that_is_a_number(device):
    (sentence,) = problems({**GOOD, "batch": -1, "device": device})
    assert sentence == "batch: must be a whole number for 2 devices, which share it, got -1."
    assert problems({**GOOD, "batch": 16, "device": device}) == problems({**GOOD, "batch": -1, "device": 0}) == []


@pytest.mark.parametrize("off", [None, False, ""])
def test_without_teacher_cache_nothing_is_refused_for_it(off):
    assert build({**GOOD, "teacher_cache": off, "multi_scale": 0.5, "rect": True}).teacher_cache is None


@pytest.mark.parametrize(
    ("value", "word"), [(None, "missing"), ("", "missing"), (3, "int"), (True, "bool"), ([], "list")]
)
def test_a_teacher_that_is_no_path_is_named(value, word):
    (sentence,) = problems({**GOOD, "teacher": value})
    assert sentence.startswith("teacher: ") and word in sentence


def test_a_variant_brings_its_settings_unless_others_are_given():
    paper = {**DEFAULTS, **with_variant({"teacher": "t.pt", "variant": "paper"})}
    built = build(paper)
    assert built.balance == "fixed" and built.weights == {"drd": 1.0, "ded": 1.0, "crd": 1.0}
    mixed = build({**DEFAULTS, **with_variant({"teacher": "t.pt", "variant": "paper", "ded": 0.5, "balance": "share"})})
    assert mixed.balance == "share" and mixed.weights == {"drd": 1.0, "ded": 0.5, "crd": 1.0}
    for other in ({}, {"variant": "default"}, {"variant": ["paper"]}):
        assert with_variant(other) == other


def test_a_teacher_without_a_head_brings_drd_unless_it_is_given():
    assert DEFAULTS["drd"] == 0
    for teacher in ("timm:vit", ["timm:vit", "b.pt"], "[timm:vit]"):
        assert with_variant({"teacher": teacher}) == {"teacher": teacher, "drd": 1.0}
        assert with_variant({"teacher": teacher, "drd": 0})["drd"] == 0


@pytest.mark.parametrize(
    ("given", "ded"),
    [
        ({}, None),
        ({"model": "yolo11n.pt"}, None),
        ({"model": Path("a/best.pt"), "pretrained": True}, None),
        ({"model": "yolo11n.yaml", "pretrained": "yolo11n.pt"}, None),
        ({"model": "yolo11n.yaml"}, 4.0),
        ({"model": Path("a/mine.yml"), "pretrained": True}, 4.0),
        ({"model": "yolo11n.pt", "pretrained": False}, 4.0),
        ({"model": "timm-resnet18.yaml", "pretrained": "resnet18.safetensors"}, 4.0),  # the backbone's alone
        ({"model": "yolo11n.yaml", "ded": 0.5}, 0.5),
        ({"model": "yolo11n.yaml", "variant": "paper"}, 1.0),
    ],
)
def test_a_student_from_random_weights_brings_more_of_ded(given, ded):
    assert with_variant(given).get("ded") == ded and DEFAULTS["ded"] == 0.1


def test_all_mistakes_are_in_one_error_a_sentence_each():
    bad = dict(teacher=None, drd=-1, ded="x", crd=math.nan, balance="foo", variant="y", trust=1)
    with pytest.raises(ConfigError) as caught:
        build({**DEFAULTS, **bad})
    assert {p.split(":")[0] for p in caught.value.problems} == set(bad) and len(caught.value.problems) == len(bad)
    assert str(caught.value).startswith("7 problems found, nothing was started:\n")
    assert all(f"\n  {p}" in str(caught.value) for p in caught.value.problems)


def test_an_error_survives_the_way_between_processes():
    error = pickle.loads(pickle.dumps(ConfigError(["a: b.", "c: d."])))
    assert isinstance(error, ConfigError) and error.problems == ["a: b.", "c: d."]


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(10**300, 10**400) | st.floats() | st.text() | st.binary()
    | st.sampled_from(["fixed", "paper", "trained", "default", "a.pt"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)  # fmt: skip


some = settings(max_examples=200)
many = settings(max_examples=10_000, derandomize=False, suppress_health_check=list(HealthCheck))
ours = st.fixed_dictionaries({key: anything for key in DEFAULTS})


def answered(values) -> None:
    errors = problems(values)
    assert isinstance(errors, list) and all(isinstance(p, str) and p.split(":")[0] in DEFAULTS for p in errors)
    if not errors:
        assert build(values).weights.keys() == set(TERMS)
        return
    with pytest.raises(ConfigError) as caught:
        build(values)
    assert caught.value.problems == errors


@pytest.mark.slow
@some
@given(ours)
def test_whatever_the_values_the_answer_is_a_list_of_sentences(values):
    answered(values)


@pytest.mark.soak
@many
@given(ours)
def test_ten_thousand_values_are_answered_with_sentences(values):
    answered(values)


# Files are looked for by name, so those that could be found or fetched are not among the words.
keys = st.sampled_from([*DEFAULTS, *DEFAULT_CFG_DICT]) | st.text(max_size=8)
arguments = st.dictionaries(keys, anything | st.sampled_from([-1, 0, 8, 2.5, True, "cpu", "0,1", "nan"]), max_size=6)


def checked(given_arguments) -> None:
    places = {key: None for key in ("model", "data", "teacher", "pretrained", "project", "cfg")}
    with pytest.raises(ConfigError) as caught:  # nothing to train, so something is always wrong
        checks.check({**DEFAULT_CFG_DICT, **DEFAULTS}, {**given_arguments, **places})
    errors = caught.value.problems
    assert {"data: missing", "model: missing"} <= {p.split(";")[0] for p in errors} and len(set(errors)) == len(errors)
    assert all("\n" not in p.replace(p.partition(": is not an argument")[0], "") for p in errors if p)


@pytest.mark.slow
@some
@given(arguments)
def test_whatever_the_arguments_the_answer_is_one_error(given_arguments):
    checked(given_arguments)


@pytest.mark.soak
@many
@given(arguments)
def test_ten_thousand_arguments_are_answered_with_one_error(given_arguments):
    checked(given_arguments)


pieces = st.text(max_size=8) | st.sampled_from(
    [*DEFAULTS, "=", "[", "]", "drd=", "=1", "--drd", "cfg=3", "cfg=[1]", "train,"]
)
words = st.lists(pieces | st.tuples(pieces, pieces).map("=".join), max_size=5).map(
    lambda ws: [w for w in ws if not w.strip("-").startswith("cfg=") or w in {"cfg=3", "cfg=[1]"}]
)


def parsed(given_words) -> None:
    values, errors = parse(given_words)
    assert set(values) <= {*DEFAULTS, *DEFAULT_CFG_DICT, "augmentations", "save_dir"}
    assert all(isinstance(sentence, str) and sentence for sentence in errors)


@some
@given(words)
def test_whatever_the_words_they_are_read_or_named(given_words):
    parsed(given_words)


@pytest.mark.soak
@many
@given(words)
def test_ten_thousand_words_are_read_or_named(given_words):
    parsed(given_words)


# Files by name --------------------------------------------------------------------------------------------------------
