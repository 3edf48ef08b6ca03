"""What the folder of one run says, also of one that was interrupted or is cut off."""

from __future__ import annotations

import pytest

from tskd_yolo.compare.runs import curves, history, prepare_to_resume


def test_the_parts_of_an_interrupted_run_are_added_up(tmp_path):
    lines = ["epoch,time,loss", "1,10,3", "2,20,2", "2,11,2.5", "3,21,1"]
    (tmp_path / "results.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "resumed.json").write_text('{"seconds": 20, "rows": [[1, 10], [2, 20]]}')
    assert history(tmp_path) == (3, 41.0, True)
    assert curves(tmp_path)["loss"] == [3, 2.5, 1], "the epoch that was repeated stands once"


@pytest.mark.parametrize("end", ["2,", "2,20,", "2,20,2", "2,20,3,20,1.5\n", "2,,2\n", ""])
def test_a_line_of_results_that_is_not_whole_is_left_out(end, tmp_path):
    (tmp_path / "results.csv").write_text("epoch, time,loss\n1,10,3\n" + end)
    assert history(tmp_path) == (1, 10.0, False) and curves(tmp_path) == {"epoch": [1], "time": [10], "loss": [3]}


def test_a_cut_line_does_not_spoil_the_one_that_follows(tmp_path):
    file = tmp_path / "results.csv"
    file.write_text("epoch,time\n1,10\n2,2")
    prepare_to_resume(tmp_path)
    with open(file, "a") as lines:
        lines.write("2,11\n")
    assert history(tmp_path) == (2, 21.0, True)
