from __future__ import annotations

import pytest
import torch

from distmoe.errors import ConfigError, ParallelError
from distmoe.forecast.workload import make_workload
from distmoe.models.build import build_model
from distmoe.parallel.process_groups import single_process
from distmoe.training.run_data import open_sources
from tests.unit.forecast.samples import DECODER, UNEVEN, config, workload


def test_parameters_are_those_of_the_built_model():
    run = config()
    found = make_workload(run, open_sources(run))
    model = build_model(
        run.model, shape=found.shape, tasks=found.tasks, grouping=found.grouping,
        hosting=single_process(found.grouping).hosting, seed=0,
    )  # fmt: skip
    assert found.total == sum(parameter.numel() for parameter in model.parameters())
    # D 32, F 64: two matrices and two biases
    assert found.expert == 2 * 32 * 64 + 64 + 32
    assert found.active == found.total - 2 * 7 * found.expert
    assert next(model.parameters()).device == torch.device("cpu")


def test_the_head_of_a_decoder_is_multiplied_also_where_it_is_the_token_table():
    """D 32: two tables of the vocabulary untied, one tied; either way 6 V D FLOPs per token."""
    tied, untied = workload(*DECODER), workload(*DECODER, "model.decoder.head=shared")
    table = 32 * tied.vocab_size
    assert tied.vocab_size == tied.shape.vocab_size > 0
    assert (tied.lookup, tied.heads, untied.heads) == (table, 0, table)
    assert untied.total == tied.total + table
    # D 32, F 64: gate, factor, and back
    assert tied.expert == 3 * 32 * 64
    assert workload().vocab_size == 0


def test_a_tensor_rank_has_a_part_of_the_dense_matrices_and_all_of_the_rest():
    """D 32, F 64, 2 layers, routed: attention and token table are cut, experts are not."""
    whole, own = workload(), workload("parallel.tensor=2")
    assert (own.total, own.active, own.expert) == (whole.total, whole.active, whole.expert)
    assert whole.own_replicated == whole.replicated == own.replicated
    attention, others_rows = 2 * (3 * 32 * 33 + 32 * 32), 38  # of 77 tokens the first rank has 39
    assert whole.shape.vocab_size == 77
    assert whole.lookup - own.own_lookup == 32 * others_rows
    assert whole.replicated - own.own_replicated == attention // 2 + 32 * others_rows
    assert own.own_heads == whole.heads


def test_shapes_that_cannot_be_cut_are_not_forecast_either():
    with pytest.raises(ParallelError, match=r"attention heads cannot[\s\S]*parallel.tensor=4"):
        workload("parallel.tensor=4")


def test_what_a_run_refuses_is_not_forecast():
    with pytest.raises(ConfigError, match=r"cannot be dealt[\s\S]*parallel.ep_size=8"):
        workload("parallel.ep_size=8")
    with pytest.raises(ConfigError, match=r"an answer may become longer[\s\S]*max_new_tokens=60"):
        workload(*DECODER, "run.max_new_tokens=60")
    with pytest.raises(ConfigError, match="structural learning has nothing to merge"):
        workload("structure.grouping=one", "model.moe.experts_per_task_group=2", "structure.learn={}")
    run = config()
    sources, longer = open_sources(run), run.data.model_copy(update={"max_length": 1024})
    with pytest.raises(ConfigError, match=r"position table[\s\S]*data.max_length=1024"):
        make_workload(run.model_copy(update={"data": longer}), sources)
    with pytest.raises(ConfigError, match=r"--length 17, data.max_length=16"):
        make_workload(run, sources, length=17)


def test_a_dense_model_has_no_experts():
    found = workload("model.moe=null", "structure.grouping=one")
    assert (found.pool_sizes, found.expert, found.routed_layers) == ((), 0, ())
    assert found.total == found.active == found.replicated


def test_pools_may_differ_in_size():
    """2 experts per task, in task groups of one task and of three."""
    run = config(*UNEVEN)
    found = make_workload(run, open_sources(run))
    assert found.pool_sizes == ((2, 6), (2, 6))
    model = build_model(
        run.model, shape=found.shape, tasks=found.tasks, grouping=found.grouping,
        hosting=single_process(found.grouping).hosting, seed=0,
    )  # fmt: skip
    assert found.total == sum(parameter.numel() for parameter in model.parameters())


def test_mixture_weights_follow_the_sizes():
    run = config("data.sampling.strategy=size_proportional")
    found = make_workload(run, open_sources(run), sizes=[1, 2, 1, 4])
    assert found.weights == pytest.approx((0.125, 0.25, 0.125, 0.5))


def test_a_batch_that_ranks_cannot_share_is_refused():
    assert workload().micro_batches(4) == (8, 1)
    assert workload("data.micro_batch_size=2").micro_batches(4) == (2, 4)
    with pytest.raises(ConfigError, match=r"batch_size=32 on 3 ranks[\s\S]*multiple of 3[\s\S]*data.batch_size=33"):
        workload().micro_batches(3)
