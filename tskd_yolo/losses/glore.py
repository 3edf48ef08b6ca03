"""Graph reasoning: a map is gathered into a few nodes, these exchange information, the result is spread back.

Source: Chen et al., "Graph-based global reasoning networks" (GloRe), CVPR 2019, used by Wen et al., Computers in
Industry 166 (2025) 104252 for dual-relation distillation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tskd_yolo.losses.standardize import Map


class GraphUnit(nn.Module):
    """One graph reasoning unit, shared by teacher and student.

        states X = W_x F + b_x,  projection B = W_b F + b_b,  nodes V = X B^T / P            (P positions)
        reasoning  V' = W_s ReLU(V + V W_n^T + b_n)                 (W_n over nodes, W_s over states)
        back       Y  = V' B,   output  F + BN(W_e Y)

    Args:
        channels: Width C of the maps.
        nodes: Number of graph nodes M.
        states: Width S of a node.
        trained: Whether the weights are parameters (see :meth:`reconstruction`), or drawn once and fixed (buffers).
        generator: What the weights are drawn by; torch's own where it is missing.

    Shapes:
        features ``(N, C, H, W)``; nodes ``(N, S, M)``.
        :meth:`relation` gives ``(N, S, H, W)``, :meth:`forward` ``(N, C, H, W)``.
    """

    def __init__(
        self,
        channels: int,
        nodes: int,
        states: int,
        trained: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        shapes = {
            "state": (states, channels),
            "project": (nodes, channels),
            "between_nodes": (nodes, nodes),
            "between_states": (states, states),
            "extend": (channels, states),
        }
        for name, shape in shapes.items():
            # Orthogonal rows keep the directions of the map; a plain Gaussian projection would mix its directions.
            self._add(f"{name}_weight", nn.init.orthogonal_(torch.empty(shape), generator=generator), trained)
        for name, width in (("state", states), ("project", nodes), ("between_nodes", nodes)):
            self._add(f"{name}_bias", torch.zeros(width), trained)
        self._add("norm_weight", torch.ones(channels), trained)
        self._add("norm_bias", torch.zeros(channels), trained)

    def _add(self, name: str, value: Tensor, trained: bool) -> None:
        if trained:
            self.register_parameter(name, nn.Parameter(value))
        else:
            self.register_buffer(name, value)

    def _weight(self, name: str, learn: bool = False) -> Tensor:
        weight = getattr(self, name)
        return weight if learn else weight.detach()

    def states(self, features: Tensor, learn: bool = False) -> Tensor:
        """``X``: the map in the unit's reduced width, ``(N, S, H, W)``."""
        weight = self._weight("state_weight", learn)
        return F.conv2d(features, weight[..., None, None], self._weight("state_bias", learn))

    def reason(self, mixed: Tensor, learn: bool = False) -> Tensor:
        """``W_s ReLU(.)`` over states (dimension 1) of nodes mixed with their neighbours, ``(*, S, nodes)``."""
        return self._weight("between_states_weight", learn) @ mixed.relu()

    def relation(self, features: Tensor, states: Tensor | None = None, learn: bool = False) -> Tensor:
        """``Y``: what the graph gives for every position, ``(N, S, H, W)``.

        Args:
            features: The map, ``(N, C, H, W)``.
            states: The map's :meth:`states`, where the caller has them already.
            learn: Whether gradient may reach the unit's own weights.
        """
        height, width = features.shape[2:]
        states = (self.states(features, learn) if states is None else states).flatten(2)  # (N, S, P)
        weight = self._weight("project_weight", learn)
        project = F.conv2d(features, weight[..., None, None], self._weight("project_bias", learn)).flatten(2)
        nodes = states @ project.transpose(1, 2) / project.shape[2]  # (N, S, M)
        between, bias = self._weight("between_nodes_weight", learn), self._weight("between_nodes_bias", learn)
        nodes = self.reason(nodes + F.linear(nodes, between, bias), learn)
        return (nodes @ project).unflatten(2, (height, width))

    def factors(self, features: Map) -> tuple[Tensor, Tensor]:
        """The two factors of :meth:`relation`, nodes V' ``(N, S, M)`` and projection B ``(N, M, P)``: ``Y = V' B``.

        Neither states nor relation are spread over the positions. Weights are constants here.
        """
        project = (features.read(self._weight("project_weight")) + self._weight("project_bias")).transpose(1, 2)
        nodes = self.gather(features, project) / project.shape[2]
        between = F.linear(nodes, self._weight("between_nodes_weight"), self._weight("between_nodes_bias"))
        return self.reason(nodes + between), project

    def gather(self, features: Map, weights: Tensor) -> Tensor:
        """Weighted sums of states over the positions, ``(N, K, P)`` weights -> ``(N, S, K)``; states are not formed."""
        sums = F.linear(weights @ features.cells, features.through(self._weight("state_weight")))
        return (sums + self._weight("state_bias") * weights.sum(dim=2, keepdim=True)).transpose(1, 2)

    def extend(self, relation: Tensor, learn: bool = False) -> Tensor:
        """``BN(W_e Y)`` with the batch's own statistics and epsilon 1e-4, ``(N, C, H, W)``."""
        extended = F.conv2d(relation, self._weight("extend_weight", learn)[..., None, None])
        variance, mean = torch.var_mean(extended, dim=(0, 2, 3), correction=0, keepdim=True)
        normed = (extended - mean) * (variance + 1e-4).rsqrt()  # unlike F.batch_norm, one value per channel is a case
        weight, bias = self._weight("norm_weight", learn), self._weight("norm_bias", learn)
        return normed * weight[:, None, None] + bias[:, None, None]

    def forward(self, features: Tensor) -> Tensor:
        """The whole unit as GloRe has it: the input plus what the graph gives for it, ``(N, C, H, W)``."""
        return features + self.extend(self.relation(features))

    def reconstruction(self, features: Tensor) -> Tensor:
        """How badly the graph alone, without the input added, redraws a map: the objective of a trained unit, a scalar.

        The unit learns from the teacher's map only, and the relation losses treat its weights as constants. So it
        cannot lower those losses by collapsing: a unit that gives the same for every map would redraw none of them.
        """
        return F.mse_loss(self.extend(self.relation(features, learn=True), learn=True), features)


def neighbours(nodes: Tensor, valid: Tensor) -> Tensor:
    """For each instance the mean of the other instances of its image, weighted by similarity.

        a_ij = exp(cos(x_i, x_j) / 0.5), normalised over j != i in the same image;  y_i = sum_j a_ij x_j

    For an instance that is alone in its image it is zero.

    Shapes:
        nodes: ``(N, I, *)``, I slots per image; valid: ``(N, I)``, 1 where a slot holds an instance, else 0,
        and between them where it counts in part; output like nodes.
    """
    flat = nodes.flatten(2)
    unit = F.normalize(flat, dim=2, eps=1e-6)
    other = valid.unsqueeze(1) * (1 - torch.eye(valid.shape[1], device=valid.device))
    similarity = (unit @ unit.transpose(1, 2) / 0.5).exp() * other  # cosines are bounded, so the exponential is too
    return (similarity / similarity.sum(dim=2, keepdim=True).clamp(min=1e-6) @ flat).view_as(nodes)
