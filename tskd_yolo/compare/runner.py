"""Does distillation help on this data? Paired runs over seeds, each in its own process, and what they say together.

Every run starts from the weights of its seed and sees the images in the order and augmentation of its seed. A run that
is finished is never repeated, one that was interrupted goes on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import ultralytics
from filelock import FileLock, Timeout
from ultralytics.utils import DEFAULT_CFG_DICT
from ultralytics.utils.checks import check_file

from tskd_yolo import __version__, config
from tskd_yolo.compare import images, report
from tskd_yolo.compare.metrics import class_names, write_json
from tskd_yolo.compare.stats import paired, recovered, sentence
from tskd_yolo.compare.worker import curves, history
from tskd_yolo.config import TERMS, ConfigError
from tskd_yolo.train.checks import check

ARMS = "plain", "plain_same_time", "ultralytics", "tskd", "drd", "ded", "crd"
KEYS: dict[str, Any] = {"arms": ",".join(ARMS), "seeds": 5, "jobs": 1, "ray": False, "out": "runs/compare"}
"""The arguments of ``compare`` besides those of training, with their defaults."""
METRIC = "mAP50-95"
TOLD_EVERY = 60.0
"""Seconds between two lines of progress."""
_IRRELEVANT = frozenset(
    "project name exist_ok save_dir mode task seed verbose plots device cache cfg resume trust".split()
)
_REFUSED = {
    "seed": "seed: a comparison has several; write seeds=5 or seeds=[0,3].",
    "project": "project: a comparison has one folder; write out=FOLDER.",
    "name": "name: a comparison has one folder; write out=FOLDER.",
    "save_dir": "save_dir: a comparison has one folder; write out=FOLDER.",
    "resume": "resume: a comparison goes on by itself; give the same command and the same out= again.",
}


class Run(NamedTuple):
    """One arm with one seed."""

    arm: str
    seed: int

    def __str__(self) -> str:
        return f"{self.arm}-{self.seed}"


class Plan(NamedTuple):
    """A checked comparison.

    ``common`` goes to every arm, ``own`` (our keys, and ``teacher``) to those that distil.
    """

    arms: list[str]
    seeds: list[int]
    jobs: int
    ray: bool
    out: Path
    model: str
    common: dict[str, Any]
    own: dict[str, Any]

    @property
    def runs(self) -> list[Run]:
        """All runs, seed by seed: an interruption leaves whole pairs."""
        return [Run(arm, seed) for seed in self.seeds for arm in self.arms]

    @property
    def chains(self) -> list[list[Run]]:
        """Runs that may stand side by side; plain training for tskd's time follows tskd."""
        found = []
        for run in self.runs:
            follows = Run("plain_same_time", run.seed)
            if run.arm == "tskd" and follows in self.runs:
                found.append([run, follows])
            elif run.arm != "plain_same_time":
                found.append([run])
        return found


def compare(**values: Any) -> int:
    """Runs a comparison, or what is left of it, and writes ``compare.json``, ``.csv`` and ``.html`` into ``out``.

    Args:
        **values: :data:`KEYS`, our keys, and any of Ultralytics' training arguments.

    Returns:
        The number of runs that failed; the others are compared all the same.

    Raises:
        ConfigError: Naming everything that is wrong, before anything is started or written.
    """
    plan = checked(values)
    plan.out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(plan.out / ".lock", timeout=0):
            return _compare(plan)
    except Timeout:
        raise ConfigError([f"out: another comparison is at work in {plan.out}; wait for it or stop it."]) from None


def _compare(plan: Plan) -> int:
    _same_settings(plan)
    failed = _run_all(plan)
    summary = summarise(plan, failed)
    files = report.write_comparison(plan.out, summary, curves=all_curves(plan), pictures=_pictures(plan))
    print("\n" + "\n".join(summary["verdicts"]))
    print("\n" + "\n".join(str(file) for file in files), flush=True)
    for name in failed:
        print(f"{name} failed; its log is {_log(plan.out, name)}. The same command tries it again.", file=sys.stderr)
    return len(failed)


# What is asked for ----------------------------------------------------------------------------------------------------


def checked(values: Mapping[str, Any]) -> Plan:
    """The comparison that is asked for.

    Raises:
        ConfigError: Naming everything that is wrong; nothing is written.
    """
    asked = {**KEYS, **{k: v for k, v in values.items() if k in KEYS}}
    training = {k: v for k, v in values.items() if k not in KEYS}
    config.resolve(training)
    found = [text for key, text in _REFUSED.items() if training.pop(key, None) not in {None, False, ""}]
    arms = [a.strip() for a in _listed(asked["arms"])]
    seeds = _seeds(asked["seeds"], found)
    found += _wrong_arms(arms, {**config.DEFAULTS, **training})
    if not isinstance(asked["jobs"], int) or isinstance(asked["jobs"], bool) or asked["jobs"] < 1:
        found.append(f"jobs: must be a whole number from 1 on, got {asked['jobs']!r}.")
    if not isinstance(asked["ray"], bool):
        found.append(f"ray: must be True or False, got {asked['ray']!r}.")
    elif asked["ray"] and not _installed("ray"):
        found.append("ray: is not installed; pip install 'tskd-yolo[all]' adds it, or leave ray=True out.")
    out = Path(str(asked["out"])).resolve()
    if out.exists() and not out.is_dir():
        found.append(f"out: {asked['out']} is a file; give a folder.")
    found += _wrong_training(training, arms)
    if found:
        raise ConfigError(found)
    for key in ("data", "model", "teacher"):
        training[key] = _absolute(training[key])
    return Plan(
        arms=arms,
        seeds=seeds,
        jobs=asked["jobs"],
        ray=asked["ray"],
        out=out,
        model=training["model"],
        common={
            "plots": False,
            **{k: v for k, v in training.items() if k not in {"model", "task", "mode", *config.DEFAULTS}},
        },
        own={**config.DEFAULTS, **{k: v for k, v in training.items() if k in config.DEFAULTS}},
    )


def _wrong_training(training: dict[str, Any], arms: Sequence[str]) -> list[str]:
    """What the trainer finds wrong; the teacher is wanted by every comparison."""
    found = []
    try:
        check({**DEFAULT_CFG_DICT, **config.DEFAULTS}, training)
    except ConfigError as error:
        found += error.problems
    epochs = training.get("epochs", DEFAULT_CFG_DICT["epochs"])
    if isinstance(epochs, int) and epochs < 1:
        found.append(f"epochs: must be a whole number from 1 on, got {epochs}.")
    if training.get("time") and "plain_same_time" in arms:
        found.append("time: plain_same_time takes the time of tskd; drop this arm, or drop time=.")
    return found


def _listed(value: Any) -> list[str]:
    return [str(v) for v in value] if isinstance(value, (list, tuple)) else str(value).strip("[]()").split(",")


def _seeds(value: Any, found: list[str]) -> list[int]:
    """``5`` is 0 to 4, a list is itself."""
    listed = list(value) if isinstance(value, (list, tuple)) else None
    numbers = [value] if listed is None else listed
    if any(not isinstance(n, int) or isinstance(n, bool) for n in numbers) or not numbers:
        found.append(
            f"seeds: must be a number of seeds or a list of seeds, got {value!r}; i.e. seeds=5 or seeds=[0,3]."
        )
        return []
    if min(numbers) < (1 if listed is None else 0) or len(set(numbers)) < len(numbers):
        found.append(f"seeds: must be a number from 1 on, or a list of different seeds from 0 on, got {value!r}.")
        return []
    return list(range(value)) if listed is None else numbers


def _wrong_arms(arms: list[str], values: Mapping[str, Any]) -> list[str]:
    found = [f"arms: {arm} is none; choose from {', '.join(ARMS)}." for arm in arms if arm not in ARMS]
    if len(set(arms)) < len(arms):
        found.append("arms: one is named twice; name each once.")
    if "plain" not in arms:
        found.append("arms: plain is missing, and every other arm is compared with it; add it.")
    if "plain_same_time" in arms and "tskd" not in arms:
        found.append("arms: plain_same_time takes the time of tskd, which is missing; add tskd.")
    found += [f"{arm}: is 0, and the arm {arm} would distil nothing; give it a weight or drop the arm."
              for arm in arms if arm in TERMS and values[arm] == 0]  # fmt: skip
    if "tskd" in arms and all(values[term] == 0 for term in TERMS):
        found.append("drd, ded, crd: all are 0, and the arm tskd would distil nothing; give one a weight.")
    return found


def _installed(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


def _absolute(file: Any) -> str:
    """A file of the user's by its absolute path; a name that Ultralytics knows as it is."""
    return str(Path(file).resolve()) if Path(file).exists() else str(file)


def settings(plan: Plan) -> dict[str, Any]:
    """What decides the result of a run, its versions and the contents of its files included; no path."""
    chosen = {**DEFAULT_CFG_DICT, **plan.common, **{k: v for k, v in plan.own.items() if k != "teacher"}}
    content = {k: _named(v) for k, v in chosen.items() if k not in _IRRELEVANT and k not in {"data", "model"}}
    files = {"data": check_file(plan.common["data"]), "model": plan.model, "teacher": plan.own["teacher"]}
    named = {key: _named(file) for key, file in files.items()}
    versions = {"tskd-yolo": __version__, "ultralytics": ultralytics.__version__, "torch": torch.__version__}
    return json.loads(json.dumps({**named, **content, **versions}, default=str))


def _named(value: Any) -> Any:
    """A file by its name and the fingerprint of its content; anything else as it is."""
    if not isinstance(value, str) or not Path(value).is_file():
        return value
    return f"{Path(value).name} (sha256 {hashlib.sha256(Path(value).read_bytes()).hexdigest()[:16]})"


def _same_settings(plan: Plan) -> None:
    """Refuses to mix runs of different settings in one folder."""
    file, now = plan.out / "settings.json", settings(plan)
    if not file.exists():
        write_json(file, now)
        return
    before = json.loads(file.read_text(encoding="utf-8"))
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if keys:
        raise ConfigError(
            [f"{key}: the runs in {plan.out.name} have {before.get(key)!r}, not {now.get(key)!r}; "
             f"take the old value, or another folder with out=." for key in keys]
        )  # fmt: skip


# Running --------------------------------------------------------------------------------------------------------------


def result(out: Path, name: str) -> Any:
    """What a finished run left; None if there is none."""
    file = out / name / "result.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def _log(out: Path, name: str) -> Path:
    return out / "logs" / f"{name}.txt"


def _run_all(plan: Plan) -> list[str]:
    """Trains and judges what is left to do; returns what failed."""
    (plan.out / "logs").mkdir(exist_ok=True)
    failed = []
    judging = {"kind": "teacher", "folder": str(plan.out / "teacher"), "common": plan.common, "own": plan.own}
    if result(plan.out, "teacher") is None and not order(judging, _log(plan.out, "teacher"), trust=plan.own["trust"]):
        failed.append("teacher")
    left = [[r for r in chain if result(plan.out, str(r)) is None] for chain in plan.chains]
    failed += _side_by_side(plan, [chain for chain in left if chain])
    timed = result(plan.out, "latency")
    if timed is None or "note" in timed:
        trained = next((str(run) for run in plan.runs if result(plan.out, str(run))), None)
        if trained and not order(_timing(plan, trained), _log(plan.out, "latency"), trust=plan.own["trust"]):
            failed.append("latency")
    return failed


def _timing(plan: Plan, trained: str) -> dict[str, Any]:
    student = plan.out / trained / "weights" / "last.pt"
    networks = {"student": str(student), "teacher": check_file(plan.own["teacher"])}
    imgsz = plan.common.get("imgsz", DEFAULT_CFG_DICT["imgsz"])
    return {"kind": "latency", "folder": str(plan.out / "latency"), "networks": networks, "imgsz": imgsz}


def _side_by_side(plan: Plan, chains: list[list[Run]]) -> list[str]:
    """Works through the chains, several at a time, and says how far it is."""
    if not chains:
        return []
    telling = _Progress(plan, chains)
    with _spread(plan) as submit:
        waiting: set[Future] = {submit(run_chain, plan, chain) for chain in chains}
        failed: list[str] = []
        while waiting:
            done, waiting = wait(waiting, timeout=TOLD_EVERY, return_when=FIRST_COMPLETED)
            for future in done:
                failed += future.result()
            telling.tell()
    return failed


@contextmanager
def _spread(plan: Plan) -> Iterator[Callable[..., Future]]:
    """Something to give work to: ``jobs`` threads that each wait for a process, or Ray."""
    if plan.ray:
        with _ray(plan) as submit:
            yield submit
        return
    pool = ThreadPoolExecutor(plan.jobs)
    try:
        yield pool.submit
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(_RUNNING):  # its standard input closes, and it ends
            assert process.stdin is not None
            process.stdin.close()
        pool.shutdown()


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


def run_chain(plan: Plan, chain: Sequence[Run]) -> list[str]:
    """Trains and judges runs one after the other; returns those that failed."""
    for place, run in enumerate(chain):
        seconds = None
        if run.arm == "plain_same_time":
            seconds = result(plan.out, f"tskd-{run.seed}")["seconds"]
        job = {
            "kind": "train",
            "arm": run.arm,
            "seed": run.seed,
            "folder": str(plan.out / str(run)),
            "model": plan.model,
            "common": plan.common,
            "own": plan.own,
            "seconds": seconds,
        }
        if not order(job, _log(plan.out, str(run)), trust=plan.own["trust"]):
            return [str(r) for r in chain[place:]]
    return []


_RUNNING: set[subprocess.Popen] = set()


def order(job: dict[str, Any], log: Path, *, trust: bool) -> bool:
    """Has a job done by a process of its own, which ends when this one does; whether it succeeded.

    It installs nothing, and loads checkpoints of known classes only, unless they are trusted.
    """
    environment = {**os.environ, "YOLO_AUTOINSTALL": "0", "ULTRALYTICS_SAFE_LOAD": "0" if trust else "1"}
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", "from tskd_yolo.compare.worker import main; main()"],
            stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            env=environment,
        )  # fmt: skip
        assert process.stdin is not None
        _RUNNING.add(process)
        try:
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            return process.wait() == 0
        except BrokenPipeError:  # it died at once; why stands in the log
            return process.wait() == 0
        finally:
            _RUNNING.discard(process)


class _Progress:
    """Says how many runs are done, which are begun, and about how long the rest takes."""

    def __init__(self, plan: Plan, chains: Sequence[Sequence[Run]]) -> None:
        self.plan, self.left = plan, [run for chain in chains for run in chain]
        print(f"{len(self.left)} of {len(plan.runs)} runs to do, in {plan.out}", flush=True)

    def tell(self) -> None:
        """Prints one line."""
        spent = {run: history(self.plan.out / str(run))[:2] for run in self.plan.runs}
        done = [run for run in self.plan.runs if result(self.plan.out, str(run)) is not None]
        working = [f"{run} epoch {spent[run][0]}" for run in self.left if run not in done and spent[run][0]]
        seconds = time_left(spent, done=done, epochs=self.plan.common.get("epochs", DEFAULT_CFG_DICT["epochs"]))
        rest = "" if not seconds else f", about {_duration(seconds / self.plan.jobs)} left"
        begun = f"; begun: {', '.join(working)}" if working else ""
        print(f"{len(done)} of {len(self.plan.runs)} runs done{rest}{begun}", flush=True)


def time_left(spent: Mapping[Run, tuple[int, float]], *, done: Sequence[Run], epochs: int) -> float | None:
    """Seconds of training still to do, one run at a time; None before the first epoch of all.

    A run is taken to need what its arm needs per epoch in other seeds, or else the mean of all arms; plain training
    for tskd's time what tskd needs.

    Args:
        spent: Epochs and seconds of every run so far.
        done: The finished runs.
        epochs: Epochs of a run.
    """
    pace: dict[str, list[float]] = {}
    for run, (count, seconds) in spent.items():
        if count and run.arm != "plain_same_time":
            pace.setdefault(run.arm, []).append(seconds / count)
    if not pace:
        return None
    mean = {arm: sum(v) / len(v) for arm, v in pace.items()}
    usual = sum(mean.values()) / len(mean)
    need = {run: epochs * mean.get("tskd" if run.arm == "plain_same_time" else run.arm, usual) for run in spent}
    return sum(max(need[run] - spent[run][1], 0.0) for run in spent if run not in done)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{max(minutes, 1)} min"


# What it says ---------------------------------------------------------------------------------------------------------


def summarise(plan: Plan, failed: Sequence[str]) -> dict[str, Any]:
    """Everything that the finished runs say, as JSON takes it; no path and no host."""
    results = {arm: _finished(plan, arm) for arm in plan.arms}
    teacher = result(plan.out, "teacher")
    arms = {arm: _arm(arm, results, teacher) for arm in plan.arms}
    verdicts = [arms[arm]["verdict"] for arm in plan.arms if arm != "plain"]
    base = results["plain"]
    student = next((r for rows in results.values() for r in rows.values()), None)
    return {
        "verdicts": verdicts,
        "metric": METRIC,
        "settings": json.loads((plan.out / "settings.json").read_text(encoding="utf-8")),
        "seeds": plan.seeds,
        "failed": list(failed),
        "hardware": hardware(),
        "jobs": plan.jobs,
        "teacher": teacher,
        "student": student and {"name": Path(plan.model).name, **{k: student[k] for k in ("parameters", "GFLOPs")}},
        "latency": result(plan.out, "latency"),
        "paired": _pairing(results),
        "resumed": [f"{arm}-{seed}" for arm, rows in results.items() for seed, r in rows.items() if r["resumed"]],
        "arms": arms,
        "tskd_against": {
            arm: _effect(results["tskd"], results[arm], METRIC)
            for arm in plan.arms
            if "tskd" in plan.arms and arm not in {"tskd", "plain"}
        },
        "complete": len(base) == len(plan.seeds) and not failed,
    }


def _finished(plan: Plan, arm: str) -> dict[int, Any]:
    found = {seed: result(plan.out, str(Run(arm, seed))) for seed in plan.seeds}
    return {seed: row for seed, row in found.items() if row is not None}


def _arm(arm: str, results: Mapping[str, dict[int, Any]], teacher: Any) -> dict[str, Any]:
    """One arm: its rows, means and effects over plain training."""
    rows, plain = results[arm], results["plain"]
    values, base = ({seed: r["last"][METRIC] for seed, r in who.items()} for who in (rows, plain))
    keys = METRIC, "mAP50"
    effect = paired(values, base)
    return {
        "rows": list(rows.values()),
        "mean": {
            which: {key: _mean([r[which][key] for r in rows.values() if r[which]]) for key in keys}
            for which in ("last", "best")
        },
        "effect": {key: _effect(rows, plain, key) for key in keys},
        "effect_on_misses": _effect_on_misses(rows, plain),
        "classes": _classes(rows, plain),
        "recovered": recovered(values, base, teacher["last"][METRIC]) if teacher else None,
        "verdict": sentence(arm, effect, METRIC),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def _effect(rows: Mapping[int, Any], plain: Mapping[int, Any], key: str) -> dict[str, Any] | None:
    effect = paired(*({seed: r["last"][key] for seed, r in who.items()} for who in (rows, plain)))
    return effect.row() if effect else None


def _effect_on_misses(rows: Mapping[int, Any], plain: Mapping[int, Any]) -> list[dict[str, Any]]:
    """Per number of false alarms: the mean miss rate, and the paired difference; there, less is better."""
    found = []
    some = next(iter(rows.values()), None)
    for place, entry in enumerate(some["last"]["misses"] if some else []):
        sides = [{s: r["last"]["misses"][place]["miss"] for s, r in who.items()} for who in (rows, plain)]
        mine, base = ({s: v for s, v in side.items() if v is not None} for side in sides)
        effect = paired(base, mine)  # turned round, so that above 0 helps
        mean = _mean(list(mine.values()))
        found.append({"false_alarms": entry["false_alarms"], "miss": mean, "fewer": effect and effect.row()})
    return found


def _classes(rows: Mapping[int, Any], plain: Mapping[int, Any]) -> list[dict[str, Any]]:
    """Per class: means, and the paired difference to plain training, for both metrics."""
    some = next(iter(rows.values()), None)
    found = []
    for place, entry in enumerate(some["last"]["classes"] if some else []):
        row = {"name": entry["name"], "truths": entry["truths"]}
        for key in ("AP50-95", "AP50"):
            sides = [{s: r["last"]["classes"][place][key] for s, r in who.items()} for who in (rows, plain)]
            mine, base = ({s: v for s, v in side.items() if v is not None} for side in sides)
            effect = paired(mine, base)
            row[key] = {"mean": _mean(list(mine.values())), "effect": effect and effect.row()}
        found.append(row)
    return found


def _pairing(results: Mapping[str, dict[int, Any]]) -> dict[str, bool | None]:
    """Whether the arms of each seed started from the same weights and the same images; None where none can be seen."""
    found: dict[str, bool | None] = {}
    for what in ("weights", "images"):
        per_seed: dict[int, set[str]] = {}
        for rows in results.values():
            for seed, row in rows.items():
                if row["start"]:
                    per_seed.setdefault(seed, set()).add(row["start"][what])
        found[what] = all(len(v) == 1 for v in per_seed.values()) if per_seed else None
    return found


def all_curves(plan: Plan) -> dict[str, dict[int, dict[str, list[float]]]]:
    """The columns of results.csv by arm and seed, of the finished runs."""
    return {arm: {seed: curves(plan.out / str(Run(arm, seed))) for seed in _finished(plan, arm)} for arm in plan.arms}


def _pictures(plan: Plan) -> images.Pictures | None:
    """Images on which plain training and the first distilled arm disagree, with the first seed that both have."""
    arm = next((a for a in ("tskd", *TERMS, "ultralytics", "plain_same_time") if _finished(plan, a)), None)
    if arm is None or result(plan.out, "teacher") is None:
        return None
    seeds = [seed for seed in _finished(plan, arm) if seed in _finished(plan, "plain")]
    if not seeds:
        return None
    folders = {"teacher": "teacher", "plain": f"plain-{seeds[0]}", arm: f"{arm}-{seeds[0]}"}
    return images.disagreements(
        {who: plan.out / name / "seen.json" for who, name in folders.items()},
        data=plan.common["data"],
        names=class_names(plan.common["data"], bool(plan.common.get("single_cls"))),
        teacher=plan.own["teacher"],
        imgsz=plan.common.get("imgsz", DEFAULT_CFG_DICT["imgsz"]),
        variant=plan.own["variant"],
        seed=seeds[0],
    )


def hardware() -> str:
    """What the figures were made on, without the machine's name."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU ({platform.machine()}, {os.cpu_count()} cores)"
