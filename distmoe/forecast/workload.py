"""What a configuration asks of a cluster, as numbers: the only input of every forecast."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from distmoe.data.sampling import mixture_weights
from distmoe.errors import ConfigError
from distmoe.models.build import MultiTaskModel, sketch_model
from distmoe.models.decoder_shape import DecoderShape
from distmoe.models.layer_plan import routed_layers
from distmoe.models.multitask_decoder import MultiTaskDecoder
from distmoe.models.parameters import parameter_roles
from distmoe.models.shape import ModelShape, resolve_shape
from distmoe.models.tensor_parallel import cut_over_tensor_ranks
from distmoe.moe.build import expert_width
from distmoe.tasks import TaskGrouping, TaskSet
from distmoe.training.checks import check_agreement
from distmoe.training.config import RunConfig
from distmoe.training.grouping import resolve_grouping
from distmoe.training.run_data import Sources


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A run on paper.

    Attributes:
        config: What was asked, for the checks that a run makes.
        tasks: Tasks of the run.
        shape: Of the encoder or decoder.
        grouping: Task groups per routed layer.
        weights: Mixture weight per task.
        routed_layers: Model layers that are routed.
        replicated: Parameters that every data rank has: all but the experts.
        lookup: Of these, rows that are read and not multiplied: embeddings.
        heads: Of these, task heads.
        own_replicated: Of the replicated ones, what a rank has when matrices are cut over tensor ranks.
        own_lookup: Of these, rows that are read and not multiplied.
        own_heads: Of these, task heads.
        expert: Parameters of one expert.
        expert_width: Its feed-forward width F.
        pool_sizes: Experts of each task group, per routed layer; empty for a dense model.
        top_k: Experts per token; 0 for a dense model.
        shared_expert: Whether a routed layer has a dense part beside its experts.
        deduplicate: Whether a token travels once per rank.
        capacity_factor: Of the largest number of rows of an expert; None: dropless.
        recompute: Whether activations are recomputed in backward.
        dropout: Whether dropout masks are kept.
        attention_dropout: Whether attention weights are dropped, which only a CPU keeps.
        batch_size: Examples per optimizer step, over all ranks.
        micro_batch_size: Examples per rank and forward pass; None: all of a step.
        length: Tokens per example.
        tensor: Tensor ranks T, neighbours that share the matrices of a data rank; 1: every rank is a data rank.
        sequence: Whether they also share the positions between the cut matrices.
    """

    config: RunConfig
    tasks: TaskSet
    shape: ModelShape
    grouping: TaskGrouping
    weights: tuple[float, ...]
    routed_layers: tuple[int, ...]
    replicated: int
    lookup: int
    heads: int
    own_replicated: int
    own_lookup: int
    own_heads: int
    expert: int
    expert_width: int
    pool_sizes: tuple[tuple[int, ...], ...]
    top_k: int
    shared_expert: bool
    deduplicate: bool
    capacity_factor: float | None
    recompute: bool
    dropout: bool
    attention_dropout: bool
    batch_size: int
    micro_batch_size: int | None
    length: int
    tensor: int = 1
    sequence: bool = False

    @property
    def vocab_size(self) -> int:
        """Outputs of a decoder's head at each target; 0 for an encoder, whose heads are small."""
        return self.shape.vocab_size if isinstance(self.shape, DecoderShape) else 0

    @property
    def total(self) -> int:
        """Parameters of the whole model, every expert once."""
        return self.replicated + sum(map(sum, self.pool_sizes)) * self.expert

    @property
    def active(self) -> int:
        """Parameters that one token meets."""
        return self.replicated + len(self.routed_layers) * self.top_k * self.expert

    def pools(self, routed_index: int, task_groups: Iterable[int]) -> list[int]:
        """Experts of each of these task groups of a routed layer."""
        return [self.pool_sizes[routed_index][index] for index in task_groups]

    def shares(self, routed_index: int, task_groups: Sequence[int]) -> list[float]:
        """Share of each of these task groups of a routed layer in their tokens, which follow the mixture."""
        partition = self.grouping.layers[routed_index]
        loads = [math.fsum(self.weights[task] for task in partition[index]) for index in task_groups]
        return [load / math.fsum(loads) for load in loads]

    def micro_batches(self, num_ranks: int) -> tuple[int, int]:
        """Examples per data rank and forward pass, and forward passes per step.

        Raises:
            ConfigError: If the batch cannot be dealt to the ranks.
        """
        unit = num_ranks * (self.micro_batch_size or 1)
        if self.batch_size % unit:
            raise ConfigError(
                "data.batch_size must be a multiple of ranks x data.micro_batch_size",
                got=f"data.batch_size={self.batch_size} on {num_ranks} ranks",
                expected=f"a multiple of {unit}",
                remedy=f"set data.batch_size={-(-self.batch_size // unit) * unit}, or change data.micro_batch_size",
            )
        per_rank = self.batch_size // num_ranks
        micro = self.micro_batch_size or per_rank
        return micro, per_rank // micro


def make_workload(
    config: RunConfig, sources: Sources, *, sizes: Sequence[int] | None = None, length: int | None = None
) -> Workload:
    """Reads a configuration; builds the model on torch's meta device, where weights take no memory.

    Args:
        config: The run.
        sources: Tasks and tokenizer.
        sizes: Training examples per task; None: equal mixture weights.
        length: Tokens per example; None: ``data.max_length``, which is an upper bound.

    Raises:
        DistmoeError: If the configuration contradicts itself.
    """
    if config.model.moe is not None and config.model.moe.unit == "block":
        raise ConfigError(
            "forecasts know experts, not whole layers per task group",
            got="model.moe.unit=block",
            expected="model.moe.unit=ffn",
            remedy="forecast the model with model.moe.unit=ffn: its communication is an upper bound",
        )
    if length is not None and length > config.data.max_length:
        raise ConfigError(
            "no example is longer than data.max_length",
            got=f"--length {length}, data.max_length={config.data.max_length}",
            expected=f"at most {config.data.max_length}",
            remedy="lower --length, or raise data.max_length",
        )
    shape = resolve_shape(config.model, sources.vocab_size, sources.pad_token_id)
    tensor, sequence = config.parallel.tensor, config.parallel.sequence
    routed = routed_layers(config.model.moe, shape.num_layers)
    grouping = resolve_grouping(config.structure, sources.tasks, len(routed))
    check_agreement(config, tasks=sources.tasks, shape=shape, grouping=grouping, zero_stage=0)
    model = sketch_model(config.model, shape=shape, tasks=sources.tasks, grouping=grouping)
    whole = own = _count(model)
    if tensor > 1:
        with torch.device("meta"):
            cut_over_tensor_ranks(model, _TensorRanks(tensor), sequence=sequence)  # type: ignore[arg-type]
        own = _count(model)
    moe = config.model.moe if routed else None
    pool_sizes = () if moe is None else tuple(moe.pool_sizes(partition) for partition in grouping.layers)
    count = len(sources.tasks)
    weights = mixture_weights(sizes or [1] * count, config.data.sampling, names=sources.tasks.names)
    return Workload(
        config=config,
        tasks=sources.tasks,
        shape=shape,
        grouping=grouping,
        weights=tuple(weights),
        routed_layers=tuple(routed),
        replicated=whole.replicated,
        lookup=whole.lookup,
        heads=whole.heads,
        own_replicated=own.replicated,
        own_lookup=own.lookup,
        own_heads=own.heads,
        expert=whole.pools // sum(map(sum, pool_sizes)) if routed else 0,
        expert_width=0 if moe is None else expert_width(moe, shape.intermediate_size),
        pool_sizes=pool_sizes,
        top_k=0 if moe is None else moe.top_k,
        shared_expert=moe is not None and moe.shared_expert,
        deduplicate=False if moe is None else moe.deduplicate,
        capacity_factor=None if moe is None else moe.capacity_factor,
        recompute=config.model.activation_checkpointing,
        dropout=config.model.dropout > 0,
        attention_dropout=config.model.attention_dropout > 0,
        batch_size=config.data.batch_size,
        micro_batch_size=config.data.micro_batch_size,
        length=length or config.data.max_length,
        tensor=tensor,
        sequence=sequence,
    )


@dataclass(frozen=True)
class _TensorRanks:
    """What a cut must know of a process group; no collective runs on it."""

    num_ranks: int

    def rank(self) -> int:
        return 0

    def size(self) -> int:
        return self.num_ranks


@dataclass(frozen=True)
class _Counts:
    """Parameters by what they are."""

    replicated: int
    lookup: int
    heads: int
    pools: int


def _count(model: MultiTaskModel) -> _Counts:
    roles = parameter_roles(model)
    counts = {"dense": 0, "gate": 0, "head": 0, "pool": 0}
    for name, parameter in model.named_parameters():
        counts[roles[name].kind if name in roles else "dense"] += parameter.numel()
    trunk = model.decoder if isinstance(model, MultiTaskDecoder) else model.encoder
    return _Counts(
        replicated=counts["dense"] + counts["gate"] + counts["head"],
        lookup=sum(parameter.numel() for parameter in trunk.embeddings.parameters()),
        heads=counts["head"],
        pools=counts["pool"],
    )
