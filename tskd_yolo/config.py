"""Our settings: defaults, types, limits. All of a user's mistakes are told at once."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_REFUSED = {
    "distill_model": "distill_model: Ultralytics' built-in distillation and teacher= exclude each other; drop one.",
    "compile": "compile: not supported while distilling; leave it off.",
}
_MOST = 1e30  # beyond it float32 overflows before the first step
MOST_VIEWS = 1000
TASKS = "detect", "segment", "pose", "obb"
"""What can be distilled, as Ultralytics names it."""
_CHOICES = {"balance": ("share", "fixed"), "variant": ("default", "hints", "paper")}


class ConfigError(ValueError):
    """One or more mistakes in what a user asked for; the message names each in a sentence of its own."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        count = f"{len(self.problems)} problem{'s' if len(self.problems) > 1 else ''}"
        super().__init__("\n  ".join([f"{count} found, nothing was started:", *self.problems]))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[list[str]]]:
        return type(self), (self.problems,)


@contextlib.contextmanager
def collected(errors: list[str]) -> Iterator[None]:
    """Inside, what a :class:`ConfigError` says goes to ``errors``."""
    try:
        yield
    except ConfigError as error:
        errors += error.problems


@dataclass(frozen=True)
class Config:
    """The settings of ``cfg/default.yaml``, checked."""

    teacher: str | list[str]
    """A file; or several, of which the features of the first are compared."""
    teacher_imgsz: int | None
    classes_map: Any
    """A file that maps the teacher's class names to the student's, or what it says; None without one."""
    weights: Mapping[str, float]
    """Weight of every term, in column order."""
    balance: str
    cap: float
    floor: float
    ramp: float
    fade: float
    give_way: float
    """Lead of the student, as a part of the teacher's AP, at which the terms have given way; 0 is never."""
    variant: str
    teacher_cache: str | None
    views: int
    cache_limit: float
    unlabelled: list[str] | None
    """Folders, lists and globs of images without labels; None where there are none."""
    unlabelled_share: float
    unlabelled_precision: float
    pseudo: bool
    cuda_graphs: bool
    trust: bool

    @property
    def distils(self) -> bool:
        """Whether any term is on."""
        return any(self.weights.values())


def folder(name: str) -> Path:
    """The project's data folder ``cfg`` or ``datasets``: inside the installed package, or beside it in a checkout."""
    here = Path(__file__).resolve().parent
    return next((path for path in (here / name, here.parent / name) if path.is_dir()), here / name)


_FILE = (folder("cfg") / "default.yaml").read_text(encoding="utf-8")
DEFAULTS: dict[str, Any] = yaml.safe_load(_FILE)
"""Our keys and their defaults, from ``cfg/default.yaml``."""

KEPT = {key: value for key, value in DEFAULTS.items() if key != "trust"}
"""Those that a run writes into its files. A run is trusted by whoever starts it, each time."""

TERMS = tuple(re.findall(r"^(\w+):.*# \(float\) share ", _FILE, flags=re.MULTILINE))
"""The loss terms, in the order of their columns: the keys of that file whose comment says that they are a share."""

TIMM = "timm:"
"""What ``teacher=`` begins with where it names a model of timm's: it has no detection head."""

_OF_HEADLESS: dict[str, Any] = {"drd": 1.0}
_OF_RANDOM: dict[str, Any] = {"ded": 4.0}
_OF_VARIANT: dict[Any, dict[str, Any]] = {
    "paper": {"balance": "fixed", "drd": 1.0, "ded": 1.0, "crd": 1.0, "give_way": 0}
}


def with_variant(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a user gave, over the settings that belong to the ``variant`` among it, to a teacher without a head, or to a
    student that starts from random weights.
    """
    variant = given.get("variant")
    own = _OF_VARIANT.get(variant, {}) if isinstance(variant, str) else {}
    headless = any(file.startswith(TIMM) for file in teachers(given.get("teacher")))
    random = from_random(given.get("model"), given.get("pretrained"))
    return {**(_OF_HEADLESS if headless else {}), **(_OF_RANDOM if random else {}), **own, **given}


def from_random(model: Any, pretrained: Any) -> bool:
    """Whether a student starts from random weights, by Ultralytics' ``model=`` and ``pretrained=``.

    A ``.pt`` that ``pretrained=`` names is read in any case, and with ``pretrained=False`` no other is. A YAML brings
    no weights; a backbone of timm's has its own, and what comes after it has none.
    """
    if isinstance(pretrained, (str, Path)) and Path(pretrained).suffix.lower() == ".pt":
        return False
    return pretrained is False or str(model or "").endswith((".yaml", ".yml"))


def problems(values: Mapping[str, Any]) -> list[str]:
    """What is wrong with the values of our keys, or with Ultralytics' beside them, one sentence each."""
    return [
        *_refused(values),
        *_weights(values),
        *_choices(values),
        *_limits(values),
        *_caching(values),
        *trust_problems(values),
        *_graphs(values),
        *lengths(values),
        *_teacher_size(values),
        *_teacher(values),
        *unlabelled_problems(values),
        *_classes_map(values["classes_map"]),
    ]


def _refused(values: Mapping[str, Any]) -> list[str]:
    """Ultralytics' arguments that exclude a teacher."""
    errors = [sentence for key, sentence in _REFUSED.items() if values.get(key)]
    if str(values.get("quantize")) == "8":
        errors.append("quantize: training with int8 quantisation (8) is not supported while distilling; leave it off.")
    if values.get("task") not in (None, *TASKS):
        errors.append(f"task: only {', '.join(TASKS[:-1])} and {TASKS[-1]} can be distilled, got {values['task']!r}.")
    return errors


def _weights(values: Mapping[str, Any]) -> list[str]:
    return [
        f"{term}: must be a finite number >= 0, got {values[term]!r} (0 switches the term off)."
        for term in TERMS
        if not _number(values[term]) or not 0 <= values[term] <= _MOST
    ]


def _choices(values: Mapping[str, Any]) -> list[str]:
    return [
        f"{key}: must be one of {', '.join(choices)}, got {values[key]!r}."
        for key, choices in _CHOICES.items()
        if values[key] not in choices
    ]


def trust_problems(values: Mapping[str, Any]) -> list[str]:
    """What is wrong with ``trust``, where it is given."""
    given = values.get("trust", False)
    return [] if isinstance(given, bool) else [f"trust: must be True or False, got {given!r}."]


def _graphs(values: Mapping[str, Any]) -> list[str]:
    given = values["cuda_graphs"]
    return [] if isinstance(given, bool) else [f"cuda_graphs: must be True or False, got {given!r}."]


def _teacher_size(values: Mapping[str, Any]) -> list[str]:
    """What is wrong with the size at which the teacher sees the images, or with what stands beside it."""
    size: Any = values["teacher_imgsz"]
    if size in (None, False, ""):
        return []
    if not isinstance(size, int) or size < 32 or size % 32:
        return [f"teacher_imgsz: must be a whole number of pixels, a multiple of 32, got {size!r}."]
    own = values.get("imgsz", 640)
    if isinstance(own, int) and size < own:
        return [f"teacher_imgsz: must be at least imgsz={own}, got {size}; leave it out where the two are equal."]
    beside = {
        "multi_scale": "changes the size of the images in every step",
        "rect": "gives images that are not square",
    }
    problems = [f"teacher_imgsz: {key}= {why}; drop one of the two." for key, why in beside.items() if values.get(key)]
    if values["variant"] == "paper":
        problems.append("teacher_imgsz: variant=paper compares maps as they are; drop one of the two.")
    return problems


def teachers(given: Any) -> list[str]:
    """The files in ``teacher=``: one, or several in a list or between brackets."""
    if isinstance(given, str) and given.startswith("[") and given.endswith("]"):
        given = [word.strip(" '\"") for word in given[1:-1].split(",")]
    return [str(file) for file in given] if isinstance(given, (list, tuple)) else [str(given)]


def sources(given: Any) -> list[str]:
    """The folders, lists and globs in ``unlabelled=``; none where it is empty or False."""
    return teachers(given) if given not in (None, False, "") else []


def unlabelled_problems(values: Mapping[str, Any]) -> list[str]:
    """What is wrong with the settings of images without labels, or with what stands beside them."""
    share, precision, given = values["unlabelled_share"], values["unlabelled_precision"], values["unlabelled"]
    errors = []
    if not _number(share) or not 0 < share < 1:
        errors.append(f"unlabelled_share: must be a part of the batch between 0 and 1, got {share!r}.")
    if not _number(precision) or not 0 < precision <= 1:
        errors.append(f"unlabelled_precision: must be above 0 and at most 1, got {precision!r}.")
    if not isinstance(values["pseudo"], bool):
        errors.append(f"pseudo: must be True or False, got {values['pseudo']!r}.")
    if given is True or not isinstance(given, (str, Path, list, tuple, bool, type(None))) or "" in sources(given):
        return [*errors, f"unlabelled: must be a folder, a .txt list, a glob or several of them, got {given!r}."]
    return [*errors, *_beside_unlabelled(values)] if sources(given) else errors


def _beside_unlabelled(values: Mapping[str, Any]) -> list[str]:
    errors = []
    batch: Any = values.get("batch")
    if batch == 1:
        errors.append("unlabelled: a batch holds images of both kinds, and batch=1 has room for one; raise batch.")
    if values["variant"] == "paper":
        errors.append("unlabelled: variant=paper needs the labels of every image; drop one of the two.")
    if values.get("rect"):
        errors.append("unlabelled: rect= gives labelled images shapes that others do not have; drop one of the two.")
    return errors


def teacher_problems(given: Any) -> list[str]:
    """What is wrong with ``teacher``, before any file is looked at."""
    if given is None or given == "":
        return [
            "teacher: missing; give teacher=FILE.pt, a larger detector trained on the same classes "
            "(to train without a teacher, use Ultralytics' own 'yolo train')."
        ]
    entries = given if isinstance(given, (list, tuple)) else [given]
    if wrong := [entry for entry in entries if not isinstance(entry, (str, Path))]:
        return [f"teacher: must be the path of a checkpoint, got {type(wrong[0]).__name__}; save the model first."]
    files = teachers(given)
    if "" in files or not files or len({*files}) < len(files):
        return [f"teacher: must be a file, or a list of different ones such as [a.pt,b.pt], got {given!r}."]
    return []


def _teacher(values: Mapping[str, Any]) -> list[str]:
    """What is wrong with ``teacher``, or with what stands beside several: they teach together by responses."""
    problems = teacher_problems(values["teacher"])
    if problems or len(teachers(values["teacher"])) == 1:
        return problems
    if values["crd"] == 0:
        problems.append("teacher: several teach together by CRD, and crd=0 leaves the first alone; give one of them.")
    if values["variant"] == "paper":
        problems.append("teacher: variant=paper has one teacher; give one of them.")
    return problems


def _classes_map(given: Any) -> list[str]:
    if given is None or given is False or isinstance(given, (str, Path, Mapping)):
        return []
    return [f"classes_map: must be a YAML file, or a mapping of the teacher's class names, got {given!r}."]


def _limits(values: Mapping[str, Any]) -> list[str]:
    """What is wrong with the balance's numbers."""
    most = {"cap": _MOST, "floor": _MOST, "ramp": _MOST, "give_way": _MOST, "fade": 1.0}
    errors = []
    for key, limit in most.items():
        if not _number(values[key]) or not 0 <= values[key] <= limit:
            words = "a fraction between 0 and 1" if limit == 1 else "a finite number >= 0"
            errors.append(f"{key}: must be {words}, got {values[key]!r}.")
    if not errors and not values["floor"] <= values["cap"]:
        errors.append(f"floor: must not be above cap={values['cap']!r}, got {values['floor']!r}.")
    return errors


def _caching(values: Mapping[str, Any]) -> list[str]:
    """What is wrong with the teacher's cache, or with what stands beside it."""
    where, errors = values["teacher_cache"], _sizes(values["views"], values["cache_limit"])
    if where not in (None, False, "", "ram", "disk"):
        return [*errors, f"teacher_cache: must be ram, disk or empty, got {where!r}."]
    if where:
        errors += [f"teacher_cache: {words}." for key, words in _UNCACHED.items() if values.get(key)]
        if values["variant"] == "paper":
            errors.append("teacher_cache: variant=paper reads the teacher's maps as they are; leave it off.")
    elif not errors and values["views"] != DEFAULTS["views"]:
        errors.append(
            f"views: views={values['views']!r} needs teacher_cache=ram or disk; add one of them, or leave views out."
        )
    return errors


def _sizes(views: Any, limit: Any) -> list[str]:
    errors = []
    if not isinstance(views, int) or isinstance(views, bool) or not 1 <= views <= MOST_VIEWS:
        errors.append(f"views: must be a whole number from 1 to {MOST_VIEWS}, got {views!r}.")
    if not _number(limit) or not 0 < limit <= _MOST:
        errors.append(f"cache_limit: must be a finite number of GB above 0, got {limit!r}.")
    return errors


_UNCACHED = {
    "multi_scale": "views are of one size and multi_scale changes it in every step; drop one of the two",
    "rect": "views are square and rect=True makes batches of many shapes; drop one of the two",
}


COMMANDS = "train", "val", "predict", "export", "check", "compare", "autolabel", "average", "convert", "demo"
"""First words of the command line."""


def unknown(word: str, keys: Iterable[str]) -> str:
    """The sentence for a word that is no argument."""
    near = difflib.get_close_matches(str(word), [*keys, *COMMANDS], n=1)
    hint = f"did you mean '{near[0]}'?" if near else "see 'tskd-yolo help'."
    return f"{word}: is not an argument; {hint}"


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def lengths(values: Mapping[str, Any]) -> list[str]:
    """Numbers with which Ultralytics would start a run that cannot be meant; wrong types are its own to tell."""
    errors = []
    epochs: Any = values.get("epochs")
    batch: Any = values.get("batch")
    imgsz: Any = values.get("imgsz")
    seed: Any = values.get("seed")
    if _number(epochs) and not epochs >= 1:
        errors.append(f"epochs: must be at least 1, got {epochs!r}.")
    if _number(batch) and batch != -1 and not (0 < batch < 1 or (batch >= 1 and batch == int(batch))):
        errors.append(
            f"batch: must be a whole number >= 1, -1 (as fits the GPU's memory) or a fraction of that memory "
            f"between 0 and 1, got {batch!r}."
        )
    devices = re.findall(r"[^\s,()\[\]]+", str(values.get("device")))
    if _number(batch) and batch < 1 and len(devices) > 1:
        errors.append(f"batch: must be a whole number for {len(devices)} devices, which share it, got {batch!r}.")
    if isinstance(imgsz, (list, tuple)):
        errors.append(f"imgsz: must be one number of pixels, got {imgsz!r}; give the longer side, i.e. imgsz=640.")
    elif "imgsz" in values and (type(imgsz) is not int or imgsz < 1):
        errors.append(f"imgsz: must be a whole number of pixels >= 1, got {imgsz!r}.")
    if type(seed) is int and not 0 <= seed < 2**32:
        errors.append(f"seed: must be from 0 to {2**32 - 1}, got {seed!r}.")
    return errors


def build(values: Mapping[str, Any]) -> Config:
    """Checked settings from a mapping that holds at least our keys.

    Raises:
        ConfigError: If anything is wrong, naming all of it.
    """
    if errors := problems(values):
        raise ConfigError(errors)
    files = teachers(values["teacher"])
    return Config(
        teacher=files[0] if len(files) == 1 else files,
        teacher_imgsz=values["teacher_imgsz"] or None,
        classes_map=values["classes_map"] or None,
        balance=values["balance"],
        **{key: float(values[key]) for key in ("cap", "floor", "ramp", "fade", "give_way")},
        variant=values["variant"],
        teacher_cache=values["teacher_cache"] or None,
        views=values["views"],
        cache_limit=float(values["cache_limit"]),
        unlabelled=sources(values["unlabelled"]) or None,
        unlabelled_share=float(values["unlabelled_share"]),
        unlabelled_precision=float(values["unlabelled_precision"]),
        pseudo=values["pseudo"],
        cuda_graphs=values["cuda_graphs"],
        trust=values["trust"],
        weights={term: float(values[term]) for term in TERMS},
    )
