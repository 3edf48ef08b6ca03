"""Replayed terms give what computed ones do. A CPU has no graphs: here a function that is run again stands for one."""

from __future__ import annotations

import pytest
import torch
from torch.utils import _pytree as pytree

from tests.distill.helpers import make, make_batch, make_student, step
from tskd_yolo.distill import recording
from tskd_yolo.distill.recording import FORMS, ROOM, WARM, Recorder
from tskd_yolo.losses.boxes import Boxes, covered, padded, slots
from tskd_yolo.losses.standardize import standardize


class Captures:
    """Records a function as a graph does: what is run again reads and writes the same tensors."""

    def __init__(self) -> None:
        self.made = self.replayed = 0

    def __call__(self, function):
        outputs, self.made = function(), self.made + 1
        for x in pytree.tree_leaves(outputs):
            if x is not None:
                x.fill_(float("nan"))  # recording a graph computes nothing

        def replay() -> None:
            self.replayed += 1
            for place, x in zip(pytree.tree_leaves(outputs), pytree.tree_leaves(function()), strict=True):
                if place is not None:
                    place.copy_(x)

        return outputs, replay


def gradients(student, distiller) -> dict[str, torch.Tensor]:
    named = [*student.named_parameters(), *distiller.learned.named_parameters()]
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


def steps(student, distiller, batches) -> list[tuple[dict, dict]]:
    """Items and gradients of every step."""
    found = []
    for batch in batches:
        for module in (student, distiller.learned):
            module.zero_grad()
        vector, items = step(distiller, student, batch)
        vector.sum().backward()
        found.append(({k: v.detach().clone() for k, v in items.items()}, gradients(student, distiller)))
    return found


def pair_of_runs(file, batches, model="yolo11n.yaml", **settings):
    """The same steps computed and replayed, and the captures."""
    captures, runs = Captures(), []
    for recorder in (None, Recorder(captures, devices=["cpu"])):
        student = make_student(model)
        distiller = make(student, file, **settings)
        distiller.recorder = recorder
        runs.append(steps(student, distiller, batches))
    return *runs, captures


def assert_same(computed, replayed) -> None:
    for (items, grads), (others, other_grads) in zip(computed, replayed, strict=True):
        torch.testing.assert_close(items, others)
        assert grads.keys() == other_grads.keys()
        ours, theirs = (torch.cat([g[name].flatten() for name in grads]) for g in (grads, other_grads))
        assert (ours - theirs).norm() <= 1e-5 * ours.norm()  # some gradients are 0 but for rounding


@pytest.mark.slow
@pytest.mark.parametrize("balance", ["fixed", "share"])
@pytest.mark.parametrize(
    ("model", "kind", "variant"),
    [("yolo11n.yaml", "11s", "default"), ("yolo26n.yaml", "26s", "default"), ("yolo11n.yaml", "11s", "hints")],
)
def test_replayed_steps_are_those_that_are_computed(files, model, kind, variant, balance):
    batches = [make_batch(boxes=count) for count in (3, 0, 1, 64, 5)]
    computed, replayed, captures = pair_of_runs(files[kind], batches, model, balance=balance, variant=variant)
    assert captures.made == 1 and captures.replayed == len(batches) - WARM
    assert_same(computed, replayed)


def test_no_gradient_accumulator_of_a_step_is_recorded(files):
    """Of an earlier step, it belongs to another stream than the one that records: CUDA refuses."""
    student, found = make_student(), []
    distiller = make(student, files["11s"])
    learned = {id(p) for p in distiller.learned.parameters()}
    assert learned

    class Watching(Captures):
        def __call__(self, function):
            ask = torch.autograd.grad
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(torch.autograd, "grad", lambda y, x, **more: (found.extend(x), ask(y, x, **more))[1])
                return super().__call__(function)

    distiller.recorder = Recorder(Watching(), devices=["cpu"])
    steps(student, distiller, [make_batch()] * (WARM + 2))
    places = {p.data_ptr() for p in distiller.learned.parameters()}
    assert any(x.data_ptr() in places for x in found)  # adapters of the towers
    assert not any(id(x) in learned for x in found)
    assert {id(p) for p in distiller.learned.parameters()} == learned


def test_a_term_that_reaches_nothing_is_recorded_too(files, monkeypatch):
    """What is wrong with it is said after the first epoch."""

    def frozen(model, make=make_student):
        student = make(model)
        student.model[:-1].requires_grad_(False)
        return student

    monkeypatch.setitem(globals(), "make_student", frozen)
    batch = make_batch()
    computed, replayed, captures = pair_of_runs(files["11s"], [batch] * 4, balance="fixed")
    assert captures.made == 1 and captures.replayed == 2
    assert_same(computed, replayed)
    assert replayed[-1][0]["drd_loss"] > 0


@pytest.mark.slow
def test_maps_made_when_asked_for_are_made_once_a_step(files):
    asked, runs = [], []
    for recorder in (None, Recorder(captures := Captures(), devices=["cpu"])):
        student = make_student()
        distiller = make(student, files["11s"])
        distiller.recorder, look = recorder, distiller.teacher_outputs

        def later(*given, look=look, **more):
            outputs = look(*given, **more)
            maps = {
                name: [lambda x=x: (asked.append(1), standardize(x.clone()))[1] for x in maps]
                for name, maps in outputs.maps.items()
            }
            return outputs._replace(maps=maps)

        vars(distiller)["teacher_outputs"] = later
        asked.clear()
        runs.append((steps(student, distiller, [make_batch()] * 5), len(asked)))
    assert captures.made == 1 and runs[0][1] == runs[1][1] > 0
    assert_same(runs[0][0], runs[1][0])


@pytest.mark.slow
def test_a_form_is_recorded_after_it_has_come_up_a_few_times(files):
    many, few = make_batch(boxes=ROOM + 1), make_batch(boxes=ROOM)
    _, _, captures = pair_of_runs(files["11s"], [few, many, few, many])
    assert captures.made == 0
    computed, replayed, captures = pair_of_runs(files["11s"], [few, many, few, many, few, many])
    assert captures.made == captures.replayed == 2
    assert_same(computed, replayed)


@pytest.mark.slow
def test_there_are_never_more_recordings_than_a_few(files):
    forms = [make_batch(boxes=2, images=n) for n in range(1, FORMS + 3)]
    *_, captures = pair_of_runs(files["11s"], forms * (WARM + 1))
    assert captures.made == FORMS


@pytest.mark.slow
def test_class_weights_and_terms_that_go_are_followed(files):
    batch, runs = make_batch(), []
    for recorder in (None, Recorder(captures := Captures(), devices=["cpu"])):
        student = make_student()
        distiller = make(student, files["11s"])
        distiller.recorder = recorder
        found = steps(student, distiller, [batch] * 3)
        crd = next(term for term in distiller.terms if term.key == "crd")
        for weight in (0.5, 0.1):
            crd.weights = torch.tensor([weight, 1.0, 0.0])
            found += steps(student, distiller, [batch] * 3)
        del distiller.on["ded"]
        runs.append(found + steps(student, distiller, [batch] * 3))
    assert captures.made == 3  # without weights, with some, without DED
    assert_same(*runs)
    assert runs[1][-1][0]["ded_loss"] == 0 and runs[1][5][0]["crd_loss"] != runs[1][8][0]["crd_loss"]


@pytest.mark.slow
def test_what_is_not_finite_is_left_out_of_a_replayed_step(files):
    student = make_student()
    distiller = make(student, files["11s"])
    distiller.recorder = Recorder(Captures(), devices=["cpu"])
    batch = make_batch()
    steps(student, distiller, [batch] * 3)
    distiller.attach(student, batch["img"])
    for outputs in distiller.step.teacher.maps.values():
        for features in outputs:
            features.fill_(float("nan"))
    vector, items = student.loss(batch)
    assert [float(items[f"{key}_loss"]) > 0 for key in ("drd", "ded", "crd")] == [False, False, True]
    for module in (student, distiller.learned):
        module.zero_grad()
    vector[3:].sum().backward()
    assert all(p.grad.isfinite().all() for p in student.parameters() if p.grad is not None)
    assert distiller.monitor.nonfinite(list)["ded"].left_out == 1


@pytest.mark.slow
def test_terms_that_cannot_be_recorded_are_computed(files):
    computed, replayed, captures = pair_of_runs(files["11s"], [make_batch()] * 4, variant="paper")
    assert captures.made == 0
    assert_same(computed, replayed)


@pytest.mark.slow
def test_a_loss_of_ones_own_is_computed_beside_the_others(files):
    student = make_student()
    distiller = make(student, files["11s"])
    distiller.recorder = Recorder(captures := Captures(), devices=["cpu"])
    asked = []
    term = next(term for term in distiller.terms if term.key == "drd")
    term.recordable = False
    term.module[0].register_forward_hook(lambda *_: asked.append(1))
    steps(student, distiller, [make_batch()] * 5)
    assert len(asked) == 5 and captures.made == 1


def test_a_failure_is_said_once_and_the_run_goes_on(files, caplog):
    def fails(function):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    student = make_student()
    distiller = make(student, files["11s"])
    distiller.recorder = Recorder(fails, devices=["cpu"])
    found = steps(student, distiller, [make_batch()] * 5)
    assert all(items["ded_loss"] > 0 for items, _ in found)
    said = [r.message for r in caplog.records if "could not be recorded" in r.message]
    why = "operation not permitted when stream is capturing"
    assert said == [f"WARNING ⚠️ the terms of a step could not be recorded ({why}): they are launched one by one."]


@pytest.mark.slow
def test_nothing_is_recorded_elsewhere_or_without_gradient(files, monkeypatch):
    for devices, count in ((["cuda"], 1), (["cpu"], 2)):
        student = make_student()
        distiller = make(student, files["11s"])
        distiller.recorder = Recorder(captures := Captures(), devices=devices)
        monkeypatch.setattr(recording, "processes", lambda count=count: count)
        steps(student, distiller, [make_batch()] * 4)
        assert captures.made == 0
    monkeypatch.setattr(recording, "processes", lambda: 1)
    with torch.no_grad():
        for _ in range(4):
            step(distiller, student, make_batch())
    assert captures.made == 0


@pytest.mark.slow
def test_forgotten_recordings_are_made_anew(files):
    student = make_student()
    distiller = make(student, files["11s"])
    distiller.recorder = Recorder(captures := Captures(), devices=["cpu"])
    for _ in range(2):
        steps(student, distiller, [make_batch()] * (WARM + 1))
        distiller.recorder.forget()
    assert captures.made == 2


# Room for boxes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("count", [0, 1, 5, 8])
def test_boxes_that_fill_up_change_nothing(count, rotated, weighed):
    generator = torch.Generator().manual_seed(count)
    low = torch.rand(count, 2, generator=generator) * 40
    xyxy = torch.cat((low, low + 4 + torch.rand(count, 2, generator=generator) * 20), dim=1)
    turned = torch.cat((xyxy[:, :2] + 2, xyxy[:, 2:] - xyxy[:, :2], low[:, :1]), dim=1) if rotated else None
    image = torch.arange(count) * 2 // max(count, 1)
    boxes = Boxes(xyxy, image, 3, (64, 64), turned)
    if weighed:  # and two of the teacher's in the last image
        seen = torch.tensor([[8.0, 8, 30, 30], [20, 20, 60, 60]])
        turned = None if turned is None else torch.cat((turned, torch.tensor([[20.0, 20, 10, 6, 0.3]] * 2)))
        boxes = Boxes(
            torch.cat((xyxy, seen)), torch.cat((image, torch.tensor([2, 2]))), 3, (64, 64), turned,
            torch.cat((torch.ones(count), torch.tensor([0.7, 0.4]))), count,
        )  # fmt: skip
    filled = padded(boxes, 4)
    extra = 2 if weighed else 0
    assert len(filled.xyxy) == {0: 4, 1: 4, 5: 8, 8: 8}[count] + extra
    for step_of_cells in (1, 2):
        torch.testing.assert_close(covered(filled, 8, 8, step_of_cells), covered(boxes, 8, 8, step_of_cells))
    for most in (1, 2, 8):
        (these, valid), (those, other) = slots(filled, most), slots(boxes, most)
        torch.testing.assert_close((these.xyxy, these.image, valid), (those.xyxy, those.image, other))
        if rotated:
            torch.testing.assert_close(these.rotated, those.rotated)
