"""Exports a checkpoint as a Hugging Face folder that loads without distmoe.

Written: config.json (shape, task table, task groups, gates), model.safetensors, tokenizer, model card, and the two
files of ``checkpoint/hf`` as code for ``trust_remote_code``. Experts of a layer are stacked in global order.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import distmoe
from distmoe.checkpoint.consolidate import read_weights
from distmoe.checkpoint.export_folder import VERSION_KEY, check_target, new_export
from distmoe.checkpoint.export_gates import exported_gate
from distmoe.checkpoint.hf_folder import write_model
from distmoe.checkpoint.manifest import Manifest, read_manifest
from distmoe.checkpoint.model_card import model_card
from distmoe.checkpoint.run_files import find_shape, find_test_scores, find_tokenizer
from distmoe.config import build
from distmoe.errors import CheckpointError
from distmoe.models.build import build_model
from distmoe.models.config import ModelConfig
from distmoe.models.layer_plan import routed_layers
from distmoe.models.multitask import MultiTaskEncoder
from distmoe.models.routed_layer import RoutedLayer
from distmoe.moe.layer import RoutedFeedForward
from distmoe.parallel.process_groups import single_process
from distmoe.tasks import TaskGrouping, TaskSet

CODE_FILES = ("configuration_distmoe.py", "modeling_distmoe.py")
_PARTS = ("w_in", "b_in", "w_out", "b_out")


def export(checkpoint: Path | str, out: Path | str, *, tokenizer: Path | str | None = None) -> Path:
    """Writes the export of a checkpoint, on one process, and returns its folder.

    Args:
        checkpoint: A folder ``step_N`` of a run.
        out: Folder to write; an older export in it is replaced.
        tokenizer: Tokenizer folder; None: the run's.

    Raises:
        CheckpointError: If the checkpoint is incomplete or damaged, the tokenizer is not found, or ``out`` holds
            something that is not an export.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    check_target(out)
    manifest = read_manifest(checkpoint)
    config = build(ModelConfig, manifest.config.get("model", {}))
    check_exportable(config)
    tasks, grouping = TaskSet.from_json(manifest.tasks), TaskGrouping.from_json(manifest.grouping)
    tokenizer_folder = find_tokenizer(checkpoint, manifest.config) if tokenizer is None else Path(tokenizer)
    weights = read_weights(checkpoint)
    model = rebuild_model(checkpoint, manifest, weights, config=config, tasks=tasks, grouping=grouping)
    name = manifest.config.get("run", {}).get("name", "distmoe")
    return write_export(
        out,
        model,
        config=config,
        tasks=tasks,
        grouping=grouping,
        tokenizer_folder=tokenizer_folder,
        metrics={"validation": manifest.metrics, "test": find_test_scores(checkpoint, manifest.step)},
        title=f"{name}, step {manifest.step}",
    )


def rebuild_model(
    checkpoint: Path,
    manifest: Manifest,
    weights: Mapping[str, Tensor],
    *,
    config: ModelConfig,
    tasks: TaskSet,
    grouping: TaskGrouping,
) -> MultiTaskEncoder:
    """Returns the whole model of a checkpoint on this process, in float32 and eval mode.

    Raises:
        CheckpointError: If the weights are not those of the model that the manifest describes.
    """
    shape = find_shape(checkpoint, manifest.config, weights)
    hosting = single_process(grouping).hosting
    seed = manifest.config.get("run", {}).get("seed", 0)
    model = build_model(config, shape=shape, tasks=tasks, grouping=grouping, hosting=hosting, seed=seed)
    expected = dict(model.named_parameters()) | {
        name: buffer for name, buffer in model.state_dict().items() if name in weights
    }
    wrong = sorted(
        f"{name} {list(weights[name].shape) if name in weights else 'missing'}"
        for name, tensor in expected.items()
        if name not in weights or weights[name].shape != tensor.shape
    )
    unknown = sorted(weights.keys() - expected.keys())
    if wrong or unknown:
        raise CheckpointError(
            f"the weights of {checkpoint} are not those of the model that its manifest describes",
            got=f"missing or of another shape: {wrong[:4] or 'none'}; unknown: {unknown[:4] or 'none'}",
            expected=f"{len(expected)} tensors of a {shape.num_layers}-layer model with {len(tasks)} tasks",
            remedy="export with the version of distmoe that wrote the checkpoint",
        )
    model.load_state_dict(dict(weights), strict=False)
    return model.float().eval()


def write_export(
    out: Path,
    model: MultiTaskEncoder,
    *,
    config: ModelConfig,
    tasks: TaskSet,
    grouping: TaskGrouping,
    tokenizer_folder: Path | None,
    metrics: Mapping[str, Any],
    title: str = "distmoe",
) -> Path:
    """Writes the export of a whole, single-process model.

    The folder appears under its name when it is complete.

    Args:
        out: Folder to write.
        model: All experts of all task groups.
        config: Section ``model`` that it was built with.
        tasks: The run's tasks.
        grouping: Who shares which routed layer.
        tokenizer_folder: Tokenizer to write with it; None: no tokenizer.
        metrics: For the model card.
        title: Heading of the model card.

    Raises:
        CheckpointError: If ``out`` holds something that is not an export, or the tokenizer cannot be loaded.
    """
    check_exportable(config)
    tensors, routed_entries = exported_tensors(model, config=config, grouping=grouping)
    values = exported_config(model, config=config, tasks=tasks, routed_entries=routed_entries)
    card = model_card(
        title=title,
        shape=model.shape,
        moe=config.moe,
        routed_layers=routed_layers(config.moe, model.shape.num_layers),
        tasks=tasks,
        grouping=grouping,
        num_parameters=sum(tensor.numel() for tensor in tensors.values()),
        metrics=metrics,
    )
    with new_export(out) as draft:
        write_model(draft, config=values, tensors=tensors)
        write_code(draft)
        if tokenizer_folder is not None:
            write_tokenizer(tokenizer_folder, draft, max_length=model.shape.max_positions)
        (draft / "README.md").write_text(card, encoding="utf-8")
    return out


def write_code(folder: Path) -> None:
    """Copies the self-contained modelling code into an export."""
    for name in CODE_FILES:
        source = files("distmoe.checkpoint.hf").joinpath(name)
        (folder / name).write_text(source.read_text(encoding="utf-8"), encoding="utf-8")


def exported_tensors(
    model: MultiTaskEncoder, *, config: ModelConfig, grouping: TaskGrouping
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Returns all tensors under their exported names, and the configuration entries of the routed layers."""
    tensors: dict[str, Tensor] = {name: value for name, value in model.named_parameters() if not _is_routed(name)}
    entries: list[dict[str, Any]] = []
    for index, layer in enumerate(model.encoder.layers):
        if isinstance(layer, RoutedLayer):
            partition = [list(task_group) for task_group in grouping.layers[len(entries)]]
            entries.append({"layer": index, "unit": "block", "task_groups": partition})
            continue
        routed = layer.feed_forward
        if isinstance(routed, RoutedFeedForward):
            assert config.moe is not None
            prefix = f"encoder.layers.{index}.feed_forward"
            gate_entry, gate_tensors = exported_gate(routed.gate, config.moe.gate.kind)
            tensors |= {f"{prefix}.gate.{name}": value for name, value in gate_tensors.items()}
            tensors |= {f"{prefix}.{part}": _stacked(routed, part) for part in _PARTS}
            shared = routed.shared_mlp
            entries.append(
                {
                    "layer": index,
                    "unit": "ffn",
                    "task_groups": [list(task_group) for task_group in grouping.layers[len(entries)]],
                    "num_experts": len(tensors[f"{prefix}.w_in"]),
                    "pool_sizes": [pool.num_experts for pool in _pools(routed)],
                    "expert_size": tensors[f"{prefix}.w_in"].shape[1],
                    "shared_size": 0 if shared is None else shared.w_in.shape[0],
                    "top_k": config.moe.top_k,
                    "combine": config.moe.combine,
                    "gate": gate_entry,
                }
            )
    named = {name if name.startswith("heads.") else f"distmoe.{name}": value for name, value in tensors.items()}
    return {name: value.detach().float().contiguous().clone() for name, value in named.items()}, entries


def exported_config(
    model: MultiTaskEncoder, *, config: ModelConfig, tasks: TaskSet, routed_entries: list[dict[str, Any]]
) -> dict[str, Any]:
    """Returns the values of config.json."""
    shape = model.shape
    return {
        "architectures": ["DistmoeForSequenceClassification"],
        "auto_map": {
            "AutoConfig": "configuration_distmoe.DistmoeConfig",
            "AutoModel": "modeling_distmoe.DistmoeModel",
            "AutoModelForSequenceClassification": "modeling_distmoe.DistmoeForSequenceClassification",
        },
        "model_type": "distmoe",
        "dtype": "float32",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "intermediate_size": shape.intermediate_size,
        "hidden_act": shape.activation,
        "max_position_embeddings": shape.max_positions,
        "position_offset": shape.position_offset,
        "type_vocab_size": shape.num_token_types,
        "pad_token_id": shape.pad_token_id,
        "norm": shape.norm,
        "layer_norm_eps": shape.layer_norm_eps,
        "pooling": config.pooling,
        "initializer_range": config.init_std,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "tasks": [row | {"num_outputs": spec.num_outputs} for row, spec in zip(tasks.to_json(), tasks, strict=True)],
        "routed_layers": routed_entries,
        VERSION_KEY: distmoe.__version__,
    }


def write_tokenizer(source: Path, out: Path, *, max_length: int) -> None:
    """Saves a tokenizer in today's format, its class included: AutoTokenizer cannot infer it from the model type.

    Raises:
        CheckpointError: If the folder holds no tokenizer that transformers can load.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError, KeyError) as failure:
        raise CheckpointError(
            "the tokenizer of the run cannot be loaded",
            got=f"{source}: {str(failure).splitlines()[0]}",
            expected="a folder with the files of a Hugging Face tokenizer",
            remedy="name the folder: tools/convert_to_hf.py CHECKPOINT OUT --tokenizer FOLDER",
        ) from None
    tokenizer.model_max_length = min(tokenizer.model_max_length, max_length)
    tokenizer.save_pretrained(out)


def _is_routed(name: str) -> bool:
    return ".feed_forward.gate." in name or ".feed_forward.pools." in name


def _stacked(routed: RoutedFeedForward, part: str) -> Tensor:
    """One tensor over all experts: task group 0's first, then task group 1's, ..."""
    return torch.cat([getattr(pool, part) for pool in _pools(routed)])


def _pools(routed: RoutedFeedForward) -> list[Any]:
    return [routed.pools[f"g{task_group}"] for task_group in range(len(routed.pools))]


def check_exportable(config: ModelConfig) -> None:
    """Refuses what the exported modelling code cannot compute.

    Raises:
        CheckpointError: If the model has conditional modules.
    """
    if config.conditional is not None:
        raise CheckpointError(
            "the exported modelling code has no conditional modules, so the export would compute something else",
            got="a checkpoint with model.conditional",
            expected="model.conditional=null",
            remedy="use the checkpoint with distmoe itself",
        )
