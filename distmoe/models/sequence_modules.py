"""What the modules of a model become when the positions between its cut parts are dealt to tensor ranks.

Each is the class of the plain or cut module with one method replaced. An instance changes its class and keeps all else,
names of parameters included, as with torch's ``fully_shard``. States are slices ``[n, D]``
of the batch's positions (:mod:`distmoe.parallel.sequence`):

====================  ==================================================  ============================================
module                forward                                             backward
====================  ==================================================  ============================================
attention             all-gather, columns, own heads, reduce-scatter      all-gathers, reduce-scatter
feed-forward          all-gather, columns, activation, reduce-scatter     all-gathers, reduce-scatter
token table           own rows of the vocabulary, reduce-scatter          all-gather
norms, other tables   own positions                                       the weights' gradients are summed over ranks
dropout               own positions, own random numbers                   nothing
routed layer          all-gather, as on one process, own positions        own positions, all-gather
encoder, decoder      all-gather of the last states                       own positions
====================  ==================================================  ============================================

A tensor rank's gradient of a parameter that is whole but acts on slices is that of its positions: ``copy`` regions on
these weights sum it, as they do for the norms of query and key heads.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from distmoe.data.batch import TaskBatch
from distmoe.models.decoder import Decoder
from distmoe.models.decoder_layer import DecoderLayer
from distmoe.models.encoder import Encoder
from distmoe.models.layer import EncoderLayer
from distmoe.models.routed_positions import route_positions
from distmoe.models.tensor_modules import TensorFeedForward, TensorRMSNorm, TensorTokenTable
from distmoe.moe.layer import RoutedFeedForward
from distmoe.moe.routing import Routing, TokenContext
from distmoe.nn.attention import SelfAttention
from distmoe.nn.causal_attention import CausalAttention, Sight
from distmoe.nn.embeddings import EncoderEmbeddings
from distmoe.nn.kv_cache import KeyValueCache
from distmoe.parallel.megatron import megatron_tensor
from distmoe.parallel.sequence import gather_rows, gathered_linears, own_rows, split_rows, sum_rows
from distmoe.seed import derive

_megatron = megatron_tensor()


class SlicedSelfAttention(SelfAttention):
    """With its rows of ``qkv`` and columns of ``out``."""

    _tensor: ProcessGroup

    def forward(self, x_nD: Tensor, mask_B11S: Tensor, *, num_queries: int | None = None) -> Tensor:
        assert num_queries is None, "positions are on other ranks"
        rows, length = mask_B11S.shape[0], mask_B11S.shape[-1]
        packed = gathered_linears(x_nD, [self.qkv.weight], [self.qkv.bias], self._tensor, rows * length)
        context_BSD = self.attended(packed[0].unflatten(0, (rows, length)), mask_B11S)
        return _row_sum(context_BSD.flatten(0, 1), self.out.weight, self.out.bias, self._tensor)


class SlicedCausalAttention(CausalAttention):
    """With its heads' rows of ``q``, ``k`` and ``v``, and columns of ``out``; the cache holds whole sequences."""

    _tensor: ProcessGroup

    def forward(self, x_nD: Tensor, sight: Sight, cache: KeyValueCache | None = None) -> Tensor:
        shape, columns = sight.positions_BS.shape, (self.q, self.k, self.v)
        weights, biases = [linear.weight for linear in columns], [linear.bias for linear in columns]
        parts = gathered_linears(x_nD, weights, biases, self._tensor, shape.numel())
        q_BSD, k_BSD, v_BSD = (part.unflatten(0, shape) for part in parts)
        context_BSD = self.attended(q_BSD, k_BSD, v_BSD, sight, cache)
        return _row_sum(context_BSD.flatten(0, 1), self.out.weight, self.out.bias, self._tensor)


class SlicedFeedForward(TensorFeedForward):
    """Position by position: the rows that fill up the slices go along, and nobody reads them."""

    def forward(self, x_nD: Tensor) -> Tensor:
        (h,) = gathered_linears(x_nD, [self.w_in], [self.b_in], self._tensor)
        return _row_sum(self.activated(h), self.w_out, self.b_out, self._tensor)


class SlicedTokenTable(TensorTokenTable):
    """Every rank looks up all tokens in its rows of the vocabulary; the sum goes to the ranks of the positions."""

    _tensor: ProcessGroup

    def forward(self, ids: Tensor) -> Tensor:
        own_ids = ids.flatten() - self.vocab_start_index
        outside = (own_ids < 0) | (own_ids >= self.num_embeddings_per_partition)
        partial = F.embedding(own_ids.masked_fill(outside, 0), self.weight).masked_fill(outside.unsqueeze(1), 0.0)
        return sum_rows(partial, self._tensor)


class SlicedEmbeddings(EncoderEmbeddings):
    """Positions and segments are looked up for the own slice only."""

    _tensor: ProcessGroup

    def forward(self, input_ids_BS: Tensor, attention_mask_BS: Tensor, token_type_ids_BS: Tensor) -> Tensor:
        if self.num_token_types == 1:
            token_type_ids_BS = torch.zeros_like(token_type_ids_BS)
        positions_BS = self._positions(attention_mask_BS).expand_as(input_ids_BS)
        type_nD, position_nD = (
            F.embedding(own_rows(ids_BS.flatten(), self._tensor), _shared(table.weight, self._tensor))
            for ids_BS, table in ((token_type_ids_BS, self.token_type), (positions_BS, self.position))
        )
        return self.dropout(self.norm(self.word(input_ids_BS) + type_nD + position_nD))


class SlicedLayerNorm(nn.LayerNorm):
    """A LayerNorm whose weights' gradients are sums over tensor ranks."""

    _tensor: ProcessGroup

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = (_shared(parameter, self._tensor) for parameter in (self.weight, self.bias))
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class SlicedDropout(nn.Dropout):
    """Every tensor rank drops by numbers of its own; the generators behind it stay equal on tensor ranks.

    Whatever all of them compute alike (noise of gates, dropout of pooled states) draws from torch's default generators,
    seeded alike. Each call takes one seed from the one on the host: recomputation in backward takes the same again,
    and a checkpoint that keeps its state keeps this.
    """

    _tensor: ProcessGroup

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p:
            return x
        seed = int(torch.randint(2**62, ()).item())
        devices = [] if x.device.type == "cpu" else [x.device]
        with torch.random.fork_rng(devices, device_type=x.device.type if devices else "cuda"):
            torch.manual_seed(derive(seed, "slice", self._tensor.rank()))
            return F.dropout(x, self.p)


class SlicedEncoderLayer(EncoderLayer):
    """Its routed part sees all positions, as on one process."""

    _tensor: ProcessGroup

    def _route(
        self, routed: RoutedFeedForward, x_nD: Tensor, token_index_T: Tensor, context: TokenContext
    ) -> tuple[Tensor, Routing]:
        return _route_slices(routed, x_nD, token_index_T, context, self._tensor)


class SlicedDecoderLayer(DecoderLayer):
    """Its routed part sees all positions, as on one process."""

    _tensor: ProcessGroup

    def _route(
        self, routed: RoutedFeedForward, x_nD: Tensor, token_index_T: Tensor, context: TokenContext
    ) -> tuple[Tensor, Routing]:
        return _route_slices(routed, x_nD, token_index_T, context, self._tensor)


class SlicedEncoder(Encoder):
    """Slices inside, whole sequences outside."""

    _tensor: ProcessGroup

    def forward(
        self, batch: TaskBatch, context: TokenContext, *, num_read: int | None = None
    ) -> tuple[Tensor, tuple[Routing, ...]]:
        # Which positions are read is on the first ranks; the last layer computes all, and few are returned.
        hidden_nD, routings = super().forward(batch, context)
        return _sequences(hidden_nD, batch.input_ids_BS.shape, self._tensor)[:, :num_read], routings


class SlicedDecoder(Decoder):
    """Slices inside, whole sequences outside."""

    _tensor: ProcessGroup

    def forward(
        self, input_ids_BS: Tensor, token_index_T: Tensor, context: TokenContext, **options: Any
    ) -> tuple[Tensor, tuple[Routing, ...]]:
        hidden_nD, routings = super().forward(input_ids_BS, token_index_T, context, **options)
        return _sequences(hidden_nD, input_ids_BS.shape, self._tensor), routings


SLICED: dict[type[nn.Module], type[nn.Module]] = {
    SelfAttention: SlicedSelfAttention,
    CausalAttention: SlicedCausalAttention,
    TensorFeedForward: SlicedFeedForward,
    TensorTokenTable: SlicedTokenTable,
    EncoderEmbeddings: SlicedEmbeddings,
    nn.LayerNorm: SlicedLayerNorm,
    nn.RMSNorm: TensorRMSNorm,
    nn.Dropout: SlicedDropout,
    EncoderLayer: SlicedEncoderLayer,
    DecoderLayer: SlicedDecoderLayer,
    Encoder: SlicedEncoder,
    Decoder: SlicedDecoder,
}


def _route_slices(
    routed: RoutedFeedForward, x_nD: Tensor, token_index_T: Tensor, context: TokenContext, process_group: ProcessGroup
) -> tuple[Tensor, Routing]:
    """Gradients of experts, gates and balance losses are those without slices: every rank routes all tokens."""
    x_1ND = gather_rows(x_nD, process_group).unsqueeze(0)
    y_1ND, routing = route_positions(routed, x_1ND, token_index_T, context)
    return split_rows(y_1ND.squeeze(0), process_group), routing


def _sequences(hidden_nD: Tensor, shape: torch.Size, process_group: ProcessGroup) -> Tensor:
    """Returns ``[B, S, D]`` on every rank."""
    return gather_rows(hidden_nD, process_group, shape.numel()).unflatten(0, shape)


def _row_sum(own_Nd: Tensor, weight: Tensor, bias: Tensor | None, process_group: ProcessGroup) -> Tensor:
    """A linear map of all ranks' parts of its inputs, at this rank's positions."""
    y_nD = sum_rows(F.linear(own_Nd, weight), process_group)
    return y_nD if bias is None else y_nD + _shared(bias, process_group)


def _shared(parameter: Tensor, process_group: ProcessGroup) -> Tensor:
    return _megatron.copy_to_region(parameter, group=process_group)  # type: ignore[no-any-return]
