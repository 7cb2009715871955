"""Keys of ``model.moe`` that contradict each other or the rest; see :mod:`distmoe.recipes.contradictions`."""

from __future__ import annotations

from distmoe.errors import ConfigError
from distmoe.moe.config import TASK_LEVEL_GATES, MoEConfig
from distmoe.training.config import RunConfig


def check_experts(config: RunConfig) -> None:
    """Refuses contradictions of experts, gates and task groups, and of what a dense model has not.

    Raises:
        ConfigError: Naming both keys and which of them to change.
    """
    moe = config.model.moe
    if moe is None:
        _check_dense(config)
    elif moe.unit == "block":
        _check_block(config, moe)
    else:
        _check_gate(moe)
        _check_pools(moe)
        _check_counts(config, moe)


def _check_dense(config: RunConfig) -> None:
    if config.structure.grouping != "one":
        raise ConfigError(
            "a dense model has no routed layer to which a task grouping could apply",
            got=f"model.moe=null, structure.grouping={config.structure.grouping}",
            expected="structure.grouping=one",
            remedy="add structure.grouping=one, or keep model.moe",
        )
    if config.parallel.placement != "colocated" or config.parallel.ep_size != 1:
        raise ConfigError(
            "a dense model has no experts to place",
            got=f"model.moe=null, parallel.placement={config.parallel.placement}, "
            f"parallel.ep_size={config.parallel.ep_size}",
            expected="parallel.placement=colocated and parallel.ep_size=1",
            remedy="set both, or keep model.moe",
        )


def _check_block(config: RunConfig, moe: MoEConfig) -> None:
    defaults, read = MoEConfig(), ("layers", "unit", "num_experts", "experts_per_task_group")
    unread = [key for key in MoEConfig.model_fields if key not in read and getattr(moe, key) != getattr(defaults, key)]
    if moe.experts_per_task_group != 1 or unread:
        raise ConfigError(
            "with unit block a task group has one whole layer, which no gate chooses",
            got=f"model.moe.unit=block, experts_per_task_group={moe.experts_per_task_group}"
            + "".join(f", {key}={getattr(moe, key)}" for key in unread),
            expected="experts_per_task_group=1 and no key of gates or experts",
            remedy=f"remove model.moe.{unread[0]}" if unread else "set model.moe.experts_per_task_group=1",
        )
    if config.parallel.ep_size != 1 or config.model.conditional is not None:
        raise ConfigError(
            "with unit block a rank holds its task groups' layers whole and unconditioned",
            got=f"parallel.ep_size={config.parallel.ep_size}, "
            f"model.conditional={'null' if config.model.conditional is None else '...'}",
            expected="parallel.ep_size=1 and model.conditional=null",
            remedy="set both; to spread task groups over ranks use parallel.placement=partitioned",
        )


def _check_gate(moe: MoEConfig) -> None:
    kind = moe.gate.kind
    if kind in TASK_LEVEL_GATES and moe.capacity_factor is not None:
        raise ConfigError(
            "capacity contradicts a task-level gate: a batch of one task goes to one expert",
            got=f"model.moe.gate.kind={kind}, model.moe.capacity_factor={moe.capacity_factor}",
            expected="capacity_factor=null (dropless), or a gate that routes tokens or sequences",
            remedy="set model.moe.capacity_factor=null",
        )
    if kind in TASK_LEVEL_GATES and moe.gate.detach_input:
        raise ConfigError(
            "a task-level gate reads no states that could be detached",
            got=f"model.moe.gate.kind={kind}, model.moe.gate.detach_input=true",
            expected="detach_input=false, or a gate that routes tokens or sequences",
            remedy="set model.moe.gate.detach_input=false",
        )
    if kind == "fixed" and moe.gate.table is None:
        raise ConfigError(
            "gate fixed learns nothing and needs its table",
            got="model.moe.gate.kind=fixed, model.moe.gate.table=null",
            expected="random, or task name -> experts",
            remedy="set model.moe.gate.table",
        )
    if kind != "fixed" and moe.gate.table is not None:
        raise ConfigError(
            "model.moe.gate.table is read by gate fixed only",
            got=f"model.moe.gate.kind={kind} with a table",
            expected="model.moe.gate.table=null",
            remedy="remove the table, or set model.moe.gate.kind=fixed",
        )


def _check_counts(config: RunConfig, moe: MoEConfig) -> None:
    key = next(
        (key for key in ("experts_per_task", "experts_per_task_group") if getattr(moe, key) is not None), "num_experts"
    )
    choice = getattr(moe, key)
    # A task group has as many experts per task as it has tasks; only learning begins with tasks on their own.
    grows = key == "experts_per_task" and config.structure.learn is None
    if moe.top_k > choice and not grows:
        raise ConfigError(
            "a token cannot choose more experts than there are",
            got=f"model.moe.top_k={moe.top_k}, model.moe.{key}={choice}",
            expected=f"model.moe.top_k <= {choice}",
            remedy=f"lower model.moe.top_k, or raise model.moe.{key}",
        )
    if config.model.pretrained is not None:
        return
    width = config.model.intermediate_size
    if moe.expert_size is None and width % moe.top_k:
        raise ConfigError(
            "the dense feed-forward width cannot be shared by top_k experts",
            got=f"model.intermediate_size={width}, model.moe.top_k={moe.top_k}",
            expected="a multiple of model.moe.top_k",
            remedy="set model.moe.expert_size, or change model.intermediate_size",
        )
    if isinstance(moe.layers, list):
        known = range(config.model.num_layers)
        if not moe.layers or len(set(moe.layers)) != len(moe.layers) or not set(moe.layers) <= set(known):
            raise ConfigError(
                "model.moe.layers must name existing layers, each once",
                got=moe.layers,
                expected=f"different numbers from 0 to {config.model.num_layers - 1}",
                remedy="correct model.moe.layers, or set model.moe=null for a dense model",
            )


def _check_pools(moe: MoEConfig) -> None:
    if moe.experts_per_task is not None and moe.experts_per_task_group is not None:
        raise ConfigError(
            "experts are counted in two ways",
            got=f"model.moe.experts_per_task={moe.experts_per_task}, "
            f"model.moe.experts_per_task_group={moe.experts_per_task_group}",
            expected="one of them",
            remedy="set the other to null",
        )
    if moe.largest_pool is not None and (moe.experts_per_task is None or moe.largest_pool < moe.experts_per_task):
        raise ConfigError(
            "model.moe.largest_pool limits pools that grow with their tasks, and holds at least one task's experts",
            got=f"model.moe.largest_pool={moe.largest_pool}, model.moe.experts_per_task={moe.experts_per_task}",
            expected="null" if moe.experts_per_task is None else f"at least {moe.experts_per_task}",
            remedy="set model.moe.experts_per_task, or remove model.moe.largest_pool",
        )
