"""The command line: Ultralytics' own ``key=value`` grammar, with a teacher.

``train``, ``check``, ``compare``, ``convert``, ``autolabel``, ``average`` and ``demo`` are ours, and the page of
``val``; every other mode goes to Ultralytics' entry point, after names of our data sets were resolved.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import pickle
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tskd_yolo import __version__
from tskd_yolo.arguments import joined, parse
from tskd_yolo.config import COMMANDS, DEFAULTS, ConfigError, folder, trust_problems
from tskd_yolo.settings_files import resolve

HELP = """
tskd-yolo {version}: trains a small YOLO detector from a large one (https://docs.ultralytics.com for everything else)

  tskd-yolo train data=neu.yaml teacher=teacher.pt model=yolo11n.yaml epochs=100
      distil; every Ultralytics training argument works beside ours. Models for segment, pose and obb learn from those
      of the same task, which the model decides, as in Ultralytics
  tskd-yolo train resume model=runs/detect/train/weights/last.pt
      go on with an interrupted run; teacher= and unlabelled= say where these have moved to
  tskd-yolo check data=neu.yaml teacher=teacher.pt model=yolo11n.yaml epochs=100 [out=runs/check/check]
      do the three fit, is there anything to gain, and what will it take? Classes, levels, scores per class, odd labels,
      images that are in train and val, memory and time of a few real steps. Exit code 0: go, 1: with a warning, 2: no,
      3: the check itself failed
  tskd-yolo compare data=neu.yaml teacher=teacher.pt model=yolo11n.yaml epochs=100 [out=runs/compare]
          [arms=plain,plain_same_time,ultralytics,tskd,ded,crd] [seeds=5] [split=test|val] [jobs=1] [ray=True]
      does it help? For detectors only. Every arm with every seed, paired with plain training; a verdict, corrected over
      the arms, its interval, and a page with all of it. arms= also takes without_ded, without_crd, tskd_unlabelled,
      with drd=1 also drd and without_drd, and a YAML file with arms of your own (short: {{epochs: 12}}). seeds=[0,3]
      names them and is part of the plan: a later change is told. Where the data has a test: split, best.pt is judged on
      it; otherwise last.pt on val. jobs= runs so many side by side, ray=True spreads them over a cluster. Takes every
      training argument; the same command goes on where it was interrupted, with the same data, device and versions
  tskd-yolo val model=best.pt data=neu.yaml
      Ultralytics' own, and of detectors a page: COCO's metrics, and what is missed at a fixed number of false alarms
  tskd-yolo predict model=best.pt source=images/
      Ultralytics' own, as are export, track, benchmark, settings, checks and the rest
  tskd-yolo convert voc images=IMAGES annotations=ANNOTATIONS out=FOLDER
  tskd-yolo convert coco images=IMAGES annotations=TRAIN.json [val=VAL.json] [test=TEST.json] out=FOLDER
  tskd-yolo convert labelme images=IMAGES [annotations=ANNOTATIONS] out=FOLDER
  tskd-yolo convert masks images=IMAGES [masks=MASKS] [names=crack | names=1:crack,2:dent | folders] out=FOLDER
  tskd-yolo convert rle images=IMAGES annotations=MASKS.csv [names=1:crack,2:dent] out=FOLDER
  tskd-yolo convert deeppcb source=FOLDER out=FOLDER
      your own data become a data set: images are linked, originals left alone, every problem is named with its file.
      val=0.2 test=0 are shares, drawn by the images' content. skip leaves bad files and boxes out instead of stopping.
      background: images without an annotation show no defect. min_area=10: smaller regions of a mask are left out.
      names=a,b orders the classes
  tskd-yolo autolabel teacher=teacher.pt source=IMAGES out=FOLDER data=neu.yaml [precision=0.9] [augment=True]
          [imgsz=640] [batch=16] [device=0] [export=cvat,labelstudio] [classes_map=file.yaml]
      a teacher's labels for images that have none, as a data set: what it is sure of, by a threshold per class that is
      measured on the val images of data= for a precision, or by one conf= for all; teacher=[a.pt,b.pt] are fused.
      Scores are kept, uncertain.csv says what to review, autolabel.html shows it; the same command goes on
  tskd-yolo average model=[a.pt,b.pt,c.pt] out=teacher.pt
      checkpoints that were trained from the same weights become one, the mean of theirs: often a better teacher than
      each, at the cost of one
  tskd-yolo demo [out=runs/demo] [seed=0]
      the whole way on drawn images, in minutes
  tskd-yolo help | version

Our arguments, with their defaults:
{keys}

Data sets found by name: {datasets}. Settings found by name (cfg=NAME): {recipes}.
Models found by name: {models}, and Ultralytics' own.
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0; 1 with the mistakes named on standard error; 130 after Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # Read when Ultralytics is imported, by this process and those that it starts. What trust lifts, compat lifts.
    os.environ["ULTRALYTICS_SAFE_LOAD"] = "1"
    os.environ["YOLO_AUTOINSTALL"] = "0"
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        return 130
    except _user_errors() as error:
        print(f"tskd-yolo: {_sentence(error)}", file=sys.stderr)
    return 1


_OTHER_MODES = frozenset("val predict export track benchmark settings checks cfg login logout solutions".split())


def _user_errors() -> tuple[type[Exception], ...]:
    """What a mistake in a user's files raises, or a disk; anything else is a fault and keeps its trace."""
    from tskd_yolo.data.convert.files import ConvertError
    from tskd_yolo.train.checkpoints import RunError

    return ConfigError, ConvertError, RunError, OSError


def _sentence(error: Exception) -> str:
    """What to tell a user; of what the system says the file and the reason."""
    if not isinstance(error, OSError) or error.errno is None:
        return str(error)
    if isinstance(error, FileNotFoundError) and error.filename:
        return f"{error.filename} was not found; give a file that is there."
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}the system says '{error.strerror}'; make room or allow it there, or give another file or folder."


def _run(arguments: list[str]) -> int:
    """Runs the command that the first word names; the order of words does not matter to Ultralytics' modes."""
    arguments = [re.sub(r"^(--)?mode=", "", a) for a in arguments]  # Ultralytics takes a mode as a word and by its key
    words = [a.lstrip("-") for a in arguments]
    first = words[0] if words else "help"
    commands: dict[str, Callable[[list[str]], int]] = {
        "help": _help, "h": _help, "version": _version, "v": _version, "convert": _convert, "demo": _demo,
        "tune": _tune, "check": _check, "compare": _compare, "autolabel": _autolabel,
        "average": _average,
    }  # fmt: skip
    if first in commands:
        return commands["help" if _HELP & {*arguments[1:]} else first](arguments[1:])
    if "train" in words and _HELP & {*arguments}:
        return _help([])
    if "train" in words or first == "resume" or _wants_a_teacher(words):
        return _train([a for a in arguments if a != "train"])
    if "val" in words and _val([a for a in arguments if a != "val"]):
        return 0
    if "=" not in first and not _OTHER_MODES & set(words):  # a task, or a word that nobody knows
        from ultralytics.cfg import TASKS

        meant = difflib.get_close_matches(first, {*COMMANDS, *TASKS}, n=1)
        if meant and meant[0] not in {first, *TASKS}:
            raise ConfigError([f"{first}: is not a command; did you mean '{meant[0]}'?"])
    return _delegate(arguments)


_HELP = frozenset(("help", "--help", "-h"))


def _wants_a_teacher(words: list[str]) -> bool:
    return not _OTHER_MODES & set(words) and any(w.startswith("teacher") for w in words)


def _help(arguments: list[str]) -> int:
    try:
        print(help_text(), flush=True)
    except BrokenPipeError:  # who reads it, such as head, has had enough; at its end Python would complain once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _version(arguments: list[str]) -> int:
    print(__version__)
    return 0


def help_text() -> str:
    """The help page, with our keys as they stand in ``cfg/default.yaml``."""
    lines = (folder("cfg") / "default.yaml").read_text(encoding="utf-8").splitlines()
    keys = "\n".join("  " + line for line in lines if line and not line.startswith("#"))
    places = {"datasets": folder("datasets"), "recipes": folder("cfg"), "models": folder("cfg") / "models"}
    names = {
        key: ", ".join(sorted(p.name for p in place.glob("*.yaml") if p.name != "default.yaml"))
        for key, place in places.items()
    }
    return HELP.format(version=__version__, keys=keys, **names).strip("\n")


def _train(arguments: list[str]) -> int:
    values, errors = parse(arguments)
    if values.get("resume") is True and not values.get("model"):
        errors.append("model: missing; write 'resume model=RUN/weights/last.pt'.")
    if errors and values.get("resume"):
        raise ConfigError(errors)
    if errors:
        from ultralytics.cfg import DEFAULT_CFG_DICT

        from tskd_yolo.train.checks import check

        check({**DEFAULT_CFG_DICT, **DEFAULTS}, values, errors)
    from tskd_yolo.train.trainer import Trainer

    Trainer(**values).train()
    return 0


def _check(arguments: list[str]) -> int:
    """Exit code 0: go; 1: go with a warning; 2: no, and a user's mistake is that, too; 3: a fault of the check."""
    from tskd_yolo.check.run import KEYS, check

    values, errors = parse(arguments, more=KEYS)
    try:
        return check(errors, **values).code
    except _user_errors() as error:
        print(f"tskd-yolo: {_sentence(error)}", file=sys.stderr)
        return 2
    except Exception:  # Python's own exit code for it is 1, which means "go with a warning"
        traceback.print_exc()
        return 3


def _compare(arguments: list[str]) -> int:
    from tskd_yolo.compare.plan import KEYS, checked
    from tskd_yolo.compare.runner import compare

    values, errors = parse(arguments, more=KEYS)
    if errors:
        try:
            checked(values)
        except ConfigError as error:
            errors += error.problems
        raise ConfigError(errors)
    try:
        return 1 if compare(**values) else 0
    except KeyboardInterrupt:
        print("tskd-yolo: stopped; the same command goes on with what is left.", file=sys.stderr)
        return 130


def _autolabel(arguments: list[str]) -> int:
    from tskd_yolo.autolabel.plan import KEYS
    from tskd_yolo.autolabel.run import autolabel

    values, errors = parse(arguments, known=KEYS)
    try:
        autolabel(errors, **values)
    except KeyboardInterrupt:
        print("tskd-yolo: stopped; the same command goes on with what is left.", file=sys.stderr)
        return 130
    return 0


def _average(arguments: list[str]) -> int:
    from tskd_yolo.average import KEYS, average

    values, errors = parse(arguments, known=KEYS)
    average(errors, **values)
    return 0


def _val(arguments: list[str]) -> bool:
    """Validates a detector and writes its page; False where it is Ultralytics' business: no model, or another task."""
    values, errors = parse(arguments)
    if not values.get("model") or values.pop("task", "detect") != "detect":
        return False
    from tskd_yolo.compare.report import validate, wrong

    trust = _trust(values)
    if errors := errors + wrong(values):
        raise ConfigError(errors)

    with _guarded(trust=trust):
        return validate(**values)


def _demo(arguments: list[str]) -> int:
    from tskd_yolo.demo import demo

    values, errors = parse(arguments, known={"out": "runs/demo", "seed": 0})
    if errors:
        raise ConfigError(errors)
    demo(**values)
    return 0


def _tune(arguments: list[str]) -> int:
    raise ConfigError(
        ["tune: not supported, it would train without the teacher; give several runs the values that you compare."]
    )


def _convert(arguments: list[str]) -> int:
    from tskd_yolo.data.convert import command

    layout = command.chosen(arguments)
    values, errors = parse(arguments[1:], known=layout.keys)
    logging.getLogger("ultralytics").setLevel(logging.INFO)
    command.convert(layout, values, errors)
    return 0


def _delegate(arguments: list[str]) -> int:
    """Ultralytics' entry point reads the process's own argument list, so names are resolved there."""
    from ultralytics.cfg import entrypoint

    trust, words = _without_trust(arguments)
    resolved = []
    for word in words:
        key, sign, value = word.partition("=")
        pair = {key: value}
        if sign:
            resolve(pair)
        resolved.append(f"{key}{sign}{pair[key]}")
    sys.argv[1:] = resolved
    with _guarded(trust=trust):
        entrypoint()
    return 0


def _without_trust(arguments: list[str]) -> tuple[bool, list[str]]:
    """Whether the command line trusts, and its other words, which Ultralytics reads."""
    words, errors = joined(arguments)
    if errors:  # Ultralytics says it too
        return False, arguments
    ours = [word for word in words if re.fullmatch(r"(--)?trust(=.*|,)?", word)]
    values, errors = parse(ours)
    if errors:
        raise ConfigError(errors)
    return _trust(values), [word for word in words if word not in ours]


def _trust(values: Mapping[str, Any]) -> bool:
    """Whether these arguments trust.

    Raises:
        ConfigError: If they say neither yes nor no.
    """
    if errors := trust_problems(values):
        raise ConfigError(errors)
    return values.get("trust", False)


@contextlib.contextmanager
def _guarded(*, trust: bool) -> Iterator[None]:
    """Inside, Ultralytics loads safely, and a user's mistake that it names becomes ours."""
    from tskd_yolo import compat

    compat.place_fonts()
    try:
        with compat.forced(trust=trust):
            yield
    except SyntaxError as error:  # how Ultralytics names an argument that it does not know
        raise ConfigError([line for line in str(error).splitlines() if line.strip()]) from error
    except (TypeError, pickle.UnpicklingError) as error:
        if not compat.refused_global(error):
            raise
        raise ConfigError([f"model: the checkpoint {compat.why(error)}."]) from error
    except ModuleNotFoundError as error:
        raise ConfigError(
            [f"{error.name}: this needs the package, which is not installed; install it with pip install {error.name}."]
        ) from error


if __name__ == "__main__":
    sys.exit(main())
