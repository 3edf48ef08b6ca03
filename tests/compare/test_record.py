"""What a comparison's folder remembers: a changed plan is told, other settings, data and devices are refused."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import yaml
from ultralytics.utils import YAML
from ultralytics.utils.checks import check_yaml

from tests.compare.helpers import add_test_split, asked, own_files
from tests.helpers import DEVICE, NAMES, make_detector
from tskd_yolo import hashing
from tskd_yolo.compare import record, runner, splits
from tskd_yolo.compare.plan import checked
from tskd_yolo.compare.record import begin, changed_seeds, settings
from tskd_yolo.compare.runner import compare
from tskd_yolo.compare.splits import files_of
from tskd_yolo.compare.summary import summarise
from tskd_yolo.config import ConfigError
from tskd_yolo.files import digest

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("at_hand")]


@pytest.fixture
def begun(files, tmp_path):
    """Its own files, which a test may change, and how a comparison of them is asked for."""
    values = asked(own_files(files, tmp_path), tmp_path / "out")
    (tmp_path / "out").mkdir()
    begin(checked(values))
    return values


def told(values) -> list[str]:
    """What is refused, or nothing."""
    try:
        begin(checked(values))
    except ConfigError as error:
        return error.problems
    return []


# Settings -------------------------------------------------------------------------------------------------------------


def test_a_changed_setting_is_refused_but_more_arms_are_not(begun):
    assert told({**begun, "seeds": 3, "arms": "plain,tskd,ded", "jobs": 2}) == []
    problems = "\n".join(told({**begun, "epochs": 2, "drd": 0.9}))
    assert "epochs: the runs in out have 1, not 2" in problems and "drd: the runs in out have" in problems
    assert len(problems.splitlines()) == 2 and "out=" in problems


def test_another_teacher_of_the_same_name_is_another_setting(files, tmp_path):
    other = tmp_path / "teacher.pt"
    make_detector(other, seed=8)
    plans = [checked(asked(files, tmp_path / "out", teacher=str(f))) for f in (files / "teacher.pt", other)]
    one, two = (settings(plan, files_of(plan.common["data"], 1.0)) for plan in plans)
    assert [key for key in one if one[key] != two[key]] == ["teacher"]
    assert str(tmp_path) not in json.dumps(two)


def test_a_student_is_known_by_the_file_behind_its_name(files, tmp_path, monkeypatch):
    """``yolo11n-own.yaml`` is read from ``yolo11-own.yaml``."""
    monkeypatch.chdir(tmp_path)
    own, told = tmp_path / "yolo11-own.yaml", []
    for classes in (3, 4):
        own.write_text(yaml.safe_dump({**YAML.load(check_yaml("yolo11.yaml")), "nc": classes}))
        plan = checked(asked(files, tmp_path / "out", model="yolo11n-own.yaml"))
        told.append(settings(plan, files_of(plan.common["data"], 1.0))["model"])
    assert told[0].startswith("yolo11-own.yaml (sha256 ") and told[1] != told[0]
    assert settings(checked(asked(files, tmp_path / "out", model="yolo11n.yaml")), {})["model"] == "yolo11n.yaml"


def test_a_copied_data_set_is_the_same_and_other_names_are_not(begun, tmp_path):
    copy = tmp_path / "copy" / "tiny.yaml"
    shutil.copytree(tmp_path / "set", copy.parent / "set")
    content = yaml.safe_load((tmp_path / "tiny.yaml").read_text())
    copy.write_text("# copied\n" + yaml.safe_dump({**content, "path": str(copy.parent / "set")}))
    begin(checked({**begun, "data": str(copy)}))
    copy.write_text(yaml.safe_dump({**content, "names": NAMES[::-1]}))
    with pytest.raises(ConfigError, match=r"data: the runs in out have 'tiny.yaml"):
        begin(checked({**begun, "data": str(copy)}))


def test_a_teacher_under_another_name_is_the_same(files, begun, tmp_path):
    renamed = tmp_path / "best.pt"
    shutil.copy(files / "teacher.pt", renamed)
    begin(checked({**begun, "teacher": str(renamed)}))
    make_detector(renamed, seed=8)
    with pytest.raises(ConfigError, match=r"teacher: the runs in out have 'teacher.pt \(sha256 .* not 'best.pt"):
        begin(checked({**begun, "teacher": str(renamed)}))


def test_images_without_labels_are_known_by_name_and_size(files, tmp_path):
    folder = tmp_path / "others"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"1234")
    plan = checked(asked(files, tmp_path / "out", arms="plain,tskd_unlabelled", unlabelled=str(folder)))
    before = settings(plan, files_of(plan.common["data"], 1.0))["unlabelled"]
    assert before.startswith("others (1, sha256 ") and str(tmp_path) not in before
    (folder / "b.jpg").write_bytes(b"12")
    assert settings(plan, files_of(plan.common["data"], 1.0))["unlabelled"].startswith("others (2, sha256 ")


def test_images_that_judge_are_not_learned_from(files, tmp_path):
    files = own_files(files, tmp_path)
    add_test_split(files)
    given = dict(arms="plain,tskd_unlabelled", unlabelled=str(files / "set" / "images" / "test"))
    with pytest.raises(ConfigError, match="4 images are in the test split too, by content .* and test judges; take"):
        compare(**asked(files, tmp_path / "out", **given))
    assert not (tmp_path / "out").exists()
    assert record.learned_from(checked(asked(files, tmp_path / "out", **given, split="val"))) == []
    others = str(files / "set" / "images" / "train")
    assert record.learned_from(checked(asked(files, tmp_path / "out", **{**given, "unlabelled": others}))) == []


def test_a_folder_of_an_older_version_is_refused(begun, tmp_path):
    file = tmp_path / "out" / "settings.json"
    content = json.loads(file.read_text())
    del content["labels of val"]
    file.write_text(json.dumps(content))
    assert told(begun) == ["labels of val: was not written down when the runs in out were begun; give another out=."]


# Data, device, versions -----------------------------------------------------------------------------------------------


def test_a_changed_label_is_refused_and_named(begun, tmp_path):
    label = sorted((tmp_path / "set" / "labels" / "val").iterdir())[0]
    label.write_text("0 0.5 0.5 0.25 0.25\n")
    assert told(begun) == [
        f"labels of val: 1 changed since the runs in out were begun, such as labels/val/{label.name}; "
        "bring the old files back, or take another folder with out=."
    ]


def test_changed_gone_and_new_images_are_counted(begun, tmp_path):
    folder = tmp_path / "set" / "images" / "train"
    first, second, third, *_ = sorted(folder.iterdir())
    first.write_bytes(first.read_bytes() + b" ")
    os.utime(third, ns=(0, 0))  # as a copy of it has: the same picture
    shutil.copy(third, folder / "new.png")
    second.unlink()
    images, labels = told(begun)
    counts = "1 changed, 1 gone, 1 new since the runs in out were begun"
    assert images.startswith(f"images of train: {counts}, such as images/train/{first.name};")
    assert labels.startswith("labels of train: 1 gone, 1 new")


def test_files_are_told_as_new_where_a_beginning_was_cut(begun, tmp_path):
    (tmp_path / "out" / "data.json").unlink()  # settings.json is written before it
    assert told(begun) == [] and (tmp_path / "out" / "data.json").exists()
    (tmp_path / "out" / "data.json").unlink()
    sorted((tmp_path / "set" / "labels" / "val").iterdir())[0].write_text("0 0.5 0.5 0.25 0.25\n")
    (problem,) = told(begun)
    assert problem.startswith("labels of val: ") and " new since the runs in out were begun" in problem


def test_copied_images_are_the_same_and_are_read_once(begun, tmp_path, monkeypatch):
    for image in (tmp_path / "set" / "images").rglob("*.png"):
        os.utime(image, ns=(0, 0))
    assert told(begun) == []
    monkeypatch.setattr(splits, "digest", lambda file: digest(file) if file.endswith(".txt") else pytest.fail(file))
    assert told(begun) == []


def test_another_device_is_refused_and_both_are_named(begun, monkeypatch):
    here = record.hardware(DEVICE)
    monkeypatch.setattr(record, "hardware", lambda device: "Another GPU")
    assert told(begun) == [
        f"device: the runs in out have {here!r}, not 'Another GPU'; take the old value, or another folder with out=."
    ]


def test_other_versions_are_refused_and_named(begun, monkeypatch):
    now = hashing.versions()
    monkeypatch.setattr(hashing, "versions", lambda: {**now, "torch": "9.9"})
    (problem,) = told(begun)
    assert problem.startswith(f"torch: the runs in out have {now['torch']!r}, not '9.9'")


def test_gpus_count_by_name_and_number(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda n: f"GPU {'AAB'[n]}")
    names = [record.hardware(device) for device in (None, 0, "1", "cuda:1", "0,2", [0, 1])]
    assert names == ["GPU A", "GPU A", "GPU A", "GPU A", "GPU A + GPU B", "GPU A + GPU A"]
    assert record.hardware("cpu").startswith("CPU (")


# The plan -------------------------------------------------------------------------------------------------------------


def test_the_plan_is_written_down_before_anything_runs(begun, tmp_path):
    assert json.loads((tmp_path / "out" / "plan.json").read_text()) == [{"seeds": [0], "arms": ["plain", "tskd"]}]


@pytest.mark.parametrize(
    ("seeds", "said"),
    [(3, ""), ([2, 1, 0], ""), (2, "planned 3 seeds, now 2"), (8, "planned 3 seeds, now 8"),
     ([0, 1, 5], "planned seeds 0, 1, 2, now 0, 1, 5")],
)  # fmt: skip
def test_other_seeds_than_planned_are_told(seeds, said, plan, files):
    changed = checked(asked(files, plan.out, arms="plain,tskd,ultralytics", seeds=seeds))
    begin(changed)
    assert changed_seeds(changed) == said
    summary = summarise(changed, failed=[])
    assert summary["plan"]["changed"] == said
    assert all(verdict.endswith(f"{said.capitalize()}." if said else ").") for verdict in summary["verdicts"])
    assert changed_seeds(plan) == "", "back at the plan"


def test_a_changed_plan_is_on_console_page_and_json(plan, files, capsys):
    assert compare(**asked(files, plan.out, arms="plain,tskd,ultralytics", seeds=2)) == 0
    assert "Planned 3 seeds, now 2." in capsys.readouterr().out
    page, data = ((plan.out / f"compare.{kind}").read_text(encoding="utf-8") for kind in ("html", "json"))
    assert "The plan was changed:" in page and "Planned 3 seeds, now 2." in page
    assert json.loads(data)["plan"]["asked"][0]["seeds"] == [0, 1, 2]


def test_an_arm_that_was_dropped_still_counts(plan, files):
    fewer = checked(asked(files, plan.out, arms="plain,tskd", seeds=3))
    begin(fewer)
    summary = summarise(fewer, failed=[])
    assert summary["arms"]["tskd"]["effect"]["mAP50-95"]["corrected"]["of"] == 2
    assert summary["plan"]["arms"] == ["plain", "tskd", "ultralytics"]


# Arms of one's own ----------------------------------------------------------------------------------------------------


def test_an_arm_is_added_later_and_finished_runs_are_reused(plan, files, monkeypatch):
    trained = []
    monkeypatch.setattr(runner, "order", lambda plan, name, job: trained.append((str(name), job)) is None)
    arms = ["plain", "tskd", "ultralytics", {"short": {"epochs": 3, "drd": 0}}]
    compare(**asked(files, plan.out, arms=arms, seeds=3))
    assert [name for name, _ in trained] == ["short-0", "short-1", "short-2"]
    settings = trained[0][1]["settings"]
    assert settings["epochs"] == 3 and settings["drd"] == 0 and settings["ded"] == plan.own["ded"]
    page, data = ((plan.out / f"compare.{kind}").read_text(encoding="utf-8") for kind in ("html", "json"))
    assert json.loads(data)["arms"]["short"]["settings"] == {"epochs": 3, "drd": 0}
    assert "epochs=3, drd=0" in page and "corrected for 3 arms" in page


def test_an_arm_of_the_same_name_has_the_same_settings(begun):
    assert told({**begun, "arms": ["plain", {"short": {"epochs": 3}}]}) == []
    assert told({**begun, "arms": ["plain", {"short": {"epochs": 3}, "other": {"epochs": 3}}]}) == []
    assert told({**begun, "arms": ["plain", {"short": {"epochs": 4}}]}) == [
        "arms: short: the runs in out have {'epochs': 3}, not {'epochs': 4}; take the old settings, another name, or "
        "another folder with out=."
    ]


def test_a_comparison_judged_on_another_split_is_refused(begun, tmp_path):
    add_test_split(tmp_path)
    problems = told(begun)
    assert [problem.partition(":")[0] for problem in problems] == [
        "split", "judged by", "images of test", "labels of test"
    ]  # fmt: skip
