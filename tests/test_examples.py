"""The examples run, in a short form: a user's first copy and paste."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "TSKD_SHORT": "1"}


@pytest.mark.soak
def test_the_script_trains_a_teacher_and_a_student(tmp_path):
    short = ["images=8", "epochs=1", "imgsz=64", "batch=4", "workers=0", "device=cpu", "plots=False"]
    script = [sys.executable, str(EXAMPLES / "train.py"), *short]
    result = subprocess.run(script, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert 0 <= float(result.stdout.splitlines()[-1]) <= 1
    run = tmp_path / "runs" / "example" / "student"
    assert "drd_loss" in (run / "results.csv").read_text() and (run / "weights" / "best.pt").exists()


@pytest.mark.soak
def test_the_notebook_goes_from_data_to_an_exported_student(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TSKD_SHORT", "1")
    notebook = nbformat.read(EXAMPLES / "data_to_student.ipynb", as_version=4)
    assert all("outputs" not in cell or not cell.outputs for cell in notebook.cells), "kept without outputs"
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    out = tmp_path / "runs" / "notebook"
    assert (out / "compare" / "compare.html").exists()
    assert (out / "student" / "weights" / "best.onnx").exists()
