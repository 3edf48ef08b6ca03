"""Images without labels in a run: where they come from, what is refused, what is said, and that a run goes on."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import yaml
from ultralytics.data.utils import check_det_dataset

from tests.helpers import copied_data, logged, rows, settings
from tskd_yolo import ConfigError, Trainer, compat
from tskd_yolo.cli import main
from tskd_yolo.config import DEFAULTS
from tskd_yolo.data import index
from tskd_yolo.data.index import Paths
from tskd_yolo.distill.teacher import Teacher, load
from tskd_yolo.train import unlabelled
from tskd_yolo.train.unlabelled import left_out, look, sources, unlike, wrong_sources, wrong_teacher


@pytest.fixture
def others(tmp_path, data) -> Path:
    """A folder of ten images, one of which cannot be read; one more is in train, and one in val."""
    folder, generator = tmp_path / "others", np.random.default_rng(0)
    folder.mkdir()
    for i in range(9):
        cv2.imwrite(str(folder / f"{i}.png"), generator.integers(0, 255, (64, 48 + 4 * i, 3), dtype=np.uint8))
    (folder / "bad.png").write_bytes(b"no image")
    for split in ("train", "val"):
        shutil.copy(min((data.parent / "set" / "images" / split).iterdir()), folder / f"in_{split}.png")
    return folder


def paths(folder: Path) -> Paths:
    return index.images([str(folder)], suffixes={"png"}, kept=lambda name: folder.parent / name)


def values(data: Path, **more) -> dict:
    return {**DEFAULTS, "teacher": "t.pt", "data": str(data), "batch": 16, **more}


def yaml_with(folder: Path, given: object, **more: str) -> Path:
    file = folder / "with.yaml"
    file.write_text(yaml.safe_dump({**more, "train": "a", "val": "b", "names": ["x"], "unlabelled": given}))
    return file


# Where they come from -------------------------------------------------------------------------------------------------


def test_the_data_yaml_gives_them_where_the_command_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("set/more", "mine"):
        (tmp_path / name).mkdir(parents=True)
    file = yaml_with(tmp_path, "more", path="set")
    assert sources(values(file)) == [str(tmp_path / "set" / "more")]
    assert sources(values(yaml_with(tmp_path, ["more", "../mine"], path="set"))) == [
        str(tmp_path / "set" / "more"), str(tmp_path / "mine")
    ]  # fmt: skip
    assert sources(values(file, unlabelled=str(tmp_path / "mine"))) == [str(tmp_path / "mine")]
    assert sources(values(file, unlabelled=False)) == sources(values(file, drd=0, ded=0, crd=0)) == []
    assert sources(values(yaml_with(tmp_path, None))) == []


@pytest.mark.parametrize("place", ["work/set", "datasets/set", "yamls"])
def test_they_are_looked_for_where_the_splits_of_the_set_are(place, tmp_path, monkeypatch):
    for folder in ("work", "yamls", f"{place}/more", f"{place}/a", f"{place}/b"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(compat, "datasets_folder", lambda: tmp_path / "datasets")
    monkeypatch.setattr("ultralytics.data.utils.DATASETS_DIR", tmp_path / "datasets")
    file = yaml_with(tmp_path / "yamls", "more", **({} if place == "yamls" else {"path": "set"}))
    assert sources(values(file)) == [str(tmp_path / place / "more")]
    assert check_det_dataset(str(file))["train"] == str(tmp_path / place / "a")


def test_a_run_keeps_whole_paths(tmp_path, monkeypatch):
    (tmp_path / "set" / "more").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    assert wrong_sources(values(yaml_with(tmp_path, None), unlabelled="[set/more,set/more]"), found) == []
    assert found == {"unlabelled": [str(tmp_path / "set" / "more")]}
    assert len(wrong_sources(values(yaml_with(tmp_path, None), unlabelled=["nowhere", "nowhere"]), found)) == 1


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (dict(unlabelled="nowhere"), "nowhere was not found; give a folder of images, a .txt list or a glob."),
        (dict(unlabelled=3), "unlabelled: must be a folder, a .txt list, a glob or several of them, got 3."),
        (dict(unlabelled=True), "unlabelled: must be a folder"),
        (dict(unlabelled="set", batch=1), "unlabelled: a batch holds images of both kinds, and batch=1"),
        (dict(unlabelled="set", rect=True), "unlabelled: rect= gives"),
        (dict(unlabelled="set", variant="paper"), "unlabelled: variant=paper needs"),
        (dict(unlabelled_share=1.0), "unlabelled_share: must be a part of the batch between 0 and 1, got 1.0."),
        (dict(unlabelled_precision=0), "unlabelled_precision: must be above 0 and at most 1, got 0."),
        (dict(pseudo="yes"), "pseudo: must be True or False, got 'yes'."),
        (dict(pseudo=True), "pseudo: there are no images without labels; give unlabelled=, or leave pseudo out."),
    ],
    ids=lambda value: " ".join(f"{k}={v}" for k, v in value.items())[:40] if isinstance(value, dict) else "",
)
def test_nonsense_is_told_in_a_sentence(given, sentence, tmp_path, data, teacher, at_hand, monkeypatch):
    monkeypatch.chdir(data.parent)
    with pytest.raises(ConfigError) as error:
        Trainer(**{**settings(tmp_path, data, teacher=str(teacher)), **given})
    assert any(sentence in problem for problem in error.value.problems), error.value.problems
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_folder_without_an_image_leaves_nothing(tmp_path, data, teacher, at_hand):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="there is no image in"):
        Trainer(**settings(tmp_path, data, teacher=str(teacher), exist_ok=False, unlabelled=tmp_path / "empty")).train()
    assert not (tmp_path / "run").exists()


def test_a_teacher_that_sees_nothing_is_refused():
    def found(**more):
        match = SimpleNamespace(**{**dict(headless=False, queries=False, branches=["one2many"], strides=[8]), **more})
        teacher = SimpleNamespace(name="t.pt", classes=SimpleNamespace(known=more.get("known", [0])))
        readers = SimpleNamespace(head=SimpleNamespace(strides=[8]))
        return SimpleNamespace(match=match, teacher=teacher, readers=readers)

    assert wrong_teacher(found(), True) == []
    assert "has no response" in wrong_teacher(found(headless=True, branches=[]), False)[0]
    assert "answers by queries" in wrong_teacher(found(queries=True), False)[0]
    assert "has no class of the data" in wrong_teacher(found(known=[]), False)[0]
    assert wrong_teacher(found(strides=[8, 16]), False) == []
    assert wrong_teacher(found(strides=[8, 16]), True)[0].startswith("pseudo: teacher and student have not the same")


# What is said ---------------------------------------------------------------------------------------------------------


def test_images_of_a_split_are_left_out_and_val_is_warned_of(others, data):
    train, val = (
        sorted(map(str, (data.parent / "set" / "images" / split).iterdir())) for split in ("train", "val")
    )  # fmt: skip
    rest, found = left_out(paths(others), train, val)
    assert {Path(file).name for file in rest} == {*(f"{i}.png" for i in range(9)), "bad.png"}
    assert [finding.level for finding in found] == ["note", "warning"]
    assert found[1].reason.startswith("1 images are in val too, by content, and are left out (such as in_val.png, in")
    rest, found = left_out(paths(others), [], [], val)
    assert len(rest) == 12 and [finding.level for finding in found] == ["warning"], "whoever judges on test should know"
    assert found[0].reason.startswith("1 images are in test too, by content, and the student learns from them (such as")


def test_a_list_that_names_images_again_makes_no_others_far(data, teacher, others, monkeypatch):
    monkeypatch.setattr(unlabelled.doubts, "FEW", 2)
    train = sorted(map(str, (data.parent / "set" / "images" / "train").iterdir()))
    found = load(str(teacher))
    eyes = Teacher(found, like=found.model, names=found.names)
    how = dict(side=64, channels=3, device=torch.device("cpu"))
    found = [unlike(eyes, images, paths(others), **how) for images in (train, train * 4)]
    assert found[0] == found[1]


def test_images_of_a_run_without_terms_are_refused(others, data):
    off = values(data, unlabelled=str(others), drd=0, ded=0, crd=0)
    assert wrong_sources(off, {})[0].startswith("unlabelled: with drd=0 ded=0 crd=0 nothing is learned from images")


def test_unreadable_images_are_named_once_in_a_run(tmp_path):
    trainer = SimpleNamespace(save_dir=tmp_path)
    names = [f"/more/{i}\udcff.png" for i in range(12)]
    for asked, told in ((names[:1], 1), (names[:1], 0), (names, 11), (names, 0)):
        with logged() as lines:
            unlabelled.UnlabelledMixin._tell_missing(trainer, asked)
        assert len(lines) == min(told, 1) and (not told or f"unlabelled: {told} images cannot be read" in lines[0])
        assert told < 11 or ("10\\udcff.png and 1 more." in lines[0] and "/more/" not in lines[0])
    assert len((tmp_path / "unreadable.txt").read_bytes().splitlines()) == 12


def test_another_run_in_a_folder_names_them_again(tmp_path):
    (tmp_path / "unreadable.txt").write_text("/more/bad.png\n")
    for resume, there in ((True, True), (False, False)):
        trainer = SimpleNamespace(args=SimpleNamespace(resume=resume), save_dir=tmp_path)
        unlabelled.UnlabelledMixin._begin_missing(trainer)
        assert (tmp_path / "unreadable.txt").exists() == there


def test_a_sample_is_bounded_and_passes_over_the_unreadable(others, monkeypatch):
    monkeypatch.setattr(unlabelled, "BATCH", 4)
    how = dict(side=64, channels=3, device=torch.device("cpu"))
    parts = list(look(paths(others), **how))
    assert [len(names) for names, _ in parts] == [4, 4, 3] and all(i.shape[1:] == (3, 64, 64) for _, i in parts)
    assert not any("bad" in name for names, _ in parts for name in names)
    image = cv2.imread(str(others / "0.png"))
    assert torch.equal(parts[0][1][0, :, :, 8:56] * 255, torch.from_numpy(image[..., ::-1].transpose(2, 0, 1).copy()))
    monkeypatch.setattr(unlabelled, "SAMPLE", 2)
    assert sum(len(names) for names, _ in look(paths(others), **{**how, "channels": 1})) == 2
    cv2.imwrite(str(others / "0.png"), np.zeros((8, 8, 4), np.uint8))
    assert next(look([str(others / "0.png")], **{**how, "channels": 4}))[1].shape == (1, 4, 64, 64)


# Whole runs -----------------------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


def seen(trainer: Trainer) -> list[str]:
    """Which images each step of a run had, with a number from what they looked like."""
    found: list[str] = []
    step = trainer.preprocess_batch

    def look(batch):
        batch = step(batch)
        names = " ".join(Path(file).name for file in batch["im_file"][batch["labelled"] :])
        found.append(f"{names} {batch['img'][batch['labelled'] :].sum():.3f}")
        return batch

    trainer.preprocess_batch = look
    return found


@pytest.mark.slow
def test_a_run_that_is_stopped_and_goes_on_is_the_same_run(tmp_path, few, teacher, others, at_hand, no_end):
    def run(name: str, stop: bool = False):
        (tmp_path / name).mkdir()
        given = dict(teacher=str(teacher), unlabelled=str(others), epochs=2, close_mosaic=1, batch=5, pseudo=True)
        trainer = Trainer(**settings(tmp_path / name, few, **given, unlabelled_share=0.6, val=False))

        def end(trainer):
            if stop and trainer.epoch == 0:
                raise Stop

        trainer.add_callback("on_model_save", end)
        return trainer

    whole, stopped = run("whole"), run("stopped", stop=True)
    expected, begun = seen(whole), seen(stopped)
    with logged() as lines:
        whole.train()
    assert (whole.batch_size, whole.args.batch, whole.accumulate) == (2, 5, 2) and len(expected) == 4
    (told,) = [line for line in lines if "cannot be read" in line]
    assert "unlabelled: 1 images cannot be read, others stand in their place, and unreadable.txt has their" in told
    assert "names: bad.png" in told
    assert any("without labels, 3 of the 5 in a batch" in line for line in lines)
    with pytest.raises(Stop):
        stopped.train()
    others.rename(moved := tmp_path / "moved")
    last = str(tmp_path / "stopped" / "run" / "weights" / "last.pt")
    with pytest.raises(ConfigError, match="others was not found"):
        Trainer(resume=last).train()
    again = Trainer(resume=last, unlabelled=str(moved))
    rest = seen(again)
    again.train()
    assert begun + rest == expected, "the same images in the same step, augmented alike"
    assert [row["epoch"] for row in rows(tmp_path / "stopped")] == [1, 2]


@pytest.mark.slow
def test_a_cached_teacher_sees_a_view_of_every_image_once(tmp_path, data, teacher, others, no_end):
    given = dict(teacher=str(teacher), unlabelled=str(others), epochs=2, close_mosaic=0, val=False, workers=2)
    trainer = Trainer(**settings(tmp_path, copied_data(data, tmp_path), **given, teacher_cache="disk", views=1))
    asked: list[int] = []
    trainer.add_callback("on_train_epoch_end", lambda trainer: asked.append(trainer.distiller.cache.computed))
    trainer.train()
    assert asked == [8 + 8, 8 + 10], "four steps of two and two: the second epoch has two images that are new"
    assert len(list((tmp_path / "set" / "labels").glob("*.tskd"))) == 2


@pytest.mark.slow
def test_several_teachers_are_measured_as_they_are_heard(tmp_path, data, detector, others, no_end, monkeypatch):
    teachers = [str(detector("yolo11s.yaml")), str(detector("yolov8n.yaml"))]
    looked: list[tuple[int, ...]] = []
    measured = unlabelled.confidence.measured
    monkeypatch.setattr(
        unlabelled.confidence, "measured", lambda look, *a, **k: measured(noting(look, looked), *a, **k)
    )
    given = dict(teacher=teachers, teacher_imgsz=96, unlabelled=str(others), val=False)
    trainer = Trainer(**settings(tmp_path, data, **given))
    with logged() as lines:
        trainer.train()
    assert looked and {shape[2:] for shape in looked} == {(96, 96)}, "squares, as the student's images are"
    assert len(trainer.distiller.seer.thresholds) == 6 and any("counted   fully" in line for line in lines)
    (row,) = rows(tmp_path)
    assert all(row[f"train/{term}_loss"] > 0 for term in ("drd", "ded", "crd"))


def noting(look, shapes):
    return lambda images: (shapes.append(tuple(images.shape)), look(images))[1]


@pytest.mark.slow
def test_check_says_what_speaks_against_them(tmp_path, data, teacher, others, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = settings(tmp_path, data, teacher=str(teacher), unlabelled=str(others))
    for key in ("project", "name", "exist_ok"):
        del given[key]
    main(["check", *(f"{key}={value}" for key, value in given.items()), "out=found"])
    said = (tmp_path / "found" / "check.json").read_text()
    assert (
        "1 images are in val too, by content" in said and "no score is known from which on the precision is 0.9" in said
    )


class Engine:
    """An engine that notes with which batch it builds its loaders."""

    def __init__(self, batch: int, world: int) -> None:
        self.args, self.batch_size, self.world_size = SimpleNamespace(batch=batch), batch, world
        self.distiller, self.built, self._cache = object(), [], None

    def _build_train_pipeline(self) -> None:
        self.built.append(self.batch_size)


class Run(unlabelled.UnlabelledMixin, Engine):
    config = SimpleNamespace(unlabelled=["x"], unlabelled_share=0.5)

    def _new_flow(self, batch: int) -> SimpleNamespace:
        self.others = batch
        return SimpleNamespace(close=lambda: None, views=SimpleNamespace(store=None))


@pytest.mark.parametrize(("batch", "world", "built", "others"), [(32, 1, 16, 16), (32, 2, 16, 8), (5, 1, 3, 2)])
def test_the_engine_counts_labelled_images(batch, world, built, others):
    run = Run(batch, world)
    run._build_train_pipeline()
    assert (run.built, run.others, run.args.batch) == ([built], others, batch)


def test_every_process_has_images_of_both_kinds():
    with pytest.raises(ConfigError, match="each of 4 processes needs .* batch=4 is too small; give batch=8 or more"):
        Run(4, 4)._build_train_pipeline()


def test_a_step_that_was_too_large_is_halved_and_not_quartered():
    run = Run(32, 1)
    run._build_train_pipeline()
    assert run._flow.views.store is None
    run._cache = SimpleNamespace(stores=["of the labelled", "of the others"])
    run.args.batch = run.batch_size = run.batch_size // 2  # as the engine does
    run._build_train_pipeline()
    assert (run.built, run.others, run.args.batch) == ([16, 8], 8, 16)
    assert run._flow.views.store == "of the others"
