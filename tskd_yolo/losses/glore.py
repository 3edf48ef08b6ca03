"""Graph reasoning: a map is gathered into a few nodes, these exchange information, the result is spread back.

Source: Chen et al., "Graph-based global reasoning networks" (GloRe), CVPR 2019, used by Wen et al., Computers in
Industry 166 (2025) 104252 for dual-relation distillation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GraphUnit(nn.Module):
    """One graph reasoning unit, shared by teacher and student; its weights are drawn once and fixed.

        states X = W_x F + b_x,  projection B = W_b F + b_b,  nodes V = X B^T / P            (P positions)
        reasoning  V' = W_s ReLU(V + V W_n^T + b_n)                 (W_n over nodes, W_s over states)
        back       Y  = V' B,   output  F + BN(W_e Y)

    Args:
        channels: Width C of the maps.
        nodes: Number of graph nodes M.
        states: Width S of a node.
        generator: What the weights are drawn by; torch's own where it is missing.

    Shapes:
        features ``(N, C, H, W)``; nodes ``(N, S, M)``.
        :meth:`relation` gives ``(N, S, H, W)``, :meth:`forward` ``(N, C, H, W)``.
    """

    def __init__(self, channels: int, nodes: int, states: int, generator: torch.Generator | None = None) -> None:
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
            self.register_buffer(f"{name}_weight", nn.init.orthogonal_(torch.empty(shape), generator=generator))
        for name, width in (("state", states), ("project", nodes), ("between_nodes", nodes)):
            self.register_buffer(f"{name}_bias", torch.zeros(width))
        self.register_buffer("norm_weight", torch.ones(channels))
        self.register_buffer("norm_bias", torch.zeros(channels))

    def relation(self, features: Tensor) -> Tensor:
        """``Y``: what the graph gives for every position of ``(N, C, H, W)``, ``(N, S, H, W)``."""
        states, project = (self._reduced(features, name).flatten(2) for name in ("state", "project"))
        nodes = states @ project.transpose(1, 2) / project.shape[2]  # (N, S, M)
        mixed = nodes + F.linear(nodes, self._weight("between_nodes_weight"), self._weight("between_nodes_bias"))
        nodes = self._weight("between_states_weight") @ mixed.relu()
        return (nodes @ project).unflatten(2, (features.shape[2], features.shape[3]))

    def _reduced(self, features: Tensor, name: str) -> Tensor:
        return F.conv2d(features, self._weight(f"{name}_weight")[..., None, None], self._weight(f"{name}_bias"))

    def _weight(self, name: str) -> Tensor:
        return self.get_buffer(name)

    def extend(self, relation: Tensor) -> Tensor:
        """``BN(W_e Y)`` with the batch's own statistics and epsilon 1e-4, ``(N, C, H, W)``."""
        extended = F.conv2d(relation, self._weight("extend_weight")[..., None, None])
        variance, mean = torch.var_mean(extended, dim=(0, 2, 3), correction=0, keepdim=True)
        normed = (extended - mean) * (variance + 1e-4).rsqrt()  # unlike F.batch_norm, one value per channel is a case
        return normed * self._weight("norm_weight")[:, None, None] + self._weight("norm_bias")[:, None, None]

    def forward(self, features: Tensor) -> Tensor:
        """The whole unit as GloRe has it: the input plus what the graph gives for it, ``(N, C, H, W)``."""
        return features + self.extend(self.relation(features))
