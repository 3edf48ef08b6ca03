"""What CONTRIBUTING says of adding a loss, done in a copy of the package: one file, one key, one entry."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tskd_yolo
from tests.helpers import rows, settings
from tskd_yolo.config import folder

pytestmark = pytest.mark.slow

LOSS = """
from torch import nn
from tskd_yolo.losses.standardize import standardize_pair

class Hint(nn.Module):
    def forward(self, *, student, teacher, boxes):
        student, teacher = standardize_pair(student, teacher)
        return (student.cells - teacher.cells).square().mean()
"""
KEY = "hint: 1.0 # (float) share (or weight) of plain hints; 0 switches it off\n"
ENTRY = '        "hint": [MapTerm("hint", EarlyStages("stages", match.early_stages()), lambda channels: Hint())],\n'


def put_before(file: Path, mark: str, text: str) -> None:
    before, found, after = file.read_text(encoding="utf-8").partition(mark)
    assert found, f"{file.name} has no {mark!r}"
    file.write_text(before + text + found + after, encoding="utf-8")


def test_a_fourth_loss_is_a_file_a_key_and_an_entry(tmp_path, data, teacher):
    package = tmp_path / "copy" / "tskd_yolo"
    shutil.copytree(Path(tskd_yolo.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("cfg", "datasets"):
        shutil.copytree(folder(name), package / name, dirs_exist_ok=True)
    (package / "losses" / "hint.py").write_text(LOSS, encoding="utf-8")
    put_before(package / "cfg" / "default.yaml", "balance:", KEY)
    put_before(package / "distill" / "terms.py", "# Terms ---", "from tskd_yolo.losses.hint import Hint\n\n")
    put_before(package / "distill" / "terms.py", '        "crd": responses(panel),', ENTRY)
    values = settings(tmp_path, data, teacher=teacher, ded=0)
    command = [sys.executable, "-m", "tskd_yolo", "train", *(f"{key}={value}" for key, value in values.items())]
    environment = {**os.environ, "PYTHONPATH": str(package.parent)}
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    (row,) = rows(tmp_path)
    assert [key for key in row if key.startswith("train/")][-4:] == [
        f"train/{t}_loss" for t in ("drd", "ded", "crd", "hint")
    ]
    assert row["train/hint_loss"] > 0 and row["share/hint(stride16)"] > 0 and row["train/ded_loss"] == 0
