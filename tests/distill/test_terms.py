"""Terms: which maps of the two networks each reads, at which levels, and what those weigh."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.distill.helpers import make, make_batch, make_student, step
from tskd_yolo import config
from tskd_yolo.distill.distiller import Distiller


@pytest.mark.parametrize(("settings", "layers"), [({}, 1), (dict(variant="paper"), 2)], ids=["default", "paper"])
def test_the_cross_response_runs_through_one_layer_or_two(settings, layers, files):
    distiller = make(make_student(), files["11s"], **settings)
    (term,) = [term for term in distiller.terms if term.key == "crd"]
    assert [[len(tail.box), len(tail.score)] for tail in term.tails] == [[layers, layers]] * 3
    assert distiller.readers.head.entry_stage == distiller.teacher.reader.entry_stage == 2 - layers


def test_responses_alone_need_no_adapter_on_the_neck(files):
    distiller = make(make_student(), files["11s"], drd=0, ded=0)
    assert set(distiller.learned) == {"crd"}


def test_levels_are_paired_by_stride_and_the_rest_is_reported(files):
    student, batch = make_student("yolov8n-p2.yaml"), make_batch()
    distiller = make(student, files["11s"])
    assert distiller.match.strides == [8, 16, 32] and distiller.match.unpaired == [4]
    assert len(distiller.pairs("neck")) == 3
    vector, items = step(distiller, student, batch)
    vector.sum().backward()
    assert all(items[f"{t}_loss"] > 0 and items[f"{t}_loss"].isfinite() for t in ("drd", "ded", "crd"))


def test_evenly_spaced_channels_of_the_teacher_are_compared(files):
    student, batch = make_student(), make_batch()
    for settings, steps, widths in (
        ({}, [2, 4, 8], [64, 64, 64]),
        (dict(variant="paper"), [1, 1, 1], [128, 256, 512]),
    ):
        distiller = make(student, files["11s"], **settings)
        assert [pair.channel_step for pair in distiller.pairs("neck")] == steps
        assert ("neck" in distiller.learned) == (settings != {})  # DRD compares relations, which need no adapter
        cut, whole = distiller.teacher_outputs(batch["img"]).maps["neck"], distiller.teacher(batch["img"])
        assert [m.shape[1] for m in cut] == widths
        for found, stride, every in zip(cut, distiller.match.strides, steps, strict=True):
            assert torch.equal(found, whole[stride].features[:, ::every])
            assert found.untyped_storage().nbytes() == found.nbytes  # the rest is forgotten


def test_ded_compares_backbone_stages_or_in_the_paper_the_neck(files):
    student, batch = make_student(), make_batch()
    for settings, place, sizes in (
        ({}, "stages", [(64, 8), (64, 4), (64, 4)]),
        (dict(variant="paper"), "neck", [(128, 8), (256, 4), (512, 2)]),
    ):
        distiller = make(student, files["11s"], drd=0, crd=0, **settings)
        maps = distiller.teacher_outputs(batch["img"]).maps
        assert [(m.shape[1], m.shape[2]) for m in maps[place]] == sizes
        assert list(maps) == [place] and set(distiller.learned) == {place, "ded"}


def test_hints_stand_in_the_place_of_ded_on_the_same_maps(files):
    student, batch = make_student(), make_batch()
    distiller = make(student, files["11s"], variant="hints", drd=0, crd=0)
    plain = make(make_student(), files["11s"], drd=0, crd=0)
    assert distiller.pairs("stages") == plain.pairs("stages") and not distiller.pairs("neck")
    vector, items = step(distiller, student, batch)
    vector[-3:].sum().backward()
    assert items["ded_loss"] > 0 and items["drd_loss"] == items["crd_loss"] == 0
    assert student.model[0].conv.weight.grad.any()


def test_a_term_that_a_variant_does_not_have_is_an_error(files):
    student, teacher = make_student(), make(make_student(), files["11s"]).teacher
    settings = config.build({**config.DEFAULTS, "teacher": "t.pt"})
    settings = dataclasses.replace(settings, weights={**settings.weights, "not_drd": 1.0})
    with pytest.raises(ValueError, match="variant=default has no term not_drd; it has drd, ded, crd"):
        Distiller(student=student, teacher=teacher, config=settings, seed=0)
