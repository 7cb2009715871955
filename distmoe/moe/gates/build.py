"""From configuration to gate."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from distmoe.errors import ConfigError
from distmoe.moe.config import GateConfig
from distmoe.moe.gates.base import Gate
from distmoe.moe.gates.fixed import FixedGate
from distmoe.moe.gates.hybrid import HybridGate
from distmoe.moe.gates.per_task import PerTaskGate
from distmoe.moe.gates.sequence import SequenceGate
from distmoe.moe.gates.setting import Combine, GateSetting
from distmoe.moe.gates.task import TaskGate
from distmoe.moe.gates.task_description import TaskDescriptionGate, encode_descriptions
from distmoe.moe.gates.task_embedding import TaskEmbeddingGate
from distmoe.moe.gates.token import TokenGate
from distmoe.tasks import TaskSet


def build_gate(
    config: GateConfig,
    *,
    hidden_size: int,
    num_experts: int,
    top_k: int,
    combine: Combine,
    tasks: TaskSet,
    allowed: Sequence[Sequence[bool]],
    routed_index: int,
    description_vectors_MV: Tensor | None = None,
) -> Gate:
    """Returns a gate on the CPU in float32, not yet initialised: call ``gate.reset(seed, full_module_name)``.

    Args:
        config: Kind of gate and its options.
        hidden_size: Width of token states.
        num_experts: Experts of the layer over all its task groups, E.
        top_k: Experts per token.
        combine: How probabilities become weights.
        tasks: The run's tasks, M of them.
        allowed: [M, E]: which experts stand in the task's group.
        routed_index: Which routed layer, for messages.
        description_vectors_MV: For gate ``task_description``: a frozen vector of about unit length per task instead of
            the hashed text of :func:`~distmoe.moe.gates.task_description.encode_descriptions`.

    Raises:
        ConfigError: If ``top_k`` exceeds the experts of a task group, or the options contradict each other.
    """
    assert len(allowed) == len(tasks), "allowed must have a row per task"
    assert all(len(row) == num_experts for row in allowed), "allowed must have a column per expert"
    if config.table is not None and config.kind != "fixed":
        raise ConfigError(
            f"routed layer {routed_index}: a table of experts belongs to gate fixed",
            got=f"model.moe.gate.table with model.moe.gate.kind {config.kind}",
            expected="no table, or kind fixed",
            remedy="set model.moe.gate.kind=fixed, or model.moe.gate.table=null",
        )
    setting = GateSetting(
        routed_index=routed_index,
        hidden_size=hidden_size,
        top_k=top_k,
        combine=combine,
        allowed=tuple(tuple(bool(entry) for entry in row) for row in allowed),
        noise=config.noise,
        noise_eps=config.noise_eps,
        router_std=config.init_std if config.init == "normal" else 0.0,
        detach_input=config.detach_input,
    )
    vector_size, mlp_size = config.embedding_size, config.hidden_size
    match config.kind:
        case "token":
            return TokenGate(setting)
        case "per_task":
            return PerTaskGate(setting)
        case "task":
            return TaskGate(setting)
        case "fixed":
            return FixedGate(setting, table=config.table, tasks=tasks)
        case "sequence":
            return SequenceGate(setting, vector_size=vector_size, hidden_size=mlp_size)
        case "hybrid":
            return HybridGate(setting, vector_size=vector_size, hidden_size=mlp_size)
        case "task_embedding":
            return TaskEmbeddingGate(setting, router=config.router, vector_size=vector_size, hidden_size=mlp_size)
        case "task_description":
            vectors_MV = encode_descriptions(tasks) if description_vectors_MV is None else description_vectors_MV
            return TaskDescriptionGate(
                setting, router=config.router, vector_size=vector_size, hidden_size=mlp_size, vectors_MV=vectors_MV
            )
