"""Reads and writes config and weights of a Hugging Face folder: safetensors only, one file or shards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from distmoe.errors import CheckpointError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# What a tokenizer may consist of; copied as found from a pretrained folder to conversions and exports.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.model",
    "chat_template.jinja",
)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Returns all tensors of a folder under the names of its files.

    Raises:
        CheckpointError: If there are no safetensors, a shard is missing, or a file is damaged. Pickled weights are
            refused: unpickling runs code.
    """
    found: dict[str, Tensor] = {}
    for path in weight_files(folder):
        try:
            found.update(load_file(path))
        except (SafetensorError, OSError) as failure:
            raise CheckpointError(
                f"{path} is damaged",
                got=f"{path.stat().st_size} bytes; {failure}",
                expected="a complete safetensors file",
                remedy="download or copy it again",
            ) from None
    return found


def weight_files(folder: Path) -> list[Path]:
    """Returns the safetensors files of a folder.

    Raises:
        CheckpointError: As :func:`read_tensors`.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / INDEX
    if not index.is_file():
        pickled = [path.name for path in (*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.h5"))]
        raise CheckpointError(
            f"{folder} has no safetensors weights",
            got=f"only {', '.join(sorted(pickled))}" if pickled else "no weights",
            expected=f"{WEIGHTS}, or {INDEX} with its shards",
            remedy="where you trust the file: transformers' AutoModel.from_pretrained(FOLDER).save_pretrained(NEW)"
            if pickled
            else "download the folder again, weights included",
        )
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as failure:
        raise CheckpointError(
            f"{index} cannot be read",
            got=f"{type(failure).__name__}: {failure}",
            expected='a JSON object with a "weight_map"',
            remedy="download it again",
        ) from None
    # A name with a path could lead out of the folder.
    missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} lacks shards that {INDEX} lists",
            got=f"missing {', '.join(missing)}",
            expected=f"{len(names)} shard(s) inside the folder",
            remedy="download the missing files",
        )
    return [folder / name for name in names]


def write_model(folder: Path, *, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Writes ``config.json`` and ``model.safetensors``."""
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    write_tensors(folder / WEIGHTS, tensors)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a new safetensors file with the rights of other new files.

    safetensors makes files that only their owner can read; these are there to be shared as the umask says.
    """
    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path, metadata={"format": "pt"})
    path.chmod(mode)
