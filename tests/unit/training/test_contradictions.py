from pathlib import Path

import pytest

from distmoe.config import apply_overrides, build
from distmoe.errors import ConfigError, DistmoeError, ParallelError
from distmoe.tasks import TaskGrouping
from distmoe.training.config import RunConfig
from distmoe.training.contradictions import (
    check_environment,
    check_learning,
    check_positions,
    check_start,
    check_structure,
)
from tests.unit.training.samples import TASKS


def config(*overrides: str) -> RunConfig:
    return build(RunConfig, apply_overrides({}, overrides))


@pytest.mark.parametrize(
    ("overrides", "num_ranks", "kind", "text"),
    [
        (["parallel.ep_size=3", "model.moe.num_experts=9"], 4, ParallelError, r"got: +4 ranks, parallel.ep_size=3"),
        (["parallel.tensor=4"], 6, ParallelError, r"tensor-parallel neighbours[\s\S]*6 ranks, parallel.tensor=4"),
        (
            ["parallel.tensor=2", "parallel.ep_size=4", "model.moe.num_experts=8"],
            4,
            ParallelError,
            r"got: +2 data ranks \(4 ranks, parallel.tensor=2\), parallel.ep_size=4",
        ),
        (["parallel.tensor=2", "data.batch_size=3"], 4, ConfigError, r"=3, 2 data ranks[\s\S]*data.batch_size=4"),
        (["data.batch_size=10"], 4, ConfigError, r"data.batch_size=10, 4 ranks[\s\S]*set data.batch_size=12"),
        (
            ["data.batch_size=32", "data.micro_batch_size=5"],
            2,
            ConfigError,
            r"a multiple of 10[\s\S]*data.batch_size=40",
        ),
        (
            ["model.moe.num_experts=6", "parallel.ep_size=4"],
            4,
            ConfigError,
            r"got: +model.moe.num_experts=6, parallel.ep_size=4",
        ),
        (["model.pretrained=/nowhere"], 1, ConfigError, r"not a Hugging Face model folder\n.*/nowhere"),
        (["tasks.source=local", "data.root=/nowhere"], 1, ConfigError, r"data.root is not a folder\n.*/nowhere"),
    ],
)
def test_what_does_not_fit_ranks_or_files_is_refused(
    overrides: list[str], num_ranks: int, kind: type[DistmoeError], text: str
) -> None:
    with pytest.raises(kind, match=text):
        check_environment(config(*overrides), num_ranks=num_ranks)


@pytest.mark.parametrize(("family", "limit"), [("encoder", "position table"), ("decoder", "context")])
def test_sequences_longer_than_the_model_are_refused_in_the_words_of_its_family(family: str, limit: str) -> None:
    small = config("data.max_length=65", f"model.family={family}")
    with pytest.raises(ConfigError, match=rf"the model's {limit}\n[\s\S]*data.max_length=65[\s\S]*<= 64"):
        check_positions(small, 64)
    check_positions(small, 65)


def test_a_frozen_body_must_come_from_somewhere() -> None:
    frozen = config("model.freeze=body")
    with pytest.raises(ConfigError, match=r"would stay random[\s\S]*model.freeze=body[\s\S]*edit_tasks.py"):
        check_start(frozen, resumes=False)
    check_start(frozen, resumes=True)
    check_start(config("model.freeze=body", "model.pretrained=folder"), resumes=False)


def test_a_fitting_configuration_passes(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    check_environment(
        config(f"model.pretrained={tmp_path}", "parallel.ep_size=2", "data.micro_batch_size=8"), num_ranks=4
    )


@pytest.mark.parametrize(
    ("overrides", "partition", "text"),
    [
        (["model.moe.num_experts=8"], [[0], [1], [2]], r"3 task groups[\s\S]*a multiple of 3[\s\S]*num_experts=9"),
        (
            ["model.moe.num_experts=6", "parallel.ep_size=2"],
            [[0, 1], [2]],
            r"3 experts per task group, parallel.ep_size=2[\s\S]*=8",
        ),
        (
            ["model.moe.experts_per_task_group=3", "parallel.ep_size=2"],
            [[0, 1], [2]],
            r"3 experts per task group, parallel.ep_size=2[\s\S]*experts_per_task_group=4",
        ),
        (
            ["model.moe.num_experts=2", "model.moe.top_k=2"],
            [[0, 1], [2]],
            r"top_k=2, 1 experts in the smallest[\s\S]*raise model.moe.num_experts,",
        ),
        (["model.moe.experts_per_task=1", "model.moe.top_k=2"], [[0, 1], [2]], "raise model.moe.experts_per_task, or"),
        (
            ["model.moe.experts_per_task=4", "model.moe.largest_pool=4", "model.moe.top_k=6"],
            [[0, 1], [2]],
            r"top_k=6, 4 experts[\s\S]*raise model.moe.experts_per_task and model.moe.largest_pool,",
        ),
    ],
)
def test_experts_that_task_groups_cannot_share_are_refused(overrides: list[str], partition: list, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        check_structure(config(*overrides), TASKS, TaskGrouping.uniform(3, 1, partition))


def test_experts_per_task_group_fit_any_number_of_task_groups() -> None:
    """The default of num_experts, 8, could not be shared by three task groups; it is not read here."""
    one_each = config("model.moe.experts_per_task_group=1")
    for partition in ([[0], [1], [2]], [[0, 1], [2]], [[0, 1, 2]]):
        check_structure(one_each, TASKS, TaskGrouping.uniform(3, 1, partition))


@pytest.mark.parametrize(
    ("partition", "zero_stage", "text"),
    [
        ([[0, 1, 2]], 1, r"nothing to merge[\s\S]*structure.grouping=per_task"),
        ([[0], [1], [2]], 3, r"ZeRO-3 has cut up[\s\S]*ZeRO-0, 1 or 2"),
    ],
)
def test_learning_that_cannot_work_is_refused(partition: list, zero_stage: int, text: str) -> None:
    grouping = TaskGrouping.uniform(3, 1, partition)
    with pytest.raises(ConfigError, match=text):
        check_learning(config("structure.learn={}"), TASKS, grouping, zero_stage=zero_stage)
    check_learning(config("structure.learn=null"), TASKS, grouping, zero_stage=zero_stage)


def test_three_tasks_are_not_told_apart_by_a_relative_similarity() -> None:
    grouping = TaskGrouping.one_per_task(3, 1)
    with pytest.raises(ConfigError, match=r"takes 4 task groups[\s\S]*3 task groups[\s\S]*similarity=cka"):
        check_learning(config("structure.learn={trial_steps: 0}"), TASKS, grouping, zero_stage=1)
    for allowed in ("{}", "{trial_steps: 0, similarity: cka}"):
        check_learning(config(f"structure.learn={allowed}"), TASKS, grouping, zero_stage=1)


def test_a_dense_model_has_nothing_to_share() -> None:
    check_structure(config("model.moe=null"), TASKS, TaskGrouping(3, ()))
