"""What the model hands to the objective and to evaluation.

Shape letters: B sequences, C outputs of the widest head, T real tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from distmoe.moe.routing import Routing, TokenContext


@dataclass(frozen=True)
class ModelOutput:
    """Answer of one forward pass.

    Attributes:
        logits_BC: float32; -inf in the columns beyond the outputs of the row's task. A regression's value is column 0.
        routings: One per routed layer, shallow to deep; empty for a dense model.
        context: What the routings' tokens are.
        features: One ``[task groups, sequences, D]`` per comparison that was asked for; see
            :func:`distmoe.models.comparison.compared_features`.
    """

    logits_BC: Tensor
    routings: tuple[Routing, ...]
    context: TokenContext
    features: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class TokenOutput:
    """Answer of one forward pass of a decoder.

    Attributes:
        logits_TV: Logits of the token after each real token, in the order of ``batch.token_index_T``, in the model's
            dtype.
        routings: One per routed layer, shallow to deep; empty for a dense model.
        context: What the tokens are, also the routings'.
    """

    logits_TV: Tensor
    routings: tuple[Routing, ...]
    context: TokenContext
