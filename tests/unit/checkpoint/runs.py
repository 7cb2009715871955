"""Run folders with a complete checkpoint, as training leaves them, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distmoe.checkpoint.fragments import Fragment
from distmoe.checkpoint.global_view import replicated
from distmoe.checkpoint.manifest import Manifest, TensorRecord
from distmoe.checkpoint.run_files import write_run_files
from distmoe.checkpoint.store import save
from distmoe.models.config import ModelConfig
from distmoe.models.layer_plan import routed_layers
from distmoe.models.multitask import MultiTaskEncoder
from distmoe.models.shape import EncoderShape
from distmoe.tasks import TaskGrouping, TaskSet
from distmoe.tokenization.word_tokenizer import build_word_tokenizer
from tests.unit.models.samples import TASKS, make_model

PARTITION = [[0, 1], [2]]
STEP = 7


def trained(config: ModelConfig, shape: EncoderShape | None = None, **options: Any) -> MultiTaskEncoder:
    """A model in which no parameter has a special value: fresh task terms of gates are zero."""
    model = make_model(config, shape=shape, **({"partition": PARTITION} | options))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def parts_of(model: MultiTaskEncoder) -> dict[str, Tensor]:
    """All entries of a checkpoint: weights, both moments (random), buffers."""
    trainable = {name for name, _ in model.named_parameters()}
    generator = torch.Generator().manual_seed(1)
    found: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name not in trainable:
            found[f"buffer/{name}"] = tensor
            continue
        found[f"fp32/{name}"] = tensor
        found[f"exp_avg/{name}"] = torch.randn(tensor.shape, generator=generator)
        found[f"exp_avg_sq/{name}"] = torch.rand(tensor.shape, generator=generator)
    return found


def write_run(
    run: Path,
    config: ModelConfig,
    model: MultiTaskEncoder,
    /,
    *,
    tasks: TaskSet = TASKS,
    partition: Any = PARTITION,
    **changes: Any,
) -> Path:
    """Writes ``run`` with one checkpoint and returns the checkpoint's folder."""
    layers = len(routed_layers(config.moe, model.shape.num_layers))
    grouping = TaskGrouping.uniform(len(tasks), layers, partition)
    fragments, records = [], {}
    for key, tensor in parts_of(model).items():
        part, _, name = key.partition("/")
        kind = "buffer" if part == "buffer" else "trainable"
        records[name] = TensorRecord(kind, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        fragments.append(Fragment(key, replicated(name, tuple(tensor.shape)), 0, tensor.detach().reshape(-1)))
    values: dict[str, Any] = {
        "step": STEP,
        "tasks": tasks.to_json(),
        "grouping": grouping.to_json(),
        "config": {
            "run": {"name": "trial", "seed": 0},
            "data": {"max_length": config.max_positions},
            "model": config.model_dump(),
        },
        "optimizer": {"adam_step": STEP, "skipped_steps": 0, "loss_scaler": {}},
        "tensors": records,
    }
    write_run_files(run, shape=model.shape, tokenizer=build_word_tokenizer(["red", "green", "blue"]))
    data = {"window": 3, "step_in_window": 1, "drawn": [10 * (task + 1) for task in range(len(tasks))]}
    return save(
        run / "checkpoints",
        manifest=Manifest(**(values | changes)),
        fragments=fragments,
        trainer_state={"progress": {"step": STEP}, "data": data},
        rank_state={},
    )
