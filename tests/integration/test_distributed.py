"""Several processes, on CPUs: adapters start equal, their gradients are averaged, and they stay equal."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import make_detector, rows, settings, tiny_data

pytestmark = pytest.mark.slow
LAUNCH = [sys.executable, "-m", "torch.distributed.run"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return make_detector(tmp_path_factory.mktemp("teacher") / "teacher.pt")


def launch(options: list[str], arguments: dict[str, Any]) -> subprocess.Popen:
    command = [*LAUNCH, *options, "-m", "tests.integration.ddp_worker", json.dumps(arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT)


def finish(*launches: subprocess.Popen) -> None:
    said = [run.communicate(timeout=300)[0] for run in launches]
    assert all(run.returncode == 0 for run in launches), said[0][-4000:]


def ranks_of(folder: Path, count: int) -> list[dict[str, Any]]:
    ranks = [torch.load(folder / f"rank{rank}.pt") for rank in range(count)]
    for part in ("learned", "student"):
        weights = [k for k in ranks[0][part] if "running_" not in k and "num_batches" not in k]
        assert weights
        for other in ranks[1:]:
            assert all(torch.equal(ranks[0][part][k], other[part][k]) for k in weights)
    return ranks


def check_terms(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["terms"]
        assert all(step[f"{term}_loss"] > 0 for step in rank["terms"] for term in ("drd", "ded", "crd"))
    assert all(ranks[0]["terms"] != other["terms"] for other in ranks[1:])  # each saw its own share of the batch


@pytest.mark.parametrize("count", [2, 3])
def test_processes_hold_equal_students_and_adapters_at_the_end(count, tmp_path, teacher):
    data = tiny_data(tmp_path, train=12)
    arguments = settings(
        tmp_path, data, teacher=str(teacher), graph="trained", val=False, batch=2 * count, nbs=2 * count
    )
    finish(launch(["--standalone", "--nproc_per_node", str(count)], arguments))
    check_terms(ranks_of(tmp_path, count))


def test_two_launches_of_one_process_form_one_group_and_one_run(tmp_path, teacher):
    data = tiny_data(tmp_path)
    arguments = settings(tmp_path, data, teacher=str(teacher), val=False, exist_ok=False)
    (tmp_path / "run").mkdir()  # so the folder's name is counted up, which only one of the processes does
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = ["--nnodes", "2", "--nproc_per_node", "1", "--master_addr", "127.0.0.1", "--master_port", str(port)]
    finish(*(launch([*common, "--node_rank", str(node)], arguments) for node in (0, 1)))
    ranks = ranks_of(tmp_path, 2)
    check_terms(ranks)
    assert [rank["world_size"] for rank in ranks] == [2, 2]
    assert {rank["save_dir"] for rank in ranks} == {str(tmp_path / "run-2")}
    assert (tmp_path / "run-2" / "weights" / "last.pt").exists() and not list((tmp_path / "run").iterdir())


def test_a_process_without_boxes_does_not_stop_the_others(tmp_path, teacher):
    data = tiny_data(tmp_path, train=4)
    for label in sorted((tmp_path / "set" / "labels" / "train").glob("*.txt"))[1:]:
        label.write_text("")  # one image of four has boxes: one process of two sees none in a step
    arguments = settings(tmp_path, data, teacher=str(teacher), val=False, mosaic=0.0, epochs=2)
    finish(launch(["--standalone", "--nproc_per_node", "2"], arguments))
    ranks = ranks_of(tmp_path, 2)
    assert all(value == value for rank in ranks for step in rank["terms"] for value in step.values())


def test_a_distributed_run_resumes_with_adapters_everywhere(tmp_path, teacher):
    data = tiny_data(tmp_path)
    arguments = settings(tmp_path, data, teacher=str(teacher), graph="trained", val=False, epochs=2)
    first = launch(["--standalone", "--nproc_per_node", "2"], {**arguments, "stop_after": 1})
    assert "stopped as asked" in first.communicate(timeout=300)[0]
    last = tmp_path / "run" / "weights" / "last.pt"
    saved = torch.load(last.parent / "tskd_last.pt")["states"][0]["learned"]
    finish(launch(["--standalone", "--nproc_per_node", "2"], {"resume": str(last), "out": str(tmp_path)}))
    ranks = ranks_of(tmp_path, 2)
    for rank in ranks:
        assert rank["start_epoch"] == 1
        assert all(torch.equal(rank["begun"][k], saved[k]) for k in saved)
    assert [row["epoch"] for row in rows(tmp_path)] == [1, 2]


@pytest.mark.parametrize("where", ["disk", "ram"])
def test_processes_share_what_the_teacher_says(where, tmp_path, teacher):
    data = tiny_data(tmp_path)
    arguments = settings(tmp_path, data, teacher=str(teacher), val=False, epochs=4, teacher_cache=where, views=2)
    arguments["close_mosaic"] = 0
    finish(launch(["--standalone", "--nproc_per_node", "2"], arguments))
    first = ranks_of(tmp_path, 2)
    check_terms(first)
    assert sum(rank["asked"] for rank in first) == 2 * 8  # each view of each image once, by either of them
    assert not list(Path("/dev/shm").glob("tskd-*")) or where == "disk"
    finish(launch(["--standalone", "--nproc_per_node", "2"], {**arguments, "ded": 1.0}))
    assert sum(rank["asked"] for rank in ranks_of(tmp_path, 2)) == (0 if where == "disk" else 2 * 8)


def test_more_processes_than_named_devices_are_refused(tmp_path, teacher):
    data = tiny_data(tmp_path)
    command = [*LAUNCH, "--standalone", "--nproc_per_node", "2", "-m", "tskd_yolo", "train", "device=0"]
    words = settings(tmp_path, data, teacher=str(teacher))
    words.pop("device")
    command += [f"{key}={value}" for key, value in words.items()]
    result = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert result.returncode != 0 and "device: " in result.stderr and not (tmp_path / "run").exists()


def test_the_file_that_ultralytics_launches_rebuilds_the_trainer(tmp_path, teacher):
    """What ``device=0,1`` does, short of devices: the parent writes a file, every worker builds a trainer from it."""
    from ultralytics.utils import DEFAULT_CFG_DICT
    from ultralytics.utils.dist import ddp_cleanup, generate_ddp_file
    from ultralytics.utils.patches import torch_load

    from tskd_yolo import Trainer

    arguments = settings(tmp_path, tiny_data(tmp_path), teacher=str(teacher), drd=0.125, graph="trained")
    parent = Trainer(**arguments)
    file = generate_ddp_file(parent)
    try:
        state = torch_load(Path(file).with_suffix(".pt"), map_location="cpu")
    finally:
        ddp_cleanup(parent, file)
    cfg = {**DEFAULT_CFG_DICT, "save_dir": ""}
    worker = state["trainer"](cfg=cfg, overrides=state["args"], _callbacks=state["callbacks"])
    assert type(worker) is Trainer and worker.config == parent.config
    assert worker.config.weights["drd"] == 0.125 and worker.save_dir == parent.save_dir
    worker.model = state["model"]
    worker.train()
    assert len(rows(tmp_path)) == 1


@pytest.mark.parametrize(
    ("model", "large", "count"), [("yolo11n.yaml", "yolo11s.yaml", 2), ("yolo26n.yaml", "yolo26s.yaml", 3)]
)
def test_processes_find_what_one_finds_on_the_whole_batch(model, large, count, tmp_path):
    from tests.integration.ddp_terms import found, whole_batch

    checkpoint = make_detector(tmp_path / "teacher.pt", large)
    command = [*LAUNCH, "--standalone", "--nproc_per_node", str(count), "-m", "tests.integration.ddp_terms"]
    run = subprocess.run(
        [*command, str(checkpoint), model, "fixed"],
        capture_output=True, text=True, env={**ENVIRONMENT, "OUT": str(tmp_path)}, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    alone = found(str(checkpoint), model, "fixed", whole_batch())
    ranks = [torch.load(tmp_path / f"terms{rank}.pt") for rank in range(count)]
    for name, value in alone["terms"].items():
        assert sum(rank["terms"][name] for rank in ranks) / count == pytest.approx(value, rel=1e-4), name
    present = {name: gradient for name, gradient in alone["gradients"].items() if gradient is not None}
    largest = max(gradient.norm() for gradient in present.values())
    for name, gradient in alone["gradients"].items():
        other = ranks[0]["gradients"][name]
        assert (gradient is None) == (other is None), name
        if gradient is not None:  # a bias before a standardisation has none but that of rounding
            assert (gradient - other).norm() <= 1e-3 * gradient.norm() + 1e-4 * largest, (name, largest)
