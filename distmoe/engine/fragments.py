"""What this rank owns of the training state, as fragments of global tensors; DeepSpeed is read, not patched.

Where the fp32 master weight and the moments of a parameter lie depends on the stage: ZeRO-0 keeps them whole on every
rank; ZeRO-1/2 and ``BF16_Optimizer`` cut each param group's flat tensor, and leave an address on every parameter;
ZeRO-3 cuts each parameter by itself over the ranks of its own process group.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from distmoe.checkpoint.fragments import Fragment
from distmoe.checkpoint.global_view import GlobalView
from distmoe.checkpoint.manifest import TensorRecord
from distmoe.engine import compatibility
from distmoe.models.parameters import added_parameters

_MOMENTS = ("exp_avg", "exp_avg_sq")


def prepare_states(optimizer: Any) -> None:
    """Gives every flat partition the state that its first step would create, and links the parameters to it."""
    base = compatibility.base_optimizer(optimizer)
    for partition in compatibility.fp32_partitions(optimizer):
        state = base.state[partition]
        for key in _MOMENTS:
            if key not in state:
                state[key] = torch.zeros_like(partition, memory_format=torch.preserve_format).detach()
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=partition.device)
    compatibility.relink_states(optimizer)


def adam_step(optimizer: Any) -> int:
    """Updates so far; the largest over the states, which are all equal after a step."""
    states = [compatibility.base_optimizer(optimizer).state[p] for p in compatibility.fp32_partitions(optimizer)]
    return max((int(state["step"]) for state in states), default=0)


def set_adam_step(optimizer: Any, step: int) -> None:
    """Writes the number of updates into every state, keeping its type."""
    base = compatibility.base_optimizer(optimizer)
    for partition in compatibility.fp32_partitions(optimizer):
        state = base.state[partition]
        if isinstance(state["step"], Tensor):
            state["step"].fill_(step)
        else:
            state["step"] = step


def fragments_of(model: nn.Module, optimizer: Any, views: Mapping[str, GlobalView]) -> list[Fragment]:
    """All fragments of this rank; call :func:`prepare_states` before. Their data is the training state itself."""
    found = []
    for name, parameter in model.named_parameters():
        view = views[name]
        if not parameter.requires_grad:
            found += [Fragment(f"frozen/{name}", view, *_frozen(parameter))]
            continue
        for key, lo, data in _owned(parameter, optimizer):
            found.append(Fragment(f"{key}/{name}", view, lo, data))
    for name, buffer in model.named_buffers():
        if name in views:
            found.append(Fragment(f"buffer/{name}", views[name], 0, buffer.detach().reshape(-1)))
    return found


def tensor_records(model: nn.Module, views: Mapping[str, GlobalView]) -> dict[str, TensorRecord]:
    """Every global tensor over all ranks; collective, because in partitioned placement no rank holds all pools."""
    added = added_parameters(model)
    kinds = {name: "trainable" if parameter.requires_grad else "frozen" for name, parameter in model.named_parameters()}
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    own = {
        name: (
            kinds.get(name, "buffer"),
            view.global_shape,
            "float32" if kinds.get(name) == "trainable" else str(tensors[name].dtype).removeprefix("torch."),
            name in added,
        )
        for name, view in views.items()
    }
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, own)
    merged = {name: record for part in gathered for name, record in part.items()}
    return {name: TensorRecord(*merged[name]) for name in sorted(merged)}


def _owned(parameter: nn.Parameter, optimizer: Any) -> Iterator[tuple[str, int, Tensor]]:
    """(key, first flat index, data) of the master weight and both moments; nothing if this rank owns nothing."""
    if compatibility.is_stage3(optimizer):
        lo, length = _stage3_range(parameter)
        for key in ("fp32", *_MOMENTS):
            partition, _ = optimizer._get_fp32_opt_state_partition(
                parameter, release_swap_buffers=False, optim_state_key=None if key == "fp32" else key
            )
            yield key, lo, partition.detach().view(-1)[:length]
    elif compatibility.is_zero(optimizer):
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return
        lo = mapping.lp_fragment_address.start
        yield "fp32", lo, mapping.hp_fragment.detach()
        for key in _MOMENTS:
            yield key, lo, mapping.get_optim_state_fragment(key).detach()
    else:
        yield "fp32", 0, parameter.detach().view(-1)
        for key in _MOMENTS:
            yield key, 0, optimizer.state[parameter][key].detach().view(-1)


def _frozen(parameter: nn.Parameter) -> tuple[int, Tensor]:
    if hasattr(parameter, "ds_tensor"):
        lo, length = _stage3_range(parameter)
        return lo, parameter.ds_tensor.detach().view(-1)[:length]
    return 0, parameter.detach().view(-1)


def _stage3_range(parameter: nn.Parameter) -> tuple[int, int]:
    """First flat index and number of elements that ZeRO-3 keeps here; the last ranks' partitions end in padding."""
    width = parameter.ds_tensor.ds_numel  # type: ignore[attr-defined]
    lo = dist.get_rank(parameter.ds_process_group) * width  # type: ignore[attr-defined]
    return lo, max(0, min(width, parameter.ds_numel - lo))  # type: ignore[attr-defined]
