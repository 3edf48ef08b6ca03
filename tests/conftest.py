"""Made before Ultralytics is imported: no test uses the network, or reads or writes what is the user's."""

import atexit
import json
import os
import shutil
import tempfile
from pathlib import Path

# Set before torch is imported. With more threads than idle cores a pass of a tiny model takes a hundred times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import matplotlib
import pytest

HOME = Path(tempfile.mkdtemp(prefix="tskd-test-"))
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

# Ultralytics downloads these two fonts unless they are here.
CONFIG.mkdir()
for font in ("Arial.ttf", "Arial.Unicode.ttf"):
    shutil.copy(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), CONFIG / font)

# Ultralytics reads its folders from this file once, while it is imported; it drops unknown keys and adds missing ones.
(CONFIG / "settings.json").write_text(json.dumps(SETTINGS), encoding="utf-8")


@pytest.fixture(scope="session", autouse=True)
def ultralytics_settings() -> None:
    """Hold the settings above, whatever this version of Ultralytics made of the file."""
    from ultralytics import settings

    settings.update({key: value for key, value in SETTINGS.items() if key in settings})
