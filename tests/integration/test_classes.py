"""Teachers of another class list, in whole runs."""

from __future__ import annotations

import pytest
import yaml

from tests.helpers import NAMES, logged, rows, settings, tiny_data
from tskd_yolo import Trainer
from tskd_yolo.cli import main
from tskd_yolo.config import ConfigError

pytestmark = pytest.mark.slow

OTHERS = "dent", "Rolled in Scale", "scratches", "hole", "pit", "paint"
MAP = {"pit": "pitted_surface", "hole": "pitted_surface", "paint": None}


def block(lines: list[str]) -> str:
    (found,) = [line for line in lines if "what is distilled" in line]
    return found


def test_a_mapped_teacher_teaches_and_the_run_keeps_the_map(tmp_path, data, detector, no_end):
    (tmp_path / "map.yaml").write_text(yaml.safe_dump(MAP))
    given = dict(teacher=str(detector("yolo11n.yaml", OTHERS)), classes_map=str(tmp_path / "map.yaml"), epochs=2)
    trainer = Trainer(**settings(tmp_path, data, **given))

    def interrupt(trainer) -> None:
        if trainer.epoch == 0:
            raise KeyboardInterrupt

    trainer.add_callback("on_fit_epoch_end", interrupt)
    with logged() as lines, pytest.raises(KeyboardInterrupt):
        trainer.train()
    told = block(lines)
    assert "classes   the teacher knows 3 of the 6 that are to be learned" in told
    assert "classes   mapped: hole -> pitted_surface, pit -> pitted_surface" in told
    assert "classes   learned from the labels alone: crazing, inclusion, patches" in told
    assert "classes   left out of the teacher's, 2: paint, dent" in told
    (tmp_path / "map.yaml").unlink()  # what it said is in the run
    kept = yaml.safe_load((tmp_path / "run" / "args.yaml").read_text())["classes_map"]
    assert kept == MAP
    resumed = Trainer(resume=True, model=str(tmp_path / "run" / "weights" / "last.pt"))
    resumed.train()
    assert [row["epoch"] for row in rows(tmp_path)] == [1, 2]
    assert all(0 < row[f"train/{term}_loss"] < 1e4 for row in rows(tmp_path) for term in ("drd", "ded", "crd"))


def test_a_teacher_of_other_things_teaches_by_features(tmp_path, data, detector, no_end):
    teacher = detector("yolo11n.yaml", ("cat", "dog"))
    with logged() as lines:
        Trainer(**settings(tmp_path, data, teacher=str(teacher))).train()
    (row,) = rows(tmp_path)
    assert row["train/drd_loss"] > 0 and row["train/ded_loss"] > 0 and row["train/crd_loss"] == 0
    assert "crd       off: teacher and student have no class in common; classes_map= can name them" in block(lines)
    assert not any("is validated, once" in line for line in lines)
    with pytest.raises(ConfigError, match="no class .cat, dog. in common with the data .crazing"):
        Trainer(**settings(tmp_path / "alone", data, teacher=str(teacher), drd=0, ded=0))


def test_with_one_class_all_of_the_teachers_are_it(tmp_path, teacher, no_end):
    data = tiny_data(tmp_path)  # its label caches would be written anew
    with logged() as lines:
        given = dict(single_cls=True, classes_map={"crazing": "scratches", "patches": None})  # to the data's own names
        Trainer(**settings(tmp_path, data, teacher=str(teacher), **given)).train()
    (row,) = rows(tmp_path)
    assert all(0 < row[f"train/{term}_loss"] < 1e4 for term in ("drd", "ded", "crd"))
    assert "classes   the teacher knows 1 of the 1 that are to be learned" in block(lines)
    assert "mapped: crazing -> item" in block(lines) and "left out of the teacher's, 1: patches" in block(lines)


def test_a_map_that_names_no_class_is_refused(tmp_path, data, teacher, capsys):
    (tmp_path / "map.yaml").write_text("crasing: scratches\ninclusion: scratch\n")
    given = settings(tmp_path, data, teacher=str(teacher), classes_map=str(tmp_path / "map.yaml"))
    assert main(["train", *(f"{key}={value}" for key, value in given.items())]) == 1
    said = capsys.readouterr().err
    assert "2 problems" in said and not (tmp_path / "run").exists()
    assert "classes_map: the teacher has no class 'crasing'; did you mean 'crazing'?" in said
    assert "classes_map: the data has no class 'scratch'; did you mean 'scratches'?" in said


@pytest.mark.soak
def test_a_comparison_judges_a_mapped_teacher(tmp_path, data, detector, in_process):
    from tskd_yolo.compare.runner import compare
    from tskd_yolo.compare.runs import result_of

    names = ["crack", *NAMES[1:]]
    given = settings(tmp_path, data, teacher=str(detector("yolo11n.yaml", names)), classes_map={"crack": "crazing"})
    given = {key: value for key, value in given.items() if key not in {"project", "name", "exist_ok", "seed", "plots"}}
    assert compare(**given, arms="plain,tskd", seeds=1, out=str(tmp_path / "out")) == 0
    assert set(result_of(tmp_path / "out" / "teacher")["last"]) == set(result_of(tmp_path / "out" / "tskd-0")["last"])
    with pytest.raises(ConfigError, match="teacher: it has no class .* in common with the data"):
        compare(**{**given, "teacher": str(detector("yolo11n.yaml", ("cat", "dog"))), "classes_map": None},
                arms="plain,tskd", seeds=1, out=str(tmp_path / "other"))  # fmt: skip
