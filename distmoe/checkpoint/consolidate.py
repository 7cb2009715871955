"""Whole tensors out of a checkpoint, on one process, without ranks and without DeepSpeed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from distmoe.checkpoint.fragments import Fragment
from distmoe.checkpoint.global_view import replicated
from distmoe.checkpoint.manifest import Manifest, read_manifest
from distmoe.checkpoint.store import read_fragments

Part = Literal["fp32", "exp_avg", "exp_avg_sq"]


def read_weights(folder: Path | str, *, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, Tensor]:
    """Returns every parameter (fp32) and persistent buffer of the model, by name.

    Args:
        folder: A checkpoint ``step_N``.
        wanted: Which names to read; a sub-network needs only its own.

    Raises:
        CheckpointError: If the folder is not a complete checkpoint.
    """
    manifest = read_manifest(Path(folder))
    return _read(Path(folder), manifest, "fp32", lambda name: wanted(name))


def read_moments(
    folder: Path | str, part: Part, *, wanted: Callable[[str], bool] = lambda name: True
) -> dict[str, Tensor]:
    """Returns one of Adam's moments of every trainable parameter, fp32, by name.

    Args:
        folder: A checkpoint ``step_N``.
        part: Which moment.
        wanted: Which names to read.

    Raises:
        CheckpointError: If the folder is not a complete checkpoint.
    """
    manifest = read_manifest(Path(folder))
    return _read(Path(folder), manifest, part, lambda name: manifest.tensors[name].kind == "trainable" and wanted(name))


def _read(folder: Path, manifest: Manifest, part: Part, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    whole: dict[str, Tensor] = {}
    fragments = []
    for name, record in manifest.tensors.items():
        if not wanted(name):
            continue
        dtype = torch.float32 if record.kind != "buffer" else getattr(torch, record.dtype)
        whole[name] = torch.empty(record.shape, dtype=dtype)
        key = f"{part if record.kind == 'trainable' else record.kind}/{name}"
        fragments.append(Fragment(key, replicated(name, record.shape), 0, whole[name].view(-1)))
    read_fragments(folder, fragments, no_dist=True)
    return whole
