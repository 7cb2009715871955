"""What the model hands to the objective and to evaluation.

Shape letters: B sequences, C outputs of the widest head, T real tokens, L positions that are answered, V vocabulary.
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
        logits_LV: Logits of the token that follows each answered position, in the model's dtype.
        index_L: These positions: ``batch.target_index_L``, or all real tokens where that is None.
        sequence_ids_L: Their rows.
        routings: One per routed layer, shallow to deep; empty for a dense model.
        context: What the routings' tokens are.
    """

    logits_LV: Tensor
    index_L: Tensor
    sequence_ids_L: Tensor
    routings: tuple[Routing, ...]
    context: TokenContext
