"""Names of tensors: Hugging Face's BERT and RoBERTa against distmoe's, as data.

BERT, RoBERTa, CamemBERT and XLM-RoBERTa share one table; they differ in a prefix (``bert.``, ``roberta.``) and in heads
that distmoe does not take. A row says which tensors of theirs, concatenated over the first axis, are one of ours.
``{i}`` stands for the layer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Row:
    """One tensor of distmoe and the tensors of Hugging Face that it is made of."""

    own: str
    hf: tuple[str, ...]


def _linear(own: str, *hf: str) -> tuple[Row, Row]:
    return (
        Row(f"{own}.weight", tuple(f"{name}.weight" for name in hf)),
        Row(f"{own}.bias", tuple(f"{name}.bias" for name in hf)),
    )


EMBEDDING_ROWS: tuple[Row, ...] = (
    Row("encoder.embeddings.word.weight", ("embeddings.word_embeddings.weight",)),
    Row("encoder.embeddings.position.weight", ("embeddings.position_embeddings.weight",)),
    Row("encoder.embeddings.token_type.weight", ("embeddings.token_type_embeddings.weight",)),
    *_linear("encoder.embeddings.norm", "embeddings.LayerNorm"),
)

LAYER_ROWS: tuple[Row, ...] = (
    *_linear(
        "encoder.layers.{i}.attention.qkv",
        "encoder.layer.{i}.attention.self.query",
        "encoder.layer.{i}.attention.self.key",
        "encoder.layer.{i}.attention.self.value",
    ),
    *_linear("encoder.layers.{i}.attention.out", "encoder.layer.{i}.attention.output.dense"),
    *_linear("encoder.layers.{i}.attention_norm", "encoder.layer.{i}.attention.output.LayerNorm"),
    Row("encoder.layers.{i}.feed_forward.w_in", ("encoder.layer.{i}.intermediate.dense.weight",)),
    Row("encoder.layers.{i}.feed_forward.b_in", ("encoder.layer.{i}.intermediate.dense.bias",)),
    Row("encoder.layers.{i}.feed_forward.w_out", ("encoder.layer.{i}.output.dense.weight",)),
    Row("encoder.layers.{i}.feed_forward.b_out", ("encoder.layer.{i}.output.dense.bias",)),
    *_linear("encoder.layers.{i}.feed_forward_norm", "encoder.layer.{i}.output.LayerNorm"),
)

# Absent from most RoBERTa checkpoints; then distmoe's stays fresh.
POOLER_ROWS: tuple[Row, ...] = _linear("pooler.dense", "pooler.dense")

PREFIXES = ("bert.", "roberta.")
# Pre-training and fine-tuning heads, and buffers that old versions of transformers saved.
IGNORED_PREFIXES = (
    "cls.",
    "lm_head.",
    "classifier.",
    "qa_outputs.",
    "embeddings.position_ids",
    "embeddings.token_type_ids",
)
# Names of LayerNorm's tensors in checkpoints that were converted from TensorFlow.
_OLD_SUFFIXES = {".LayerNorm.gamma": ".LayerNorm.weight", ".LayerNorm.beta": ".LayerNorm.bias"}


@dataclass(frozen=True)
class Translation:
    """A Hugging Face checkpoint under distmoe's names, and what did not fit.

    Attributes:
        tensors: As if every layer were dense.
        missing: Names of theirs that the table asks for and the checkpoint lacks.
        unexpected: Names of theirs that nothing asks for.
        ignored: Names of theirs that are known and left out: heads, buffers.
    """

    tensors: dict[str, Tensor]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    ignored: tuple[str, ...]

    @property
    def has_pooler(self) -> bool:
        return all(row.own in self.tensors for row in POOLER_ROWS)


def rows(num_layers: int) -> Iterator[Row]:
    """Yields the rows of a model of ``num_layers`` layers, pooler included, shallow to deep."""
    yield from EMBEDDING_ROWS
    for index in range(num_layers):
        for row in LAYER_ROWS:
            yield Row(row.own.format(i=index), tuple(name.format(i=index) for name in row.hf))
    yield from POOLER_ROWS


def normalised(name: str) -> str:
    """Returns a Hugging Face name without its family's prefix and with today's LayerNorm names."""
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    for old, new in _OLD_SUFFIXES.items():
        if name.endswith(old):
            name = name.removesuffix(old) + new
    return name


def from_hf(tensors: Mapping[str, Tensor], num_layers: int) -> Translation:
    """Renames and packs the tensors of a Hugging Face checkpoint."""
    ignored = {name for name in tensors if normalised(name).startswith(IGNORED_PREFIXES)}
    named = {normalised(name): tensor for name, tensor in tensors.items() if name not in ignored}
    pooler_names = {name for row in POOLER_ROWS for name in row.hf}
    without_pooler = not pooler_names & named.keys()

    wanted = [row for row in rows(num_layers) if not (without_pooler and row in POOLER_ROWS)]
    return translate(named, wanted, ignored=ignored)


def translate(named: Mapping[str, Tensor], wanted: Sequence[Row], *, ignored: Collection[str] = ()) -> Translation:
    """Packs tensors as the rows say; the core of every family's table.

    Args:
        named: Tensors under the names of the rows' right side.
        wanted: Rows of the model.
        ignored: Names that were left out on purpose.
    """
    translated: dict[str, Tensor] = {}
    missing: list[str] = []
    for row in wanted:
        absent = [name for name in row.hf if name not in named]
        missing += absent
        if not absent:
            parts = [named[name] for name in row.hf]
            translated[row.own] = parts[0] if len(parts) == 1 else torch.cat(parts)
    unexpected = named.keys() - {name for row in wanted for name in row.hf}
    return Translation(translated, tuple(missing), tuple(sorted(unexpected)), tuple(sorted(ignored)))


def to_hf(tensors: Mapping[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """Inverse of :func:`from_hf` for a dense model; rows whose tensor is absent (a pooler) are left out."""
    return split(tensors, rows(num_layers))


def split(tensors: Mapping[str, Tensor], wanted: Iterable[Row]) -> dict[str, Tensor]:
    """Inverse of :func:`translate`."""
    found: dict[str, Tensor] = {}
    for row in wanted:
        if row.own in tensors:
            for name, part in zip(row.hf, tensors[row.own].chunk(len(row.hf)), strict=True):
                found[name] = part.contiguous()
    return found
