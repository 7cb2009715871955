"""Small task sets, batches and models for tests."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from distmoe.data.batch import TaskBatch
from distmoe.models.build import build_model
from distmoe.models.config import ModelConfig
from distmoe.models.layer_plan import routed_layers
from distmoe.models.multitask import MultiTaskEncoder
from distmoe.models.shape import EncoderShape, resolve_shape
from distmoe.moe.config import GateConfig, MoEConfig
from distmoe.parallel.process_groups import single_process
from distmoe.tasks import TaskGrouping, TaskSet, TaskSpec

GATES = ("token", "task_embedding", "task_description", "per_task", "task", "sequence", "fixed", "hybrid")
VOCAB_SIZE = 50

_MOOD = TaskSpec(name="mood", kind="classification", metric="accuracy", labels=("bad", "good"), description="A mood?")
_TOPIC = TaskSpec(
    name="topic", kind="classification", metric="macro_f1", labels=("a", "b", "c"), description="A topic?"
)
_SCORE = TaskSpec(
    name="score", kind="regression", metric="pearson", pair=True, description="How similar are two texts?"
)
TASKS = TaskSet((_MOOD, _TOPIC, _SCORE))


def gate_config(kind: str, **changes: object) -> GateConfig:
    """A small gate of any kind."""
    table = "random" if kind == "fixed" else None
    return GateConfig(kind=kind, embedding_size=8, hidden_size=8, **({"table": table} | changes))  # type: ignore[arg-type]


def moe_config(gate: str | GateConfig = "task", **changes: object) -> MoEConfig:
    """Four experts without noise."""
    gate = gate_config(gate) if isinstance(gate, str) else gate
    values: dict = {"num_experts": 4, "upcycle_noise": 0.0, "gate": gate}
    return MoEConfig(**(values | changes))


def model_config(moe: MoEConfig | None = None, **changes: object) -> ModelConfig:
    """Two layers of width 16 without dropout; dense unless ``moe`` is given."""
    values: dict = {
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": 2,
        "intermediate_size": 32,
        "max_positions": 12,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "init_std": 0.2,  # large, so that differences between paths are visible
        "moe": moe,
    }
    return ModelConfig(**(values | changes))


def make_model(
    config: ModelConfig,
    *,
    tasks: TaskSet = TASKS,
    partition: Sequence[Sequence[int]] | None = None,
    partitions: Sequence[Sequence[Sequence[int]]] | None = None,
    seed: int = 0,
    shape: EncoderShape | None = None,
    alike: bool = False,
) -> MultiTaskEncoder:
    """A single-process model in eval mode; one task group unless a partition, or one per routed layer, is given."""
    shape = shape or resolve_shape(config, VOCAB_SIZE, 0)
    layers = len(routed_layers(config.moe, shape.num_layers))
    partition = partition or [range(len(tasks))]
    grouping = TaskGrouping.from_partitions(len(tasks), partitions or [partition] * layers)
    hosting = single_process(grouping).hosting
    model = build_model(config, shape=shape, tasks=tasks, grouping=grouping, hosting=hosting, seed=seed, alike=alike)
    return model.eval()


def make_batch(
    lengths: Sequence[int] = (7, 3, 5, 1),
    task_ids: Sequence[int] = (0, 1, 2, 1),
    *,
    extra_padding: int = 0,
    seed: int = 0,
    vocab_size: int = VOCAB_SIZE,
) -> TaskBatch:
    """Random ids from 5 up; id 0 is padding; the second half of each text is segment 1."""
    generator = torch.Generator().manual_seed(seed)
    B, S = len(lengths), max(lengths) + extra_padding
    lengths_B1 = torch.tensor(lengths).unsqueeze(1)
    positions_S = torch.arange(S)
    mask_BS = positions_S < lengths_B1
    # Drawn per row, so that a row is the same whatever the others and the padding are.
    ids_BS = torch.zeros(B, S, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids_BS[row, :length] = torch.randint(5, vocab_size, (length,), generator=generator)
    task_ids_B = torch.tensor(task_ids)
    return TaskBatch(
        input_ids_BS=ids_BS,
        attention_mask_BS=mask_BS,
        token_type_ids_BS=((positions_S >= lengths_B1 // 2) & mask_BS).long(),
        task_ids_B=task_ids_B,
        labels_B=(task_ids_B % 2).float(),
        loss_weights_B=torch.full((B,), 1.0 / B),
        example_ids_B=torch.arange(B),
        example_mask_B=torch.ones(B, dtype=torch.bool),
        token_index_T=mask_BS.flatten().nonzero().squeeze(1),
    )


def loss_of(model: MultiTaskEncoder, batch: TaskBatch) -> torch.Tensor:
    """Squared first logit against the label: enough of a loss, with gradients everywhere."""
    logits_BC = model(batch).logits_BC
    finite_BC = torch.where(logits_BC.isfinite(), logits_BC, 0.0)
    return ((finite_BC.sum(1) - batch.labels_B).square() * batch.loss_weights_B).sum()
