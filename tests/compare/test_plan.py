"""What a comparison is asked for: what is refused, and in which order it runs."""

from __future__ import annotations

import importlib.util

import pytest

from tests.compare.helpers import asked, words
from tests.helpers import timm_file
from tskd_yolo.cli import main
from tskd_yolo.compare.plan import ARMS, Run, checked
from tskd_yolo.config import DEFAULTS, ConfigError
from tskd_yolo.train import tasks

pytestmark = pytest.mark.usefixtures("at_hand")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (dict(arms="plain,tskdd"), "arms: tskdd is none"),
        (dict(arms="tskd"), "arms: plain is missing"),
        (dict(arms="plain,plain"), "arms: one is named twice"),
        (dict(arms="plain,plain_same_time"), "arms: plain_same_time takes the time of tskd"),
        (dict(arms="plain,drd", drd=0), "drd: is 0, and the arm drd"),
        (dict(arms="plain,without_drd", drd=0), "drd: is 0, and the arm without_drd would be tskd again"),
        (dict(arms="plain,without_crd", drd=0, ded=0), "all are 0, and the arm without_crd"),
        (dict(arms="plain,mine.yaml"), "arms: mine.yaml was not found"),
        (dict(split="train"), "split: must be test or val"),
        (dict(split="test"), "split: the data YAML names no test: split, so it cannot judge"),
        (dict(drd=0, ded=0, crd=0), "all are 0"),
        (dict(seeds=0), "seeds: must be a number from 1 on"),
        (dict(seeds="many"), "seeds: must be a number of seeds"),
        (dict(seeds="[1,1]"), "list of different seeds"),
        (dict(jobs=0), "jobs: must be a whole number"),
        (dict(ray=3), "ray: must be True or False"),
        (dict(seed=3), "seed: a comparison has several"),
        (dict(seed=0), "seed: a comparison has several"),
        (dict(seed=[0, 1]), "seed: a comparison has several"),
        (dict(project="x"), "project: a comparison has one folder"),
        (dict(exist_ok=True), "exist_ok: a comparison goes on in its folder by itself; leave it out."),
        (dict(batch=-1), "batch: must be a number of images, the same in every run, got -1"),
        (dict(batch=0.7), "batch: must be a number of images, the same in every run, got 0.7"),
        (dict(imgsz=[64, 64]), "imgsz: must be one number of pixels, got [64, 64]"),
        (dict(resume=True), "resume: a comparison goes on by itself"),
        (dict(arms="plain,tskd,plain_same_time", time=1), "time: plain_same_time takes the time of tskd"),
        (dict(epochs=0), "epochs: must be a whole number from 1 on"),
        (dict(data="set.ndjson"), "data: a comparison needs a data YAML"),
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


def test_a_file_of_settings_is_beneath_what_is_given(files, tmp_path):
    """YOLO.train would read it in the arms that do not distil, and nobody else."""
    (tmp_path / "mine.yaml").write_text("imgsz: 96\nepochs: 7\nded: 2.5\n")
    plan = checked(asked(files, tmp_path / "out", cfg=str(tmp_path / "mine.yaml"), epochs=3, imgsz=96))
    assert plan.common["epochs"] == 3 and plan.common["imgsz"] == 96 and "cfg" not in plan.common
    assert plan.own["ded"] == 2.5
    with pytest.raises(ConfigError, match="nowhere.yaml"):
        checked(asked(files, tmp_path / "out", cfg="nowhere.yaml"))


def test_a_folder_may_be_in_the_home_folder(files, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert checked(asked(files, "~/out")).out == (tmp_path / "out").resolve()


def test_what_no_worker_can_be_told_is_refused(files, tmp_path):
    given = asked(files, tmp_path / "out", augmentations=[Run("a", 0), object()])
    with pytest.raises(ConfigError, match="augmentations: must be what JSON can hold.*albumentations.to_dict"):
        checked(given)


def test_a_teacher_without_a_head_is_for_an_arm_of_ones_own(files, tmp_path):
    vit = f"timm:test_vit:{timm_file(tmp_path / 'vit.safetensors', 'test_vit')}"
    with pytest.raises(ConfigError, match="timm:test_vit:.* has no detection head; give a detector, and this one to a"):
        checked(asked(files, tmp_path / "out", teacher=vit))
    plan = checked(asked(files, tmp_path / "out", arms={"plain": {}, "vit": {"teacher": vit}}))
    assert plan.own_arms["vit"]["teacher"] == vit


@pytest.mark.parametrize("task", ["seg", "pose"])
def test_a_comparison_of_another_task_is_refused(task, files, tmp_path, detector, monkeypatch):
    monkeypatch.setattr(tasks, "_wrong_points", lambda *_: [])  # the data of these tests has no key points
    given = dict(teacher=str(detector(f"yolo11n-{task}.yaml")), model=f"yolo11n-{task}.yaml")
    with pytest.raises(
        ConfigError, match="task: a comparison judges detectors, and these are for (segment|pose); train"
    ):
        checked(asked(files, tmp_path / "out", **given))


def test_all_mistakes_are_told_at_once(files, tmp_path):
    values = asked(files, tmp_path / "out", arms="tskd,x", seeds=0, jobs=0, seed=1, teacher="nowhere.pt", drd=-1)
    with pytest.raises(ConfigError) as error:
        checked(values)
    for key in ("arms: x", "arms: plain", "seeds", "jobs", "seed:", "teacher", "drd"):
        assert sum(problem.startswith(key) for problem in error.value.problems) == 1, key


def test_ray_that_is_missing_is_named_with_what_installs_it(files, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "ray" else found(name, *a))
    with pytest.raises(ConfigError, match="ray: is not installed; pip install ray adds it"):
        checked(asked(files, tmp_path / "out", ray=True))


def test_a_batch_that_fits_memory_is_refused_in_an_arm(files, tmp_path):
    arms = ["plain", {"large": {"batch": -1}, "small": {"batch": 2}}]
    with pytest.raises(ConfigError) as error:
        checked(asked(files, tmp_path / "out", arms=arms))
    (problem,) = error.value.problems
    assert problem.startswith("arms: large: batch: must be a number of images") and "give batch=16" in problem


@pytest.mark.parametrize("foreign", ["notes.txt", "data.json", "plan.json", "settings.json", "plain-2/mine.txt"])
def test_a_folder_of_other_files_is_refused_and_left(foreign, files, tmp_path):
    out = tmp_path / "out"
    (out / foreign).parent.mkdir(parents=True)
    (out / foreign).write_text("[]")
    with pytest.raises(ConfigError, match="out: .*out is there and holds no comparison; give another folder") as error:
        checked(asked(files, out, jobs=0))
    assert len(error.value.problems) == 2, "told with the other mistakes"
    assert [path.name for path in out.iterdir()] == [foreign.split("/")[0]]


def test_a_folder_that_a_comparison_began_is_taken(files, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in (".lock", ".settings.json.1.part"):
        (out / name).touch()
    assert checked(asked(files, out)).out == out
    (out / "settings.json").write_text('{"data": "", "model": "", "teacher": ""}')
    (out / "plain-0").mkdir()
    assert checked(asked(files, out)).out == out


def test_seeds_are_a_number_or_a_list_and_arms_default_to_all(files, tmp_path):
    values = asked(files, tmp_path / "out")
    assert checked({**values, "seeds": 5}).seeds == [0, 1, 2, 3, 4]
    assert checked({**values, "seeds": [0, 3]}).seeds == checked({**values, "seeds": (0, 3)}).seeds == [0, 3]
    del values["arms"]
    assert checked(values).arms == list(ARMS)


@pytest.mark.parametrize(
    ("weights", "terms"),
    [({"drd": 0}, ["ded", "crd"]), ({"drd": 0, "ded": 0}, []), ({"balance": "fixed", "crd": 2}, ["drd", "ded", "crd"])],
    ids=str,
)
def test_a_term_without_weight_has_no_arm_unless_asked_for(weights, terms, files, tmp_path):
    values = {**asked(files, tmp_path / "out"), **weights}
    del values["arms"]
    assert checked(values).arms == ["plain", "plain_same_time", "ultralytics", "tskd", *terms]


def test_our_keys_reach_the_arms_that_distil(files, tmp_path):
    own = {"short": {"epochs": 3, "crd": 1}}
    plan = checked(asked(files, tmp_path / "out", drd=0.7, crd=2, arms=["plain", own]))
    assert not {"drd", "crd", "teacher", "split"} & set(plan.common)
    assert plan.settings_of("plain") == plan.settings_of("plain_same_time") == {}
    assert plan.settings_of("ultralytics") == {"distill_model": str(files / "teacher.pt")}
    assert plan.settings_of("tskd") == plan.own
    alone, without, short = (plan.settings_of(arm) for arm in ("crd", "without_crd", "short"))
    assert (alone["drd"], alone["ded"], alone["crd"]) == (0, 0, 2) and alone["teacher"] == plan.own["teacher"]
    assert without == {**plan.own, "crd": 0} and short == {**plan.own, "crd": 1, "epochs": 3}
    assert (plan.epochs("tskd"), plan.epochs("short")) == (1, 3)


def test_plain_same_time_follows_both_and_pairs_come_first(files, tmp_path):
    plan = checked(asked(files, tmp_path / "out", arms="plain,plain_same_time,tskd,ded", seeds=2))
    assert plan.chains == [
        [Run("plain", 0), Run("tskd", 0), Run("plain_same_time", 0)], [Run("ded", 0)],
        [Run("plain", 1), Run("tskd", 1), Run("plain_same_time", 1)], [Run("ded", 1)],
    ]  # fmt: skip
    plan = checked(asked(files, tmp_path / "out", arms="plain,tskd", seeds=2))
    assert plan.chains == [[Run("plain", 0)], [Run("tskd", 0)], [Run("plain", 1)], [Run("tskd", 1)]]


@pytest.mark.parametrize(
    ("common", "mine", "expected"),
    [
        ({}, {"variant": "paper"}, {"balance": "fixed", "drd": 1, "ded": 1, "crd": 1}),
        ({}, {"variant": "paper", "drd": 3}, {"balance": "fixed", "drd": 3, "ded": 1, "crd": 1}),
        ({"ded": 7}, {"variant": "paper"}, {"balance": "fixed", "drd": 1, "ded": 7, "crd": 1}),
        (
            {"variant": "paper"},
            {"variant": "default"},
            {**{k: DEFAULTS[k] for k in ("balance", "crd")}, "drd": 1, "ded": 4},  # a student from random weights
        ),
        ({"variant": "paper"}, {"epochs": 3}, {"balance": "fixed", "drd": 1, "ded": 1, "crd": 1}),
    ],
)
def test_a_variant_of_an_arm_brings_its_settings(common, mine, expected, files, tmp_path):
    plan = checked(asked(files, tmp_path / "out", arms=["plain", {"mine": mine}], **common))
    settings = plan.settings_of("mine")
    assert {key: settings[key] for key in expected} == expected
