"""Parts that only the published code has (mode ``repo``): its bottlenecks, and its way to choose a block side.

They are written from their description, to reproduce counts and behaviour. Not one of them is the identity before
training: the chain replaces the pre-trained output by a random projection of it.

Shape letters: B sequences, S positions, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from distmoe.errors import ConfigError
from distmoe.nn.conditional.conditioning import Conditioning
from distmoe.nn.conditional.film import film
from distmoe.nn.conditional.generator import Generator, GeneratorFactory
from distmoe.nn.conditional.layer_norm import ConditionalLayerNorm
from distmoe.nn.conditional.module import ConditionalModule
from distmoe.nn.init import init_normal_


def published_block_side(hidden_size: int, length: int) -> int:
    """Returns ``ceil(L / N)`` for the published ``N = D / L`` attention blocks: 22 for base, 16 for large at L = 128.

    Raises:
        ConfigError: If L does not divide D, which the published code asserts.
    """
    if hidden_size % length:
        raise ConfigError(
            "the published attention blocks need a length that divides the model width",
            got=f"model width {hidden_size}, length {length}",
            expected=f"a divisor of {hidden_size}",
            remedy="change model.conditional.attention.max_length, or set model.conditional.mode=distmoe",
        )
    num_blocks = hidden_size // length
    return -(-length // num_blocks)


class PublishedBlock(ConditionalModule):
    """``up(down((1 + gamma(u)) h + beta(u)))`` with ``u`` a linear map of its own of the task embedding.

    No activation, no residual and no zero weight, and a width of floor(D / 3).

    Args:
        hidden_size: D, also the width of a task embedding.
        generators: Makes the generator of gamma and beta.
    """

    decayed: ClassVar[frozenset[str]] = frozenset({"projection.weight", "down.weight", "up.weight"})

    def __init__(self, hidden_size: int, generators: GeneratorFactory) -> None:
        super().__init__()
        self.projection = nn.Linear(hidden_size, hidden_size)
        self.generator: Generator = generators(2 * hidden_size)
        self.down = nn.Linear(hidden_size, hidden_size // 3)
        self.up = nn.Linear(hidden_size // 3, hidden_size)

    def reset(self, seed: int, name: str, std: float) -> None:
        for part, linear in (("projection", self.projection), ("down", self.down), ("up", self.up)):
            init_normal_(linear.weight, seed=seed, name=f"{name}.{part}.weight", std=std)
            nn.init.zeros_(linear.bias)

    def forward(self, h_BSD: Tensor, conditioning: Conditioning) -> Tensor:
        """Maps ``[B, S, D]`` to ``[B, S, D]``."""
        return self.up(self.down(film(h_BSD, *self.generated(conditioning))))  # type: ignore[no-any-return]

    def generated(self, conditioning: Conditioning) -> tuple[Tensor, Tensor]:
        """Returns gamma and beta of the rows, ``[B, D]`` each."""
        assert conditioning.z_Tk is not None, "the published structure reads embeddings"
        gamma_BD, beta_BD = self.generator(conditioning.task_ids_B, self.projection(conditioning.z_Tk)).chunk(2, dim=-1)
        return gamma_BD, beta_BD


class PublishedTopAdapter(ConditionalModule):
    """``CLN(block(h) + a)`` on the last layer of the base model; its LayerNorm is an addition.

    Args:
        hidden_size: D.
        layer_norm_eps: Epsilon of its LayerNorm.
        generators: Makes the generators.
    """

    def __init__(self, hidden_size: int, *, layer_norm_eps: float, generators: GeneratorFactory) -> None:
        super().__init__()
        self.block = PublishedBlock(hidden_size, generators)
        self.norm = ConditionalLayerNorm(hidden_size, eps=layer_norm_eps, form="published", generators=generators)

    def reset(self, seed: int, name: str, std: float) -> None:
        self.norm.reset_parameters()

    def forward(self, h_BSD: Tensor, attended_BSD: Tensor, conditioning: Conditioning) -> Tensor:
        """Maps ``[B, S, D]`` to ``[B, S, D]``; ``attended_BSD`` is the layer's state after attention, a."""
        return self.norm(self.block(h_BSD, conditioning) + attended_BSD, conditioning)  # type: ignore[no-any-return]


class PublishedChain(ConditionalModule):
    """``f_0 = 0, f_l = block_l(h_l + f_(l-1))`` over the states behind all layers; ``f`` of the last is the output.

    Layers do not read f, so the chain runs behind the encoder.

    Args:
        hidden_size: D.
        num_layers: Layers of the model.
        generators: Makes the generators.
    """

    def __init__(self, hidden_size: int, num_layers: int, generators: GeneratorFactory) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(PublishedBlock(hidden_size, generators) for _ in range(num_layers))

    def forward(self, states_BSD: Sequence[Tensor], conditioning: Conditioning) -> Tensor:
        """Returns ``[B, S, D]`` from the outputs of all layers, shallow to deep."""
        carried_BSD = self.blocks[0](states_BSD[0], conditioning)
        for block, state_BSD in zip(self.blocks[1:], states_BSD[1:], strict=True):
            carried_BSD = block(state_BSD + carried_BSD, conditioning)
        return carried_BSD  # type: ignore[no-any-return]
