"""Configuration of an exported distmoe decoder. Self-contained: needs transformers only."""

from .configuration_distmoe import DistmoeConfig


class DistmoeDecoderConfig(DistmoeConfig):
    """Everything that `modeling_distmoe_decoder.py` needs besides the weights.

    Args:
        head_dim, num_key_value_heads, rms_norm_eps, attention_bias: As in Llama; `attention_bias` is of queries, keys
            and values.
        attention_out_bias: Bias of the projection back.
        qk_norm: RMSNorm over query and key heads.
        attention_window: Tokens that a token sees, itself included; None: all before it. Not `sliding_window`: by that
            name transformers would shorten the cache, whose slots are counted here.
        rotary_frequencies: Angle per position of each pair of coordinates of a head; empty: as in Llama, base 10000.
        rotary_scale: Factor of the turned queries and keys.
        head: `tied`: the token table is the output head; `shared`: one head; `per_task`: one per task.
        kwargs: As in `DistmoeConfig`: sizes, `tasks`, `routed_layers`, `default_task`.
    """

    model_type = "distmoe_decoder"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012

    def __init__(
        self,
        head_dim=None,
        num_key_value_heads=None,
        rms_norm_eps=1e-6,
        attention_bias=False,
        attention_out_bias=False,
        qk_norm=False,
        attention_window=None,
        rotary_frequencies=None,
        rotary_scale=1.0,
        head="tied",
        hidden_act="swiglu",
        use_cache=True,
        **kwargs,
    ):
        kwargs.pop("tie_word_embeddings", None)  # `head` says it
        super().__init__(hidden_act=hidden_act, tie_word_embeddings=False, **kwargs)
        self.head_dim = head_dim or self.hidden_size // self.num_attention_heads
        self.num_key_value_heads = num_key_value_heads or self.num_attention_heads
        self.rms_norm_eps = rms_norm_eps
        self.attention_bias = attention_bias
        self.attention_out_bias = attention_out_bias
        self.qk_norm = qk_norm
        self.attention_window = attention_window
        pairs = range(0, self.head_dim, 2)
        self.rotary_frequencies = rotary_frequencies or [10000.0 ** (-i / self.head_dim) for i in pairs]
        self.rotary_scale = rotary_scale
        self.head = head
        self.use_cache = use_cache
