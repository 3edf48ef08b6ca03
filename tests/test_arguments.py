"""Arguments as a command line gives them: read as Ultralytics does, beneath them a file of settings."""

from __future__ import annotations

import pytest
import yaml

from tests.helpers import logged
from tskd_yolo.arguments import parse


def test_arguments_are_read_as_ultralytics_reads_them():
    values, errors = parse(
        ["epochs=3", "--imgsz=64,", "drd", "=", "0.5", "cos_lr", "detect", "classes=[0,2]", "name=a=b"]
    )
    assert not errors
    assert values == dict(
        epochs=3, imgsz=64, drd=0.5, cos_lr=True, task="detect", classes=[0, 2], name="a=b"
    )  # fmt: skip


@pytest.mark.parametrize("given", [True, 1, "yes", "False", [0]], ids=repr)
def test_trust_in_a_settings_file_is_refused(given, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({"epochs": 7, "trust": given}))
    for words in ([], ["trust=True"]):
        _, (sentence,) = parse([f"cfg={file}", *words])
        assert sentence.startswith(f"trust: the file {file} says trust={given!r}, which no file can give; take it out")


@pytest.mark.parametrize("given", [False, None], ids=repr)
def test_a_settings_file_that_does_not_trust_is_taken(given, tmp_path):
    (tmp_path / "args.yaml").write_text(yaml.safe_dump({"epochs": 7, "trust": given}))
    assert parse([f"cfg={tmp_path / 'args.yaml'}"]) == ({"epochs": 7}, [])
    assert parse([f"cfg={tmp_path / 'args.yaml'}", "trust"]) == ({"epochs": 7, "trust": True}, [])


def test_a_settings_file_cannot_have_an_older_run_written_over(tmp_path):
    content = {
        "epochs": 7,
        "exist_ok": True,
        "resume": "a/weights/last.pt",
        "save_dir": "a",
        "project": "p",
        "name": "n",
    }
    (tmp_path / "args.yaml").write_text(yaml.safe_dump(content))
    with logged() as lines:
        values, errors = parse([f"cfg={tmp_path / 'args.yaml'}"])
    assert not errors and values == dict(epochs=7, project="p", name="n")
    told = [line for line in lines if "is left out: no file may have a run write into a folder that is there" in line]
    assert len(told) == 2 and "exist_ok in " in told[0] and "resume in " in told[1]
    assert parse([f"cfg={tmp_path / 'args.yaml'}", "exist_ok"])[0]["exist_ok"] is True


def test_explicit_arguments_win_over_those_of_a_settings_file(tmp_path):
    (tmp_path / "recipe.yaml").write_text("epochs: 7\ndrd: 0.5\nsave_dir: /elsewhere\nmode: val\nteacher: null\n")
    assert parse([f"cfg={tmp_path / 'recipe.yaml'}", "drd=2"]) == (dict(epochs=7, drd=2), [])
    (tmp_path / "wrong.yaml").write_text("drdd: 1\n")
    assert parse([f"cfg={tmp_path / 'wrong.yaml'}"]) == ({}, ["drdd: is not an argument; did you mean 'drd'?"])


def test_a_bracket_that_is_not_closed_is_told():
    assert parse(["classes=[0,", "epochs=3"])[1] == [
        "brackets: some are not closed; quote a list, such as 'classes=[0, 2]'."
    ]


def test_values_of_keys_that_are_text_are_taken_as_they_stand():
    words = ["out=2024", "seed=3", "flag", "name=None", "other"]
    values, errors = parse(words, known={"out": "", "seed": 0, "flag": False, "name": ""})
    assert values == {"out": "2024", "seed": 3, "flag": True, "name": "None"}
    assert len(errors) == 1 and errors[0].startswith("other: is not an argument")
