"""Which layers of a model are routed: data, decided once, read by everything that builds or counts layers."""

from __future__ import annotations

from distmoe.errors import ConfigError
from distmoe.moe.config import MoEConfig


def routed_layers(moe: MoEConfig | None, num_layers: int) -> tuple[int, ...]:
    """Returns the 0-based indices of the layers whose feed-forward part is routed, ascending.

    Args:
        moe: Configuration of the routed layers; None for a dense model.
        num_layers: Transformer layers of the model.

    Raises:
        ConfigError: If a listed layer does not exist or occurs twice, or if no layer is left.
    """
    if moe is None:
        return ()
    if isinstance(moe.layers, str):
        start, step = {"odd": (1, 2), "even": (0, 2), "all": (0, 1)}[moe.layers]
        layers = tuple(range(start, num_layers, step))
    else:
        layers = tuple(sorted(moe.layers))
        outside = [layer for layer in layers if not 0 <= layer < num_layers]
        if outside or len(set(layers)) != len(layers):
            raise ConfigError(
                "model.moe.layers names layers that the model does not have, or one twice",
                got=list(moe.layers),
                expected=f"different numbers from 0 to {num_layers - 1}",
                remedy="correct model.moe.layers, or model.num_layers",
            )
    if not layers:
        raise ConfigError(
            "no layer of the model would be routed",
            got=f"model.moe.layers={moe.layers!r} with {num_layers} layer(s)",
            expected="at least one routed layer",
            remedy="list layers in model.moe.layers, or set model.moe=null for a dense model",
        )
    return layers
