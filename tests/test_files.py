"""Files that are replaced in one step, and the rows of results.csv."""

from __future__ import annotations

from tskd_yolo import files


def test_columns_that_are_new_are_nan_in_rows_that_are_there(tmp_path):
    csv = tmp_path / "results.csv"
    csv.write_text("epoch,time,share/drd,lr\n1,2.5,0.1,0.01\n2,5,0.2,0.02\n")
    assert files.set_columns(csv, ["epoch", "time", "lr", "share/drd(neck)"]) == ["share/drd"]
    assert csv.read_text() == "epoch,time,lr,share/drd(neck)\n1,2.5,0.01,nan\n2,5,0.02,nan\n"
    assert files.set_columns(csv, ["epoch", "time", "lr", "share/drd(neck)"]) == []


def test_a_file_that_fits_is_left_as_it_is(tmp_path):
    csv = tmp_path / "results.csv"
    csv.write_text("epoch,time,lr\n1,2.5,0.01\n")
    before = csv.stat().st_mtime_ns
    assert files.set_columns(csv, ["epoch", "time", "lr"]) == [] and csv.stat().st_mtime_ns == before
