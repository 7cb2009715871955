"""Combinations that only the number of ranks, the files or the tasks show to be impossible.

Pairs of configuration values are refused by ``recipes/contradictions.py``, DeepSpeed combinations by ``engine``; all
of it happens before anything is built.
"""

from __future__ import annotations

from pathlib import Path

from distmoe.errors import ConfigError, ParallelError
from distmoe.moe.config import MoEConfig
from distmoe.parallel.megatron import megatron_tensor
from distmoe.parallel.rank_grid import RankGrid
from distmoe.structure.frontier import start
from distmoe.structure.transfer import FEWEST_TASKS
from distmoe.tasks import TaskGrouping, TaskSet
from distmoe.training.config import RunConfig
from distmoe.training.text_scores import require_scorers


def check_environment(config: RunConfig, *, num_ranks: int) -> None:
    """Refuses what does not fit the number of processes, the installed libraries or the file system.

    Raises:
        ConfigError: Naming the keys that do not fit.
        ParallelError: If ranks cannot be cut into tensor neighbours or blocks.
    """
    num_data_ranks = RankGrid(0, num_ranks, config.parallel.tensor).num_data_ranks
    if config.parallel.tensor > 1:
        megatron_tensor()
    _check_ranks(config, num_data_ranks)
    _check_batch(config, num_data_ranks)
    if config.model.moe is not None:
        _check_experts(config.model.moe, config.parallel.ep_size)
    _check_folders(config)


def check_positions(config: RunConfig, max_positions: int) -> None:
    """Refuses sequences that a model has no positions for.

    Raises:
        ConfigError: If ``data.max_length`` is larger than an encoder's position table or a decoder's context.
    """
    if config.data.max_length > max_positions:
        limit = "context" if config.model.family == "decoder" else "position table"
        raise ConfigError(
            f"sequences may become longer than the model's {limit}",
            got=f"data.max_length={config.data.max_length}",
            expected=f"data.max_length <= {max_positions}",
            remedy="lower data.max_length",
        )


def check_answers(config: RunConfig, tasks: TaskSet, *, max_positions: int, zero_stage: int) -> None:
    """Refuses tasks whose answers could not be generated or scored, before anything is trained.

    Raises:
        ConfigError: If an answer may not fit behind its prompt, weights are sharded, or a library is missing.
    """
    by_text = [spec.name for spec in tasks if spec.is_scored_by_text]
    if not by_text:
        return
    require_scorers(tasks)
    longest = config.data.max_length + config.run.max_new_tokens
    if longest > max_positions:
        raise ConfigError(
            "an answer may become longer than the model's context",
            got=f"data.max_length={config.data.max_length} + run.max_new_tokens={config.run.max_new_tokens}",
            expected=f"at most {max_positions} together",
            remedy="raise model.max_positions, or lower one of them",
        )
    if zero_stage == 3:
        raise ConfigError(
            "answers are not generated from weights that are sharded over ranks",
            got=f"ZeRO-3 with tasks scored by text: {', '.join(by_text)}",
            expected="ZeRO-1 or ZeRO-2, or metric token_accuracy or inverse_perplexity",
            remedy="set parallel.deepspeed to a ZeRO-1 or ZeRO-2 file, or change the tasks' metric",
        )


def check_structure(config: RunConfig, tasks: TaskSet, grouping: TaskGrouping) -> None:
    """Refuses expert counts that the task groups cannot share equally.

    Raises:
        ConfigError: If ``num_experts`` is not a multiple of a layer's number of task groups, or a task group's share
            of them not a multiple of ``parallel.ep_size`` or smaller than ``top_k``.
    """
    moe = config.model.moe
    if moe is None:
        return
    ep_size = config.parallel.ep_size
    for layer in range(grouping.num_layers):
        num_task_groups = grouping.num_task_groups(layer)
        sizes = moe.pool_sizes(grouping.layers[layer])
        if _counts_experts(moe) and moe.num_experts % num_task_groups:
            raise ConfigError(
                f"routed layer {layer}: the experts cannot be shared equally by its task groups",
                got=f"model.moe.num_experts={moe.num_experts}, {num_task_groups} task groups of {len(tasks)} tasks",
                expected=f"a multiple of {num_task_groups}",
                remedy=f"set model.moe.num_experts={_next_multiple(moe.num_experts, num_task_groups * ep_size)}, "
                "or change structure.grouping",
            )
        uneven = next((size for size in sizes if size % ep_size), None)
        if uneven is not None:
            raise ConfigError(
                f"routed layer {layer}: a task group's experts cannot be dealt to the ranks of a block",
                got=f"{uneven} experts per task group, parallel.ep_size={ep_size}",
                expected=f"a multiple of {ep_size} per task group",
                remedy=f"set {_more_experts(moe, num_task_groups, ep_size)}, or a smaller parallel.ep_size",
            )
        if moe.top_k > min(sizes):
            raise ConfigError(
                f"routed layer {layer}: a token is to visit more experts than its task group has",
                got=f"model.moe.top_k={moe.top_k}, {min(sizes)} experts in the smallest task group",
                expected=f"top_k <= {min(sizes)}",
                remedy=f"raise {moe.counting_keys}, or lower model.moe.top_k",
            )


def check_start(config: RunConfig, *, resumes: bool) -> None:
    """Refuses a run whose frozen body nobody has trained.

    Args:
        config: The run.
        resumes: Whether it goes on from a checkpoint.

    Raises:
        ConfigError: If it begins with a random encoder that would never be trained.
    """
    if config.model.freeze == "body" and config.model.pretrained is None and not resumes:
        raise ConfigError(
            "a body that is never trained would stay random",
            got="model.freeze=body, model.pretrained=null, no checkpoint to go on from",
            expected="a trained body",
            remedy="make the run with tools/edit_tasks.py CHECKPOINT OUT --add FOLDER --recipe add_task_frozen, "
            "go on from a checkpoint (--resume PATH), or add model.pretrained=HF_DIR",
        )


def check_unit(config: RunConfig, *, zero_stage: int) -> None:
    """Refuses whole layers per task group under ZeRO-3, which no test has compared with one process.

    Raises:
        ConfigError: Naming both keys.
    """
    if config.model.moe is not None and config.model.moe.unit == "block" and zero_stage == 3:
        raise ConfigError(
            "whole layers per task group were not proven exact under ZeRO-3",
            got=f"model.moe.unit=block, parallel.deepspeed={config.parallel.deepspeed}",
            expected="ZeRO-0, 1 or 2",
            remedy="use zero1_bf16 or zero2_bf16, or set model.moe.unit=ffn",
        )


def check_learning(config: RunConfig, tasks: TaskSet, grouping: TaskGrouping, *, zero_stage: int) -> None:
    """Refuses structural learning that could not do anything, or that the model cannot follow.

    Raises:
        ConfigError: Naming the keys that do not fit.
    """
    learn = config.structure.learn
    if learn is None:
        return
    if len(tasks) < 2 or not any(len(partition) > 1 for partition in grouping.layers):
        raise ConfigError(
            "structural learning has nothing to merge",
            got=f"{len(tasks)} task(s), structure.grouping={config.structure.grouping}",
            expected="two or more tasks that begin in task groups of their own",
            remedy="set structure.grouping=per_task and train two or more tasks, or set structure.learn=null",
        )
    members = start(grouping)[0].members
    if learn.is_relative and learn.trial_steps == 0 and len(members) < FEWEST_TASKS:
        raise ConfigError(
            f"similarity {learn.similarity} says who is more alike than others, which takes {FEWEST_TASKS} task groups",
            got=f"{len(members)} task groups, structure.learn.trial_steps=0: the merge of all is not tried either",
            expected=f"{FEWEST_TASKS} task groups or more, a trial, or similarity=cka",
            remedy="set structure.learn.trial_steps, or structure.learn.similarity=cka",
        )
    if zero_stage == 3:
        raise ConfigError(
            "structural learning reads whole layers, which ZeRO-3 has cut up",
            got=f"parallel.deepspeed={config.parallel.deepspeed}",
            expected="ZeRO-0, 1 or 2",
            remedy="use zero1_bf16 or zero2_bf16",
        )


def _check_ranks(config: RunConfig, num_ranks: int) -> None:
    ep_size = config.parallel.ep_size
    if num_ranks % ep_size:
        raise ParallelError(
            "the ranks cannot be cut into blocks of parallel.ep_size",
            got=f"{_ranks(config, num_ranks)}, parallel.ep_size={ep_size}",
            expected=f"a divisor of {num_ranks}",
            remedy="change parallel.ep_size, or start another number of processes (deepspeed --num_gpus)",
        )


def _check_batch(config: RunConfig, num_ranks: int) -> None:
    batch, micro = config.data.batch_size, config.data.micro_batch_size
    if batch % num_ranks:
        raise ConfigError(
            "data.batch_size cannot be shared equally by the ranks",
            got=f"data.batch_size={batch}, {_ranks(config, num_ranks)}",
            expected=f"a multiple of {num_ranks}",
            remedy=f"set data.batch_size={_next_multiple(batch, num_ranks)}",
        )
    if micro is not None and batch % (num_ranks * micro):
        raise ConfigError(
            "data.batch_size is not a whole number of micro-batches",
            got=f"data.batch_size={batch}, data.micro_batch_size={micro} on {_ranks(config, num_ranks)}",
            expected=f"a multiple of {num_ranks * micro}",
            remedy=f"set data.batch_size={_next_multiple(batch, num_ranks * micro)}, or another data.micro_batch_size",
        )


def _ranks(config: RunConfig, num_data_ranks: int) -> str:
    tensor = config.parallel.tensor
    if tensor == 1:
        return f"{num_data_ranks} ranks"
    return f"{num_data_ranks} data ranks ({num_data_ranks * tensor} ranks, parallel.tensor={tensor})"


def _more_experts(moe: MoEConfig, num_task_groups: int, ep_size: int) -> str:
    """The next larger number of experts that the ranks of a block can share."""
    if moe.experts_per_task is not None:
        key = "experts_per_task" if moe.experts_per_task % ep_size else "largest_pool"
        return f"model.moe.{key}={_next_multiple(getattr(moe, key), ep_size)}"
    if moe.experts_per_task_group is not None:
        return f"model.moe.experts_per_task_group={_next_multiple(moe.experts_per_task_group, ep_size)}"
    return f"model.moe.num_experts={_next_multiple(moe.num_experts, num_task_groups * ep_size)}"


def _counts_experts(moe: MoEConfig) -> bool:
    """Whether ``num_experts`` is read."""
    return moe.experts_per_task is None and moe.experts_per_task_group is None


def _check_experts(moe: MoEConfig, ep_size: int) -> None:
    if not _counts_experts(moe):
        return  # check_structure looks at every task group
    if moe.num_experts % ep_size:
        raise ConfigError(
            "the experts cannot be dealt to the ranks of a block",
            got=f"model.moe.num_experts={moe.num_experts}, parallel.ep_size={ep_size}",
            expected=f"a multiple of {ep_size}",
            remedy=f"set model.moe.num_experts={_next_multiple(moe.num_experts, ep_size)}, or lower parallel.ep_size",
        )


def _check_folders(config: RunConfig) -> None:
    pretrained, root = config.model.pretrained, config.data.root
    if pretrained is not None and not (Path(pretrained) / "config.json").is_file():
        raise ConfigError(
            "model.pretrained is not a Hugging Face model folder",
            got=pretrained,
            expected="a folder with config.json and the weights",
            remedy="download one, for example `hf download google-bert/bert-base-uncased --local-dir bert-base`, and "
            "set model.pretrained=bert-base; or remove the key to train from scratch",
        )
    if config.tasks.source == "local" and root is not None and not Path(root).is_dir():
        raise ConfigError(
            "tasks.source is local, but data.root is not a folder",
            got=f"data.root={root}",
            expected="a folder of task folders, each with task.json",
            remedy="correct data.root",
        )


def _next_multiple(value: int, of: int) -> int:
    return -(-value // of) * of
