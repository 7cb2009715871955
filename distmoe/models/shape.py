"""The shape of a model, from the configuration or from a Hugging Face folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from distmoe.errors import CheckpointError, ConfigError
from distmoe.models.config import ModelConfig
from distmoe.models.decoder_shape import (
    DECODER_KEY,
    DECODER_TYPES,
    DecoderShape,
    check_head,
    decoder_shape,
    decoder_shape_of,
)
from distmoe.nn.activations import ACTIVATIONS

# Families whose tensors and arithmetic are BERT's, and those that differ from it in position numbers only.
BERT_TYPES = ("bert",)
ROBERTA_TYPES = ("roberta", "camembert", "xlm-roberta")


@dataclass(frozen=True, kw_only=True)
class EncoderShape:
    """Everything that decides the sizes and the arithmetic of an encoder, apart from its routed layers.

    Attributes:
        vocab_size: Rows of the token table.
        pad_token_id: Token id of padding; an export builds its default attention mask from it.
        hidden_size: Model width D.
        num_layers: Transformer layers.
        num_heads: Attention heads; divides D.
        intermediate_size: Dense feed-forward width F.
        max_positions: Longest sequence; the position table has ``position_offset`` rows more.
        position_offset: 0 for BERT, pad id + 1 for RoBERTa (see :class:`~distmoe.nn.embeddings.EncoderEmbeddings`).
        num_token_types: Rows of the segment table.
        activation: Name in :data:`~distmoe.nn.activations.ACTIVATIONS`.
        norm: LayerNorm after (``post``, BERT) or before (``pre``) each sub-layer.
        layer_norm_eps: Epsilon of every LayerNorm.
    """

    vocab_size: int
    pad_token_id: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    max_positions: int
    position_offset: int = 0
    num_token_types: int = 2
    activation: str = "gelu"
    norm: Literal["post", "pre"] = "post"
    layer_norm_eps: float = 1e-12

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ConfigError(
                "the attention heads do not divide the model width",
                got=f"hidden_size {self.hidden_size}, num_heads {self.num_heads}",
                expected="hidden_size a multiple of num_heads",
                remedy="change model.hidden_size or model.num_heads (or repair the pretrained folder's config.json)",
            )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> EncoderShape:
        return cls(**value)


ModelShape = EncoderShape | DecoderShape


def shape_from_json(value: dict[str, Any]) -> ModelShape:
    """Inverse of ``to_json`` of either shape."""
    return DecoderShape.from_json(value) if value.get(DECODER_KEY) else EncoderShape.from_json(value)


def resolve_shape(config: ModelConfig, vocab_size: int, pad_token_id: int) -> ModelShape:
    """Returns the shape of the model that ``config`` describes.

    With ``model.pretrained`` the folder's config.json decides, and the configuration's own shape keys are not read.

    Args:
        config: Section ``model``.
        vocab_size: Token ids of the tokenizer are below it.
        pad_token_id: Padding id of the tokenizer.

    Raises:
        ConfigError: If heads do not divide the width, the folder is of another family, or an encoder is asked to be
            pre-LN.
        CheckpointError: If the folder or its config.json is missing or unreadable, or its token table is too small.
    """
    if config.pretrained is None and config.family == "decoder":
        return decoder_shape(config, vocab_size, pad_token_id)
    if config.pretrained is None:
        return EncoderShape(
            vocab_size=vocab_size,
            pad_token_id=pad_token_id,
            hidden_size=config.hidden_size,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            intermediate_size=config.intermediate_size,
            max_positions=config.max_positions,
            norm=config.norm,
            layer_norm_eps=config.layer_norm_eps,
        )
    folder = Path(config.pretrained)
    shape = shape_of_folder(folder, pad_token_id)
    own = "decoder" if isinstance(shape, DecoderShape) else "encoder"
    if own != config.family:
        raise ConfigError(
            "model.pretrained is of another family than the model of the run",
            got=f"model.family={config.family}, the folder {folder} of the other family",
            expected=f"model.family={own}",
            remedy=f"set model.family={own}, or choose another folder",
        )
    if isinstance(shape, DecoderShape):
        check_head(shape, config, folder)
    elif config.norm == "pre":
        raise ConfigError(
            "a pretrained BERT or RoBERTa encoder is post-LN",
            got=f"model.norm=pre with model.pretrained={folder}",
            expected="model.norm=post",
            remedy="remove model.norm, or train from scratch without model.pretrained",
        )
    if vocab_size > shape.vocab_size:
        raise CheckpointError(
            f"the tokenizer does not belong to the pretrained {own} {folder}",
            got=f"{vocab_size} token ids",
            expected=f"at most {shape.vocab_size}, the rows of its token table",
            remedy="use the tokenizer of the same folder (leave the tokenizer key empty)",
        )
    return shape


def shape_of_folder(folder: Path, pad_token_id: int | None = None) -> ModelShape:
    """Reads the shape of a Hugging Face folder; its own padding id unless one is given.

    Raises:
        ConfigError: If the model is of another family or has a part that distmoe does not have.
        CheckpointError: If the folder or its config.json is missing or unreadable.
    """
    values = read_hf_config(folder)
    kind = values.get("model_type")
    if kind in DECODER_TYPES:
        return decoder_shape_of(folder, values, pad_token_id)
    if kind not in BERT_TYPES + ROBERTA_TYPES:
        raise ConfigError(
            f"distmoe cannot start from the model in {folder}",
            got=f'model_type "{kind}"',
            expected=" | ".join(BERT_TYPES + ROBERTA_TYPES + DECODER_TYPES),
            remedy="choose a checkpoint of one of these families for model.pretrained",
        )
    _refuse_variants(folder, values)
    own_pad_token_id = values.get("pad_token_id")
    if own_pad_token_id is None:  # missing or null
        own_pad_token_id = 1 if kind in ROBERTA_TYPES else 0
    offset = own_pad_token_id + 1 if kind in ROBERTA_TYPES else 0
    try:
        return EncoderShape(
            vocab_size=values["vocab_size"],
            pad_token_id=own_pad_token_id if pad_token_id is None else pad_token_id,
            hidden_size=values["hidden_size"],
            num_layers=values["num_hidden_layers"],
            num_heads=values["num_attention_heads"],
            intermediate_size=values["intermediate_size"],
            max_positions=values["max_position_embeddings"] - offset,
            position_offset=offset,
            num_token_types=values.get("type_vocab_size", 2),
            activation=values.get("hidden_act", "gelu"),
            layer_norm_eps=values.get("layer_norm_eps", 1e-12),
        )
    except (KeyError, TypeError) as wrong:
        raise CheckpointError(
            f"{folder / 'config.json'} does not give the shape of the encoder",
            got=f"no key {wrong}" if isinstance(wrong, KeyError) else f"a value that is no number: {wrong}",
            expected="vocab_size, hidden_size, num_hidden_layers, num_attention_heads, intermediate_size and "
            "max_position_embeddings",
            remedy="copy the config.json that came with the weights",
        ) from None


def read_hf_config(folder: Path) -> dict[str, Any]:
    """Returns the plain values of ``config.json``.

    Raises:
        CheckpointError: If the folder or the file is missing, or the file is not a JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(
            "the pretrained model has no config.json" if folder.is_dir() else "there is no pretrained folder",
            got=path if folder.is_dir() else folder,
            expected="a Hugging Face folder with config.json, model.safetensors and tokenizer files",
            remedy="name a downloaded folder, not a model's name on the hub (of a run: model.pretrained)",
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as failure:
        values = failure
    if not isinstance(values, dict):
        raise CheckpointError(
            f"{path} cannot be read",
            got=values if isinstance(values, Exception) else type(values).__name__,
            expected="a JSON object",
            remedy="download or save the model again",
        )
    return values


def _refuse_variants(folder: Path, values: dict[str, Any]) -> None:
    """Refuses configurations of the family whose arithmetic differs from the encoder's."""
    accepted: dict[str, tuple[object, ...]] = {
        "position_embedding_type": ("absolute",),
        "is_decoder": (False,),
        "add_cross_attention": (False,),
        "hidden_act": tuple(ACTIVATIONS),
    }
    for key, choices in accepted.items():
        if values.get(key, choices[0]) not in choices:
            raise ConfigError(
                f"distmoe cannot compute the encoder in {folder} as it was trained",
                got=f"{key}={values[key]!r}",
                expected=f"{key} = {' | '.join(map(str, choices))}",
                remedy="choose another checkpoint for model.pretrained",
            )
