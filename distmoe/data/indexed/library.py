"""The only importer of megatron-core's data sets: an optional dependency that takes seconds to import."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from typing import Any

from distmoe.errors import ConfigError


@dataclass(frozen=True)
class MegatronData:
    """What distmoe uses of ``megatron.core.datasets``."""

    IndexedDataset: Any
    IndexedDatasetBuilder: Any
    DType: Any
    GPTDataset: Any
    GPTDatasetConfig: Any
    BlendedDataset: Any
    Split: Any


def megatron_data() -> MegatronData:
    """Imports megatron-core's data sets.

    Raises:
        ConfigError: If megatron-core is not installed.
    """
    try:
        with warnings.catch_warnings():
            # It imports all of megatron-core, which misses libraries of GPU training that data sets do not use.
            warnings.simplefilter("ignore")
            from megatron.core.datasets.blended_dataset import BlendedDataset
            from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
            from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder
            from megatron.core.datasets.utils import Split
    except ImportError as failure:
        raise ConfigError(
            "language models and indexed data sets need megatron-core",
            got=f"{type(failure).__name__}: {failure}",
            expected="megatron-core 0.16 in this environment",
            remedy='in the folder of distmoe: pip install -e ".[lm]"',
        ) from failure
    # It warns that nothing is cached: here indices are computed in memory on purpose, by every rank alike.
    logging.getLogger("megatron.core.datasets").setLevel(logging.ERROR)
    return MegatronData(
        IndexedDataset, IndexedDatasetBuilder, DType, GPTDataset, GPTDatasetConfig, BlendedDataset, Split
    )
