"""How much each term weighs."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


class Fixed:
    """``balance=fixed``: every term times its own weight, the same from the first step to the last.

    Args:
        weights: Weight per term name; a term of weight 0 is not computed, so it does not come here.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.weights = dict(weights)

    def __call__(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the weighted terms under the same names."""
        return {name: self.weights[name] * term for name, term in terms.items()}
