"""Pairs of values that cannot both be meant, found before a file is read or a tensor is made.

Only what the configuration alone can tell. What the number of ranks, the files or the tasks show is refused by
``training/contradictions.py``, and DeepSpeed combinations by ``engine/supported.py``.
"""

from __future__ import annotations

from distmoe.errors import ConfigError
from distmoe.models.config import ModelConfig
from distmoe.moe.config import TASK_LEVEL_GATES, MoEConfig
from distmoe.structure.config import LearnConfig
from distmoe.training.config import RunConfig


def check(config: RunConfig) -> None:
    """Refuses contradictory pairs.

    Raises:
        ConfigError: Naming both keys and which of them to change.
    """
    _check_source(config)
    _check_family(config)
    _check_shape(config)
    if config.structure.learn is not None:
        _check_learning(config, config.structure.learn)
    _check_checkpoint(config)
    _check_freeze(config)
    _check_sampling(config)
    _check_tensor(config)
    if config.model.moe is None:
        _check_dense(config)
    elif config.model.moe.unit == "block":
        _check_block(config, config.model.moe)
    else:
        _check_gate(config.model.moe)
        _check_experts(config, config.model.moe)


def _check_source(config: RunConfig) -> None:
    if config.tasks.source == "local" and config.data.root is None:
        raise ConfigError(
            "tasks.source is local, but no folder is named",
            got="data.root=null",
            expected="a folder whose sub-folders hold a task.json",
            remedy="add data.root=FOLDER",
        )
    if config.data.root is not None and config.tasks.source not in ("local", "indexed"):
        raise ConfigError(
            "a folder of data is named, but the tasks come from elsewhere and it would not be read",
            got=f"tasks.source={config.tasks.source}, data.root={config.data.root}",
            expected="tasks.source=local (task folders) or indexed (sets of token ids), or data.root=null",
            remedy="set tasks.source=local to train on the folder, or remove data.root",
        )
    if config.tasks.source == "hub":
        known = list(config.tasks.hub)
        unknown = [name for name in config.tasks.names or known if name not in known]
        if unknown or not known:
            raise ConfigError(
                "tasks.source is hub, but tasks.hub does not describe every task",
                got=f"tasks.names with {' | '.join(unknown)}" if unknown else "no entry in tasks.hub",
                expected=" | ".join(known) or "one entry per task",
                remedy="add an entry to tasks.hub in the recipe, or correct tasks.names",
            )


def _check_family(config: RunConfig) -> None:
    """Keys of the other family, and what a decoder does not do."""
    model, plain = config.model, ModelConfig()
    unread = ("decoder",) if model.family == "encoder" else ("norm", "layer_norm_eps", "pooling")
    set_keys = [key for key in unread if getattr(model, key) != getattr(plain, key)]
    if set_keys:
        other = "decoder" if model.family == "encoder" else "encoder"
        raise ConfigError(
            f"keys of the {other} are set, but the model is of the other family",
            got=f"model.family={model.family} with model.{', model.'.join(set_keys)}",
            expected=f"model.family={other}, or the defaults of these keys",
            remedy=f"set model.family={other}, or remove model.{set_keys[0]}",
        )
    if model.family == "encoder":
        return
    if config.structure.learn is not None or config.data.sampling.strategy == "uncertainty":
        key = "structure.learn" if config.structure.learn is not None else "data.sampling.strategy=uncertainty"
        raise ConfigError(
            "this needs one answer per example, and a decoder answers in tokens",
            got=f"{key} with model.family=decoder",
            expected="structure.learn=null and another sampling strategy",
            remedy=f"remove {key}, or set model.family=encoder",
        )


def _check_shape(config: RunConfig) -> None:
    """The keys below are ignored with ``model.pretrained``: the folder's own shape wins and is checked there."""
    model = config.model
    if model.pretrained is not None:
        return
    free = model.family == "decoder" and model.decoder.head_size is not None
    if model.hidden_size % model.num_heads and not free:
        raise ConfigError(
            "model.num_heads does not divide model.hidden_size",
            got=f"model.hidden_size={model.hidden_size}, model.num_heads={model.num_heads}",
            expected="a multiple of model.num_heads",
            remedy="change model.num_heads or model.hidden_size",
        )
    if config.data.max_length > model.max_positions:
        raise ConfigError(
            "data.max_length is longer than the model's context",
            got=f"data.max_length={config.data.max_length}, model.max_positions={model.max_positions}",
            expected=f"data.max_length <= {model.max_positions}",
            remedy="shorten data.max_length, or raise model.max_positions",
        )


def _check_sampling(config: RunConfig) -> None:
    sampling, moe = config.data.sampling, config.model.moe
    if sampling.strategy == "uncertainty":
        if sampling.tasks is not None:
            raise ConfigError(
                "uncertainty sampling chooses from the candidates of every task",
                got=f"data.sampling.strategy=uncertainty, data.sampling.tasks={sampling.tasks}",
                expected="data.sampling.tasks=null",
                remedy="set data.sampling.tasks=null, or choose another strategy",
            )
        if moe is not None and moe.capacity_factor is not None:
            raise ConfigError(
                "with a capacity, the score of a candidate would depend on the others of its pool",
                got=f"data.sampling.strategy=uncertainty, model.moe.capacity_factor={moe.capacity_factor}",
                expected="capacity_factor=null (dropless)",
                remedy="set model.moe.capacity_factor=null, or choose another strategy",
            )
        return
    defaults = type(sampling)()
    keys = ("candidates", "score", "regression_score", "quota", "scope", "trunk_cache")
    unread = [key for key in keys if getattr(sampling, key) != getattr(defaults, key)]
    if unread:
        raise ConfigError(
            "keys of uncertainty sampling are set, but it is not the strategy",
            got=f"data.sampling.strategy={sampling.strategy} with {', '.join(unread)}",
            expected="data.sampling.strategy=uncertainty",
            remedy=f"set data.sampling.strategy=uncertainty, or remove data.sampling.{unread[0]}",
        )


def _check_checkpoint(config: RunConfig) -> None:
    options = config.checkpoint
    if options.format == "deepspeed" and options.asynchronous:
        raise ConfigError(
            "DeepSpeed's own folder cannot be written while training goes on",
            got="checkpoint.format=deepspeed, checkpoint.asynchronous=true",
            expected="one of the two",
            remedy="set checkpoint.asynchronous=false, or checkpoint.format=distmoe",
        )


def _check_tensor(config: RunConfig) -> None:
    """What was not compared with one process, or not written, for matrices cut over ranks."""
    if config.parallel.tensor == 1:
        if config.parallel.sequence:
            raise ConfigError(
                "sequence parallelism deals positions to tensor ranks, and there is one",
                got="parallel.sequence=true, parallel.tensor=1",
                expected="parallel.tensor above 1",
                remedy="set parallel.tensor=2, or remove parallel.sequence",
            )
        return
    moe = config.model.moe
    unproven = {
        "structure.learn": config.structure.learn is not None,
        "data.sampling.strategy=uncertainty": config.data.sampling.strategy == "uncertainty",
        "model.conditional": config.model.conditional is not None,
        "model.moe.unit=block": moe is not None and moe.unit == "block",
        "checkpoint.format=deepspeed": config.checkpoint.format == "deepspeed",
    }
    for key, is_set in unproven.items():
        if is_set:
            raise ConfigError(
                f"{key} does not know of matrices that are cut over ranks",
                got=f"parallel.tensor={config.parallel.tensor} with {key}",
                expected="parallel.tensor=1, or another value of the other key",
                remedy=f"set parallel.tensor=1, or remove {key}",
            )


def _check_freeze(config: RunConfig) -> None:
    model, sampling = config.model, config.data.sampling
    if model.freeze == "body":
        # That there is a trained body is seen when the run is opened: a checkpoint may be it.
        if sampling.tasks is not None and config.optimizer.weight_decay > 0:
            raise ConfigError(
                "weight decay would change the heads of tasks that are not trained",
                got=f"model.freeze=body, data.sampling.tasks={sampling.tasks}, "
                f"optimizer.weight_decay={config.optimizer.weight_decay}",
                expected="optimizer.weight_decay=0",
                remedy="set optimizer.weight_decay=0",
            )
    elif model.freeze != "none" and model.pretrained is None:
        raise ConfigError(
            "layers that are never trained would stay random",
            got=f"model.freeze={model.freeze}, model.pretrained=null",
            expected="a pretrained encoder, or model.freeze=none",
            remedy="add model.pretrained=HF_DIR, or set model.freeze=none",
        )
    conditional = model.conditional
    if conditional is not None and conditional.condition_from == "first_trainable" and model.freeze == "none":
        raise ConfigError(
            "condition_from=first_trainable has no frozen layers to stay above",
            got="model.conditional.condition_from=first_trainable, model.freeze=none",
            expected="frozen layers, or condition_from=embeddings",
            remedy="set model.freeze=lower_half, or model.conditional.condition_from=embeddings",
        )


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


def _check_learning(config: RunConfig, learn: LearnConfig) -> None:
    moe, steps = config.model.moe, config.schedule.num_steps
    if moe is None or (moe.experts_per_task_group is None and moe.experts_per_task is None):
        raise ConfigError(
            "structural learning changes the number of task groups, so experts cannot be counted per layer",
            got="model.moe=null" if moe is None else "model.moe.experts_per_task_group=null",
            expected="experts per task group (1: a feed-forward part of its own), or per task (merges pool them)",
            remedy="set model.moe.experts_per_task_group=1 or model.moe.experts_per_task=1, or structure.learn=null",
        )
    _check_steps("task_steps", learn.task_steps)
    if learn.amalgamation is not None:
        _check_steps("amalgamation.steps", learn.amalgamation.steps)
    task_steps = learn.task_steps_of(0)
    if task_steps + learn.trial_steps_behind >= steps:
        raise ConfigError(
            "the first structural phase would end after training",
            got=f"structure.learn.task_steps={task_steps} + trial_steps={learn.trial_steps_behind}"
            f"{' (a restart tries beside the task phase)' if learn.restart else ''}, schedule.num_steps={steps}",
            expected=f"fewer than {steps} steps together",
            remedy="raise schedule.num_steps, or shorten structure.learn.task_steps or trial_steps",
        )
    if learn.amalgamation is not None and (moe.unit != "block" or config.parallel.placement != "colocated"):
        raise ConfigError(
            "only whole layers that every rank holds are amalgamated",
            got=f"structure.learn.amalgamation with model.moe.unit={moe.unit}, "
            f"parallel.placement={config.parallel.placement}",
            expected="model.moe.unit=block and parallel.placement=colocated",
            remedy="set both, or structure.learn.amalgamation=null: joined layers are means then",
        )
    if learn.mean == "least_squares" and (moe.unit != "ffn" or config.parallel.placement != "colocated"):
        raise ConfigError(
            "only feed-forward parts that every rank reaches are averaged by least squares",
            got=f"structure.learn.mean=least_squares with model.moe.unit={moe.unit}, "
            f"parallel.placement={config.parallel.placement}",
            expected="model.moe.unit=ffn and parallel.placement=colocated",
            remedy="set both, or structure.learn.mean=tokens",
        )
    if learn.alignment_examples > learn.probe_examples:
        raise ConfigError(
            "the alignment term takes its sequences from the probe set",
            got=f"structure.learn.alignment_examples={learn.alignment_examples}, probe_examples={learn.probe_examples}",
            expected=f"alignment_examples <= {learn.probe_examples}",
            remedy="raise structure.learn.probe_examples, or lower alignment_examples",
        )
    if moe.experts_per_task is not None and moe.gate.kind == "fixed":
        raise ConfigError(
            "a fixed table of experts cannot follow task groups that pool their experts",
            got=f"model.moe.gate.kind=fixed, model.moe.experts_per_task={moe.experts_per_task}",
            expected="a gate that learns where tasks or tokens go",
            remedy="set model.moe.gate.kind=task or token",
        )
    if moe.gate.kind in ("task_embedding", "task_description") and moe.gate.router == "linear":
        raise ConfigError(
            "the rows of this gate cannot follow experts that are merged",
            got=f"model.moe.gate.kind={moe.gate.kind}, model.moe.gate.router=linear",
            expected="router mlp, or another gate",
            remedy="set model.moe.gate.router=mlp",
        )
    model = config.model
    if model.conditional is not None or model.freeze not in ("none", "embeddings"):
        raise ConfigError(
            "structural learning compares trained layers of tasks that share everything above them",
            got=f"model.conditional={'null' if model.conditional is None else '...'}, model.freeze={model.freeze}",
            expected="no task-conditioned modules, and no frozen layers",
            remedy="set model.conditional=null and model.freeze=none while learning; train on with the learned "
            "structure.grouping",
        )
    if config.run.early_stop is not None:
        raise ConfigError(
            "early stopping would end training before the structure is learned",
            got=f"run.early_stop={config.run.early_stop} with structure.learn",
            expected="run.early_stop=null",
            remedy="remove run.early_stop",
        )
    if learn.restart:
        _check_restart(learn)


def _check_restart(learn: LearnConfig) -> None:
    if learn.amalgamation is not None or learn.mean != "tokens":
        raise ConfigError(
            "with a restart nothing that was trained is joined",
            got=f"structure.learn.restart=true, mean={learn.mean}, "
            f"amalgamation={'null' if learn.amalgamation is None else 'set'}",
            expected="mean=tokens and amalgamation=null: before the first step all members are equal",
            remedy="set structure.learn.restart=false, or leave out mean and amalgamation",
        )
    task_steps = learn.task_steps_of(0)
    if learn.trial_steps not in (0, task_steps):
        raise ConfigError(
            "after a restart the arms of a trial take as many steps as the task phase that they are compared with",
            got=f"structure.learn.trial_steps={learn.trial_steps}, task_steps={task_steps}",
            expected=f"trial_steps={task_steps}, or 0 for no trial",
            remedy=f"set structure.learn.trial_steps={task_steps}",
        )


def _check_steps(key: str, value: int | list[int]) -> None:
    steps = [value] if isinstance(value, int) else value
    if not steps or min(steps) < 1:
        raise ConfigError(
            f"structure.learn.{key} must be a number of steps, or one per phase",
            got=value,
            expected="an integer > 0, or a list of at least one",
            remedy=f"correct structure.learn.{key}",
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


def _check_experts(config: RunConfig, moe: MoEConfig) -> None:
    _check_pools(moe)
    key = next(
        (key for key in ("experts_per_task", "experts_per_task_group") if getattr(moe, key) is not None), "num_experts"
    )
    choice = getattr(moe, key)
    if moe.top_k > choice:
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
