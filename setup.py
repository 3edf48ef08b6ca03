"""What pyproject.toml cannot say: cfg/ and datasets/ stand at the top of the repository and travel in the package."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["tskd_yolo", "tskd_yolo.*"]), "tskd_yolo.cfg", "tskd_yolo.datasets"],
    package_dir={"tskd_yolo": "tskd_yolo", "tskd_yolo.cfg": "cfg", "tskd_yolo.datasets": "datasets"},
)
