"""The graph unit: which nodes are mixed, what is learned, and why a trained unit cannot win by collapsing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.losses import reference
from tskd_yolo.losses.boxes import Boxes
from tskd_yolo.losses.drd import DRD
from tskd_yolo.losses.glore import GraphUnit, neighbours

VALID = torch.tensor([[1.0, 1, 1, 0], [1, 0, 0, 0], [0, 1, 0, 1]])  # slots of three images


def reference_neighbours(nodes: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """One pair of instances at a time; free slots are mixed too, and read by none."""
    mixed = torch.zeros_like(nodes)
    for n in range(len(nodes)):
        for i in range(nodes.shape[1]):
            others = [nodes[n, j] for j in range(nodes.shape[1]) if valid[n, j] and j != i]
            similarity = [F.cosine_similarity(nodes[n, i].flatten(), x.flatten(), dim=0).div(0.5).exp() for x in others]
            for a, x in zip(similarity, others):
                mixed[n, i] += a / sum(similarity) * x
    return mixed


def test_neighbours_are_what_a_loop_over_pairs_gives():
    nodes = torch.randn(3, 4, 5, 9)
    torch.testing.assert_close(neighbours(nodes, VALID), reference_neighbours(nodes, VALID), rtol=1e-4, atol=1e-5)


def test_instances_of_one_image_change_nothing_in_another():
    nodes, valid = torch.randn(2, 3, 4, 9), torch.ones(2, 3)
    before = neighbours(nodes, valid)
    nodes[1] = torch.randn(3, 4, 9) * 50
    after = neighbours(nodes, valid)
    assert torch.equal(before[0], after[0]) and not torch.equal(before[1], after[1])


def test_an_instance_is_mixed_with_the_others_of_its_image_only():
    nodes = torch.randn(3, 4, 5, 9)
    mixed = neighbours(nodes, VALID)
    assert not mixed[1, 0].any()
    torch.testing.assert_close(mixed[2, 1], nodes[2, 3])
    torch.testing.assert_close(mixed[2, 3], nodes[2, 1])


def test_instances_of_zeros_and_of_huge_values_stay_finite():
    nodes = torch.cat((torch.zeros(1, 2, 4, 9), torch.full((1, 2, 4, 9), 1e15)), dim=1).requires_grad_()
    mixed = neighbours(nodes, torch.ones(1, 4))
    mixed.sum().backward()
    assert mixed.isfinite().all() and nodes.grad.isfinite().all()


def test_a_fixed_unit_saves_and_restores_weights_as_buffers():
    first, second = GraphUnit(8, nodes=4, states=6), GraphUnit(8, nodes=4, states=6)
    features = torch.randn(2, 8, 5, 5)
    assert not list(first.parameters())
    assert not torch.equal(first(features), second(features))
    second.load_state_dict(first.state_dict(), strict=True)
    assert len(first.state_dict()) == 10
    assert torch.equal(first(features), second(features))


def test_a_trained_unit_has_the_same_weights_as_parameters():
    fixed, trained = GraphUnit(8, nodes=4, states=6), GraphUnit(8, nodes=4, states=6, trained=True)
    assert dict(trained.named_parameters()).keys() == fixed.state_dict().keys()
    fixed.load_state_dict(trained.state_dict())
    features = torch.randn(2, 8, 5, 5)
    assert torch.equal(fixed(features), trained(features))


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
    with torch.no_grad():
        for name in ("state_bias", "project_bias", "between_nodes_bias"):
            getattr(unit, name).normal_()
    features = torch.randn(3, 8, 4, 5)
    torch.testing.assert_close(unit.relation(features), reference_relation(unit, features), rtol=1e-4, atol=1e-5)


def test_relation_gradient_reaches_features_and_no_unit():
    unit = GraphUnit(8, nodes=4, states=6, trained=True)
    features = torch.randn(2, 8, 5, 5, requires_grad=True)
    unit(features).square().sum().backward()
    assert features.grad.abs().sum() > 0
    assert all(p.grad is None for p in unit.parameters())
    unit.relation(features, learn=True).square().sum().backward()  # the test can fail
    assert unit.state_weight.grad.abs().sum() > 0


def test_reconstruction_gradient_reaches_every_weight_of_a_unit():
    unit = GraphUnit(8, nodes=4, states=6, trained=True)
    unit.reconstruction(torch.randn(2, 8, 5, 5)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in unit.parameters())
    assert all(p.grad.abs().sum() > 0 for name, p in unit.named_parameters() if name.endswith("weight"))


# A trained unit cannot win by collapsing ------------------------------------------------------------------------------


@pytest.fixture
def maps() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {name: torch.randn(2, 16, 8, 8, generator=generator) for name in ("student", "teacher")}


BOXES = Boxes(
    torch.tensor([[4.0, 4, 30, 30], [20, 20, 60, 50], [8, 8, 40, 60]]), torch.tensor([0.0, 0, 1]), 2, (64, 64)
)


def effective_rank(answers: torch.Tensor) -> float:
    """Exponential of the entropy of the spectrum of ``(N, S, H, W)`` answers, as seen per position."""
    spectrum = torch.linalg.svdvals(answers.detach().transpose(0, 1).flatten(1))
    share = spectrum / spectrum.sum()
    return float((-(share * share.clamp(min=1e-12).log()).sum()).exp())


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_a_trained_unit_does_not_lower_its_losses_by_collapsing(kind, maps):
    torch.manual_seed(0)
    loss = DRD(16, trained=True)
    optimizer = getattr(torch.optim, kind)(loss.parameters(), lr={"SGD": 0.05, "Adam": 0.01}[kind])
    teacher = reference.standardize(maps["teacher"])
    start, answers = loss(**maps, boxes=BOXES).item(), loss.unit.relation(teacher)
    redrawn = loss.unit.reconstruction(teacher).item()
    for _ in range(100):
        optimizer.zero_grad()
        (loss(**maps, boxes=BOXES) + loss.objective(maps["teacher"])).backward()
        optimizer.step()
    trained = loss.unit.relation(teacher)
    assert loss(**maps, boxes=BOXES).item() > start / 2
    assert trained.var() > answers.var() / 4
    assert effective_rank(trained) > effective_rank(answers) / 2
    assert loss.unit.reconstruction(teacher).item() < redrawn


def test_a_unit_that_its_own_losses_could_train_would_collapse(maps):
    """The ablation: gradient of the relation loss into the weights, and no standardisation of what is compared."""
    torch.manual_seed(0)
    unit = GraphUnit(16, nodes=16, states=16, trained=True)
    student, teacher = reference.standardize(maps["student"]), reference.standardize(maps["teacher"])

    def relation_loss() -> torch.Tensor:
        return F.mse_loss(unit.relation(student, learn=True), unit.relation(teacher, learn=True))

    start, variance = relation_loss().item(), unit.relation(teacher).var().item()
    optimizer = torch.optim.Adam(unit.parameters(), lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        relation_loss().backward()
        optimizer.step()
    assert relation_loss().item() < start / 100
    assert unit.relation(teacher).var().item() < variance / 20


def test_reconstruction_falls_when_the_unit_is_trained(maps):
    torch.manual_seed(0)
    unit = GraphUnit(16, nodes=16, states=16, trained=True)
    optimizer = torch.optim.Adam(unit.parameters(), lr=0.01)
    values = []
    for _ in range(60):
        optimizer.zero_grad()
        value = unit.reconstruction(maps["teacher"])
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.9 * values[0]
