"""What the tests of comparisons ask for."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from tests.helpers import copied_data, settings


def own_files(files: Path, root: Path) -> Path:
    """The folder with a data set that a test may change, beside the teacher of all."""
    copied_data(files / "tiny.yaml", root)
    (root / "teacher.pt").symlink_to(files / "teacher.pt")
    return root


def asked(files: Path, out: Path, **more: Any) -> dict[str, Any]:
    """Arguments of a comparison of tiny runs."""
    base = settings(out, files / "tiny.yaml", teacher=str(files / "teacher.pt"))
    for key in ("project", "name", "exist_ok", "seed"):
        del base[key]
    return {**base, "out": str(out), "arms": "plain,tskd", "seeds": 1, **more}


def words(values: dict[str, Any]) -> list[str]:
    """The same as words of the command line."""
    return ["compare", *(f"{key}={value}".replace(" ", "") for key, value in values.items())]


def add_test_split(root: Path) -> None:
    """Gives the data set of :func:`own_files` a test split: those of val turned, so that no file is there twice."""
    for kind in ("images", "labels"):
        shutil.copytree(root / "set" / kind / "val", root / "set" / kind / "test")
        for file in (root / "set" / kind / "test").iterdir():
            file.rename(file.with_name(f"test_{file.name}"))
    for image in (root / "set" / "images" / "test").iterdir():
        with Image.open(image) as opened:
            turned = opened.rotate(180)
        turned.save(image)
    file = root / "tiny.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), "test": "images/test"}), encoding="utf-8")
