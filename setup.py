"""Packaging of tskd-yolo; the checks' settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
README = ROOT / "README.md"

DATA = ["*.yaml", "*.md", "**/*.yaml", "**/*.md"]
EXTRAS = {
    "test": [
        "build",
        "hypothesis",
        "mypy",
        "pytest",
        "pytest-timeout",
        "pytest-xdist",
        "ruff",
        "tensorboard",
        "types-PyYAML",
    ],
    "all": [
        "faster-coco-eval",
        "onnx",
        "onnxruntime",
        "onnxslim",
        "ray",
        "tensorboard",
    ],
}


def version() -> str:
    """Return `__version__` of the package without importing it, and with it torch."""
    text = (ROOT / "tskd_yolo" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__\s*=\s*"([^"]+)"', text, flags=re.MULTILINE)
    if match is None:
        raise RuntimeError('tskd_yolo/__init__.py has no line __version__ = "..."')
    return match[1]


setup(
    name="tskd-yolo",
    version=version(),
    description="Triple semantic-aware knowledge distillation for industrial defect detection, inside Ultralytics",
    long_description=README.read_text(encoding="utf-8") if README.is_file() else "",
    long_description_content_type="text/markdown",
    license="AGPL-3.0",
    license_files=["LICENSE"],
    keywords=["knowledge distillation", "object detection", "defect detection", "YOLO", "Ultralytics"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Manufacturing",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    # cfg/ and datasets/ stand at the top of the repository and travel inside the package.
    packages=[*find_packages(include=["tskd_yolo", "tskd_yolo.*"]), "tskd_yolo.cfg", "tskd_yolo.datasets"],
    package_dir={"tskd_yolo": "tskd_yolo", "tskd_yolo.cfg": "cfg", "tskd_yolo.datasets": "datasets"},
    package_data={
        "tskd_yolo": ["py.typed"],
        "tskd_yolo.compare": ["templates/*"],
        "tskd_yolo.cfg": DATA,
        "tskd_yolo.datasets": DATA,
    },
    include_package_data=False,
    zip_safe=False,
    install_requires=[
        "torch>=2.6",
        "torchvision",
        "ultralytics>=8.4.190,<8.5",
        "timm",
        "opencv-python",
        "pyyaml",
        "pycocotools",
        "defusedxml",
        "cloudpickle>=3.1.1",
        "filelock",
        "jinja2",
        "markupsafe",
        "scipy",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["tskd-yolo = tskd_yolo.cli:main"]},
)
