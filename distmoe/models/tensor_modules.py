"""What stands in for the dense modules of a model whose matrices are cut over tensor ranks.

Each is made from the plain module and keeps the names of its parameters. Inputs and outputs are whole and equal on all
tensor ranks; between them every rank computes with its slices (Shoeybi et al. 2019, arXiv 1909.08053, section 3):

====================  ============================================  ==============================================
module                forward                                       backward
====================  ============================================  ==============================================
``column``            own outputs of the whole input                nothing
``row``               own inputs; outputs are summed over ranks     nothing
attention             columns, own heads, row                       the input's gradient is summed over ranks
feed-forward          columns, activation, row                      the input's gradient is summed over ranks
token table           own rows; outputs are summed over ranks       nothing
token heads           own logits, gathered                          own part; the input's gradient is summed
norm of each head     nothing                                       the weight's gradient is summed over ranks
====================  ============================================  ==============================================

Importing this file imports megatron-core.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from distmoe.models.token_heads import TokenHeads
from distmoe.nn.feed_forward import FeedForward
from distmoe.parallel.gather import gather_slices
from distmoe.parallel.megatron import megatron_tensor

_megatron = megatron_tensor()


def slice_of(whole: Tensor, *, dim: int, sections: int, rank: int, num_ranks: int) -> Tensor:
    """A rank's part of a tensor whose dimension is made of sections that are each cut alike.

    Two sections of a gated ``w_in`` over 2 ranks: gate and up rows ``g0 g1 u0 u1`` become ``g0 u0`` and ``g1 u1``. One
    section may have any size, as vocabularies do: 7 rows over 3 ranks become 3, 3 and 1.
    """
    if sections == 1:
        count = -(-whole.shape[dim] // num_ranks)
        return whole.narrow(dim, rank * count, min(count, whole.shape[dim] - rank * count))
    return whole.unflatten(dim, (sections, num_ranks, -1)).select(dim + 1, rank).flatten(dim, dim + 1)


def sliced(parameter: Tensor, process_group: ProcessGroup, *, dim: int, sections: int = 1) -> nn.Parameter:
    """This rank's slice as a parameter of its own, marked as megatron-core, DeepSpeed and checkpoints know it."""
    own = slice_of(
        parameter.detach(), dim=dim, sections=sections, rank=process_group.rank(), num_ranks=process_group.size()
    )
    made = nn.Parameter(own.clone(), requires_grad=parameter.requires_grad)
    _megatron.mark_slice(made, True, dim, sections)
    made.partition_whole = parameter.shape[dim]  # type: ignore[attr-defined]
    return made


class _ColumnLinear(_megatron.ColumnParallelLinear):  # type: ignore[misc, name-defined]
    def forward(self, x: Tensor) -> Tensor:
        output, _ = super().forward(x)
        return output  # type: ignore[no-any-return]


class _RowLinear(_megatron.RowParallelLinear):  # type: ignore[misc, name-defined]
    def forward(self, x: Tensor) -> Tensor:
        output, _ = super().forward(x)
        return output  # type: ignore[no-any-return]


def become(module: nn.Module, kind: type[nn.Module], process_group: ProcessGroup) -> None:
    """Makes a module an instance of a subclass that knows the tensor ranks; everything else stays."""
    module.__class__ = kind
    module._tensor = process_group  # type: ignore[assignment]


def column(plain: nn.Linear, process_group: ProcessGroup, *, sections: int = 1) -> nn.Module:
    """A linear module that keeps every ``n``-th part of each section of its outputs.

    Its input's gradient is this rank's part: :func:`share_input` sums it over ranks, once for all columns.

    Args:
        plain: Of the whole model.
        process_group: The tensor ranks.
        sections: Equal parts of the outputs that are cut alike: queries, keys and values.
    """
    made = _ColumnLinear(
        plain.in_features,
        plain.out_features,
        bias=plain.bias is not None,
        stride=sections,
        disable_grad_reduce=True,
        config=_config(),
        init_method=None,
        tp_group=process_group,
    )
    made.weight = sliced(plain.weight, process_group, dim=0, sections=sections)
    if plain.bias is not None:
        made.bias = sliced(plain.bias, process_group, dim=0, sections=sections)
    return made


def share_input(module: nn.Module, process_group: ProcessGroup) -> None:
    """Sums the gradient of a module's first input over ranks, once for all that the module computes from it."""

    def enter(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return _megatron.copy_to_region(inputs[0], group=process_group), *inputs[1:]

    module.register_forward_pre_hook(enter)


def row(plain: nn.Linear, process_group: ProcessGroup) -> nn.Module:
    """A linear module that takes its part of the inputs; the bias is whole, and added to the sum."""
    made = _RowLinear(
        plain.in_features,
        plain.out_features,
        bias=plain.bias is not None,
        input_is_parallel=True,
        skip_bias_add=False,
        config=_config(),
        init_method=None,
        tp_group=process_group,
    )
    made.weight = sliced(plain.weight, process_group, dim=1)
    made.bias = plain.bias
    return made


class TensorTokenTable(_megatron.VocabParallelEmbedding):  # type: ignore[misc, name-defined]
    """A token table of which this rank has a run of rows."""

    def __init__(self, plain: nn.Embedding, process_group: ProcessGroup) -> None:
        # megatron-core insists on equal runs; the rows that the last rank lacks are of no token.
        size = _next_multiple(plain.num_embeddings, process_group.size())
        super().__init__(size, plain.embedding_dim, init_method=None, config=_config(), tp_group=process_group)
        self.weight = sliced(plain.weight, process_group, dim=0)


class TensorFeedForward(FeedForward):
    """Its hidden units are dealt to the ranks, gate and up alike; a bias of the outputs is whole."""

    def __init__(self, plain: FeedForward, process_group: ProcessGroup) -> None:
        nn.Module.__init__(self)
        self.gated, self.act, self._tensor = plain.gated, plain.act, process_group
        sections = 2 if plain.gated else 1
        self.w_in = sliced(plain.w_in, process_group, dim=0, sections=sections)
        self.b_in = None if plain.b_in is None else sliced(plain.b_in, process_group, dim=0, sections=sections)
        self.w_out = sliced(plain.w_out, process_group, dim=1)
        self.b_out = plain.b_out

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.hidden(_megatron.copy_to_region(x, group=self._tensor))
        y: Tensor = _megatron.reduce_from_region(F.linear(hidden, self.w_out), group=self._tensor)
        return y if self.b_out is None else y + self.b_out


class TensorTokenHeads(TokenHeads):
    """Each rank computes the logits of its rows of the vocabulary; they are gathered, so that all ranks see all."""

    def __init__(self, plain: TokenHeads, process_group: ProcessGroup, *, vocab_size: int) -> None:
        nn.Module.__init__(self)
        self._tensor, self._vocab_size = process_group, vocab_size
        self.weight_VD = None if plain.weight_VD is None else sliced(plain.weight_VD, process_group, dim=0)
        self.weight_MVD = None if plain.weight_MVD is None else sliced(plain.weight_MVD, process_group, dim=1)

    def forward(self, x_TD: Tensor, task_ids_T: Tensor, table_VD: Tensor) -> Tensor:
        own_TV = super().forward(_megatron.copy_to_region(x_TD, group=self._tensor), task_ids_T, table_VD)
        width = _next_multiple(self._vocab_size, self._tensor.size()) // self._tensor.size()
        if own_TV.shape[1] < width:  # the last rank, if ranks do not divide the vocabulary
            own_TV = F.pad(own_TV, (0, width - own_TV.shape[1]))
        return gather_slices(own_TV, self._tensor)[:, : self._vocab_size]


class TensorRMSNorm(nn.RMSNorm):
    """An RMSNorm whose weight also acts on heads or positions of other ranks: its gradient is a sum over them."""

    _tensor: ProcessGroup

    def forward(self, x: Tensor) -> Tensor:
        weight = _megatron.copy_to_region(self.weight, group=self._tensor)
        return F.rms_norm(x, self.normalized_shape, weight, self.eps)


def _next_multiple(value: int, of: int) -> int:
    return -(-value // of) * of


def _config() -> object:
    # Slices of the run's own weights replace what the modules would draw.
    return _megatron.ModelParallelConfig(
        use_cpu_initialization=True, perform_initialization=False, params_dtype=torch.float32
    )
