"""Bytes that a forward pass keeps for backward, and those of a decoder's logits."""

from __future__ import annotations

from dataclasses import dataclass

from distmoe.forecast.workload import Workload
from distmoe.models.decoder_shape import DecoderShape

# Of each logit of a decoder: itself, its log-softmax in fp32, and the gradient of that in fp32. In half precision the
# first takes two bytes, and so does the gradient that the head reads.
_LOGIT_BYTES = 12


@dataclass(frozen=True)
class _Kept:
    """What one layer keeps of one token, in numbers.

    Attributes:
        between: Of norms, in the model's precision: what tensor ranks compute alike, or share with slices.
        heads: Of attention, in the model's precision: what is cut by heads.
        statistics: Of norms, in fp32.
        head_statistics: Of attention, in fp32.
        hidden: Factor of the width of a dense feed-forward part.
        expert_hidden: Factor of an expert's width.
        ends: Once, not per layer: embeddings, or the last norm.
        whole: Once, whatever is sliced: turns of the positions, what the pooler or the head reads.
    """

    between: int
    heads: int
    statistics: int
    head_statistics: int
    hidden: int
    expert_hidden: int
    ends: int
    whole: int


def activation_bytes(workload: Workload, *, micro_batch: int, element: int, device_type: str = "cuda") -> float:
    """Bytes kept for backward by one micro-batch with full-length examples, without a decoder's logits.

    An encoder's layer keeps packed queries, keys and values 3 D, attention's output D (joining its heads is a view),
    input and output of two LayerNorms 4 D, their statistics 4 and attention's H, in fp32. A dense feed-forward part
    adds 2 F, before and after its activation. A routed one adds K F_e before the activation (the rest is recomputed),
    K D rows to the experts and K D from them, fp32 logits and a mask of E experts, three indices per choice; a shared
    expert D and, like a dense part, 2 F.

    A decoder's keeps 6 D for its norms (input, normalised, scaled; a fused kernel saves the second), 2 H d for queries
    and attention's output and 2 h d for keys and values, twice H d and h d again where these are normalised, and 4 F:
    gate and factor, activated gate, and product. Its experts are two F_e wide before the activation.

    Dropout keeps one byte per number, twice. With recomputation a layer keeps its input, what the all-to-all brought,
    and what its gate and its shared expert keep; one layer at a time is whole.

    Of T tensor ranks each keeps its heads and hidden units of attention and dense parts; with slices also a T-th of all
    else but routed parts and the last states. Without them the norms' outputs are kept whole as inputs of the matrices.

    On a CPU masks are of the numbers' own type, and an encoder's attention that drops weights is not one kernel:
    instead of the packed numbers it keeps fp32 copies of queries, keys and values and three times its H weights per
    pair of tokens.
    """
    shape, kept = workload.shape, _kept(workload)
    tokens, share = micro_batch * workload.length, workload.tensor if workload.sequence else 1
    width, routed, k = shape.hidden_size, len(workload.routed_layers), workload.top_k
    on_cpu = device_type == "cpu"
    masks = 2 * width * (element if on_cpu else 1) if workload.dropout else 0
    attention = kept.heads * element + 4 * kept.head_statistics
    if on_cpu and workload.attention_dropout and not isinstance(shape, DecoderShape):
        attention += 3 * (4 * (width + shape.num_heads * workload.length) - width * element)
    common = (kept.between * element + 4 * kept.statistics + masks) / share + attention / workload.tensor
    feed_forward = kept.hidden * shape.intermediate_size * element / workload.tensor
    dense = common + feed_forward
    to_experts = k * (kept.expert_hidden * workload.expert_width + 2 * width) * element
    sparse = common + to_experts
    apart = 5.0 * sum(map(sum, workload.pool_sizes)) + routed * 3 * 8 * k  # in no checkpoint, of all routed layers
    if workload.shared_expert:
        apart += routed * (feed_forward + width * element)
    ends = (kept.ends * element + masks / 2) / share + kept.whole * element
    if workload.recompute:
        inputs = (shape.num_layers * 2 / share + routed * 2 * k) * width * element
        return tokens * (inputs + max(dense, sparse if routed else 0) + apart + ends)
    return tokens * ((shape.num_layers - routed) * dense + routed * sparse + apart + ends)


def logit_bytes(workload: Workload, *, micro_batch: int) -> float:
    """Bytes of a decoder's logits in the loss if every token is a target; prompts are none, so this is a bound."""
    return float(_LOGIT_BYTES * micro_batch * workload.length * workload.vocab_size)


def _kept(workload: Workload) -> _Kept:
    shape, width = workload.shape, workload.shape.hidden_size
    if not isinstance(shape, DecoderShape):
        last = width if shape.norm == "pre" else 0  # a norm behind the layers; the pooler keeps what it makes
        read = width if last or workload.sequence else 0
        return _Kept(4 * width, 4 * width, 4, shape.num_heads, 2, 1, 2 * width + last, read)
    queries, keys = shape.num_heads * shape.head_size, shape.num_kv_heads * shape.head_size
    heads = (4 if shape.qk_norm else 2) * (queries + keys)
    norms = shape.num_heads + shape.num_kv_heads if shape.qk_norm else 0
    return _Kept(6 * width, heads, 2, shape.num_heads + norms, 4, 2, 3 * width, width + 2 * shape.head_size)
