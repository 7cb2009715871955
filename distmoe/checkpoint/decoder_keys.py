"""Names of tensors: Llama, Mistral, Qwen2 and Qwen3 in Hugging Face's form against distmoe's, as data.

The four families share one table; which rows a checkpoint has follows from its shape: biases (Qwen2), norms of queries
and keys (Qwen3), a head of its own where it is not tied. ``{i}`` stands for the layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from distmoe.checkpoint.key_tables import Row, Translation, split, translate
from distmoe.models.decoder_shape import DecoderShape

EMBEDDINGS, HEAD = "decoder.embeddings.weight", "heads.weight_VD"

_OWN, _THEIRS = "decoder.layers.{i}.", "model.layers.{i}."
_PROJECTIONS = (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"))
LAYER_ROWS: tuple[Row, ...] = (
    Row(f"{_OWN}attention_norm.weight", (f"{_THEIRS}input_layernorm.weight",)),
    *(Row(f"{_OWN}attention.{own}.weight", (f"{_THEIRS}self_attn.{hf}.weight",)) for own, hf in _PROJECTIONS),
    Row(f"{_OWN}attention.out.weight", (f"{_THEIRS}self_attn.o_proj.weight",)),
    Row(f"{_OWN}feed_forward_norm.weight", (f"{_THEIRS}post_attention_layernorm.weight",)),
    Row(f"{_OWN}feed_forward.w_in", (f"{_THEIRS}mlp.gate_proj.weight", f"{_THEIRS}mlp.up_proj.weight")),
    Row(f"{_OWN}feed_forward.w_out", (f"{_THEIRS}mlp.down_proj.weight",)),
)
BIAS_ROWS = tuple(Row(f"{_OWN}attention.{own}.bias", (f"{_THEIRS}self_attn.{hf}.bias",)) for own, hf in _PROJECTIONS)
OUT_BIAS_ROWS = (Row(f"{_OWN}attention.out.bias", (f"{_THEIRS}self_attn.o_proj.bias",)),)
QK_NORM_ROWS = tuple(
    Row(f"{_OWN}attention.{part}_norm.weight", (f"{_THEIRS}self_attn.{part}_norm.weight",)) for part in ("q", "k")
)
# Buffers that old versions of transformers saved.
_IGNORED_SUFFIXES = (".rotary_emb.inv_freq",)


def rows(shape: DecoderShape) -> Iterator[Row]:
    """Yields the rows of a dense decoder, shallow to deep."""
    yield Row(EMBEDDINGS, ("model.embed_tokens.weight",))
    of_layer = LAYER_ROWS
    of_layer += BIAS_ROWS if shape.attention_bias else ()
    of_layer += OUT_BIAS_ROWS if shape.attention_out_bias else ()
    of_layer += QK_NORM_ROWS if shape.qk_norm else ()
    for index in range(shape.num_layers):
        for row in of_layer:
            yield Row(row.own.format(i=index), tuple(name.format(i=index) for name in row.hf))
    yield Row("decoder.final_norm.weight", ("model.norm.weight",))
    if not shape.tied:
        yield Row(HEAD, ("lm_head.weight",))


def from_hf(tensors: Mapping[str, Tensor], shape: DecoderShape) -> Translation:
    """Renames and packs the tensors of a Hugging Face checkpoint; a tied head that was saved twice is left out."""
    ignored = {name for name in tensors if name.endswith(_IGNORED_SUFFIXES)}
    if shape.tied:
        ignored |= {"lm_head.weight"} & tensors.keys()
    named = {name: tensor for name, tensor in tensors.items() if name not in ignored}
    return translate(named, list(rows(shape)), ignored=ignored)


def to_hf(tensors: Mapping[str, Tensor], shape: DecoderShape) -> dict[str, Tensor]:
    """Inverse of :func:`from_hf`."""
    return split(tensors, rows(shape))
