"""What the folder of one run says, also of one that was interrupted or is cut off."""

from __future__ import annotations

import pytest

from tskd_yolo.compare.runs import curves, history, left_out, prepare_to_resume


def test_the_parts_of_an_interrupted_run_are_added_up(tmp_path):
    file = tmp_path / "results.csv"
    file.write_text("epoch,time,process_time,loss\n1,10,15,3\n2,20,31,2\n")
    for more in ("2,11,16,2.5\n3,21,30,1\n", "4,40,60,0.5\n"):
        prepare_to_resume(tmp_path)
        with open(file, "a") as lines:
            lines.write(more)
    assert history(tmp_path) == (4, (81.0, 121.0), True)
    found = curves(tmp_path)
    assert found["loss"] == [3, 2.5, 1, 0.5], "the epoch that was repeated stands once"
    assert found["time"] == [10, 31, 41, 81] and found["process_time"] == [15, 47, 61, 121], "from the very start"


@pytest.mark.parametrize("end", ["2,", "2,20,", "2,20,2", "2,20,3,20,1.5\n", "2,,2\n", ""])
def test_a_line_of_results_that_is_not_whole_is_left_out(end, tmp_path):
    (tmp_path / "results.csv").write_text("epoch, time,process_time\n1,10,3\n" + end)
    assert history(tmp_path) == (1, (10.0, 3.0), False)
    assert curves(tmp_path) == {"epoch": [1], "time": [10], "process_time": [3]}


def test_a_cut_line_does_not_spoil_the_one_that_follows(tmp_path):
    file = tmp_path / "results.csv"
    file.write_text("epoch,time,process_time\n1,10,1\n2,2")
    prepare_to_resume(tmp_path)
    with open(file, "a") as lines:
        lines.write("2,11,2\n")
    assert history(tmp_path) == (2, (21.0, 3.0), True)


def test_a_term_that_was_left_out_is_found(tmp_path):
    head = "epoch,time,process_time,left_out/drd,left_out/ded,left_out/crd"
    (tmp_path / "results.csv").write_text(f"{head}\n1,10,9,0,1,0\n2,20,18,0.5,1,0\n")
    assert left_out(tmp_path, {"drd": 1, "ded": 0, "crd": 1}) == {"drd": 0.25}, "ded has no weight"
    assert left_out(tmp_path, {"drd": 1, "ded": 4, "crd": 1}) == {"drd": 0.25, "ded": 1}
    assert left_out(tmp_path, {}) == {}
