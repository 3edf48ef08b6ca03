"""What a gradient share is, how shares are kept, and the schedule."""

from __future__ import annotations

import math

import pytest
import torch

from tskd_yolo.distill.balance import KEEP, Fixed, Gradients, Meter, Share, schedule


def losses(scale=1.0):
    """Two features, a detection loss and two terms on them, one of which works against it."""
    x, y = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 5, requires_grad=True)
    f, g = x * 1.0, y * 1.0
    detection = f.pow(2).sum() + g.sum()
    terms = {"with": scale * f.pow(2).sum(), "against": -f.pow(2).sum() - g.sum()}
    return (x, y), [f, g], detection, terms


def measured(meter, features, detection, terms):
    meter.measure(detection=detection, terms=terms, features=dict.fromkeys(terms, features))
    return meter.gradients


def test_it_measures_the_gradient_on_the_features():
    (x, y), features, detection, terms = losses(3.0)
    gradients = measured(Meter(), features, detection, terms)
    assert x.grad is None and y.grad is None  # nothing was trained by measuring
    square = (2 * features[0]).pow(2).sum()
    torch.testing.assert_close(gradients["with"].term, 9 * square)
    torch.testing.assert_close(gradients["with"].detection, square + 10)
    torch.testing.assert_close(gradients["against"].cosine, torch.tensor(-1.0))
    torch.testing.assert_close(gradients["with"].ratio, ((square + 10) / (9 * square)).sqrt())
    (detection + terms["with"]).backward()  # the graphs are as they were
    torch.testing.assert_close(x.grad, (1 + 3) * 2 * features[0].detach())


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e5])
def test_a_share_is_kept_whatever_the_scale_of_the_term(scale):
    _, features, detection, terms = losses(scale)
    share = Share({"with": 0.1}, floor=0.0, cap=1e30)
    factor = share("with", measured(Meter(), features, detection, terms)["with"])
    taught = torch.autograd.grad(factor * terms["with"], features[:1], retain_graph=True)[0].norm()
    torch.testing.assert_close(
        taught, 0.1 * torch.cat([g.flatten() for g in torch.autograd.grad(detection, features)]).norm()
    )


def test_cap_and_floor_hold_and_a_dead_term_is_not_blown_up():
    gradients = Gradients(*torch.tensor([1e-30, 1.0, 0.0]))
    assert Share({"a": 1.0}, floor=0.5, cap=7.0)("a", gradients) == 7.0
    assert Share({"a": 1.0}, floor=0.5, cap=7.0)("a", Gradients(*torch.tensor([1.0, 1e-30, 0.0]))) == 0.5
    assert Share({"a": 1.0}, floor=0.5, cap=7.0)("a", None) == 0.0
    assert Fixed({"crd": 0.25})("crd:one2one", gradients) == 0.25


def test_measurements_are_smoothed_without_those_not_finite():
    meter = Meter()
    _, features, detection, terms = losses()
    first = measured(meter, features, detection, terms)["with"].term.clone()
    _, features, detection, terms = losses(2.0)
    second = 4 * (2 * features[0]).pow(2).sum()
    torch.testing.assert_close(
        measured(meter, features, detection, terms)["with"].term, KEEP * first + (1 - KEEP) * second
    )
    before = torch.stack(meter.gradients["with"])
    _, features, detection, terms = losses(math.inf)
    assert torch.equal(torch.stack(measured(meter, features, detection, terms)["with"]), before)


def test_all_processes_get_the_sum_of_what_each_has_measured():
    meter = Meter(total=lambda found: found.mul_(2))
    _, features, detection, terms = losses()
    alone = measured(Meter(), features, detection, terms)["with"]
    together = measured(meter, features, detection, terms)["with"]
    torch.testing.assert_close(together.term, 2 * alone.term)
    torch.testing.assert_close(together.ratio, alone.ratio)


def test_the_detection_loss_is_walked_back_once_to_all_places():
    x, walks = torch.randn(3, requires_grad=True), []
    early = x.exp()
    late = early.sin()
    late.register_hook(walks.append)
    detection, terms = late.pow(2).sum() * 2, {"late": late.sum(), "early": early.sum(), "frozen": x.detach().sum()}
    meter = Meter()
    meter.measure(detection=detection, terms=terms, features={"late": [late], "early": [early], "frozen": [x.detach()]})
    assert len(walks) == 2  # of the detection loss, and of the term at the later place
    slope = 4 * late.detach()
    torch.testing.assert_close(meter.gradients["late"].detection, slope.pow(2).sum())
    torch.testing.assert_close(meter.gradients["early"].detection, (slope * early.detach().cos()).pow(2).sum())
    assert not any(meter.gradients["frozen"])


def test_what_is_frozen_has_no_gradient():
    features = [torch.randn(2, 3)]
    gradients = measured(Meter(), features, torch.ones((), requires_grad=True) * 1, {"a": torch.ones(())})
    assert gradients["a"].term == 0 and gradients["a"].cosine == 0


def test_a_meter_goes_on_from_its_state():
    meter = Meter()
    _, features, detection, terms = losses()
    measured(meter, features, detection, terms)
    steps = [meter.due() for _ in range(50)]
    assert [i for i, due in enumerate(steps) if due] == [0, 4, 12, 24, 48]
    other = Meter()
    other.restore(meter.state(), torch.device("cpu"))
    assert all(torch.equal(torch.stack(meter.gradients[k]), torch.stack(other.gradients[k])) for k in meter.gradients)
    assert [meter.due() for _ in range(60)] == [other.due() for _ in range(60)]


def test_a_term_that_comes_in_late_is_measured_at_once():
    meter = Meter()
    _, features, detection, terms = losses()
    assert meter.due(terms)
    measured(meter, features, detection, terms)
    assert not meter.due(terms) and meter.due([*terms, "late"])


@pytest.mark.parametrize(
    ("progress", "more", "factor"),
    [
        (0.0, {}, 1.0), (99.0, {}, 1.0),
        (0.0, {"ramp": 4.0}, 0.0), (1.0, {"ramp": 4.0}, 0.25), (4.0, {"ramp": 4.0}, 1.0),
        (79.0, {"fade": 0.2}, 1.0),
        (90.0, {"fade": 0.2}, 0.5), (100.0, {"fade": 0.2}, 0.0), (101.0, {"fade": 0.2}, 0.0),
        (50.0, {"fade": 1.0}, 0.5), (10.0, {"ramp": 20.0, "fade": 1.0}, 0.5),
    ],
)  # fmt: skip
def test_the_schedule_rises_from_zero_and_falls_to_zero(progress, more, factor):
    assert schedule(progress, **{"epochs": 100, "ramp": 0.0, "fade": 0.0, **more}) == pytest.approx(factor)
