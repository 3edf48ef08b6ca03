"""Runs a comparison: every arm with every seed, each in a worker of its own, and what they say together.

Every run starts from the weights of its seed and sees the images in the order and augmentation of its seed. A run that
is finished is never repeated, one that was interrupted goes on.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

from filelock import FileLock, Timeout
from ultralytics.utils.checks import check_file

from tskd_yolo import compat
from tskd_yolo.compare import record, report
from tskd_yolo.compare.fit import unfit
from tskd_yolo.compare.plan import Plan, Run, checked
from tskd_yolo.compare.runs import history, result_of
from tskd_yolo.compare.summary import all_curves, pictures, summarise
from tskd_yolo.compare.timing import epochs_for
from tskd_yolo.config import ConfigError, teachers
from tskd_yolo.files import write_json

TOLD_EVERY = 60.0
"""Seconds between two lines of progress."""


def compare(**values: Any) -> int:
    """Runs a comparison, or what is left of it, and writes ``compare.json``, ``.csv`` and ``.html`` into ``out``.

    Args:
        **values: :data:`~tskd_yolo.compare.plan.KEYS`, our keys, and any of Ultralytics' training arguments.

    Returns:
        The number of runs that failed; the others are compared all the same.

    Raises:
        ConfigError: Naming everything that is wrong, before anything is started or written.
    """
    plan = checked(values)
    if problems := [*record.learned_from(plan), *unfit(plan)]:
        raise ConfigError(problems)
    plan.out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(plan.out / ".lock", timeout=0), compat.guarded(trust=plan.own["trust"]):
            return _compare(plan)
    except Timeout:
        raise ConfigError([f"out: another comparison is at work in {plan.out}; wait for it or stop it."]) from None


def _compare(plan: Plan) -> int:
    record.begin(plan)
    failed = _run_all(plan)
    summary = summarise(plan, failed)
    files = report.write_comparison(plan.out, summary, curves=all_curves(plan), pictures=pictures(plan))
    print("\n" + "\n".join([*summary["verdicts"], _judged(plan)]))
    print("\n" + "\n".join(str(file) for file in files), flush=True)
    for name, terms in summary["left_out"].items():
        print(f"{name}: {', '.join(terms)} was left out of steps; the page says how often.", file=sys.stderr)
    for name in failed:
        print(f"{name} failed; its log is {plan.log(name)}. The same command tries it again.", file=sys.stderr)
    return len(failed)


def _judged(plan: Plan) -> str:
    split, weights, why = plan.judged
    return f"Judged: {weights}.pt on the {split} split{f' ({why})' if why else ''}."


# What is left to do ---------------------------------------------------------------------------------------------------


def _run_all(plan: Plan) -> list[str]:
    """Trains and judges what is left to do; returns the names of what failed."""
    failed = _judge_teacher(plan)
    left = [[run for run in chain if result_of(plan.folder(run)) is None] for chain in plan.chains]
    failed += _side_by_side(plan, [chain for chain in left if chain])
    return failed + _measure_latency(plan)


def _judge_teacher(plan: Plan) -> list[str]:
    if result_of(plan.folder("teacher")) is not None:
        return []
    job = {"kind": "teacher", "common": plan.common, "own": plan.own, "split": plan.judged.split}
    return [] if order(plan, "teacher", job) else ["teacher"]


def _measure_latency(plan: Plan) -> list[str]:
    """Of a student and of the teacher; a note of what was missing is no result."""
    measured = result_of(plan.folder("latency"))
    trained = [plan.folder(run) / "weights" / "last.pt" for run in plan.runs if result_of(plan.folder(run))]
    if not trained or (measured is not None and "note" not in measured):
        return []
    student = next((file for file in trained if file.exists()), None)
    if student is None:
        plan.folder("latency").mkdir(exist_ok=True)
        write_json(plan.folder("latency") / "result.json", {"note": "not measured: no run has its last.pt any more."})
        return []
    networks = {"student": str(student), "teacher": check_file(judged_teacher(plan))}
    size = plan.argument("imgsz")
    sizes = {"imgsz": size, "teacher_imgsz": plan.own["teacher_imgsz"] or size}
    done = order(plan, "latency", {"kind": "latency", "networks": networks, **sizes})
    return [] if done else ["latency"]


def judged_teacher(plan: Plan) -> str:
    """The file of the teacher; of several, of the one that was judged best."""
    judged = result_of(plan.folder("teacher")) or {}
    return teachers(plan.own["teacher"])[judged.get("number", 0)]


def run_chain(plan: Plan, chain: Sequence[Run]) -> list[str]:
    """Trains and judges runs one after the other; returns the names of those that failed."""
    failed = []
    for run in chain:
        if _STOP.is_set():
            break
        epochs = None
        if run.arm == "plain_same_time":
            tskd, plain = (result_of(plan.folder(Run(arm, run.seed))) for arm in ("tskd", "plain"))
            if problem := _no_pace(run, tskd, plain, clock := record.clock(plan.common.get("device"))):
                with open(plan.log(run), "a", encoding="utf-8") as log:
                    log.write(f"{run} was not started: {problem}.\n")
                failed.append(str(run))
                continue
            epochs = epochs_for(tskd, plain, clock)
        job = {
            "kind": "train",
            "arm": run.arm,
            "seed": run.seed,
            "model": plan.model,
            "common": plan.common,
            "settings": plan.settings_of(run.arm),
            "judged": [plan.judged.split, plan.judged.weights],
            "epochs": epochs,
            "jobs": plan.jobs,
        }
        if not order(plan, run, job):
            failed.append(str(run))
    return failed


def _no_pace(run: Run, tskd: Any, plain: Any, clock: str) -> str:
    """Why it cannot be said how long plain training for tskd's time is to be; empty where it can."""
    if tskd is None or plain is None:
        return "it needs the times of plain and tskd of this seed"
    counts = [row.get("jobs", 1) for row in (tskd, plain)]
    if clock == "time" and counts[0] != counts[1]:
        return (
            f"tskd-{run.seed} was trained with jobs={counts[0]} and plain-{run.seed} with jobs={counts[1]}, so their "
            "times do not compare; delete the folder of one of them and give the other's jobs="
        )
    return ""


# Several at a time ----------------------------------------------------------------------------------------------------


def _side_by_side(plan: Plan, chains: list[list[Run]]) -> list[str]:
    """Works through the chains, several at a time, and says how far it is."""
    if not chains:
        return []
    progress = _Progress(plan, chains)
    with _spread(plan) as submit:
        waiting: set[Future] = {submit(run_chain, plan, chain) for chain in chains}
        failed: list[str] = []
        while waiting:
            done, waiting = wait(waiting, timeout=TOLD_EVERY, return_when=FIRST_COMPLETED)
            for future in done:
                failed += future.result()
            progress.tell()
    return failed


@contextmanager
def _spread(plan: Plan) -> Iterator[Callable[..., Future]]:
    """Something to give work to: ``jobs`` threads that each wait for a worker, or Ray."""
    if plan.ray:
        with _ray(plan) as submit:
            yield submit
        return
    pool = ThreadPoolExecutor(plan.jobs)
    try:
        yield pool.submit
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        with _STARTING:
            _STOP.set()  # or the threads would go on to their next runs
            for process in _RUNNING:  # its standard input closes, and it ends
                assert process.stdin is not None
                process.stdin.close()
        pool.shutdown()
        _STOP.clear()


@contextmanager
def _ray(plan: Plan) -> Iterator[Callable[..., Future]]:
    """Ray, on the cluster that RAY_ADDRESS names or on this machine; ``jobs`` runs share a device."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    ours = not ray.is_initialized()
    if ours:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    cpu = str(plan.common.get("device")) == "cpu" or not ray.cluster_resources().get("GPU")
    # Ray shows each run its own GPU: a number that the user gave would be another machine's.
    mine = plan if cpu else plan._replace(common={k: v for k, v in plan.common.items() if k != "device"})
    cores = max(1, int(min(n["Resources"].get("CPU", 1) for n in ray.nodes() if n["Alive"])) // plan.jobs)
    options: dict[str, Any] = {"num_cpus": cores} if cpu else {"num_cpus": 1, "num_gpus": 1 / plan.jobs}
    work = ray.remote(**options)(run_chain)
    try:
        yield lambda _, __, chain: work.remote(mine, chain).future()
    finally:
        if ours:
            ray.shutdown()


_RUNNING: set[subprocess.Popen] = set()
_STARTING = threading.Lock()
_STOP = threading.Event()
"""No run is to be started any more."""


def order(plan: Plan, name: Run | str, job: dict[str, Any]) -> bool:
    """Has a job done by a worker, a process that ends when this one does; whether it succeeded.

    The worker installs nothing, and loads checkpoints of known classes only, unless they are trusted.

    Args:
        plan: The comparison.
        name: What the job is called: its folder and its log have this name.
        job: Its kind, and arguments of the worker's function for this kind besides ``folder``.
    """
    safe = "0" if plan.own["trust"] else "1"
    environment = {**os.environ, "YOLO_AUTOINSTALL": "0", "ULTRALYTICS_SAFE_LOAD": safe}
    log = plan.log(name)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as output:
        with _STARTING:
            if _STOP.is_set():
                return False
            process = subprocess.Popen(
                [sys.executable, "-c", "from tskd_yolo.compare.worker import main; main()"],
                stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, text=True, start_new_session=True,
                env=environment,
            )  # fmt: skip
            _RUNNING.add(process)
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps({**job, "folder": str(plan.folder(name))}) + "\n")
            process.stdin.flush()
            return process.wait() == 0
        except BrokenPipeError:  # it died at once; why stands in the log
            return process.wait() == 0
        finally:
            _RUNNING.discard(process)


# How far it is --------------------------------------------------------------------------------------------------------


class _Progress:
    """Says how many runs are done, which are begun, and about how long the rest takes."""

    def __init__(self, plan: Plan, chains: Sequence[Sequence[Run]]) -> None:
        self.plan, self.left = plan, [run for chain in chains for run in chain]
        print(f"{len(self.left)} of {len(plan.runs)} runs to do, in {plan.out}", flush=True)

    def tell(self) -> None:
        """Prints one line."""
        plan = self.plan
        spent = {run: (epochs, taken.wall) for run in plan.runs for epochs, taken, _ in [history(plan.folder(run))]}
        done = [run for run in plan.runs if result_of(plan.folder(run)) is not None]
        working = [f"{run} epoch {spent[run][0]}" for run in self.left if run not in done and spent[run][0]]
        seconds = time_left(spent, done=done, epochs={arm: plan.epochs(arm) for arm in plan.arms})
        rest = f", about {_duration(seconds / plan.jobs)} left" if seconds else ""
        begun = f"; begun: {', '.join(working)}" if working else ""
        print(f"{len(done)} of {len(plan.runs)} runs done{rest}{begun}", flush=True)


def time_left(
    spent: Mapping[Run, tuple[int, float]], *, done: Sequence[Run], epochs: Mapping[str, int]
) -> float | None:
    """Seconds of training still to do, one run at a time; None before the first epoch of all.

    A run is taken to need what its arm needs per epoch in other seeds, or else the mean of all arms; plain training
    for tskd's time what tskd needs.

    Args:
        spent: Epochs and seconds of every run so far.
        done: The finished runs.
        epochs: Epochs of a run of each arm.
    """
    paces: dict[str, list[float]] = {}
    for run, (count, seconds) in spent.items():
        if count and run.arm != "plain_same_time":
            paces.setdefault(run.arm, []).append(seconds / count)
    if not paces:
        return None
    pace = {arm: sum(v) / len(v) for arm, v in paces.items()}
    usual = sum(pace.values()) / len(pace)
    need = {
        run: epochs[run.arm] * pace.get("tskd" if run.arm == "plain_same_time" else run.arm, usual) for run in spent
    }
    return sum(max(need[run] - spent[run][1], 0.0) for run in spent if run not in done)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{max(minutes, 1)} min"
