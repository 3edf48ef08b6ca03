"""With YOLO_OFFLINE=1 and local files nothing asks the network for anything: not a font, not a version, not a name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import NAMES, make_detector, settings, tiny_data

CODE = """
import json, socket, sys
asked = []
def refuse(*arguments, **_):
    asked.append(repr(arguments))
    raise OSError("no network")
for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, refuse)
for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "create_connection"):
    setattr(socket, name, refuse)
if len(sys.argv) == 1:  # that the trap works
    import urllib.request
    try:
        urllib.request.urlopen("http://localhost:9")
    except OSError:
        pass
for words in json.loads(sys.stdin.read()):
    from tskd_yolo.cli import main
    sys.argv[1:] = words
    assert main(words) == 0, words
import threading
for thread in threading.enumerate():
    if thread is not threading.current_thread() and not thread.daemon:
        thread.join(10)
print("asked", asked)
"""


def asked(folder: Path, commands: list[list[str]], *more: str) -> str:
    """Runs commands as a user whose machine has never seen Ultralytics, and gives what was asked of the network."""
    import json

    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "ULTRALYTICS"))}
    environment |= {"YOLO_CONFIG_DIR": str(folder / "config"), "YOLO_OFFLINE": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    (folder / "config").mkdir()
    (folder / "cwd").mkdir()
    result = subprocess.run(
        [sys.executable, "-c", CODE, *more], input=json.dumps(commands), capture_output=True, text=True,
        env=environment, cwd=folder / "cwd",
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout.strip().splitlines()[-1]


def test_the_trap_notices_a_request(tmp_path):
    assert "localhost" in asked(tmp_path, [])


@pytest.mark.slow
def test_train_val_and_predict_ask_for_nothing(tmp_path):
    last = "Riß 裂纹"  # names beyond ASCII ask for a second font
    names = (*NAMES[:-1], last)
    data = tiny_data(tmp_path, train=4, val=2)
    data.write_text(data.read_text(encoding="utf-8").replace(NAMES[-1], last), encoding="utf-8")
    teacher = make_detector(tmp_path / "teacher.pt", "yolo11n.yaml", names=names)
    train = settings(tmp_path / "runs", data, teacher=teacher, plots=True)
    shared = dict(model=tmp_path / "runs" / "run" / "weights" / "best.pt", imgsz=64, device="cpu", project=tmp_path)
    commands = [
        ["train", *(f"{key}={value}" for key, value in train.items())],
        ["val", *(f"{key}={value}" for key, value in shared.items()), f"data={data}", "plots=False"],
        [
            "predict",
            *(f"{key}={value}" for key, value in shared.items()),
            f"source={tmp_path / 'set/images/val'}",
            "save=True",
        ],
    ]
    assert asked(tmp_path, commands, "quiet") == "asked []"
    assert (tmp_path / "runs" / "run" / "results.png").is_file() and (tmp_path / "predict").is_dir()
