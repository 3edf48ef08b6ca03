"""The graph unit of the paper's form: what it gives, and what of it is kept."""

from __future__ import annotations

import torch

from tskd_yolo.losses.glore import GraphUnit


def test_a_unit_saves_and_restores_weights_as_buffers():
    first, second = GraphUnit(8, nodes=4, states=6), GraphUnit(8, nodes=4, states=6)
    features = torch.randn(2, 8, 5, 5)
    assert not list(first.parameters())
    assert not torch.equal(first(features), second(features))
    second.load_state_dict(first.state_dict(), strict=True)
    assert len(first.state_dict()) == 10
    assert torch.equal(first(features), second(features))


def reference_relation(unit: GraphUnit, features: torch.Tensor) -> torch.Tensor:
    """The formula of the docstring, one image at a time."""
    answers = []
    for image in features:
        flat = image.flatten(1)  # (C, P)
        x = unit.state_weight @ flat + unit.state_bias[:, None]
        b = unit.project_weight @ flat + unit.project_bias[:, None]
        v = x @ b.T / flat.shape[1]
        v = unit.between_states_weight @ (v + v @ unit.between_nodes_weight.T + unit.between_nodes_bias).relu()
        answers.append((v @ b).view(-1, *image.shape[1:]))
    return torch.stack(answers)


def test_relation_is_the_formula_it_says():
    unit = GraphUnit(8, nodes=4, states=6)
    for name in ("state_bias", "project_bias", "between_nodes_bias"):
        getattr(unit, name).normal_()
    features = torch.randn(3, 8, 4, 5)
    torch.testing.assert_close(unit.relation(features), reference_relation(unit, features), rtol=1e-4, atol=1e-5)


def test_gradient_reaches_the_features():
    features = torch.randn(2, 8, 5, 5, requires_grad=True)
    GraphUnit(8, nodes=4, states=6)(features).square().sum().backward()
    assert features.grad.abs().sum() > 0 and features.grad.isfinite().all()
