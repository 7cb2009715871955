"""Loads a Hugging Face BERT or RoBERTa folder into a model: nothing missing, nothing unexpected, nothing guessed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from distmoe.checkpoint.hf_folder import read_tensors
from distmoe.checkpoint.key_tables import POOLER_ROWS, Translation, from_hf
from distmoe.checkpoint.upcycle import PARTS, FeedForwardWeights, upcycle_pool_, upcycle_shared_
from distmoe.errors import CheckpointError
from distmoe.models.build import FIRST_POOL
from distmoe.models.config import ModelConfig
from distmoe.models.multitask import MultiTaskEncoder
from distmoe.models.routed_layer import RoutedLayer
from distmoe.models.shape import shape_of_folder
from distmoe.moe.layer import RoutedFeedForward


@dataclass(frozen=True)
class ImportReport:
    """What an import did.

    Attributes:
        folder: Where the weights came from.
        num_loaded: Tensors of distmoe's dense encoder that were filled.
        ignored: Tensors of the folder that were left out by name: heads of other tasks, buffers.
        fresh: Parameters of the shared encoder that the folder does not have and that keep their fresh values.
        upcycled_layers: Routed layers: their experts are made from the dense feed-forward part, or the layers of their
            task groups are copies.
    """

    folder: Path
    num_loaded: int
    ignored: tuple[str, ...]
    fresh: tuple[str, ...]
    upcycled_layers: tuple[int, ...]

    def __str__(self) -> str:
        lines = [f"{self.folder}: {self.num_loaded} tensors loaded, 0 missing, 0 unexpected"]
        if self.upcycled_layers:
            lines.append(f"task groups start from the dense layers {list(self.upcycled_layers)}")
        if self.ignored:
            lines.append(f"left out: {', '.join(self.ignored)}")
        if self.fresh:
            lines.append(f"not in the folder, freshly initialised: {', '.join(self.fresh)}")
        return "\n".join(lines)


def read_translation(folder: Path, num_layers: int) -> Translation:
    """Returns a folder's tensors under distmoe's names, in float32.

    Raises:
        CheckpointError: If the weights cannot be read, or a tensor is missing or unexpected.
    """
    translation = from_hf(read_tensors(folder), num_layers)
    if translation.missing or translation.unexpected:
        raise CheckpointError(
            f"the weights in {folder} are not those of a {num_layers}-layer BERT or RoBERTa encoder",
            got=f"missing: {_some(translation.missing)}; unexpected: {_some(translation.unexpected)}",
            expected="0 missing, 0 unexpected",
            remedy="use the config.json that belongs to the weights; other families cannot be imported",
        )
    tensors = {name: tensor.float() for name, tensor in translation.tensors.items()}
    return Translation(tensors, (), (), translation.ignored)


def read_layer(folder: str | Path, layer: int, num_layers: int) -> dict[str, Tensor]:
    """Returns one pretrained layer's tensors under their names inside the layer, in float32.

    Raises:
        CheckpointError: If the folder's weights cannot be read.
    """
    prefix = f"encoder.layers.{layer}."
    tensors = read_translation(Path(folder), num_layers).tensors
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def load_pretrained(
    model: MultiTaskEncoder, folder: str | Path, *, config: ModelConfig, seed: int, alike: bool = False
) -> ImportReport:
    """Fills the shared encoder of ``model`` from a folder; heads and gates keep their fresh values.

    Call it before the engine wraps the model. Experts on this rank are upcycled; every rank reads the folder itself.

    Args:
        model: From :func:`~distmoe.models.build.build_model`, with the folder's shape.
        folder: Hugging Face folder with safetensors.
        config: Section ``model``; its ``moe.upcycle_noise`` is read.
        seed: Seed of the run; names the streams of the noise.
        alike: All task groups get the same noise, see :func:`~distmoe.models.build.build_model`.

    Raises:
        CheckpointError: If the folder cannot be read, or its tensors are not exactly those of the model.
        ConfigError: If the folder is of another family, or the expert width does not divide the dense width.
    """
    folder = Path(folder)
    shape_of_folder(folder)  # refuses other families, whose tensors can bear the same names
    translation = read_translation(folder, model.shape.num_layers)
    remaining = dict(translation.tensors)

    upcycled: list[int] = []
    for index, layer in enumerate(model.encoder.layers):
        if isinstance(layer, RoutedLayer):
            prefix = f"encoder.layers.{index}."
            whole = {name: remaining.pop(name) for name in list(remaining) if name.startswith(prefix)}
            for key in layer.variants:
                own = f"{prefix}variants.{key}."
                remaining |= {own + name.removeprefix(prefix): tensor for name, tensor in whole.items()}
            upcycled.append(index)
        elif isinstance(layer.feed_forward, RoutedFeedForward):
            name = f"encoder.layers.{index}.feed_forward"
            dense = FeedForwardWeights(**{part: remaining.pop(f"{name}.{part}") for part in PARTS})
            _check_shape(f"{name}.w_in", dense.w_in, (model.shape.intermediate_size, model.shape.hidden_size), folder)
            noise = config.moe.upcycle_noise if config.moe is not None else 0.0
            _upcycle(layer.feed_forward, dense, noise=noise, seed=seed, name=name, alike=alike)
            upcycled.append(index)
    _copy(model, remaining, folder)

    fresh = () if translation.has_pooler else tuple(row.own for row in POOLER_ROWS)
    return ImportReport(folder, len(translation.tensors), translation.ignored, fresh, tuple(upcycled))


def _upcycle(
    routed: RoutedFeedForward, dense: FeedForwardWeights, *, noise: float, seed: int, name: str, alike: bool
) -> None:
    for key, pool in routed.pools.items():
        own = FIRST_POOL if alike else key
        upcycle_pool_(pool, dense, noise=noise, seed=seed, name=f"{name}.pools.{own}")  # type: ignore[arg-type]
    if routed.shared_mlp is not None:
        upcycle_shared_(routed.shared_mlp, dense)


@torch.no_grad()
def _copy(model: MultiTaskEncoder, tensors: Mapping[str, Tensor], folder: Path) -> None:
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        _check_shape(name, tensor, tuple(parameters[name].shape), folder)
    for name, tensor in tensors.items():
        parameters[name].copy_(tensor)


def _check_shape(name: str, tensor: Tensor, expected: tuple[int, ...], folder: Path) -> None:
    if tuple(tensor.shape) != expected:
        raise CheckpointError(
            f"a tensor in {folder} does not have the shape that its config.json gives",
            got=f"{name} {list(tensor.shape)}",
            expected=list(expected),
            remedy="use the config.json that belongs to the weights",
        )


def _some(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:5]) or "none"
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
