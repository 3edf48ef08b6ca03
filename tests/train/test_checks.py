"""What is refused before a run, through the command line's main function; see :mod:`tests.train.cases`."""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
from ultralytics.cfg import smart_value

from tests.train.cases import CASES, REFUSE, arguments, of, without_labels, words
from tests.train.model_files import files_in
from tskd_yolo import ConfigError
from tskd_yolo.cli import main


@pytest.fixture(scope="session")
def file(tmp_path_factory) -> Callable[[Any], Any]:
    return files_in(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def good_teacher(file) -> Any:
    from tskd_yolo import compat

    return compat.load(file("{f}/teacher.pt"), key="teacher")


@pytest.fixture
def teacher_at_hand(case, file, good_teacher, monkeypatch) -> None:
    """Where something else is wrong, the good teacher need not be read from its file each time."""
    from tskd_yolo import compat

    good, load = file("{f}/teacher.pt"), compat.load

    def read(path, *, key):
        if str(path) != good or key != "teacher":
            return load(path, key=key)
        return deepcopy(good_teacher) if case.data else good_teacher  # a run that gets as far as its data changes it

    monkeypatch.setattr(compat, "load", read)


@pytest.fixture
def values(case, file, few, tmp_path_factory, tmp_path, monkeypatch) -> dict[str, Any]:
    """A run's arguments with those of the case, to be given in an empty folder."""
    monkeypatch.chdir(tmp_path)
    data = case.data(tmp_path_factory.mktemp("data")) if case.data else few
    return arguments(case, folder=tmp_path, data=data, place=file)


@of(REFUSE)
def test_a_mistake_is_refused_in_a_sentence_and_nothing_is_left(case, values, teacher_at_hand, tmp_path, capsys):
    assert main(words(values)) == 1
    said = capsys.readouterr().err
    assert not list(tmp_path.iterdir()), "something was left behind"
    number, *sentences = said.rstrip("\n").split("\n  ")
    problems = "1 problem" if case.count == 1 else f"{case.count} problems"
    assert number == f"tskd-yolo: {problems} found, nothing was started:", said
    assert len(sentences) == case.count and all(part in said for part in case.says), said
    for sentence in sentences:
        assert (
            re.match(r"\w+: \S.*[.?]$", sentence) and "\n" not in sentence and ". " not in sentence.replace("i.e. ", "")
        ), sentence
        assert sentence.isascii() and "\x1b" not in sentence and "Traceback" not in sentence


@of(REFUSE, but=lambda case: "{f}" in str(case.values) and case.count == 1 or case.data not in {None, without_labels})
def test_python_raises_what_the_command_line_prints(case, values, teacher_at_hand, tmp_path, capsys):
    from tskd_yolo import Trainer

    assert main(words(values)) == 1
    said = capsys.readouterr().err
    with pytest.raises(ConfigError) as caught:
        Trainer(**{key: smart_value(str(value)) if key != "name" else value for key, value in values.items()}).train()
    assert f"tskd-yolo: {caught.value}\n" == said
    assert not list(tmp_path.iterdir())


def test_the_table_is_as_long_as_it_should_be():
    assert len(CASES) >= 60 and len({case.name for case in CASES}) == len(CASES)
