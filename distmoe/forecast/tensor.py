"""Collectives of tensor neighbours in a step: how many, of what size, and the bytes that a rank sends for them.

Counted for full-length examples, all parameters trained and, of a decoder, every token a target. N tokens of a
micro-batch, D width, T tensor ranks. ``docs/tensor_parallelism.md`` says which part of a layer makes which.
"""

from __future__ import annotations

from dataclasses import dataclass

from distmoe.forecast.workload import Workload
from distmoe.models.decoder_shape import DecoderShape


@dataclass(frozen=True)
class TensorTraffic:
    """What one rank does with its tensor neighbours in one optimizer step.

    Attributes:
        all_reduces: Number of calls.
        all_gathers: Likewise.
        reduce_scatters: Likewise.
        numbers: Of all tensors that are summed or gathered, as wholes; a sum that every rank gets counts twice.
        bytes: That the rank sends, in rings: (T - 1) / T of the numbers.
    """

    all_reduces: int = 0
    all_gathers: int = 0
    reduce_scatters: int = 0
    numbers: int = 0
    bytes: float = 0

    @property
    def rings(self) -> int:
        """Passes round the ranks: one per gathering or scattering, two per sum that every rank gets."""
        return 2 * self.all_reduces + self.all_gathers + self.reduce_scatters


def tensor_traffic(workload: Workload, *, micro_batch: int, accumulation: int, element: int) -> TensorTraffic:
    """Counts a step of one rank; with recomputation the forward pass of layers is counted again, an upper bound.

    Args:
        workload: The run.
        micro_batch: Examples per data rank and forward pass.
        accumulation: Forward passes per step.
        element: Bytes of one number.
    """
    ranks = workload.tensor
    if ranks == 1:
        return TensorTraffic()
    shape, width, tokens = workload.shape, workload.shape.hidden_size, micro_batch * workload.length
    whole = tokens * width
    filled = -(-tokens // ranks) * ranks * width  # slices are equally long
    routed = len(workload.routed_layers)
    cut = 2 * shape.num_layers - routed  # attention and dense feed-forward parts
    again = 2 if workload.recompute else 1
    sums: list[int] = []  # numbers of each all-reduce
    gathers: list[int] = []
    scatters: list[int] = []
    if workload.sequence:
        # In and out of a cut part forward; backward its input again, the input's gradient and the output's.
        gathers += [filled] * (cut * (again + 2))
        scatters += [filled] * (cut * (again + 1))
        gathers += [filled] * (2 * routed)
        scatters += [filled]
        gathers += [filled] * 2  # the table's gradient, and the last states
        sums += _weights_on_slices(workload)
    else:
        sums += [whole] * (cut * (again + 1) + 1)  # out of a part and its input's gradient; the token table
    if workload.shared_expert:
        sums += [whole] * (2 * routed)
    if isinstance(shape, DecoderShape):
        gathers.append(tokens * -(-shape.vocab_size // ranks) * ranks)
        sums.append(whole)
        if shape.qk_norm:
            sums += [shape.head_size] * (2 * shape.num_layers)
    numbers = accumulation * (2 * sum(sums) + sum(gathers) + sum(scatters))
    return TensorTraffic(
        all_reduces=accumulation * len(sums),
        all_gathers=accumulation * len(gathers),
        reduce_scatters=accumulation * len(scatters),
        numbers=numbers,
        bytes=numbers * element * (ranks - 1) / ranks,
    )


def _weights_on_slices(workload: Workload) -> list[int]:
    """Sizes of the parameters that are whole and act on slices: norms, biases of outputs, small tables."""
    shape, width = workload.shape, workload.shape.hidden_size
    if isinstance(shape, DecoderShape):
        biases = shape.num_layers if shape.attention_out_bias else 0
        return [width] * (2 * shape.num_layers + 1 + biases)
    norms = 2 * shape.num_layers + 1 + (shape.norm == "pre")
    biases = 2 * shape.num_layers - len(workload.routed_layers)  # of attention and dense feed-forward parts
    tables = [(shape.max_positions + shape.position_offset) * width, shape.num_token_types * width]
    return [width] * (2 * norms + biases) + tables
