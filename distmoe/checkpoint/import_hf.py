"""Loads a Hugging Face folder into a model: nothing missing, nothing unexpected, nothing guessed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from distmoe.checkpoint import decoder_keys
from distmoe.checkpoint.hf_folder import read_tensors
from distmoe.checkpoint.key_tables import POOLER_ROWS, Translation, from_hf
from distmoe.checkpoint.upcycle import PARTS, FeedForwardWeights, upcycle_pool_, upcycle_shared_
from distmoe.errors import CheckpointError
from distmoe.models.build import MultiTaskModel, build_model
from distmoe.models.config import ModelConfig
from distmoe.models.decoder_config import DecoderConfig
from distmoe.models.decoder_shape import DecoderShape, check_head
from distmoe.models.feed_forward import FIRST_POOL
from distmoe.models.multitask_decoder import MultiTaskDecoder
from distmoe.models.routed_layer import RoutedLayer
from distmoe.models.shape import EncoderShape, ModelShape, shape_of_folder
from distmoe.moe.layer import RoutedFeedForward
from distmoe.parallel.process_groups import single_process
from distmoe.tasks import TaskGrouping, TaskSet, TaskSpec


@dataclass(frozen=True)
class ImportReport:
    """What an import did.

    Attributes:
        folder: Where the weights came from.
        num_loaded: Tensors of distmoe's dense model that were filled.
        ignored: Tensors of the folder that were left out by name: heads of other tasks, buffers.
        fresh: Parameters of the shared model that the folder does not have and that keep their fresh values.
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


def read_translation(folder: Path, shape: ModelShape) -> Translation:
    """Returns a folder's tensors under distmoe's names, in float32.

    Raises:
        CheckpointError: If the weights cannot be read, or a tensor is missing or unexpected.
    """
    found = read_tensors(folder)
    if isinstance(shape, DecoderShape):
        family, translation = f"{shape.family} decoder", decoder_keys.from_hf(found, shape)
    else:
        family, translation = "BERT or RoBERTa encoder", from_hf(found, shape.num_layers)
    if translation.missing or translation.unexpected:
        raise CheckpointError(
            f"the weights in {folder} are not those of a {shape.num_layers}-layer {family}",
            got=f"missing: {_some(translation.missing)}; unexpected: {_some(translation.unexpected)}",
            expected="0 missing, 0 unexpected",
            remedy="use the config.json that belongs to the weights; other families cannot be imported",
        )
    tensors = {name: tensor.float() for name, tensor in translation.tensors.items()}
    return Translation(tensors, (), (), translation.ignored)


def check_sizes(tensors: Mapping[str, Tensor], shape: ModelShape, folder: Path) -> None:
    """Compares tensors with the dense model of a shape, which is built without memory.

    Args:
        tensors: Of a folder, under distmoe's names.
        shape: What its config.json says.
        folder: For messages.

    Raises:
        CheckpointError: Naming the first tensor of another shape.
    """
    if isinstance(shape, DecoderShape):
        config = ModelConfig(family="decoder", moe=None, decoder=DecoderConfig(head="tied" if shape.tied else "shared"))
        spec = TaskSpec(name="any", kind="language_modeling", metric="inverse_perplexity")
    else:
        config = ModelConfig(moe=None)
        spec = TaskSpec(name="any", kind="regression", metric="pearson")
    grouping = TaskGrouping(1, ())
    with torch.device("meta"):
        model = build_model(
            config, shape=shape, tasks=TaskSet((spec,)), grouping=grouping, hosting=single_process(grouping).hosting,
            seed=0,
        )  # fmt: skip
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for name, tensor in tensors.items():
        _check_shape(name, tensor, expected[name], folder)


def read_layer(folder: str | Path, layer: int, shape: EncoderShape) -> dict[str, Tensor]:
    """Returns one layer's tensors of a pretrained encoder under their names inside the layer, in float32.

    Raises:
        CheckpointError: If the folder's weights cannot be read.
    """
    prefix = f"encoder.layers.{layer}."
    tensors = read_translation(Path(folder), shape).tensors
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def load_pretrained(
    model: MultiTaskModel, folder: str | Path, *, config: ModelConfig, seed: int, alike: bool = False
) -> ImportReport:
    """Fills the shared part of ``model`` from a folder; gates, and heads of an encoder, keep their fresh values.

    Heads of a decoder are filled from the folder's head, each of them where there is one per task.

    Call it before the engine wraps the model. Experts on this rank are upcycled; every rank reads the folder itself.

    Args:
        model: From :func:`~distmoe.models.build.build_model`, with the folder's shape.
        folder: Hugging Face folder with safetensors.
        config: Section ``model``; its ``moe.upcycle_noise`` is read.
        seed: Seed of the run; names the streams of the noise.
        alike: All task groups get the same noise, see :func:`~distmoe.models.build.build_model`.

    Raises:
        CheckpointError: If the folder cannot be read, or its tensors are not exactly those of the model.
        ConfigError: If the folder is of another family, the expert width does not divide the dense width, or a tied
            head is asked for where the folder has one of its own.
    """
    folder = Path(folder)
    shape = shape_of_folder(folder)  # refuses other families, whose tensors can bear the same names
    check_same_shape(shape, model.shape, folder)
    translation = read_translation(folder, shape)
    remaining = dict(translation.tensors)
    if isinstance(model, MultiTaskDecoder):
        check_head(model.shape, config, folder)
        remaining |= _heads(model, remaining)

    upcycled: list[int] = []
    stack = "decoder" if isinstance(model, MultiTaskDecoder) else "encoder"
    for index, layer in enumerate(model.get_submodule(stack).layers):  # type: ignore[arg-type]
        if isinstance(layer, RoutedLayer):
            prefix = f"{stack}.layers.{index}."
            whole = {name: remaining.pop(name) for name in list(remaining) if name.startswith(prefix)}
            for key in layer.variants:
                own = f"{prefix}variants.{key}."
                remaining |= {own + name.removeprefix(prefix): tensor for name, tensor in whole.items()}
            upcycled.append(index)
        elif isinstance(layer.feed_forward, RoutedFeedForward):
            name = f"{stack}.layers.{index}.feed_forward"
            w_in, b_in, w_out, b_out = (remaining.pop(f"{name}.{part}", None) for part in PARTS)
            assert w_in is not None, f"the table fills {name}"
            assert w_out is not None, f"the table fills {name}"
            dense = FeedForwardWeights(w_in, b_in, w_out, b_out)
            width = model.shape.intermediate_size * (2 if dense.gated else 1)
            _check_shape(f"{name}.w_in", dense.w_in, (width, model.shape.hidden_size), folder)
            noise = config.moe.upcycle_noise if config.moe is not None else 0.0
            _upcycle(layer.feed_forward, dense, noise=noise, seed=seed, name=name, alike=alike)
            upcycled.append(index)
    _copy(model, remaining, folder)

    complete = translation.has_pooler or isinstance(model, MultiTaskDecoder)
    fresh = () if complete else tuple(row.own for row in POOLER_ROWS)
    return ImportReport(folder, len(translation.tensors), translation.ignored, fresh, tuple(upcycled))


def check_same_shape(found: ModelShape, expected: ModelShape, folder: Path) -> None:
    """Refuses a folder whose sizes are not those of the model.

    Raises:
        CheckpointError: Naming the sizes that differ.
    """
    free = {"pad_token_id", "norm"}  # the tokenizer's and the run's own
    theirs, ours = found.to_json(), expected.to_json()
    different = [key for key in theirs | ours if key not in free and theirs.get(key) != ours.get(key)]
    if different:
        raise CheckpointError(
            f"the pretrained folder {folder} is not of the shape of the model",
            got=", ".join(f"{key} {theirs.get(key)}" for key in different),
            expected=", ".join(f"{key} {ours.get(key)}" for key in different),
            remedy="build the model from the folder's own config.json (model.pretrained), or choose another folder",
        )


def _heads(model: MultiTaskDecoder, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the model's heads, made from the folder's one head, which is taken out of ``tensors``."""
    head_VD = tensors.pop(decoder_keys.HEAD, None)
    if model.heads.weight_VD is None and model.heads.weight_MVD is None:
        return {}
    if head_VD is None:
        head_VD = tensors[decoder_keys.EMBEDDINGS]
    if model.heads.weight_MVD is None:
        return {decoder_keys.HEAD: head_VD}
    return {"heads.weight_MVD": head_VD.unsqueeze(0).expand(len(model.heads.weight_MVD), -1, -1)}


def _upcycle(
    routed: RoutedFeedForward, dense: FeedForwardWeights, *, noise: float, seed: int, name: str, alike: bool
) -> None:
    for key, pool in routed.pools.items():
        own = FIRST_POOL if alike else key
        upcycle_pool_(pool, dense, noise=noise, seed=seed, name=f"{name}.pools.{own}")  # type: ignore[arg-type]
    if routed.shared_mlp is not None:
        upcycle_shared_(routed.shared_mlp, dense)


@torch.no_grad()
def _copy(model: MultiTaskModel, tensors: Mapping[str, Tensor], folder: Path) -> None:
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
