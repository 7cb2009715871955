"""The state of one rank besides weights (random states, data position) in one safetensors file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor

_JSON_TENSOR = "__json__"

RankState = Mapping[str, Any]


def write_rank_state(path: Path, state: RankState) -> None:
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items() if isinstance(value, Tensor)}
    rest = {key: value for key, value in state.items() if not isinstance(value, Tensor)}
    tensors[_JSON_TENSOR] = torch.frombuffer(bytearray(json.dumps(rest).encode()), dtype=torch.uint8)
    with path.open("wb") as file:
        file.write(serialize(tensors))
        file.flush()
        os.fsync(file.fileno())


def read_rank_state(path: Path) -> dict[str, Any]:
    tensors: dict[str, Any] = load_file(path)
    rest = json.loads(bytes(tensors.pop(_JSON_TENSOR).tolist()))
    return tensors | rest
