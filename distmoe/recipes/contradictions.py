"""Pairs of values that cannot both be meant, found before a file is read or a tensor is made.

Only what the configuration alone can tell. What the number of ranks, the files or the tasks show is refused by
``training/contradictions.py``, and DeepSpeed combinations by ``engine/supported.py``.
"""

from __future__ import annotations

from distmoe.errors import ConfigError
from distmoe.models.config import ModelConfig
from distmoe.recipes.expert_contradictions import check_experts
from distmoe.recipes.learning_contradictions import check_learning
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
        check_learning(config, config.structure.learn)
    _check_evaluation(config)
    _check_checkpoint(config)
    _check_freeze(config)
    _check_sampling(config)
    _check_tensor(config)
    check_experts(config)


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


def _check_evaluation(config: RunConfig) -> None:
    run = config.run
    if run.early_stop is not None and run.eval_every is None:
        raise ConfigError(
            "training stops early by its evaluations, and there is none before its end",
            got=f"run.early_stop={run.early_stop}, run.eval_every=null",
            expected="run.eval_every as a number of steps, or run.early_stop=null",
            remedy="set run.eval_every, or remove run.early_stop",
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
