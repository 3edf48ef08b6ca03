"""Arms of one's own: how they are read, and what is nonsense."""

from __future__ import annotations

import pytest

from tests.compare.helpers import asked, words
from tskd_yolo.cli import main
from tskd_yolo.compare.arms import BUILT_IN, described, read
from tskd_yolo.compare.plan import checked
from tskd_yolo.config import ConfigError

pytestmark = pytest.mark.usefixtures("at_hand")

SHORT = {"short": {"epochs": 12}}


@pytest.mark.parametrize(
    ("value", "names", "own"),
    [
        ("plain,tskd", ["plain", "tskd"], {}),
        ("[plain, tskd]", ["plain", "tskd"], {}),
        (("plain", "drd"), ["plain", "drd"], {}),
        ({"plain": None, "tskd": {}, **SHORT}, ["plain", "tskd", "short"], SHORT),
        (["plain", SHORT, "tskd"], ["plain", "short", "tskd"], SHORT),
        ("plain,FILE,tskd", ["plain", "short", "without_drd", "tskd"], SHORT),
        ("FILE", ["short", "without_drd"], SHORT),
    ],
)
def test_arms_are_names_files_and_mappings(value, names, own, tmp_path):
    file = tmp_path / "arms.yaml"
    file.write_text("short: {epochs: 12}\nwithout_drd:\n")
    problems: list[str] = []
    value = value.replace("FILE", str(file)) if isinstance(value, str) else value
    assert read(value, problems) == (names, own) and not problems


def test_arms_of_a_file_are_found_by_the_command_line(files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yml").write_text("a-b: {epochs: 2}\n")
    assert main(words(asked(files, tmp_path / "out", arms="plain,mine.yml"))) == 1
    assert "arms: 'a-b' cannot be an arm's name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        ({"../up": {"epochs": 2}}, "arms: '../up' cannot be an arm's name; take letters, digits and _"),
        ({"": {"epochs": 2}}, "arms: '' cannot be an arm's name"),
        ({"a" * 41: {"epochs": 2}}, "cannot be an arm's name"),
        ({3: {"epochs": 2}}, "arms: '3' cannot be an arm's name"),
        ({"Teacher": {"epochs": 2}}, "arms: 'Teacher' cannot be an arm's name"),
        (
            {"truth": {"epochs": 2}},
            "arms: 'truth' cannot be an arm's name; take letters, digits and _, at most 40, a letter",
        ),
        ({"short": {"imgsz": 32}}, "arms: short: imgsz is the same for every arm; drop it here."),
        ({"tskd": {"epochs": 2}}, "arms: tskd is built in and cannot be changed"),
        ({"short": None}, "arms: short: has no settings"),
        ({"short": 3}, "arms: short: has no settings"),
        ({"short": {"data": "a.yaml"}}, "arms: short: data is the same for every arm; drop it here."),
        ({"short": {"trust": True}}, "arms: short: trust is the same for every arm"),
        ({"short": {"seed": 1, "model": "a.pt"}}, "arms: short: model is the same for every arm"),
        ({"short": {"epochs": 1}}, "arms: short: has the settings of tskd, and would be tskd again"),
        ({"short": {"patience": 100}}, "arms: short: has the settings of tskd"),
        ({"short": {"drd": 0, "ded": 0, "crd": 0}}, "all are 0, and the arm short would distil nothing"),
        ({"short": {"drd": -1}}, "arms: short: drd: must be a finite number >= 0, got -1"),
        ({"short": {"epochs": "many"}}, "arms: short: epochs: "),
        ({"short": {"epoch": 3}}, "arms: short: epoch: is not an argument; did you mean 'epochs'?"),
        ({"short": {"teacher": "nowhere.pt"}}, "arms: short: teacher: nowhere.pt was not found"),
        ({"short": {"epochs": 2}, "Short": {"epochs": 3}}, "arms: one is named twice"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_nonsense_is_told_in_a_sentence(own, sentence, files, tmp_path):
    with pytest.raises(ConfigError) as error:
        checked(asked(files, tmp_path / "out", arms=["plain", "tskd", own]))
    (said,) = [problem for problem in error.value.problems if sentence in problem]
    assert said.count("\n") == 0 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["- a\n- b\n", "", "a: [", "plain"])
def test_a_file_that_maps_nothing_is_refused(content, tmp_path):
    (tmp_path / "arms.yaml").write_text(content)
    problems: list[str] = []
    assert read(str(tmp_path / "arms.yaml"), problems) == ([], {})
    assert len(problems) == 1 and "maps no names to settings" in problems[0]


def test_a_teacher_of_an_arm_is_found_from_anywhere(files, tmp_path, monkeypatch):
    monkeypatch.chdir(files)
    plan = checked(asked(files, tmp_path / "out", arms=["plain", {"other": {"teacher": "teacher.pt", "drd": 0}}]))
    assert plan.settings_of("other")["teacher"] == str(files / "teacher.pt")


def test_every_built_in_arm_is_described():
    assert len({described(arm, {}) for arm in BUILT_IN}) == len(BUILT_IN)
    assert described("without_mosaic", {"without_mosaic": {"mosaic": 0}}) == "distilled, with settings of its own"
    assert "with the same teacher" in described("ultralytics", {})
    assert "with the first teacher" in described("ultralytics", {}, several=True)


def test_images_without_labels_are_for_the_arms_that_ask(files, tmp_path):
    folder = tmp_path / "others"
    folder.mkdir()
    mine = {"mine": {"pseudo": True}, "short": {"epochs": 2}}
    given = dict(unlabelled=str(folder), arms=["plain", "tskd", "tskd_unlabelled", mine])
    plan = checked(asked(files, tmp_path / "out", **given))
    found = {arm: plan.settings_of(arm).get("unlabelled") for arm in plan.arms}
    assert found == {"plain": None, "tskd": False, "tskd_unlabelled": [str(folder)], "mine": [str(folder)],
                     "short": False}  # fmt: skip
    assert plan.settings_of("mine")["pseudo"] is True and plan.settings_of("tskd")["pseudo"] is False


@pytest.mark.parametrize(
    ("arms", "given", "sentence"),
    [
        ("plain,tskd_unlabelled", None, "arms: tskd_unlabelled needs images without labels; give unlabelled=, or drop"),
        ("plain,tskd", "others", "unlabelled: no arm learns from images without labels; add tskd_unlabelled to arms"),
    ],
)
def test_an_arm_without_images_and_images_without_an_arm(arms, given, sentence, files, tmp_path, monkeypatch):
    (tmp_path / "others").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        checked(asked(files, tmp_path / "out", arms=arms, unlabelled=given))
    (said,) = error.value.problems
    assert said.startswith(sentence)
