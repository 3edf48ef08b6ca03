"""Which split judges: the test split if it can, otherwise val, with the reason."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml

from tests.compare.helpers import add_test_split, asked, own_files
from tests.helpers import finished_run, finished_teacher, made_up, tiny_data
from tskd_yolo.compare.plan import checked
from tskd_yolo.compare.record import begin
from tskd_yolo.compare.report import comparison_page
from tskd_yolo.compare.runner import compare
from tskd_yolo.compare.splits import Judging, files_of, judging
from tskd_yolo.compare.summary import summarise
from tskd_yolo.config import ConfigError

pytestmark = pytest.mark.usefixtures("at_hand")


@pytest.fixture
def data(tmp_path):
    """A data set with a test split."""
    tiny_data(tmp_path, train=2, val=2)
    add_test_split(tmp_path)
    return str(tmp_path / "tiny.yaml")


def change(data: str, **more) -> None:
    with open(data, encoding="utf-8") as file:
        content = yaml.safe_load(file)
    with open(data, "w", encoding="utf-8") as file:
        yaml.safe_dump({**content, **more}, file)


def test_a_test_split_judges_best_pt(data):
    assert judging(data, None) == judging(data, "test") == Judging("test", "best", "")
    assert judging(data, "val") == Judging("val", "last", "split=val was asked for")


def no_test(data, folder):
    change(data, test=None)


def no_images(data, folder):
    shutil.rmtree(folder / "images" / "test")


def no_labels(data, folder):
    shutil.rmtree(folder / "labels" / "test")


def same_as_val(data, folder):
    change(data, test="images/val")


def linked_from_train(data, folder):
    image = sorted((folder / "images" / "train").iterdir())[0]
    (folder / "images" / "test" / "again.png").symlink_to(image)


def copied_from_val(data, folder):
    shutil.copy(sorted((folder / "images" / "val").iterdir())[0], folder / "images" / "test" / "renamed.png")


@pytest.mark.parametrize(
    ("break_it", "why"),
    [
        (no_test, "the data YAML names no test: split"),
        (no_images, "the images of the test: split were not found"),
        (no_labels, "the test: split has no labels"),
        (same_as_val, "2 of 2 images of the test: split are in train or val, too"),
        (linked_from_train, "1 of 3 images of the test: split are in train or val, too"),
        (copied_from_val, "1 of 3 images of the test: split are in train or val, too"),
    ],
)
def test_a_split_that_cannot_judge_does_not(break_it, why, data, tmp_path):
    break_it(data, tmp_path / "set")
    assert judging(data, None) == Judging("val", "last", why)
    with pytest.raises(ConfigError, match=f"split: {why}, so it cannot judge; give a data YAML with a test: split"):
        judging(data, "test")


def test_a_fraction_may_be_given_for_each_split(data):
    counts = {split: len(found["images"]) for split, found in files_of(data, [0.5, 1]).items()}
    assert counts == {"train": 1, "val": 2, "test": 2}
    assert len(files_of(data, 0.5)["train"]["images"]) == 1 and len(files_of(data, 1.0)["train"]["images"]) == 2


def test_the_verdict_is_about_best_pt_where_test_judges(files, tmp_path):
    files = own_files(files, tmp_path)
    add_test_split(files)
    values = asked(files, tmp_path / "out", seeds=3)
    plan = checked(values)
    plan.out.mkdir()
    finished_teacher(plan, 0.5)
    for seed, noise in enumerate((0.001, -0.002, 0.001)):
        finished_run(plan, "plain", seed, 0.2)
        finished_run(plan, "tskd", seed, 0.2 + noise, best=made_up(0.25 + noise))
    begin(plan)
    summary = summarise(plan, failed=[])
    assert summary["judged"] == {"split": "test", "weights": "best", "why": ""}
    assert summary["verdicts"][0].startswith("tskd: helps: +5.0 points")
    arm = summary["arms"]["tskd"]
    means = {which: arm["effects"][which]["mAP50-95"]["mean"] for which in ("best", "last")}
    assert means == pytest.approx({"best": 0.05, "last": 0}, abs=1e-6)
    assert arm["effect"]["mAP50-95"]["mean"] == means["best"] and "verdict" not in arm["effects"]["best"]["mAP50-95"]
    assert arm["recovered"] == pytest.approx(0.05 / 0.3)
    page = " ".join(comparison_page(summary, curves={}, pictures=None).split())
    assert "judged on the <em>test</em> split, which chose nothing" in page
    assert "25.0 (+5.0; +4.6 to +5.4)" in page and "20.0 (0.0; −0.4 to +0.4)" in page, "side by side"


def test_a_page_without_a_test_split_says_what_that_costs(plan):
    page = " ".join(comparison_page(summarise(plan, failed=[]), curves={}, pictures=None).split())
    assert "judged on the val split: the data YAML names no test: split. There best.pt is chosen on the images" in page
    assert "To judge best.pt, give the data YAML a test: split" in page and "tskd-yolo convert … test=0.2" in page
    chosen = plan._replace(judged=Judging("val", "last", "split=val was asked for"))
    page = " ".join(comparison_page(summarise(chosen, failed=[]), curves={}, pictures=None).split())
    assert "To judge best.pt, leave split=val out; without a test: split, give the data YAML a test: split" in page


@pytest.mark.slow
def test_runs_and_teacher_are_judged_on_the_test_split(files, tmp_path, in_process):
    files = own_files(files, tmp_path)
    add_test_split(files)
    sorted((files / "set" / "images" / "test").iterdir())[0].unlink()  # three images: val has four
    assert compare(**asked(files, tmp_path / "out", arms="plain")) == 0
    report = json.loads((tmp_path / "out" / "compare.json").read_text())
    (row,) = report["arms"]["plain"]["rows"]
    assert row["best"]["images"] == row["last"]["images"] == report["teacher"]["last"]["images"] == 3
    assert 0 < row["process_seconds"] and row["to_plain"] == 1
    lines = (tmp_path / "out" / "compare.csv").read_text().splitlines()
    assert [line.split(",")[:4] for line in lines[1:]] == [
        ["plain", "0", "best", "test"], ["plain", "0", "last", "test"], ["teacher", "", "", "test"]
    ]  # fmt: skip
    trained = (tmp_path / "out" / "plain-0" / "args.yaml").read_text()
    assert "\nsplit: val\n" in trained, "training never sees the test split"
