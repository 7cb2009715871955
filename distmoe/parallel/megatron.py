"""The only importer of megatron-core's tensor parallelism: an optional dependency that takes seconds to import."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from distmoe.errors import ConfigError


@dataclass(frozen=True)
class MegatronTensor:
    """What distmoe uses of ``megatron.core`` to cut dense matrices."""

    parallel_state: Any
    ModelParallelConfig: Any
    ColumnParallelLinear: Any
    RowParallelLinear: Any
    VocabParallelEmbedding: Any
    copy_to_region: Any
    reduce_from_region: Any
    mark_slice: Any


def megatron_tensor() -> MegatronTensor:
    """Imports megatron-core's tensor parallelism.

    Raises:
        ConfigError: If megatron-core is not installed.
    """
    try:
        with warnings.catch_warnings():
            # It looks for kernels of GPU training that are not needed here.
            warnings.simplefilter("ignore")
            from megatron.core import parallel_state
            from megatron.core.model_parallel_config import ModelParallelConfig
            from megatron.core.tensor_parallel.layers import (
                ColumnParallelLinear,
                RowParallelLinear,
                VocabParallelEmbedding,
                set_tensor_model_parallel_attributes,
            )
            from megatron.core.tensor_parallel.mappings import (
                copy_to_tensor_model_parallel_region,
                reduce_from_tensor_model_parallel_region,
            )
    except ImportError as failure:
        raise ConfigError(
            "tensor parallelism needs megatron-core",
            got=f"parallel.tensor above 1, and {type(failure).__name__}: {failure}",
            expected="megatron-core 0.16 in this environment",
            remedy='in the folder of distmoe: pip install -e ".[lm]", or set parallel.tensor=1',
        ) from failure
    return MegatronTensor(
        parallel_state,
        ModelParallelConfig,
        ColumnParallelLinear,
        RowParallelLinear,
        VocabParallelEmbedding,
        copy_to_tensor_model_parallel_region,
        reduce_from_tensor_model_parallel_region,
        set_tensor_model_parallel_attributes,
    )


def start_parallel_state(tensor: int, timeout: timedelta | None) -> Any:
    """Makes megatron-core's process groups for tensor x data ranks and returns its state; a collective over the world.

    Tensor ranks vary fastest, as in :class:`~distmoe.parallel.rank_grid.RankGrid`. The state is a module of
    megatron-core; :func:`end_parallel_state` clears it.
    """
    state = megatron_tensor().parallel_state
    state.initialize_model_parallel(
        tensor_model_parallel_size=tensor,
        # Not rounded (megatron-core makes a timedelta of it): the backend must not end before the watch has spoken.
        distributed_timeout_minutes=30 if timeout is None else timeout.total_seconds() / 60,
        create_gloo_process_groups=False,
    )
    return state


def end_parallel_state() -> None:
    """Forgets the process groups of :func:`start_parallel_state`; torch ends them with the world's."""
    megatron_tensor().parallel_state.destroy_model_parallel()
