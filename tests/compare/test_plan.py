"""What a comparison is asked for: what is refused, in which order it runs, and what decides its results."""

from __future__ import annotations

import importlib.util
import json

import pytest

from tests.compare.helpers import asked, words
from tests.helpers import make_detector
from tskd_yolo.cli import main
from tskd_yolo.compare.plan import ARMS, Run, checked, require_same_settings, settings
from tskd_yolo.config import ConfigError

pytestmark = pytest.mark.usefixtures("at_hand")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (dict(arms="plain,tskdd"), "arms: tskdd is none"),
        (dict(arms="tskd"), "arms: plain is missing"),
        (dict(arms="plain,plain"), "arms: one is named twice"),
        (dict(arms="plain,plain_same_time"), "arms: plain_same_time takes the time of tskd"),
        (dict(arms="plain,drd", drd=0), "drd: is 0, and the arm drd"),
        (dict(drd=0, ded=0, crd=0), "all are 0"),
        (dict(seeds=0), "seeds: must be a number from 1 on"),
        (dict(seeds="many"), "seeds: must be a number of seeds"),
        (dict(seeds="[1,1]"), "list of different seeds"),
        (dict(jobs=0), "jobs: must be a whole number"),
        (dict(ray=3), "ray: must be True or False"),
        (dict(seed=3), "seed: a comparison has several"),
        (dict(project="x"), "project: a comparison has one folder"),
        (dict(resume=True), "resume: a comparison goes on by itself"),
        (dict(arms="plain,tskd,plain_same_time", time=1), "time: plain_same_time takes the time of tskd"),
        (dict(epochs=0), "epochs: must be a whole number from 1 on"),
        (dict(teacher="nowhere.pt"), "teacher: nowhere.pt was not found"),
        (dict(distill_model="a.pt"), "distill_model: "),
        (dict(techer="a.pt"), "techer: is not an argument"),
        (dict(armss="plain"), "did you mean 'arms'?"),
    ],
    ids=lambda value: " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_a_mistake_is_told_and_nothing_is_written(wrong, sentence, files, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words(asked(files, tmp_path / "out", **wrong))) == 1
    said = capsys.readouterr().err
    assert sentence in said and "Traceback" not in said, said
    assert not list(tmp_path.iterdir())


def test_all_mistakes_are_told_at_once(files, tmp_path):
    values = asked(files, tmp_path / "out", arms="tskd,x", seeds=0, jobs=0, seed=1, teacher="nowhere.pt", drd=-1)
    with pytest.raises(ConfigError) as error:
        checked(values)
    for key in ("arms: x", "arms: plain", "seeds", "jobs", "seed:", "teacher", "drd"):
        assert sum(problem.startswith(key) for problem in error.value.problems) == 1, key


def test_ray_that_is_missing_is_named_with_what_installs_it(files, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "ray" else found(name, *a))
    with pytest.raises(ConfigError, match=r"ray: is not installed; pip install 'tskd-yolo\[all\]'"):
        checked(asked(files, tmp_path / "out", ray=True))


def test_seeds_are_a_number_or_a_list_and_arms_default_to_all(files, tmp_path):
    values = asked(files, tmp_path / "out")
    assert checked({**values, "seeds": 5}).seeds == [0, 1, 2, 3, 4]
    assert checked({**values, "seeds": [0, 3]}).seeds == checked({**values, "seeds": (0, 3)}).seeds == [0, 3]
    del values["arms"]
    assert checked(values).arms == list(ARMS)


def test_plain_same_time_follows_tskd_and_pairs_come_first(files, tmp_path):
    plan = checked(asked(files, tmp_path / "out", arms="plain,plain_same_time,tskd", seeds=2))
    assert plan.chains == [
        [Run("plain", 0)], [Run("tskd", 0), Run("plain_same_time", 0)],
        [Run("plain", 1)], [Run("tskd", 1), Run("plain_same_time", 1)],
    ]  # fmt: skip


def test_a_changed_setting_is_refused_but_more_arms_are_not(files, tmp_path):
    plan = checked(asked(files, tmp_path / "out"))
    plan.out.mkdir()
    require_same_settings(plan)
    require_same_settings(checked(asked(files, tmp_path / "out", seeds=3, arms="plain,tskd,ded", jobs=2)))
    with pytest.raises(ConfigError) as error:
        require_same_settings(checked(asked(files, tmp_path / "out", epochs=2, drd=0.9)))
    told = "\n".join(error.value.problems)
    assert "epochs: the runs in out have 1, not 2" in told and "drd: the runs in out have" in told
    assert len(error.value.problems) == 2 and "out=" in told


def test_another_teacher_of_the_same_name_is_another_setting(files, tmp_path):
    other = tmp_path / "teacher.pt"
    make_detector(other, seed=8)
    one, two = (settings(checked(asked(files, tmp_path / "out", teacher=str(f)))) for f in
                (files / "teacher.pt", other))  # fmt: skip
    assert [key for key in one if one[key] != two[key]] == ["teacher"]
    assert str(tmp_path) not in json.dumps(two)
