"""Which layers of a model have which conditional modules: data, decided once."""

from __future__ import annotations

from dataclasses import dataclass

from distmoe.errors import ConfigError
from distmoe.nn.conditional.config import ConditionalConfig, LayerChoice


@dataclass(frozen=True, kw_only=True)
class ConditionalPlan:
    """Where conditioning acts.

    Attributes:
        alignment: Whether the embedding output is modulated.
        attention: Layers (0-based, ascending) with a conditional attention bias.
        layer_norm: Layers whose two LayerNorms are conditional.
        bottleneck: Layers with an adapter on their output.
        chain: Whether a chain of adapters over all layers replaces the output (mode ``repo``, layout ``large``).
    """

    alignment: bool
    attention: tuple[int, ...]
    layer_norm: tuple[int, ...]
    bottleneck: tuple[int, ...]
    chain: bool = False

    @property
    def first_layer(self) -> int | None:
        """The shallowest conditioned layer; None if there is none. States below it do not depend on the task id."""
        if self.alignment:
            return 0
        first = min((*self.attention, *self.layer_norm, *self.bottleneck), default=None)
        return 0 if self.chain else first


def conditional_plan(config: ConditionalConfig, num_layers: int, *, first_layer: int = 0) -> ConditionalPlan:
    """Resolves the layer choices of a configuration.

    Args:
        config: Section of the conditional modules.
        num_layers: Layers of the model.
        first_layer: Nothing below this layer may depend on the task id, as ``condition_from: first_trainable`` asks
            for: named choices keep to the layers from here, and above 0 the alignment is left out.

    Raises:
        ConfigError: If a listed layer does not exist, occurs twice or lies below ``first_layer``, if an enabled module
            gets no layer, if nothing is left, or if mode ``repo`` is combined with ``first_layer``.
    """
    if config.mode == "repo":
        return _published_plan(config, num_layers, first_layer)
    attention, layer_norm, bottleneck = (
        resolve_layers(part.layers, num_layers, key=f"model.conditional.{name}.layers", first_layer=first_layer)
        if part.enabled
        else ()
        for name, part in (
            ("attention", config.attention),
            ("layer_norm", config.layer_norm),
            ("bottleneck", config.bottleneck),
        )
    )
    alignment = config.alignment.enabled and first_layer == 0
    plan = ConditionalPlan(alignment=alignment, attention=attention, layer_norm=layer_norm, bottleneck=bottleneck)
    if plan.first_layer is None:
        raise ConfigError(
            "no conditional module is left",
            got=f"alignment only, with conditioning from layer {first_layer}",
            expected="a module inside the layers, or conditioning from the embeddings on",
            remedy="enable another module below model.conditional, or condition from the first layer",
        )
    return plan


def resolve_layers(choice: LayerChoice, num_layers: int, *, key: str, first_layer: int = 0) -> tuple[int, ...]:
    """Returns the 0-based layers that a choice names, ascending.

    Args:
        choice: ``upper`` (the upper half, the larger one of an odd number), ``top``, ``all``, or a list.
        num_layers: Layers of the model.
        key: Dotted key of the choice, for messages.
        first_layer: Lowest layer that may be chosen.

    Raises:
        ConfigError: If a listed layer does not exist, occurs twice or lies below ``first_layer``, or none is left.
    """
    if isinstance(choice, str):
        start = {"upper": num_layers // 2, "top": num_layers - 1, "all": 0}[choice]
        layers = tuple(range(max(start, first_layer), num_layers))
    else:
        layers = tuple(sorted(choice))
    if not layers or len(set(layers)) != len(layers) or layers[0] < first_layer or layers[-1] >= num_layers:
        raise ConfigError(
            f"{key} does not fit the layers of the model",
            got=repr(choice),
            expected=f"different numbers from {first_layer} to {num_layers - 1}, at least one",
            remedy=f"correct {key}, or switch the module off with enabled=false",
        )
    return layers


def _published_plan(config: ConditionalConfig, num_layers: int, first_layer: int) -> ConditionalPlan:
    """Conditional LayerNorms in the upper half, attention in all layers, frozen ones included."""
    if first_layer > 0:
        raise ConfigError(
            "the published structure conditions the embeddings and all layers",
            got=f"mode repo with conditioning from layer {first_layer}",
            expected="mode distmoe",
            remedy="set model.conditional.mode=distmoe",
        )
    chain = config.repo_layout == "large"
    return ConditionalPlan(
        alignment=True,
        attention=tuple(range(num_layers)),
        layer_norm=tuple(range(num_layers // 2, num_layers)),
        bottleneck=() if chain else (num_layers - 1,),
        chain=chain,
    )
