"""Collectives of tensor neighbours by hand; that ranks really make them is in tests/distributed."""

from __future__ import annotations

import math

import pytest

from distmoe.errors import ParallelError
from distmoe.forecast.arrangement import forecast, rank_choices
from distmoe.forecast.choice import Choice
from distmoe.forecast.hardware import LATENCY_INSIDE
from distmoe.forecast.tensor import TensorTraffic, tensor_traffic
from tests.unit.forecast.samples import cluster, workload

DENSE = ("model.moe=null", "structure.grouping=one", "parallel.tensor=2")


def test_without_tensor_ranks_there_is_nothing_to_say():
    assert tensor_traffic(workload(), micro_batch=4, accumulation=2, element=4) == TensorTraffic()


def test_a_dense_encoder_sums_four_times_per_layer_and_once_in_its_token_table():
    """2 layers, N = 4 x 16, D 32; two micro-batches of bf16. A ring over two ranks sends half, a sum is two rings."""
    found = tensor_traffic(workload(*DENSE), micro_batch=4, accumulation=2, element=2)
    assert (found.all_reduces, found.all_gathers, found.reduce_scatters) == (2 * 9, 0, 0)
    assert found.bytes == 2 * 9 * 2 * (64 * 32) * 2 / 2


def test_slices_gather_the_input_of_a_part_twice_and_add_what_norms_and_biases_need():
    """4 parts of gather and scatter; token table and last states. 5 LayerNorms of 2, 4 biases, 2 small tables."""
    run = workload(*DENSE, "parallel.sequence=true")
    found = tensor_traffic(run, micro_batch=4, accumulation=1, element=4)
    assert (found.all_reduces, found.all_gathers, found.reduce_scatters) == (16, 4 * 3 + 2, 4 * 2 + 1)
    small = 14 * 32 + (run.shape.max_positions + 2) * 32
    assert found.numbers == 23 * 64 * 32 + 2 * small
    again = workload(*DENSE, "parallel.sequence=true", "model.activation_checkpointing=true")
    more = tensor_traffic(again, micro_batch=4, accumulation=1, element=4)
    assert (more.all_gathers - found.all_gathers, more.reduce_scatters - found.reduce_scatters) == (4, 4)


def test_tensor_ranks_share_the_dense_work_and_wait_for_each_other():
    """Two data ranks either way."""
    choice = Choice("colocated", 1, 1, "fp32")
    alone = forecast(workload(), cluster(1, 2), choice)
    pair = forecast(workload("parallel.tensor=2"), cluster(1, 4).of_data_ranks(2), choice)
    assert pair.refused is None
    assert (alone.time.tensor, alone.tensor_traffic.rings) == (0, 0)
    sent = pair.tensor_traffic
    assert pair.time.tensor == pytest.approx(sent.bytes / 1e9 + sent.rings * math.log2(2) * LATENCY_INSIDE)
    assert alone.time.dense / 2 < pair.time.dense < alone.time.dense
    assert pair.time.experts == alone.time.experts
    assert pair.traffic == alone.traffic
    assert pair.memory.weights < alone.memory.weights
    assert pair.memory.activations < alone.memory.activations


def test_what_tensor_parallelism_refuses_is_not_ranked():
    run = workload(*DENSE)
    found, refused = rank_choices(run, cluster(1, 4).of_data_ranks(2), Choice("colocated", 1, 1, "fp32"))
    assert {one.choice.stage for one in found} == {1, 2}
    assert "no norm over the slices of tensor ranks" in refused[Choice("colocated", 1, 0, "fp32")]


def test_neighbours_on_two_nodes_are_not_forecast():
    assert cluster(3, 4).of_data_ranks(2).num_ranks == 6
    with pytest.raises(ParallelError, match=r"parallel.tensor=3 on nodes of 4 GPUs[\s\S]*a divisor of 4"):
        cluster(1, 4).of_data_ranks(3)
