"""Rewrites a dense folder of a known family as the bare model: float32, one file, every tensor accounted for."""

from __future__ import annotations

import shutil
from pathlib import Path

from distmoe.checkpoint import decoder_keys
from distmoe.checkpoint.decoder_stock import Stock
from distmoe.checkpoint.hf_folder import TOKENIZER_FILES, write_model
from distmoe.checkpoint.import_hf import ImportReport, check_sizes, read_translation
from distmoe.checkpoint.key_tables import POOLER_ROWS, to_hf
from distmoe.checkpoint.new_folder import new_folder, refuse_content
from distmoe.errors import CheckpointError
from distmoe.models.decoder_shape import DecoderShape
from distmoe.models.shape import ROBERTA_TYPES, read_hf_config, shape_of_folder


def normalise(source: Path, out: Path) -> ImportReport:
    """Writes ``out`` from ``source`` and returns what was found.

    Raises:
        ConfigError: If the model is of another family.
        CheckpointError: If ``source`` is incomplete or damaged, its tensors are not of the sizes that its config.json
            gives, it has no tokenizer, or ``out`` is not empty.
    """
    refuse_content(out, "the converted model")
    shape = shape_of_folder(source)
    tokenizer = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not {"tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model", "tokenizer.model"} & set(tokenizer):
        raise CheckpointError(
            f"{source} has no tokenizer",
            got=f"{', '.join(tokenizer) or 'none of its files'}",
            expected="tokenizer.json, or the vocabulary files of the model",
            remedy="download the tokenizer's files into the folder",
        )
    translation = read_translation(source, shape)
    check_sizes(translation.tensors, shape, source)
    config = read_hf_config(source)
    kind = config["model_type"]
    if isinstance(shape, DecoderShape):
        tensors, architecture = decoder_keys.to_hf(translation.tensors, shape), Stock(kind).architecture
    else:
        tensors = to_hf(translation.tensors, shape.num_layers)
        architecture = "RobertaModel" if kind in ROBERTA_TYPES else "BertModel"
    config |= {"architectures": [architecture], "dtype": "float32"}
    config.pop("torch_dtype", None)

    with new_folder(out) as draft:
        write_model(draft, config=config, tensors=tensors)
        for name in tokenizer:
            shutil.copyfile(source / name, draft / name)
    complete = translation.has_pooler or isinstance(shape, DecoderShape)
    fresh = () if complete else tuple(row.own for row in POOLER_ROWS)
    return ImportReport(source, len(translation.tensors), translation.ignored, fresh, ())
