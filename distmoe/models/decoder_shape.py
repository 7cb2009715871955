"""The shape of a decoder, from the configuration or from a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from distmoe.config import build
from distmoe.errors import CheckpointError, ConfigError
from distmoe.models.config import ModelConfig
from distmoe.nn.activations import SWIGLU
from distmoe.nn.rotary import RotaryConfig

# Families with RMSNorm, rotary positions and SwiGLU; they differ in biases and norms of the attention only.
DECODER_TYPES = ("llama", "mistral", "qwen2", "qwen3")
DECODER_KEY = "decoder"
"""Key of ``shape.json`` by which a decoder's is recognised."""

_ROTARY_KEYS = {
    "rope_theta": "base",
    "factor": "factor",
    "original_max_position_embeddings": "original_max_positions",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "attention_factor": "attention_factor",
}
_READ_ROTARY_KEYS = {*_ROTARY_KEYS, "rope_type", "type"}


@dataclass(frozen=True, kw_only=True)
class DecoderShape:
    """Everything that decides the sizes and the arithmetic of a decoder, apart from its routed layers.

    Attributes:
        vocab_size: Rows of the token table V.
        pad_token_id: Token id of padding.
        hidden_size: Model width D.
        num_layers: Transformer layers.
        num_heads: Query heads H.
        num_kv_heads: Key-value heads h; divides H.
        head_size: Width of a head d, even.
        intermediate_size: Dense feed-forward width F.
        max_positions: Longest sequence.
        norm_eps: Epsilon of every RMSNorm.
        rotary: Base and scaling of the positions.
        qk_norm: RMSNorm over query and key heads.
        attention_bias: Biases of the query, key and value projections.
        attention_out_bias: Bias of the projection back.
        sliding_window: Tokens that a token sees; None: all before it.
        tied: Whether the folder's head is its token table.
        family: ``model_type`` of the folder it came from; None: it came from none.
    """

    vocab_size: int
    pad_token_id: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    intermediate_size: int
    max_positions: int
    norm_eps: float
    rotary: RotaryConfig = field(default_factory=RotaryConfig)
    qk_norm: bool = False
    attention_bias: bool = False
    attention_out_bias: bool = False
    sliding_window: int | None = None
    tied: bool = True
    family: str | None = None
    activation: str = SWIGLU

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                "the key-value heads cannot be shared equally by the query heads",
                got=f"num_heads {self.num_heads}, num_kv_heads {self.num_kv_heads}",
                expected="num_heads a multiple of num_kv_heads",
                remedy="change model.decoder.num_kv_heads or model.num_heads (or repair the folder's config.json)",
            )
        if self.head_size % 2:
            raise ConfigError(
                "rotary positions turn pairs of coordinates",
                got=f"head_size {self.head_size}",
                expected="an even number",
                remedy="change model.decoder.head_size, model.hidden_size or model.num_heads",
            )

    def to_json(self) -> dict[str, Any]:
        return {DECODER_KEY: True} | asdict(self) | {"rotary": self.rotary.model_dump()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> DecoderShape:
        values = {key: entry for key, entry in value.items() if key != DECODER_KEY}
        return cls(**values | {"rotary": build(RotaryConfig, value["rotary"])})


def decoder_shape(config: ModelConfig, vocab_size: int, pad_token_id: int) -> DecoderShape:
    """Returns the shape that the configuration's own keys describe.

    Raises:
        ConfigError: If heads do not fit the width or each other.
    """
    decoder = config.decoder
    if decoder.head_size is None and config.hidden_size % config.num_heads:
        raise ConfigError(
            "the attention heads do not divide the model width",
            got=f"model.hidden_size={config.hidden_size}, model.num_heads={config.num_heads}",
            expected="a multiple of model.num_heads, or model.decoder.head_size",
            remedy="change model.hidden_size or model.num_heads, or set model.decoder.head_size",
        )
    return DecoderShape(
        vocab_size=vocab_size,
        pad_token_id=pad_token_id,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        num_kv_heads=decoder.num_kv_heads or config.num_heads,
        head_size=decoder.head_size or config.hidden_size // config.num_heads,
        intermediate_size=config.intermediate_size,
        max_positions=config.max_positions,
        norm_eps=decoder.norm_eps,
        rotary=decoder.rotary,
        qk_norm=decoder.qk_norm,
        attention_bias=decoder.attention_bias,
        sliding_window=decoder.sliding_window,
        tied=decoder.head == "tied",
    )


def check_head(shape: DecoderShape, config: ModelConfig, folder: Path) -> None:
    """Refuses to drop the head of a folder.

    Raises:
        ConfigError: If the run's head is the token table, and the folder's is not.
    """
    if config.decoder.head == "tied" and not shape.tied:
        raise ConfigError(
            f"the head of {folder} is not its token table",
            got="model.decoder.head=tied",
            expected="model.decoder.head=shared or per_task",
            remedy="set model.decoder.head=shared",
        )


def decoder_shape_of(folder: Path, values: Mapping[str, Any], pad_token_id: int | None = None) -> DecoderShape:
    """Reads the shape of a dense Llama, Mistral, Qwen2 or Qwen3 folder.

    Args:
        folder: For messages.
        values: Of its config.json.
        pad_token_id: Padding id of the tokenizer; None: the folder's own, or 0.

    Raises:
        ConfigError: If it has a part whose arithmetic distmoe does not have.
        CheckpointError: If a size is missing.
    """
    kind = values["model_type"]
    bias = {"qwen2": (True, False)}.get(kind, (bool(values.get("attention_bias", False)),) * 2)
    own_pad = values.get("pad_token_id") or 0
    _refuse_variants(folder, values)
    try:
        heads = values["num_attention_heads"]
        return DecoderShape(
            vocab_size=values["vocab_size"],
            pad_token_id=own_pad if pad_token_id is None else pad_token_id,
            hidden_size=values["hidden_size"],
            num_layers=values["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=values.get("num_key_value_heads") or heads,
            head_size=values.get("head_dim") or (128 if kind == "qwen3" else values["hidden_size"] // heads),
            intermediate_size=values["intermediate_size"],
            max_positions=values["max_position_embeddings"],
            norm_eps=values.get("rms_norm_eps", 1e-6),
            rotary=_rotary(folder, values),
            qk_norm=kind == "qwen3",
            attention_bias=bias[0],
            attention_out_bias=bias[1],
            sliding_window=_window(folder, values),
            tied=values.get("tie_word_embeddings", False),
            family=kind,
        )
    except KeyError as missing:
        raise CheckpointError(
            f"{folder / 'config.json'} does not give the shape of the decoder",
            got=f"no key {missing}",
            expected="vocab_size, hidden_size, num_hidden_layers, num_attention_heads, intermediate_size and "
            "max_position_embeddings",
            remedy="copy the config.json that came with the weights",
        ) from None


def _rotary(folder: Path, values: Mapping[str, Any]) -> RotaryConfig:
    """From today's ``rope_parameters``, or yesterday's ``rope_scaling`` with ``rope_theta``, which wins over them."""
    given = dict(values.get("rope_scaling") or values.get("rope_parameters") or {})
    scaling = given.get("rope_type", given.get("type", "default"))
    known = {"default", "linear", "llama3", "yarn"}
    unread = sorted(key for key, value in given.items() if key not in _READ_ROTARY_KEYS and value is not None)
    if scaling not in known or unread:
        raise ConfigError(
            f"distmoe cannot compute the positions of {folder} as they were trained",
            got=f"rope_type {scaling!r}" + (f" with {', '.join(unread)}" if unread else ""),
            expected=" | ".join(sorted(known)) + f", with {', '.join(sorted(_ROTARY_KEYS))}",
            remedy="choose another checkpoint for model.pretrained",
        )
    given.setdefault("rope_theta", values.get("rope_theta", 10000.0))
    if scaling != "default":
        given["factor"] = _factor(folder, values, given, scaling)
    named = {own: given[key] for key, own in _ROTARY_KEYS.items() if given.get(key) is not None}
    floats = {key: value if key == "original_max_positions" else float(value) for key, value in named.items()}
    return build(RotaryConfig, {"scaling": scaling} | floats)


def _factor(folder: Path, values: Mapping[str, Any], given: Mapping[str, Any], scaling: str) -> float:
    """How far the positions are stretched; of yarn, null means the ratio of the contexts, as in transformers."""
    factor = given.get("factor")
    if isinstance(factor, int | float) and not isinstance(factor, bool):
        return factor
    if scaling == "yarn" and "factor" in given and factor is None:
        longest = values["max_position_embeddings"]
        return longest / (given.get("original_max_position_embeddings") or longest)
    raise ConfigError(
        f"{folder / 'config.json'} does not say how far its positions are stretched",
        got=f"rope_type {scaling!r} with factor {factor!r}" if "factor" in given else f"{scaling!r} without factor",
        expected="a number in factor",
        remedy="copy the config.json that came with the weights",
    )


def _window(folder: Path, values: Mapping[str, Any]) -> int | None:
    """One window for all layers, or none."""
    kind = values["model_type"]
    window = values.get("sliding_window", 4096)  # transformers' default, for all but Llama
    if (
        kind == "llama"
        or window is None
        or (kind in ("qwen2", "qwen3") and not values.get("use_sliding_window", False))
    ):
        return None
    layers = values.get("layer_types")
    first = 0 if kind == "mistral" else values.get("max_window_layers", 28)
    full = layers.count("full_attention") if layers else min(first, values["num_hidden_layers"])
    if full == values["num_hidden_layers"]:
        return None
    if full:
        raise ConfigError(
            f"layers of {folder} differ in how far they see",
            got=f"a sliding window of {window} in {values['num_hidden_layers'] - full} layers, none in {full}",
            expected="one window for all layers, or none",
            remedy="choose another checkpoint for model.pretrained",
        )
    return int(window)


def _refuse_variants(folder: Path, values: Mapping[str, Any]) -> None:
    accepted: dict[str, tuple[object, ...]] = {
        "hidden_act": ("silu", "swish"),
        "mlp_bias": (False,),
        "quantization_config": (None,),
        "partial_rotary_factor": (1.0, 1, None),
    }
    for key, choices in accepted.items():
        if values.get(key, choices[0]) not in choices:
            raise ConfigError(
                f"distmoe cannot compute the decoder in {folder} as it was trained",
                got=f"{key}={values[key]!r}",
                expected=f"{key} = {' | '.join(map(str, choices))}",
                remedy="choose another checkpoint for model.pretrained",
            )
