"""What an export needs besides the checkpoint itself, and where a run keeps it: shape, tokenizer, test scores.

A run's folder has ``shape.json`` and ``tokenizer/`` beside ``checkpoints/``, written once at its start by
:func:`write_run_files`. Where they are gone (a checkpoint that was copied alone) they are sought where the run took
them from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from distmoe.config import build
from distmoe.errors import CheckpointError, DistmoeError
from distmoe.models.config import ModelConfig
from distmoe.models.shape import ModelShape, resolve_shape, shape_from_json, shape_of_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHAPE, TOKENIZER, RESULT = "shape.json", "tokenizer", "result.json"
TOKEN_TABLES = ("encoder.embeddings.word.weight", "decoder.embeddings.weight")


def write_run_files(run_folder: Path, *, shape: ModelShape, tokenizer: PreTrainedTokenizerBase) -> None:
    """Keeps the shape and the tokenizer of a run; call it on rank 0."""
    run_folder.mkdir(parents=True, exist_ok=True)
    (run_folder / SHAPE).write_text(json.dumps(shape.to_json(), indent=1) + "\n", encoding="utf-8")
    tokenizer.save_pretrained(run_folder / TOKENIZER)


def find_shape(checkpoint: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> ModelShape:
    """Returns the shape of a checkpoint's model: the run's file, or what configuration and weights say.

    Raises:
        CheckpointError: If it can only be known from a pretrained folder that is gone.
    """
    for folder in _homes(checkpoint):
        if (folder / SHAPE).is_file():
            return shape_from_json(json.loads((folder / SHAPE).read_text(encoding="utf-8")))
    tables = [weights[name] for name in TOKEN_TABLES if name in weights]
    vocab_size = tables[0].shape[0] if tables else 0
    try:
        model = build(ModelConfig, config.get("model", {}))
        if model.pretrained is not None:
            return shape_of_folder(Path(model.pretrained))
        return resolve_shape(model, vocab_size, 0)  # 0: the padding id of the embedded tokenizer
    except DistmoeError as failure:
        raise CheckpointError(
            f"the shape of the model of {checkpoint} is not known",
            got=f"no {SHAPE} in {' or '.join(map(str, _homes(checkpoint)))}; {failure.what}",
            expected=f"{SHAPE} in the run's folder",
            remedy=f"copy {SHAPE} from the run's folder beside the checkpoint",
        ) from None


def find_tokenizer(checkpoint: Path, config: Mapping[str, Any]) -> Path:
    """Returns the folder of the tokenizer that a checkpoint was trained with.

    Raises:
        CheckpointError: If it is nowhere.
    """
    named = (config.get("data", {}).get("tokenizer"), config.get("model", {}).get("pretrained"))
    candidates = [*(home / TOKENIZER for home in _homes(checkpoint)), *(Path(name) for name in named if name)]
    for folder in candidates:
        if (folder / "tokenizer_config.json").is_file() or (folder / "tokenizer.json").is_file():
            return folder
    raise CheckpointError(
        f"the tokenizer of {checkpoint} was not found",
        got=f"none in {', '.join(map(str, candidates))}",
        expected="the folder that the run kept beside its checkpoints",
        remedy="name the folder: tools/convert_to_hf.py CHECKPOINT OUT --tokenizer FOLDER",
    )


def find_test_scores(checkpoint: Path, step: int) -> dict[str, Any]:
    """Returns the test evaluation that the run made with the weights of this step, or nothing."""
    path = _homes(checkpoint)[1] / RESULT
    if not path.is_file():
        return {}
    result = json.loads(path.read_text(encoding="utf-8"))
    return (result.get("test") or {}) if result.get("test_step") == step else {}


def _homes(checkpoint: Path) -> tuple[Path, Path]:
    """The checkpoint itself, and the run's folder two levels above it (``RUN/checkpoints/step_N``)."""
    checkpoint = checkpoint.resolve()
    return checkpoint, checkpoint.parent.parent
