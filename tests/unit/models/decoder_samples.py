"""Small decoders and batches for tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from distmoe.data.batch import NO_LOSS, TaskBatch
from distmoe.models.build import build_model
from distmoe.models.config import ModelConfig
from distmoe.models.decoder_config import DecoderConfig
from distmoe.models.decoder_shape import DecoderShape, decoder_shape
from distmoe.models.layer_plan import routed_layers
from distmoe.models.multitask_decoder import MultiTaskDecoder
from distmoe.moe.config import MoEConfig
from distmoe.parallel.process_groups import single_process
from distmoe.tasks import TaskGrouping, TaskSet, TaskSpec

VOCAB_SIZE = 50
TASKS = TaskSet(
    (
        TaskSpec(name="sum", kind="generation", metric="token_accuracy"),
        TaskSpec(name="poem", kind="language_modeling", metric="inverse_perplexity"),
        TaskSpec(name="story", kind="language_modeling", metric="token_accuracy"),
    )
)


def decoder_config(moe: MoEConfig | None = None, **changes: object) -> ModelConfig:
    """Two layers of width 16, four heads on two key-value heads, without dropout; dense unless ``moe`` is given."""
    values: dict = {
        "family": "decoder",
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": 4,
        "intermediate_size": 32,
        "max_positions": 32,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "init_std": 0.2,  # large, so that differences between paths are visible
        "decoder": DecoderConfig(num_kv_heads=2),
        "moe": moe,
    }
    return ModelConfig(**(values | changes))


def make_decoder(
    config: ModelConfig,
    *,
    tasks: TaskSet = TASKS,
    partition: Sequence[Sequence[int]] | None = None,
    seed: int = 0,
    shape: DecoderShape | None = None,
) -> MultiTaskDecoder:
    """A single-process model in eval mode; one task group unless a partition is given."""
    shape = shape or decoder_shape(config, VOCAB_SIZE, 0)
    layers = len(routed_layers(config.moe, shape.num_layers))
    grouping = TaskGrouping.from_partitions(len(tasks), [partition or [range(len(tasks))]] * layers)
    hosting = single_process(grouping).hosting
    model = build_model(config, shape=shape, tasks=tasks, grouping=grouping, hosting=hosting, seed=seed)
    return model.eval()


def token_batch(
    lengths: Sequence[int] = (7, 3, 5, 1),
    task_ids: Sequence[int] = (0, 1, 2, 1),
    *,
    prompts: Sequence[int] | None = None,
    extra_padding: int = 0,
    seed: int = 0,
    vocab_size: int = VOCAB_SIZE,
) -> TaskBatch:
    """Random ids from 5 up; every position but a row's last, and those of its prompt, predicts the next token."""
    generator = torch.Generator().manual_seed(seed)
    B, S = len(lengths), max(lengths) + extra_padding
    ids_BS = torch.zeros(B, S, dtype=torch.long)
    labels_BS = torch.full((B, S), NO_LOSS)
    for row, length in enumerate(lengths):
        ids_BS[row, :length] = torch.randint(5, vocab_size, (length,), generator=generator)
        first = max((prompts or [1] * B)[row] - 1, 0)
        labels_BS[row, first : length - 1] = ids_BS[row, first + 1 : length]
    mask_BS = torch.arange(S) < torch.tensor(lengths).unsqueeze(1)
    return TaskBatch(
        input_ids_BS=ids_BS,
        attention_mask_BS=mask_BS,
        token_type_ids_BS=torch.zeros_like(ids_BS),
        task_ids_B=torch.tensor(task_ids),
        labels_B=torch.zeros(B),
        loss_weights_B=torch.full((B,), 1.0 / B),
        example_ids_B=torch.arange(B),
        example_mask_B=torch.ones(B, dtype=torch.bool),
        token_index_T=mask_BS.flatten().nonzero().squeeze(1),
        labels_BS=labels_BS,
    )


def logits_of(model: MultiTaskDecoder, batch: TaskBatch) -> torch.Tensor:
    """Logits ``[B, S, V]`` of all real tokens, zero elsewhere."""
    with torch.no_grad():
        logits_TV = model(replace(batch, target_index_L=None)).logits_LV
    flat_NV = torch.zeros(batch.input_ids_BS.numel(), logits_TV.shape[1])
    return flat_NV.index_copy(0, batch.token_index_T, logits_TV).view(*batch.input_ids_BS.shape, -1)
