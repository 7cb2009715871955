"""One task of a decoder as config.json and tensors: of a stock class where one fits, else of distmoe's own code."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import distmoe
from distmoe.checkpoint import decoder_keys
from distmoe.checkpoint.decoder_stock import stock_tensors, stock_values
from distmoe.checkpoint.decoder_subnetwork import cut_decoder_task
from distmoe.checkpoint.export_decoder import decoder_values, prefixed, token_tasks
from distmoe.checkpoint.export_folder import VERSION_KEY
from distmoe.checkpoint.subnetwork import SubNetwork
from distmoe.models.config import ModelConfig
from distmoe.models.multitask_decoder import MultiTaskDecoder
from distmoe.tasks import TaskGrouping, TaskSet


def decoder_task(
    model: MultiTaskDecoder,
    *,
    config: ModelConfig,
    tasks: TaskSet,
    grouping: TaskGrouping,
    task_id: int,
    special_tokens: dict[str, int],
    prompt: str | None,
) -> tuple[SubNetwork, dict[str, Any], dict[str, Tensor]]:
    """Returns what was cut, the values of config.json and the tensors; arguments as in ``write_task_export``."""
    cut = cut_decoder_task(model, config=config, grouping=grouping, task_id=task_id)
    network, shape, only = cut.network, model.shape, TaskSet((tasks[task_id],))
    width = network.width or shape.intermediate_size
    tied = decoder_keys.HEAD not in network.tensors
    if cut.stock is None:
        head = "tied" if tied else "shared"
        values = decoder_values(
            model,
            config=config,
            tasks=only,
            routed_entries=network.routed_layers,
            head=head,
            special_tokens=special_tokens,
            prompt=prompt,
        )
        return network, values | {"intermediate_size": width}, prefixed(network.tensors)
    values = stock_values(cut.stock, shape, network.routed_layers, width=width, tied=tied) | {
        "pad_token_id": shape.pad_token_id,
        **special_tokens,
        "initializer_range": config.init_std,
        "attention_dropout": config.attention_dropout,
        # transformers keeps keys that it does not know.
        "tasks": token_tasks(only, prompt),
        VERSION_KEY: distmoe.__version__,
    }
    return network, values, stock_tensors(cut.stock, network.tensors, shape, network.routed_layers)
