"""Several teachers in whole runs: on the command line, kept, resumed where they have moved, compared."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from tests.helpers import NAMES, kept_runs, logged, rows, same, settings, tiny_data
from tskd_yolo import Trainer
from tskd_yolo.cli import main
from tskd_yolo.config import ConfigError

pytestmark = pytest.mark.slow


@pytest.fixture
def pair(detector) -> list[str]:
    """Two teachers, which know four classes each, two of them both."""
    return [str(detector("yolo11n.yaml", NAMES[:4])), str(detector("yolo26n.yaml", NAMES[2:]))]


def test_both_teach_and_it_is_told(tmp_path, data, pair, no_end, capsys):
    given = settings(tmp_path, data, teacher=f"[{pair[0]},{pair[1]}]")
    with logged() as lines:
        assert main(["train", *(f"{key}={value}" for key, value in given.items())]) == 0, capsys.readouterr().err
    (row,) = rows(tmp_path)
    assert all(0 < row[f"train/{term}_loss"] < 1e4 for term in ("drd", "ded", "crd"))
    (block,) = [line for line in lines if "what is distilled" in line]
    first, second = (Path(file).name for file in pair)
    assert block.count("teacher   ") == 2 and "teachers  together" in block
    assert f"{first}: the teacher knows 4 of the 6" in block and "labels alone" not in block
    assert f"{first}: not known to it: rolled-in_scale, scratches" in block
    assert f"{first}: crazing 1.00, inclusion 1.00, patches 0." in block and f"{second}: crazing 0.00" in block
    assert yaml.safe_load((tmp_path / "run" / "args.yaml").read_text())["teacher"] == pair
    assert sum("is validated, once" in line or "was validated on" in line for line in lines) == 2  # weighed and told


@pytest.mark.soak
def test_kept_outputs_are_those_of_all(tmp_path, pair, no_end):
    data = tiny_data(tmp_path)
    given = dict(epochs=2)
    cold, warm, other = kept_runs(tmp_path, data, [{**given, "teacher": each} for each in (pair, pair, pair[::-1])])
    assert [run.asked for run in (cold, warm, other)] == [8, 0, 8]
    assert same(cold.weights, warm.weights) and not same(warm.weights, other.weights)


@pytest.mark.soak
def test_a_run_goes_on_where_its_teachers_have_moved(tmp_path, data, pair, no_end):
    (tmp_path / "there").mkdir()
    files = [shutil.copy(file, tmp_path / Path(file).name) for file in pair]
    trainer = Trainer(**settings(tmp_path, data, teacher=files, epochs=2))

    def interrupt(trainer) -> None:
        raise KeyboardInterrupt

    trainer.add_callback("on_fit_epoch_end", interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    moved = [shutil.move(file, tmp_path / "there") for file in files]
    resumed = Trainer(resume=True, model=str(tmp_path / "run" / "weights" / "last.pt"), teacher=moved)
    resumed.train()
    assert resumed.args.teacher == moved and [row["epoch"] for row in rows(tmp_path)] == [1, 2]


@pytest.mark.soak
def test_a_comparison_with_several_teachers(tmp_path, data, pair, in_process):
    from tskd_yolo.compare.plan import Run, checked
    from tskd_yolo.compare.runner import compare, judged_teacher
    from tskd_yolo.compare.runs import result_of

    given = settings(tmp_path, data, teacher=pair)
    given = {key: value for key, value in given.items() if key not in {"project", "name", "exist_ok", "seed", "plots"}}
    given = {**given, "arms": "plain,tskd", "seeds": 1, "out": str(tmp_path / "out")}
    assert compare(**given) == 0
    judged = result_of(tmp_path / "out" / "teacher")
    assert "(the best of yolo11n" in judged["name"] and judged["number"] in (0, 1)
    plan = checked(given)
    assert judged_teacher(plan) == pair[judged["number"]] and result_of(plan.folder(Run("tskd", 0)))
    assert compare(**given) == 0, "nothing is left to do"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (dict(crd=0), "teacher: several teach together by CRD, and crd=0 leaves the first alone"),
        (dict(variant="paper"), "teacher: variant=paper has one teacher"),
    ],
    ids=["crd=0", "paper"],
)
def test_what_several_teachers_exclude(more, words, tmp_path, data, pair):
    with pytest.raises(ConfigError, match=words):
        Trainer(**settings(tmp_path, data, teacher=pair, **more))
