"""Which token comes next.

Shape letters: B rows, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distmoe.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn; the default takes the most probable one (greedy).

    Attributes:
        temperature: Logits are divided by it; 0: greedy, the rest is not read.
        top_k: Only this many most probable tokens; None: all.
        top_p: Only the most probable tokens that have this probability together (nucleus sampling, arXiv 1904.09751).

    Raises:
        ConfigError: If a value is out of range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature < 0 or (self.top_k is not None and self.top_k < 1) or not 0 < self.top_p <= 1:
            raise ConfigError(
                "tokens cannot be drawn like this",
                got=f"temperature {self.temperature}, top_k {self.top_k}, top_p {self.top_p}",
                expected="temperature >= 0, top_k >= 1 or none, 0 < top_p <= 1",
                remedy="correct the value; temperature 0 is greedy",
            )

    def choose(self, logits_BV: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Returns a token per row, ``[B]`` int64."""
        if self.temperature == 0:
            return logits_BV.argmax(dim=-1)
        logits_BV = logits_BV.float() / self.temperature
        if self.top_k is not None:
            least_B1 = logits_BV.topk(min(self.top_k, logits_BV.shape[-1])).values[:, -1:]
            logits_BV = logits_BV.masked_fill(logits_BV < least_B1, -torch.inf)
        if self.top_p < 1:
            sorted_BV, order_BV = logits_BV.sort(dim=-1, descending=True)
            probs_BV = sorted_BV.softmax(dim=-1)
            # A token stays if those before it have less than top_p together: the first one always does.
            outside_BV = probs_BV.cumsum(dim=-1) - probs_BV >= self.top_p
            sorted_BV = sorted_BV.masked_fill(outside_BV, -torch.inf)
            logits_BV = torch.empty_like(logits_BV).scatter(-1, order_BV, sorted_BV)
        return torch.multinomial(logits_BV.softmax(dim=-1), 1, generator=generator).squeeze(-1)
