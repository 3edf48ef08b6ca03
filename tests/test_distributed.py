"""Several processes, on CPUs: adapters start equal, their gradients are averaged, and they stay equal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers import make_detector, settings, tiny_data

pytestmark = pytest.mark.slow


def test_two_processes_hold_equal_students_and_adapters_after_training(tmp_path):
    data, teacher = tiny_data(tmp_path), make_detector(tmp_path / "teacher.pt")
    arguments = settings(tmp_path, data, teacher=str(teacher), graph="trained", val=False)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "tests.ddp_worker", json.dumps(arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]
    for part in ("learned", "student"):
        weights = [k for k in ranks[0][part] if "running_" not in k and "num_batches" not in k]
        assert weights and all(torch.equal(ranks[0][part][k], ranks[1][part][k]) for k in weights)
    for rank in ranks:
        assert rank["terms"] and all(
            step[f"{term}_loss"] > 0 for step in rank["terms"] for term in ("drd", "ded", "crd")
        )
    assert ranks[0]["terms"] != ranks[1]["terms"]  # each saw its own share of the batch
