"""Several processes, on CPUs: adapters start equal, their gradients are averaged, and they stay equal.

A launch takes longer than a run, so each serves many tests: its processes do several jobs, one after the other.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch

from tests.helpers import launched, rows, settings, tiny_data
from tests.integration.ddp_terms import found, whole_batch

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
MEMORY = Path("/dev/shm")
PAIRS = {2: ("yolo11n.yaml", "yolo11s.yaml"), 3: ("yolo26n.yaml", "yolo26s.yaml")}
"""Student and teacher whose terms so many processes measure."""


def launch(options: list[str], jobs: list[dict[str, Any]]) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "tests.integration.ddp_worker"]
    return subprocess.Popen(
        [*command, json.dumps(jobs)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT
    )


def finish(*launches: subprocess.Popen) -> None:
    said = [run.communicate(timeout=600)[0] for run in launches]
    assert all(run.returncode == 0 for run in launches), said[0][-4000:]


def job(folder: Path, data: Path, teacher: Path, stop_after: int | None = None, **more: Any) -> dict[str, Any]:
    """A run that writes into ``folder``, which is made."""
    folder.mkdir(exist_ok=True)
    arguments = settings(folder, data, teacher=str(teacher), val=False, **more)
    return {"folder": str(folder), "arguments": arguments, "stop_after": stop_after}


@pytest.fixture(scope="session")
def twelve(tmp_path_factory) -> Path:
    """Twelve images: as many for each of two processes as for each of three."""
    return tiny_data(tmp_path_factory.mktemp("twelve"), train=12)


def common(count: int, root: Path, data: Path, teacher: Path, detector: Any) -> list[dict[str, Any]]:
    """The jobs of two processes and of three."""
    model, large = PAIRS[count]
    (root / "terms").mkdir()
    return [
        job(root / "equal", data, teacher, batch=2 * count, nbs=2 * count),
        {"folder": str(root / "terms"), "terms": [str(detector(large)), model]},
    ]


@pytest.fixture(scope="session")
def two(tmp_path_factory, twelve, teacher, detector) -> Path:
    """The folder of what two processes of one launch did."""
    root = tmp_path_factory.mktemp("two")
    before = set(MEMORY.glob("tskd-*"))
    empty = tiny_data(root / "empty", train=4)
    for label in sorted((root / "empty" / "set" / "labels" / "train").glob("*.txt"))[1:]:
        label.write_text("")  # one image of four has boxes: one process of two sees none in a step
    jobs = common(2, root, twelve, teacher, detector)
    jobs += [job(root / "boxless", empty, teacher, mosaic=0.0, epochs=2)]
    noise = torch.randint(0, 255, (5, 64, 64, 3), dtype=torch.uint8)
    (root / "noise").mkdir()
    for i, image in enumerate(noise):
        cv2.imwrite(str(root / "noise" / f"{i}.png"), image.numpy())
    given = dict(unlabelled=str(root / "noise"), batch=8, nbs=8, pseudo=True)
    jobs += [job(root / "others", twelve, teacher, **given)]
    jobs += [job(root / "stopped", twelve, teacher, epochs=2, stop_after=1)]
    last = root / "stopped" / "run" / "weights" / "last.pt"
    jobs += [{"folder": str(root / "stopped"), "arguments": {"resume": str(last)}}]
    jobs += [job(root / "ram", twelve, teacher, epochs=3, teacher_cache="ram", views=2, close_mosaic=0)]
    finish(launch(["--standalone", "--nproc_per_node", "2"], jobs))
    left = set(MEMORY.glob("tskd-*")) - before
    (root / "left").write_text("\n".join(map(str, left)))
    return root


@pytest.fixture(scope="session")
def disk(tmp_path_factory, twelve, teacher) -> Path:
    """The same of two processes that keep what the teacher says on the disk, and once more with what is kept."""
    root = tmp_path_factory.mktemp("disk")
    given = dict(teacher_cache="disk", views=2, close_mosaic=0)
    jobs = [job(root / "first", twelve, teacher, epochs=3, **given)]
    jobs += [job(root / "again", twelve, teacher, epochs=2, ded=1.0, **given)]
    finish(launch(["--standalone", "--nproc_per_node", "2"], jobs))
    return root


@pytest.fixture(scope="session")
def three(tmp_path_factory, twelve, teacher, detector) -> Path:
    """The same of three processes."""
    root = tmp_path_factory.mktemp("three")
    finish(launch(["--standalone", "--nproc_per_node", "3"], common(3, root, twelve, teacher, detector)))
    return root


@pytest.fixture(scope="session")
def joined(tmp_path_factory, twelve, teacher) -> Path:
    """A run of two launches of one process each."""
    root = tmp_path_factory.mktemp("joined")
    (root / "run").mkdir()  # so the folder's name is counted up, which only one of the processes does
    jobs = [job(root, twelve, teacher, exist_ok=False)]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--nnodes", "2", "--nproc_per_node", "1", "--master_addr", "127.0.0.1", "--master_port", str(port)]
    finish(*(launch([*options, "--node_rank", str(node)], jobs) for node in (0, 1)))
    return root


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


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.soak)])
def test_processes_hold_equal_students_and_adapters_at_the_end(count, request):
    check_terms(ranks_of(request.getfixturevalue({2: "two", 3: "three"}[count]) / "equal", count))


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.soak)])
def test_processes_find_what_one_finds_on_the_whole_batch(count, detector, request):
    folder = request.getfixturevalue({2: "two", 3: "three"}[count]) / "terms"
    model, large = PAIRS[count]
    alone = found(str(detector(large)), model, whole_batch())
    ranks = [torch.load(folder / f"terms{rank}.pt") for rank in range(count)]
    for name, value in alone["terms"].items():
        assert sum(rank["terms"][name] for rank in ranks) / count == pytest.approx(value, rel=1e-4), name
    present = {name: gradient for name, gradient in alone["gradients"].items() if gradient is not None}
    largest = max(gradient.norm() for gradient in present.values())
    for name, gradient in alone["gradients"].items():
        other = ranks[0]["gradients"][name]
        assert (gradient is None) == (other is None), name
        if gradient is not None:  # a bias before a standardisation has none but that of rounding
            assert (gradient - other).norm() <= 1e-3 * gradient.norm() + 1e-4 * largest, (name, largest)


def test_a_process_without_boxes_does_not_stop_the_others(two):
    ranks = ranks_of(two / "boxless", 2)
    assert all(value == value for rank in ranks for step in rank["terms"] for value in step.values())


def test_each_process_has_its_share_of_images_without_labels(two):
    ranks = ranks_of(two / "others", 2)
    check_terms(ranks)
    assert all(len(rank["terms"]) == 3 for rank in ranks), "twelve labelled images, two of them on each in a step"


@pytest.mark.soak
def test_two_launches_of_one_process_form_one_group_and_one_run(joined):
    ranks = ranks_of(joined, 2)
    check_terms(ranks)
    assert [rank["world_size"] for rank in ranks] == [2, 2]
    assert {rank["save_dir"] for rank in ranks} == {str(joined / "run-2")}
    assert (joined / "run-2" / "weights" / "last.pt").exists() and not list((joined / "run").iterdir())


def test_a_distributed_run_resumes_with_adapters_everywhere(two):
    saved = torch.load(two / "stopped" / "stopped0.pt")
    for rank in ranks_of(two / "stopped", 2):
        assert rank["start_epoch"] == 1
        assert saved and all(torch.equal(rank["begun"][k], saved[k]) for k in saved)
    assert [row["epoch"] for row in rows(two / "stopped")] == [1, 2]


def test_processes_share_what_the_teacher_says(two):
    ranks = ranks_of(two / "ram", 2)
    check_terms(ranks)
    assert sum(rank["computed"] for rank in ranks) == 2 * 12  # each view of each image once, by either of them
    assert not (two / "left").read_text()


@pytest.mark.soak
def test_what_the_teacher_said_is_on_the_disk_for_a_later_run(disk):
    assert sum(rank["computed"] for rank in ranks_of(disk / "first", 2)) == 2 * 12
    assert sum(rank["computed"] for rank in ranks_of(disk / "again", 2)) == 0


@pytest.mark.soak
def test_more_processes_than_named_devices_are_refused(few, teacher, tmp_path):
    words = settings(tmp_path, few, teacher=str(teacher), device=0)
    command = [sys.executable, "-m", "tskd_yolo", "train", *(f"{key}={value}" for key, value in words.items())]
    group = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}  # as torchrun says it
    result = subprocess.run(command, capture_output=True, text=True, env={**ENVIRONMENT, **group}, timeout=300)
    assert result.returncode != 0 and "device: " in result.stderr and not (tmp_path / "run").exists()


def test_the_file_that_ultralytics_launches_rebuilds_the_trainer(few, teacher, tmp_path, no_end):
    """What ``device=0,1`` does, short of devices: the parent writes a file, every worker builds a trainer from it."""
    from ultralytics.utils import DEFAULT_CFG_DICT

    from tskd_yolo import Trainer

    arguments = settings(tmp_path, few, teacher=str(teacher), drd=0.125)
    parent = Trainer(**arguments)
    state = launched(parent)
    cfg = {**DEFAULT_CFG_DICT, "save_dir": ""}
    worker = state["trainer"](cfg=cfg, overrides=state["args"], _callbacks=state["callbacks"])
    assert type(worker) is Trainer and worker.config == parent.config
    assert worker.config.weights["drd"] == 0.125 and worker.save_dir == parent.save_dir
    worker.model = state["model"]
    worker.train()
    assert len(rows(tmp_path)) == 1
