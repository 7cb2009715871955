"""megatron-core's process groups as the ``mpu`` that DeepSpeed asks for."""

from __future__ import annotations

from typing import Any


class ModelParallelUnit:
    """Answers from megatron-core's parallel state, and knows the older names that DeepSpeed still uses.

    DeepSpeed then averages gradients over the data ranks of a tensor rank, and in the gradient's norm counts what is
    marked ``tensor_model_parallel`` on every tensor rank, all else on the first.

    Args:
        parallel_state: ``megatron.core.parallel_state``, initialised.
    """

    def __init__(self, parallel_state: Any) -> None:
        self._state = parallel_state

    def get_model_parallel_world_size(self) -> int:
        return int(self._state.get_tensor_model_parallel_world_size())

    def get_model_parallel_rank(self) -> int:
        return int(self._state.get_tensor_model_parallel_rank())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)
