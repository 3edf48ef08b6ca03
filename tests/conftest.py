"""Made before Ultralytics is imported: no test uses the network, or reads or writes what is the user's."""

import atexit
import gc
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

# Set before torch is imported. With more threads than idle cores a pass of a tiny model takes a hundred times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Set before matplotlib is imported, which keeps a list of fonts there.
os.environ["MPLCONFIGDIR"] = tempfile.mkdtemp(prefix="tskd-test-")

import hypothesis
import matplotlib
import pytest

from tests.shared import Shared

HOME = Path(os.environ["MPLCONFIGDIR"])
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
CONFIG = HOME / "Ultralytics"  # the folder that Ultralytics uses inside YOLO_CONFIG_DIR
INTEGRATIONS = ("clearml", "comet", "dvc", "hub", "mlflow", "neptune", "raytune", "tensorboard", "wandb")
SETTINGS = {
    "datasets_dir": str(HOME / "datasets"),
    "weights_dir": str(HOME / "weights"),
    "runs_dir": str(HOME / "runs"),
    "sync": False,
    "vscode_msg": False,
    **dict.fromkeys(INTEGRATIONS, False),
}

# Subprocesses of a test inherit these.
os.environ["YOLO_CONFIG_DIR"] = str(HOME)
os.environ.setdefault("YOLO_OFFLINE", "1")
os.environ.setdefault("YOLO_AUTOINSTALL", "0")
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # onnxruntime would report home, and keep what it reports in the user's cache
os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(HOME / "hypothesis")
os.environ["IPYTHONDIR"] = str(HOME / "ipython")

# The same examples every time; what is by hand and long draws its own.
hypothesis.settings.register_profile("tests", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("tests")

# Ultralytics downloads these two fonts unless they are here.
CONFIG.mkdir()
for font in ("Arial.ttf", "Arial.Unicode.ttf"):
    shutil.copy(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), CONFIG / font)

# Ultralytics reads its folders from this file once, while it is imported; it drops unknown keys and adds missing ones.
(CONFIG / "settings.json").write_text(json.dumps(SETTINGS), encoding="utf-8")


def pytest_collection_finish() -> None:
    """Takes what the imports made out of the garbage collector, which looked at all of it again and again: a tenth of
    the time of a test.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def ultralytics_settings() -> None:
    """Hold the settings above, whatever this version of Ultralytics made of the file."""
    from ultralytics import settings

    settings.update({key: value for key, value in SETTINGS.items() if key in settings})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole runs come first: of several workers, each then fills with short tests what is left of the time."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


# Shared by all tests, which only read them ----------------------------------------------------------------------------


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """Makes files once per session; at its end they have to be what they were."""
    root = tmp_path_factory.getbasetemp()  # of several workers each has one of its own, below that of the session
    files = Shared((root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "shared")
    yield files
    assert files.changed() == [], "a test changed what all tests share"


@pytest.fixture(scope="session")
def files(shared: Shared) -> Path:
    """A folder with ``tiny.yaml`` and ``teacher.pt``, see below."""
    from tests.helpers import make_detector, scanned_data

    def make(folder: Path) -> None:
        scanned_data(folder)
        make_detector(folder / "teacher.pt")

    return shared("files", make)


@pytest.fixture(scope="session")
def data(files: Path) -> Path:
    """The YAML of a drawn data set of 8 images to train and 4 to validate on."""
    return files / "tiny.yaml"


@pytest.fixture(scope="session")
def teacher(files: Path) -> Path:
    """A YOLO11s that knows the classes of the data."""
    return files / "teacher.pt"


@pytest.fixture(scope="session")
def few(shared: Shared) -> Path:
    """The same of 4 and 2 images."""
    from tests.helpers import scanned_data

    return shared("few", lambda folder: scanned_data(folder, train=4, val=2)) / "tiny.yaml"


@pytest.fixture(scope="session")
def detector(shared: Shared) -> Callable[..., Path]:
    """Gives the checkpoint of a detector with random weights; arguments as of ``make_detector``."""
    from tests.helpers import NAMES, make_detector

    def give(model: str = "yolo11s.yaml", names: Any = NAMES, seed: int = 7, channels: int = 3) -> Path:
        told = [*([] if names == NAMES else names), *([] if channels == 3 else [f"{channels} channels"])]
        name = "-".join([Path(model).stem, *told, str(seed)])
        return shared(f"{name}.pt", lambda file: make_detector(file, model, names, seed, channels))

    return give


@pytest.fixture(scope="session")
def loaded(teacher: Path) -> Any:
    """What loading the teacher gives."""
    from tskd_yolo import compat

    return compat.load(teacher, key="teacher")


@pytest.fixture
def at_hand(teacher: Path, loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where something else is looked at, the teacher need not be read from its file each time."""
    from tskd_yolo import compat

    load = compat.load

    def read(path: Any, *, key: str) -> Any:
        return deepcopy(loaded) if Path(path).resolve() == teacher.resolve() else load(path, key=key)

    monkeypatch.setattr(compat, "load", read)


@pytest.fixture
def no_end() -> Iterator[None]:
    """Runs of this test are through after their last epoch (see ``without_end``)."""
    from tests.helpers import without_end

    with without_end():
        yield


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs of a comparison are done here and not by workers: that spares each the start of a process.

    One at a time, since what one of them draws at random would be missing in another.
    """
    from tskd_yolo.compare import runner, worker

    functions = {"train": worker.train, "teacher": worker.judge_teacher, "latency": worker.latency}
    turn = threading.Lock()

    def order(plan: Any, name: Any, job: dict[str, Any]) -> bool:
        given = json.loads(json.dumps({**job, "folder": str(plan.folder(name))}))
        with turn:
            functions[given.pop("kind")](**given)
        return True

    monkeypatch.setattr(runner, "order", order)
