"""Teachers that cannot teach the student are refused before the first run of a comparison."""

from __future__ import annotations

import pytest

from tests.compare.helpers import asked, words
from tests.helpers import make_detector
from tskd_yolo.cli import main
from tskd_yolo.compare import fit
from tskd_yolo.compare.plan import checked
from tskd_yolo.train import prepare


@pytest.fixture(scope="module")
def coarse(tmp_path_factory):
    """A teacher with a level of stride 64."""
    return make_detector(tmp_path_factory.mktemp("p6") / "p6.pt", "yolov8n-p6.yaml")


def test_it_is_told_before_anything_is_trained_or_written(files, coarse, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words(asked(files, tmp_path / "out", teacher=str(coarse), imgsz=96))) == 1
    said = capsys.readouterr().err
    assert "teacher: its coarsest level has stride 64 and the 96 px of its images are no multiple of it" in said
    assert "Traceback" not in said and not list(tmp_path.iterdir())


def test_an_arm_of_ones_own_is_named(files, coarse, tmp_path):
    arms = {"plain": {}, "tskd": {}, "coarse": {"teacher": str(coarse)}}
    found = fit.unfit(checked(asked(files, tmp_path / "out", arms=arms, imgsz=96)))
    assert len(found) == 1 and found[0].startswith("arms: coarse: teacher: its coarsest level has stride 64")


@pytest.mark.slow
def test_every_pair_is_built_once_and_draws_nothing(files, tmp_path, monkeypatch):
    built = []
    whole = prepare.build_distiller
    monkeypatch.setattr(prepare, "build_distiller", lambda *a, **k: built.append(k["config"].weights) or whole(*a, **k))
    plan = checked(asked(files, tmp_path / "out", arms="plain,ultralytics,tskd,without_drd,crd,ded"))
    assert fit.unfit(plan) == [] and len(built) == 4
