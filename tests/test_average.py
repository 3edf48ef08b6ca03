"""Checkpoints made one: the mean of their weights, and a sentence where they have none."""

from __future__ import annotations

import pytest
import torch
from ultralytics import YOLO

from tests.helpers import NAMES
from tskd_yolo import compat, files
from tskd_yolo.average import average
from tskd_yolo.cli import main
from tskd_yolo.config import ConfigError


@pytest.fixture
def apart(detector):
    """Gives detectors of one architecture and different weights."""
    return lambda count: [detector("yolo11n.yaml", seed=seed) for seed in range(7, 7 + count)]


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_weights_and_statistics_are_the_mean(count, apart, tmp_path):
    given, out = apart(count), tmp_path / "new" / "mean.pt"
    assert main(["average", f"model=[{','.join(map(str, given))}]", f"out={out}"]) == 0
    states = [compat.load(file, key="model")[0].state_dict() for file in given]
    found, content = compat.load(out, key="model")
    for name, value in found.state_dict().items():
        mean = torch.stack([state[name].double() for state in states]).mean(dim=0)
        assert torch.allclose(value.double(), mean, rtol=2e-3, atol=1e-5), name  # it is kept in half precision
    name = "model.0.bn.running_mean"
    assert not torch.allclose(found.state_dict()[name], states[0][name], rtol=0.1)
    assert [row["sha256"] for row in content["averaged"]] == [files.digest(file) for file in given]
    assert content["epoch"] == -1 and content["train_args"]["imgsz"] == 64
    assert str(tmp_path).encode() not in out.read_bytes()


def test_the_mean_is_a_checkpoint_of_ultralytics(apart, tmp_path):
    out = average(model=apart(2), out=tmp_path / "mean.pt")
    loaded = YOLO(out)
    assert list(loaded.names.values()) == list(NAMES) and loaded.task == "detect"
    assert next(loaded.model.parameters()).dtype == torch.float32
    assert len(loaded.predict(torch.zeros(1, 3, 64, 64), device="cpu", verbose=False)) == 1


@pytest.mark.slow
def test_the_mean_of_equal_weights_is_these_weights(apart, tmp_path):
    (file,) = apart(1)
    copy = tmp_path / "copy.pt"
    copy.write_bytes(file.read_bytes())
    found, _ = compat.load(average(model=[file, copy], out=tmp_path / "mean.pt"), key="model")
    for name, value in compat.load(file, key="model")[0].state_dict().items():
        assert torch.equal(found.state_dict()[name], value.half().float() if value.is_floating_point() else value), name


@pytest.mark.slow
def test_all_that_is_wrong_is_told_and_nothing_is_left(apart, detector, tmp_path, capsys):
    first, second = apart(2)
    there, broken = tmp_path / "there.pt", tmp_path / "broken.pt"
    there.write_bytes(b"mine")
    content = torch.load(second, weights_only=False)
    content["model"].model[0].conv.weight.data[0] = float("nan")
    torch.save(content, broken)
    new, wide, others = tmp_path / "new.pt", detector(), detector("yolo11n.yaml", names=("cat", "dog"))
    swapped = detector("yolo11n.yaml", names=NAMES[::-1])
    cases: list[tuple[list[str], list[str]]] = [
        ([], ["model: give two different checkpoints or more", "out: missing; give out=FILE.pt"]),
        ([f"model={first}", f"out={there}"], ["such as [a.pt,b.pt], got '", "is there already, and nothing is over"]),
        ([f"model=[{first},{wide}]", f"out={there}"], ["has not the layers of", "is there already"]),
        ([f"model=[{first},{first.parent}/./{first.name}]", f"out={new}"], ["two different checkpoints"]),
        ([f"model=[{first},{first}]", "out=mean"], ["two different checkpoints", "out: must end in .pt, got mean."]),
        ([f"model=[{first},{second}]", f"out={new}", "imgsz=64", "trust=maybe"],
         ["imgsz: is not an argument", "trust: must be True or False"]),
        ([f"model=[{first},a.pt,b.pt]", f"out={new}"], ["a.pt was not found", "b.pt was not found"]),
        ([f"model=[{first},{wide},{others}]", f"out={new}"],
         [f"model: {wide} has not the layers of {first} (model.0.conv.weight is 32x3x3x3 and not 16x3x3x3); give",
          f"model: {others} has not the layers of"]),
        ([f"model=[{first},{swapped}]", f"out={new}"], ["has not the classes of", "in another order; give"]),
        ([f"model=[{broken},{second}]", f"out={new}"], [f"model: {broken} has weights that are not finite; leave it"]),
        ([f"model=[{first},{second}]", f"out={there / 'new.pt'}"], ["could not be written (", "give another"]),
    ]  # fmt: skip
    for arguments, sentences in cases:
        assert main(["average", *arguments]) == 1
        said = capsys.readouterr().err
        assert [words for words in sentences if words not in said] == [] and "Traceback" not in said, said
    assert {path.name for path in tmp_path.iterdir()} == {"there.pt", "broken.pt"} and there.read_bytes() == b"mine"


def test_an_unknown_key_is_told_from_python(apart):
    with pytest.raises(ConfigError, match="outt: is not an argument; did you mean 'out'"):
        average(model=apart(2), outt="mean.pt")
