"""Embeddings and layers: token ids in, hidden states and routings out.

Shape letters: B sequences, S positions, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from distmoe.data.batch import TaskBatch
from distmoe.models.layer import EncoderLayer
from distmoe.models.routed_layer import RoutedLayer
from distmoe.moe.routing import Routing, TokenContext
from distmoe.nn.conditional.alignment import ConditionalAlignment
from distmoe.nn.conditional.build import ConditionalParts
from distmoe.nn.conditional.conditioning import Conditioning
from distmoe.nn.conditional.module import conditional_parameters
from distmoe.nn.conditional.published import PublishedChain
from distmoe.nn.conditional.task_embedding import TaskConditioner
from distmoe.nn.embeddings import EncoderEmbeddings


class Encoder(nn.Module):
    """A stack of layers over embeddings.

    Args:
        embeddings: Input embeddings.
        layers: Shallow to deep.
        final_norm: LayerNorm over the last states; pre-LN models need it, post-LN ones have none.
        conditional: Task-conditioned parts outside the layers; None: an encoder that does not know of tasks.
    """

    def __init__(
        self,
        embeddings: EncoderEmbeddings,
        layers: Sequence[EncoderLayer | RoutedLayer],
        final_norm: nn.LayerNorm | None,
        conditional: ConditionalParts | None = None,
    ) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.conditioner: TaskConditioner | None = None if conditional is None else conditional.conditioner
        self.alignment: ConditionalAlignment | None = None if conditional is None else conditional.alignment
        self.layers = nn.ModuleList(layers)
        self.chain: PublishedChain | None = None if conditional is None else conditional.chain
        self.final_norm = final_norm

    def forward(
        self, batch: TaskBatch, context: TokenContext, *, num_read: int | None = None
    ) -> tuple[Tensor, tuple[Routing, ...]]:
        """Returns hidden states ``[B, S, D]`` (meaningless at padding) and one routing per routed layer.

        Args:
            batch: Sequences.
            context: Tasks and sequences of its real tokens.
            num_read: Return the first ``num_read`` positions only; a dense last layer then computes no others.
        """
        known_BSD = batch.trunk_BSD
        first = 0 if known_BSD is None else self.trunk_depth
        conditioning = None if self.conditioner is None else self.conditioner(batch.task_ids_B, batch.example_ids_B)
        x_BSD = self._embed(batch, conditioning) if known_BSD is None else known_BSD
        mask_B11S = batch.attention_mask_BS[:, None, None, :]
        routings: list[Routing] = []
        states_BSD: list[Tensor] = []
        # Keys and values of all positions reach the last layer; what it makes of others than are read reaches nothing.
        short = self.layers[-1] if num_read is not None and self.chain is None and _is_dense(self.layers[-1]) else None
        for layer in self.layers[first:]:
            options = {"num_read": num_read} if layer is short else {}
            x_BSD, routing = layer(x_BSD, mask_B11S, batch.token_index_T, context, conditioning, **options)
            if routing is not None:
                routings.append(routing)
            if self.chain is not None:
                states_BSD.append(x_BSD)
        if self.chain is not None:
            x_BSD = self.chain(states_BSD, conditioning)
        if num_read is not None:
            x_BSD = x_BSD[:, :num_read]
        return (x_BSD if self.final_norm is None else self.final_norm(x_BSD)), tuple(routings)

    @property
    def trunk_depth(self) -> int:
        """Leading layers whose output on an example stays as it is: frozen, dense, not conditioned; 0 without any."""
        if _learns(self.embeddings) or self.alignment is not None or self.chain is not None:
            return 0
        # A frozen generator still follows the task embeddings, which may learn.
        changing = (_learns(layer) or not _is_dense(layer) or conditional_parameters(layer) for layer in self.layers)
        return next((index for index, changes in enumerate(changing) if changes), len(self.layers))

    def trunk(self, batch: TaskBatch, context: TokenContext) -> Tensor:
        """Returns the states behind the trunk, ``[B, S, D]``: what :attr:`TaskBatch.trunk_BSD` may hold."""
        x_BSD, mask_B11S = self._embed(batch, None), batch.attention_mask_BS[:, None, None, :]
        for layer in self.layers[: self.trunk_depth]:
            x_BSD, _ = layer(x_BSD, mask_B11S, batch.token_index_T, context)
        return x_BSD

    def _embed(self, batch: TaskBatch, conditioning: Conditioning | None) -> Tensor:
        x_BSD: Tensor = self.embeddings(batch.input_ids_BS, batch.attention_mask_BS, batch.token_type_ids_BS)
        return x_BSD if self.alignment is None else self.alignment(x_BSD, conditioning)


def _is_dense(layer: nn.Module) -> bool:
    return isinstance(layer, EncoderLayer) and layer.is_dense


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
