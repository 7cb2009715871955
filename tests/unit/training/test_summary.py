from dataclasses import replace

from distmoe.config import build
from distmoe.engine import ds_config
from distmoe.engine.config import OptimizerConfig
from distmoe.models.build import build_model
from distmoe.models.config import ModelConfig
from distmoe.models.shape import resolve_shape
from distmoe.parallel.placement import place
from distmoe.parallel.process_groups import LayerHosting
from distmoe.tasks import TaskGrouping
from distmoe.training.config import RunConfig
from distmoe.training.summary import Facts, ParameterCount, TaskSize, count_parameters
from tests.unit.training.samples import TASKS

SHAPE = {"hidden_size": 8, "num_layers": 2, "num_heads": 2, "intermediate_size": 16, "max_positions": 16}
EXPERT = 2 * 8 * 16 + 16 + 8  # w_in, w_out, b_in, b_out


def count(ep_size: int, task_groups: tuple[int, ...], top_k: int = 1) -> ParameterCount:
    """A rank of a model with 8 experts of full width in one of its two layers, for two task groups."""
    moe = {"layers": [1], "num_experts": 8, "top_k": top_k, "expert_size": 16}
    config = build(ModelConfig, SHAPE | {"moe": moe})
    grouping = TaskGrouping.uniform(3, 1, [[0, 2], [1]])
    hosting = [LayerHosting(task_groups, 0, ep_size, None)]
    model = build_model(
        config, shape=resolve_shape(config, 20, 0), tasks=TASKS, grouping=grouping, hosting=hosting, seed=0
    )
    return count_parameters(model, pool_sizes=[(4, 4)], top_k=top_k)


def test_total_and_active_parameters_do_not_depend_on_what_a_rank_hosts() -> None:
    whole, half = count(1, (0, 1)), count(1, (1,))
    assert whole.total == whole.per_rank
    assert half.per_rank == whole.per_rank - 4 * EXPERT
    assert (half.total, half.active) == (whole.total, whole.active)
    assert whole.total - whole.active == 7 * EXPERT


def test_two_experts_per_token_are_active_with_top_2() -> None:
    assert count(1, (0, 1), top_k=2).active == count(1, (0, 1)).active + EXPERT


def test_start_up_lines_name_tasks_truncation_groups_placement_and_deepspeed() -> None:
    config = build(RunConfig, {"parallel": {"placement": "partitioned"}, "schedule": {"num_steps": 20}})
    grouping = TaskGrouping.uniform(3, 2, [[0, 2], [1]])
    settings = ds_config.resolve(
        "auto", optimizer=OptimizerConfig(), micro_batch_size=8, accumulation_steps=4, num_ranks=2, device_type="cpu"
    )
    facts = Facts(
        tasks=TASKS,
        sizes=[TaskSize(1000, 50, 0, 7), TaskSize(10, 5, 5, 0), TaskSize(10, 5, 5, 3)],
        weights=[0.5, 0.25, 0.25],
        routed_layers=[1, 3],
        grouping=grouping,
        placement=place(grouping, [0.5, 0.25, 0.25], num_ranks=2, ep_size=1, mode="partitioned"),
        parameters=ParameterCount(1000, 600, 800),
        settings=settings,
    )
    text = "\n".join(facts.lines(config, device="cpu"))
    assert "colour  accuracy      1,000       50        0       7  50.0 %" in text
    assert "10 examples were longer than data.max_length=128 and were cut" in text
    assert "1,000 total, 600 active per token, 800 on rank 0" in text
    assert "layers 1, 3 g0: colour, shape" in text
    assert "ranks 0: colour, shape" in text
    assert "ranks 1: size" in text
    assert "ZeRO-1, fp32, 4 micro-batches per step, cpu" in text
    assert facts.to_json()["grouping"]["layers"] == [[[0, 2], [1]], [[0, 2], [1]]]
    assert facts.to_json()["num_ranks"] == 2

    assert "added up in bf16" not in text

    rounded = replace(facts, settings=replace(settings, precision="bf16", accumulation_dtype="bf16"))
    assert "warning: 4 micro-batches are added up in bf16" in "\n".join(rounded.lines(config, device="cuda"))
    once = replace(facts, settings=replace(rounded.settings, accumulation_steps=1))
    assert "added up in bf16" not in "\n".join(once.lines(config, device="cuda"))

    cut = replace(facts, tensor=4)
    text = "\n".join(cut.lines(config, device="cpu"))
    assert "partitioned, 2 data ranks in 2 blocks of 1" in text
    assert "data ranks 1: size" in text
    assert "4 neighbouring ranks share the dense matrices of each data rank, 8 ranks in all" in text
    assert cut.to_json()["num_ranks"] == 8
