from __future__ import annotations

from dataclasses import replace

import pytest

from distmoe.errors import ConfigError
from distmoe.forecast.arrangement import block_sizes, forecast, memory_of_stages, rank_choices
from distmoe.forecast.cautions import cautions, imbalance, weight_bound_rows
from distmoe.forecast.choice import Choice
from distmoe.forecast.hardware import Accelerator, Cluster, accelerator
from distmoe.forecast.workload import make_workload
from distmoe.parallel.placement import place
from distmoe.training.run_data import open_sources
from tests.unit.forecast.samples import DECODER, UNEVEN, cluster, config, workload


def test_block_sizes_divide_ranks_and_experts_of_every_task_group():
    assert block_sizes(workload(), 8) == [1, 2, 4]  # 4 experts per task group
    assert block_sizes(workload(), 6) == [1, 2]
    assert block_sizes(workload(*UNEVEN), 8) == [1, 2]  # 2 and 6
    assert block_sizes(workload("model.moe=null", "structure.grouping=one"), 8) == [1]


def test_only_supported_choices_are_ranked_and_the_fastest_comes_first():
    found, refused = rank_choices(workload(), cluster(2, 4), Choice("colocated", 1, 1, "fp32"))
    assert all(one.refused is None and one.fits for one in found)
    times = [one.time.predicted for one in found]
    assert times == sorted(times)
    assert len(found) + len(refused) == 2 * 3 * 4
    assert "ZeRO-2 reduces in the order of the backward pass" in refused[Choice("partitioned", 1, 2, "fp32")]


def test_a_network_block_is_slower_than_a_node_block():
    """ep_size 4 on nodes of 2: two thirds of the bytes cross a link that is 10 times slower; 2/3 x 10 = 6.7 times."""
    run, choice = workload("data.batch_size=65536"), Choice("colocated", 4, 1, "fp32")
    narrow, wide = forecast(run, cluster(4, 2), choice), forecast(run, cluster(2, 4), choice)
    assert narrow.time.exchange == pytest.approx(6.7 * wide.time.exchange, rel=0.1)
    assert narrow.time.bound <= narrow.time.predicted
    assert any("span nodes of 2" in line for line in cautions(run, cluster(4, 2), narrow))
    assert not any("span nodes" in line for line in cautions(run, cluster(2, 4), wide))


def test_a_refused_choice_is_still_forecast_with_its_reason():
    found = forecast(workload(), cluster(1, 4), Choice("partitioned", 1, 3, "fp32"))
    assert "not proven exact under ZeRO-3" in (found.refused or "")
    assert "refused" in cautions(workload(), cluster(1, 4), found)[0]


SCORED_BY_TEXT = (*DECODER, "tasks.text_suite.kind=generation")
LEARNING = ("structure.grouping=per_task", "model.moe.experts_per_task_group=2", "structure.learn={}")


def test_a_choice_is_refused_where_a_run_would_be():
    """By ep_size, which does not divide 4 experts; by a stage that generation and structural learning cannot use."""
    too_many = forecast(workload(), cluster(2, 4), Choice("colocated", 8, 1, "fp32"))
    assert "a task group's experts cannot be dealt to the ranks of a block" in (too_many.refused or "")
    for more, why in (
        (SCORED_BY_TEXT, "answers are not generated from weights that are sharded"),
        (LEARNING, "structural learning reads whole layers"),
    ):
        run = workload(*more)
        assert forecast(run, cluster(1, 4), Choice("colocated", 1, 1, "fp32")).refused is None
        assert why in (forecast(run, cluster(1, 4), Choice("colocated", 1, 3, "fp32")).refused or "")
        found, refused = rank_choices(run, cluster(1, 4), Choice("colocated", 1, 1, "fp32"))
        assert {one.choice.stage for one in found} == {1, 2}
        assert why in refused[Choice("colocated", 1, 3, "fp32")]


def test_where_task_groups_will_be_merged_equal_copies_do_not_count():
    """4 tasks on 4 ranks: one copy each, until two of them are one task group."""
    choice, equal = Choice("partitioned", 1, 1, "bf16"), LEARNING[:-1]
    assert forecast(workload(*equal), cluster(1, 4), choice).refused is None
    assert "unequal numbers of expert copies" in (forecast(workload(*LEARNING), cluster(1, 4), choice).refused or "")


def test_the_rest_of_a_deepspeed_file_counts_in_the_plan_and_in_the_ranking():
    """Buckets of 1000 fp32 numbers, two where reductions overlap; the optimizer in host memory."""
    run, nodes = workload(), cluster(1, 4)
    plain = Choice("colocated", 1, 2, "fp32", bucket=1000)
    beside, away = replace(plain, overlap_comm=True), replace(plain, offload=True)
    one, two, host = (forecast(run, nodes, choice).memory for choice in (plain, beside, away))
    assert (one.buffers, two.buffers) == (1000 * 4, 2 * 1000 * 4)
    assert (host.master, host.moments, host.weights) == (0, 0, one.weights)
    assert one.master > 0
    found, refused = rank_choices(run, nodes, away)
    assert all(each.choice.offload and each.choice.bucket == 1000 for each in found)
    assert "offload is exact under ZeRO-1 and ZeRO-2 only" in refused[replace(away, stage=3)]
    assert any("offloaded" in line for line in cautions(run, nodes, forecast(run, nodes, away)))


def test_the_table_of_stages_has_the_memory_of_the_plan():
    """With accumulation in low precision, and as a CPU would need it."""
    run, here = workload("data.micro_batch_size=1"), replace(cluster(1, 4).accelerator, name="cpu")
    for nodes in (cluster(1, 4), Cluster(1, 4, here)):
        for low in (False, True):
            found = forecast(run, nodes, Choice("colocated", 1, 1, "bf16", fp32_accumulation=not low))
            assert memory_of_stages(run, nodes, found)[1] == found.memory
    assert forecast(run, Cluster(1, 4, here), Choice("colocated", 1, 1, "fp32")).memory.buffers < 1e6


def test_what_does_not_fit_a_device_is_not_ranked():
    small = Accelerator(
        name="small", memory=1e6, low_flops=1e12, fp32_flops=1e12, hbm=1e10, inside=1e9, between=1e8, source="made up"
    )
    found, refused = rank_choices(workload(), Cluster(1, 4, small), Choice("colocated", 1, 1, "fp32"))
    assert found == []
    assert "does not fit" in refused[Choice("colocated", 1, 1, "fp32")]


def test_zero3_of_a_task_routed_model_names_what_fits_without_it():
    run, choice = workload(), Choice("colocated", 1, 3, "fp32")
    told = cautions(run, cluster(1, 4), forecast(run, cluster(1, 4), choice))
    [line] = [line for line in told if line.startswith("ZeRO-3")]
    assert "no prefetch in task-routed models): ZeRO-2 fp32, parallel.placement=colocated parallel.ep_size=1" in line

    # DeepSpeed's reduction bucket alone takes 2 GB under ZeRO-1 and 2: nothing but ZeRO-3 fits here.
    narrow = Accelerator(
        name="narrow", memory=1e9, low_flops=1e12, fp32_flops=1e12, hbm=1e10, inside=1e9, between=1e8, source="made up"
    )
    told = cautions(run, Cluster(1, 4, narrow), forecast(run, Cluster(1, 4, narrow), choice))
    assert any(line.endswith("no arrangement with ZeRO-1 or 2 and fp32 fits") for line in told)

    dense = workload("model.moe=null", "structure.grouping=one")
    assert cautions(dense, cluster(1, 4), forecast(dense, cluster(1, 4), choice)) == []
    assert cautions(dense, cluster(4, 2), forecast(dense, cluster(4, 2), replace(choice, ep_size=4))) == []


def test_low_precision_accumulation_is_tried_before_zero3_is_said_to_be_needed():
    """ZeRO-1 adds up micro-batches in bf16 without an fp32 copy of every gradient."""
    run, nodes = workload(), cluster(1, 4)
    like = Choice("colocated", 4, 3, "bf16", bucket=1)
    found, _ = rank_choices(run, nodes, like)
    least = min((one for one in found if one.choice.stage in (1, 2)), key=lambda one: one.memory.total)
    assert not least.choice.fp32_accumulation
    tight = Cluster(1, 4, replace(nodes.accelerator, memory=1.001 * least.memory.total / 0.92))
    told = cautions(run, tight, forecast(run, tight, like))
    assert any("data_types.grad_accum_dtype bf16" in line for line in told)


def test_the_limit_that_is_named_is_the_one_that_is_tested():
    run, choice = workload(), Choice("colocated", 1, 1, "fp32")
    needed = forecast(run, cluster(1, 4), choice).memory.total
    for share, fits in ((0.93, False), (0.91, True)):
        nodes = Cluster(1, 4, replace(cluster(1, 4).accelerator, memory=needed / share))
        found = forecast(run, nodes, choice)
        assert found.fits == fits
        usable = f"only {needed / share * 0.92 / 2**30:.2f} are usable"
        assert any(usable in line for line in cautions(run, nodes, found)) == (not fits)


def test_imbalance_is_share_of_mixture_over_share_of_ranks():
    """Weights 3 : 1 for two task groups on two ranks: 0.75 / 0.5 and 0.25 / 0.5."""
    run = config("data.sampling.strategy=size_proportional")
    found = make_workload(run, open_sources(run), sizes=[3, 3, 1, 1])
    placement = place(found.grouping, found.weights, num_ranks=2, ep_size=1, mode="partitioned")
    assert sorted(imbalance(found, placement).values()) == pytest.approx([0.5, 1.5])
    skewed = make_workload(run, open_sources(run), sizes=[15, 15, 1, 1])
    told = cautions(skewed, cluster(1, 2), forecast(skewed, cluster(1, 2), Choice("partitioned", 1, 1, "fp32")))
    assert any("starved of ranks" in line for line in told)


def test_the_weight_bandwidth_bound_of_an_h200_is_184_rows():
    """790e12 FLOP/s over 4.3e12 B/s in bf16 (performance notes, section 2)."""
    assert weight_bound_rows(Cluster(1, 8, accelerator("h200")), "bf16") == pytest.approx(184, abs=0.5)


def test_an_unknown_accelerator_and_an_empty_cluster_are_refused():
    with pytest.raises(ConfigError, match=r"tpu[\s\S]*h100[\s\S]*--gpu"):
        accelerator("tpu")
    with pytest.raises(ConfigError, match="0 nodes x 8 GPUs"):
        Cluster(0, 8, accelerator("h100"))
