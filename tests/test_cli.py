"""The command line, in process: every mistake is a sentence on standard error, and nothing is started."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from PIL import Image

import tskd_yolo
from tests.compare.helpers import asked
from tests.compare.helpers import words as comparing
from tskd_yolo.cli import main
from tskd_yolo.config import DEFAULTS, folder
from tskd_yolo.train.checkpoints import RunError

pytestmark = pytest.mark.usefixtures("at_hand")


@pytest.fixture
def train(few, teacher, tmp_path, monkeypatch, capsys):
    """Runs ``train`` with arguments, which must fail, and gives what it said."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, **more: str) -> str:
        base = dict(data=few, model="yolo11n.yaml", teacher=teacher, epochs=1, imgsz=64)
        values = {**base, "project": tmp_path / "runs", "device": "cpu", **more}
        words = [f"{key}={value}" for key, value in values.items() if value is not None]
        capsys.readouterr()
        assert main(["train", *words, *arguments]) == 1
        said = capsys.readouterr().err
        assert said.startswith("tskd-yolo: ") and "Traceback" not in said
        assert not list(tmp_path.iterdir()), "a run folder was made"
        return said

    return run


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(techer="x.pt"), ["techer: is not an argument", "'teacher'"]),
        (dict(drdd="1"), ["drdd: is not an argument", "'drd'"]),
        (dict(epohcs="1"), ["epohcs: is not an argument", "'epochs'"]),
        (dict(drd="-1"), ["drd: must be a finite number >= 0, got -1"]),
        (dict(drd="nan"), ["drd: must be a finite number"]),
        (dict(drd="inf"), ["drd: must be a finite number"]),
        (dict(crd="word"), ["crd: must be a finite number >= 0, got 'word'"]),
        (dict(balance="foo"), ["balance: must be one of share, fixed, got 'foo'"]),
        (dict(variant="y"), ["variant: must be one of default, hints, paper, got 'y'"]),
        (dict(teacher=None), ["teacher: missing"]),
        (dict(teacher="nowhere.pt"), ["teacher: nowhere.pt was not found"]),
        (dict(distill_model="yolo11l.pt"), ["distill_model: ", "teacher="]),
        (dict(compile="True"), ["compile: not supported"]),
        (dict(quantize="8"), ["quantize: "]),
        (dict(data=None), ["data: missing"]),
        (dict(model=None), ["model: missing"]),
        (dict(task="classify"), ["task: only detect, segment, pose and obb can be distilled"]),
        (dict(cfg="nowhere.yaml"), ["cfg: nowhere.yaml was not found"]),
        (dict(model="yolo11n-cls.yaml"), ["ends in Classify and cannot be distilled"]),
        (dict(data="nowhere.yaml"), ["nowhere.yaml"]),
    ],
    ids=lambda value: " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_a_mistake_is_told_in_a_sentence_and_nothing_is_started(arguments, words, train):
    said = train(**arguments)
    assert all(word in said for word in words), said


def test_a_teacher_that_has_nothing_to_teach_is_told(detector, train):
    said = train(teacher=detector(names=("a", "b")), drd=0, ded=0)
    assert "it has no class (a, b) in common with the data" in said and "nothing is left to teach" in said


def test_a_file_that_is_no_checkpoint_is_told(tmp_path_factory, train):
    file = tmp_path_factory.mktemp("garbage") / "teacher.pt"
    file.write_text("garbage")
    assert "no checkpoint at all" in train(teacher=file)


def test_words_without_a_value_are_told(train):
    said = train("oops", "teacher", "drd=")
    assert "drd: has no value" in said and "teacher: is missing its '=' sign" in said and "oops: is not" in said
    assert said.startswith("tskd-yolo: 3 problems found")


def test_all_wrong_values_are_told_at_once(train):
    said = train(
        teacher="nowhere.pt", drd="-1", ded="nan", crd="word", balance="foo", variant="y",
        distill_model="a.pt", compile="True", quantize="8",
    )  # fmt: skip
    for key in ("teacher", "drd", "ded", "crd", "balance", "variant", "distill_model", "compile", "quantize"):
        assert f"\n  {key}: " in said, key
    assert said.startswith("tskd-yolo: 9 problems found")


def test_all_unknown_words_are_told_at_once(train):
    said = train(techer="x.pt", drdd="1", ebochs="3")
    assert said.startswith("tskd-yolo: 3 problems found")


def test_everything_that_is_missing_is_told_at_once(train):
    said = train(data=None, model=None, teacher=None)
    assert said.startswith("tskd-yolo: 3 problems found")


def test_mistakes_of_several_kinds_are_told_at_once(train):
    said = train(techer="x.pt", teacher=None, drd="-1", balance="x")
    assert all(f"{key}: " in said for key in ("techer", "drd", "balance")), said


@pytest.mark.slow
def test_tuning_is_refused(capsys):
    assert main(["tune", "data=neu.yaml"]) == 1
    assert "tune: not supported" in capsys.readouterr().err
    assert main(["detect", "tune", "data=neu.yaml", "teacher=a.pt"]) == 1
    assert "tune: " in capsys.readouterr().err


@pytest.mark.parametrize(("word", "meant"), [("chek", "check"), ("comapre", "compare"), ("autolable", "autolabel"),
                                             ("averge", "average"), ("trian", "train")])  # fmt: skip
def test_a_mistyped_command_is_told_with_the_one_that_is_meant(word, meant, monkeypatch, capsys):
    monkeypatch.setattr("ultralytics.cfg.entrypoint", lambda: pytest.fail("it was started"))
    for more in ([], ["data=tiny.yaml", "model=[a.pt,b.pt]"], ["data=tiny.yaml", "teacher=a.pt"]):
        assert main([word, *more]) == 1
        assert f"did you mean '{meant}'?" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["detect"], ["detect", "predict"], ["segment", "source=a.jpg"], ["checks"]], ids=str)
def test_words_that_ultralytics_knows_are_handed_on(words, monkeypatch):
    seen = []
    monkeypatch.setattr("ultralytics.cfg.entrypoint", lambda: seen.append(sys.argv[1:]))
    monkeypatch.setattr(sys, "argv", ["tskd-yolo"])
    assert main(words) == 0 and seen == [words]


def test_a_mode_may_be_given_by_its_key_and_resuming_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["mode=train", "data=tiny.yaml", "model=yolo11n.yaml"]) == 1
    assert "teacher: missing" in capsys.readouterr().err
    assert main(["resume", "model=nowhere/last.pt"]) == 1
    said = capsys.readouterr().err
    assert "nowhere/last.pt" in said and "not found" in said and "argument" not in said, said
    assert not list(tmp_path.iterdir())


def test_resuming_asks_for_the_checkpoint(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "resume"]) == 1
    assert "last.pt" in capsys.readouterr().err and not list(tmp_path.iterdir())


HELPS = [
    [],
    ["help"],
    ["--help"],
    ["-h"],
    ["train", "--help"],
    ["compare", "help"],
    ["convert", "-h"],
    ["help", "train"],
]


@pytest.mark.parametrize("arguments", HELPS, ids=str)
def test_help_names_every_key_with_its_default_and_the_data_sets(arguments, capsys):
    assert main(arguments) == 0
    said = capsys.readouterr().out
    for key, value in DEFAULTS.items():
        assert f"  {key}: {value} #" in said or f"  {key}: #" in said
    assert "neu.yaml" in said and "demo.yaml" in said and "Traceback" not in said


def test_a_reader_that_has_had_enough_of_the_help_is_no_error():
    words = [sys.executable, "-m", "tskd_yolo", "help"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == "" and process.wait() == 0


def test_version_is_the_packages(capsys):
    assert main(["version"]) == 0
    assert capsys.readouterr().out.strip() == tskd_yolo.__version__


@pytest.mark.parametrize(
    "words",
    [["val"], ["val", "task=segment", "model=a.pt"], ["predict", "source=x"], ["detect", "val"], ["export"]],
    ids=" ".join,
)
def test_other_modes_go_to_ultralytics_with_our_data_resolved(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr("ultralytics.cfg.entrypoint", lambda *_: seen.append(sys.argv[1:]))
    monkeypatch.setattr(sys, "argv", ["tskd-yolo"])
    assert main([*words, "data=neu.yaml", "conf=0.5"]) == 0
    assert seen == [[*words, f"data={folder('datasets') / 'neu.yaml'}", "conf=0.5"]]


def test_the_users_own_data_file_of_our_name_is_handed_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "neu.yaml").write_text("names: [a]")
    monkeypatch.setattr("ultralytics.cfg.entrypoint", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["tskd-yolo"])
    assert main(["val", "data=neu.yaml"]) == 0
    assert sys.argv[1:] == ["val", "data=neu.yaml"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["check", "data=gone.yaml", "teacher=gone.pt", "model=yolo11n.yaml", "device=cpu"], 2),
        (["convert", "labelme", "images=images", "val=0.5"], 1),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_place_that_cannot_be_written_is_told(words, code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for number in range(8):
        Image.new("L", (16, 16), number).save(tmp_path / "images" / f"{number}.png")
        shapes = '{"shapes": [{"label": "a", "points": [[1, 1], [9, 9]]}]}'
        (tmp_path / "images" / f"{number}.json").write_text(shapes)
    (tmp_path / "file").touch()
    assert main([*words, f"out={tmp_path / 'file' / 'x'}"]) == code
    said = capsys.readouterr().err
    assert "the system says '" in said and "; make room" in said and "Traceback" not in said
    assert str(tmp_path / "file") in said


def test_a_comparison_that_cannot_write_says_so(files, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(comparing(asked(files, tmp_path / "file" / "x"))) == 1
    said = capsys.readouterr().err
    assert "the system says '" in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("error", "code"),
    [(PermissionError(13, "Permission denied", "/sys/x"), 2), (RunError("out: full."), 2), (ZeroDivisionError(), 3)],
    ids=lambda value: type(value).__name__,
)
def test_a_check_that_fails_is_no_go(error, code, monkeypatch, capsys):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("tskd_yolo.check.run.check", fail)
    assert main(["check", "data=neu.yaml"]) == code
    assert ("Traceback" in capsys.readouterr().err) is (code == 3)


@pytest.mark.parametrize("words", [["version"], ["version", "trust=True"]], ids=" ".join)
def test_processes_that_it_starts_load_safely(words, monkeypatch, capsys):
    monkeypatch.setenv("ULTRALYTICS_SAFE_LOAD", "0")
    main(words)
    assert os.environ["ULTRALYTICS_SAFE_LOAD"] == "1"


@pytest.mark.parametrize(
    ("words", "trusts"),
    [
        (["trust"], True),
        (["--trust"], True),
        (["trust=True"], True),
        (["trust", "=", "True"], True),
        (["trust=true,"], True),
        (["trust=True", "trust=False"], False),
        (["trust", "=", "False"], False),
        (["name", "=", "trust"], False),
        (["name=trust"], False),
        ([], False),
    ],
    ids=str,
)
def test_only_the_word_trust_trusts(words, trusts, monkeypatch):
    from ultralytics.nn import tasks

    seen = []
    monkeypatch.setattr("ultralytics.cfg.entrypoint", lambda: seen.append((not tasks.SAFE_LOAD, sys.argv[1:])))
    monkeypatch.setattr(sys, "argv", ["tskd-yolo"])
    assert main(["predict", "source=x", *words]) == 0
    ((lifted, handed_on),) = seen
    assert lifted is trusts
    assert handed_on == ["predict", "source=x", *(["name=trust"] if "name" in "".join(words) else [])]


def test_trust_that_is_neither_yes_nor_no_is_told(monkeypatch, capsys):
    monkeypatch.setattr("ultralytics.cfg.entrypoint", lambda: pytest.fail("it was started"))
    monkeypatch.setattr(sys, "argv", ["tskd-yolo"])
    for words in (["predict", "source=x"], ["val", "model=a.pt"]):
        assert main([*words, "trust=maybe"]) == 1
        assert "trust: must be True or False, got 'maybe'." in capsys.readouterr().err
