"""Cuts the dense matrices of a built model over tensor ranks: one place; the code of the model does not know of it.

Cut are attention (by heads), dense feed-forward parts (by hidden units), the token table and heads over the vocabulary
(by rows). Whole on every tensor rank, and equal, are norms, other tables, gates, poolers, heads of encoder tasks, and
experts: a routed layer is computed alike by tensor neighbours, which see the same tokens.

What lies between the cut parts of encoder and decoder is computed alike too, or, with sequence parallelism, position by
position on the rank that has the position.
"""

from __future__ import annotations

from torch import nn
from torch.distributed import ProcessGroup

from distmoe.errors import ParallelError
from distmoe.models.decoder import Decoder
from distmoe.models.decoder_shape import DecoderShape
from distmoe.models.encoder import Encoder
from distmoe.models.multitask_decoder import MultiTaskDecoder
from distmoe.models.shape import ModelShape
from distmoe.moe.layer import RoutedFeedForward
from distmoe.nn.attention import SelfAttention
from distmoe.nn.causal_attention import CausalAttention
from distmoe.nn.embeddings import EncoderEmbeddings
from distmoe.nn.feed_forward import FeedForward


def check_tensor(shape: ModelShape, tensor: int) -> None:
    """Refuses shapes that cannot be cut: heads and hidden units into equal parts, the vocabulary into runs of rows.

    Raises:
        ParallelError: Naming the size that ``tensor`` does not divide, or that is too small.
    """
    sizes = [
        ("attention heads", "model.num_heads", shape.num_heads, "change model.num_heads"),
        ("hidden units", "model.intermediate_size", shape.intermediate_size, "change model.intermediate_size"),
    ]
    if isinstance(shape, DecoderShape):
        key = "model.decoder.num_kv_heads"
        sizes.insert(1, ("key-value heads", key, shape.num_kv_heads, f"change {key}"))
    for what, key, size, change in sizes:
        if size % tensor:
            raise ParallelError(
                f"the {what} cannot be shared equally by the tensor ranks",
                got=f"{key}={size}, parallel.tensor={tensor}",
                expected=f"a multiple of {tensor}",
                remedy=f"{change}, or set parallel.tensor to a divisor of {size}",
            )
    if shape.vocab_size <= (tensor - 1) ** 2:  # runs of equal length would leave nothing to the last rank
        raise ParallelError(
            "the vocabulary is too small to be shared by the tensor ranks",
            got=f"{shape.vocab_size} tokens, parallel.tensor={tensor}",
            expected=f"more than {(tensor - 1) ** 2} tokens",
            remedy="set a smaller parallel.tensor, or train a tokenizer with more tokens (tools/train_tokenizer.py)",
        )


def cut_over_tensor_ranks(model: nn.Module, process_group: ProcessGroup, *, sequence: bool = False) -> None:
    """Swaps dense modules of a model for parallel ones that hold this rank's slices; names of parameters stay.

    Call it on the whole model, initialised or loaded, before an engine hosts it. Values are those of the whole model,
    whatever the number of ranks. No collective; shapes must have passed :func:`check_tensor`.

    Args:
        model: Of :mod:`distmoe.models`, equal on all ranks apart from its pools.
        process_group: The tensor ranks.
        sequence: Deal the positions between the cut parts to the ranks as well (sequence parallelism).
    """
    from distmoe.models import tensor_modules as parallel

    for module in list(model.modules()):
        if isinstance(module, CausalAttention):
            for name in ("q", "k", "v"):
                setattr(module, name, parallel.column(getattr(module, name), process_group))
            module.out = parallel.row(module.out, process_group)  # type: ignore[assignment]
            module.num_kv_heads //= process_group.size()
            for norm in (module.q_norm, module.k_norm):
                if norm is not None:
                    parallel.become(norm, parallel.TensorRMSNorm, process_group)
        elif isinstance(module, SelfAttention):
            module.qkv = parallel.column(module.qkv, process_group, sections=3)  # type: ignore[assignment]
            module.out = parallel.row(module.out, process_group)  # type: ignore[assignment]
            module.num_heads //= process_group.size()
        elif isinstance(module, Decoder):
            module.embeddings = parallel.TensorTokenTable(module.embeddings, process_group)  # type: ignore[assignment]
        elif isinstance(module, MultiTaskDecoder):
            vocab_size = module.shape.vocab_size
            module.heads = parallel.TensorTokenHeads(module.heads, process_group, vocab_size=vocab_size)
        elif isinstance(module, EncoderEmbeddings):
            module.word = parallel.TensorTokenTable(module.word, process_group)  # type: ignore[assignment]
        if isinstance(module, CausalAttention | SelfAttention) and not sequence:
            parallel.share_input(module, process_group)
        for name, child in list(module.named_children()):
            if isinstance(child, FeedForward):
                setattr(module, name, parallel.TensorFeedForward(child, process_group))
    if sequence:
        for module in list(model.modules()):
            if isinstance(module, Encoder | Decoder):
                _deal_positions(module, process_group)


def _deal_positions(module: nn.Module, process_group: ProcessGroup) -> None:
    """Makes a module and its children work on slices; routed parts, their shared expert included, see all positions."""
    from distmoe.models.sequence_modules import SLICED
    from distmoe.models.tensor_modules import become

    if isinstance(module, RoutedFeedForward):
        return
    if type(module) in SLICED:
        become(module, SLICED[type(module)], process_group)
    for child in module.children():
        _deal_positions(child, process_group)
