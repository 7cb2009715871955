"""Conditional bottleneck: a modulated adapter behind a layer.

Shape letters: B sequences, S positions, D model width, r width of the bottleneck.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distmoe.nn.activations import activation as activation_named
from distmoe.nn.conditional.conditioning import Conditioning
from distmoe.nn.conditional.film import film
from distmoe.nn.conditional.generator import Generator, GeneratorFactory
from distmoe.nn.conditional.module import ConditionalModule
from distmoe.nn.init import init_normal_


class ConditionalBottleneck(ConditionalModule):
    """``h + W_up act(W_down((1 + gamma(z)) h + beta(z)))`` on the output of a layer; W_up starts at zero.

    Args:
        hidden_size: D.
        size: r. The adapter costs ``2 r D`` parameters and as many multiply-adds per token; a third of D is usual.
        activation: Name in :data:`distmoe.nn.activations.ACTIVATIONS`.
        generators: Makes the generator of gamma and beta.
    """

    decayed: ClassVar[frozenset[str]] = frozenset({"w_down", "w_up"})

    def __init__(self, hidden_size: int, size: int, *, activation: str, generators: GeneratorFactory) -> None:
        super().__init__()
        self.act = activation_named(activation)
        self.w_down = nn.Parameter(torch.empty(size, hidden_size))
        self.w_up = nn.Parameter(torch.empty(hidden_size, size))
        self.generator: Generator = generators(2 * hidden_size)

    def reset(self, seed: int, name: str, std: float) -> None:
        init_normal_(self.w_down, seed=seed, name=f"{name}.w_down", std=std)
        nn.init.zeros_(self.w_up)

    def forward(self, h_BSD: Tensor, attended_BSD: Tensor, conditioning: Conditioning) -> Tensor:
        """Maps ``[B, S, D]`` to ``[B, S, D]``.

        Args:
            h_BSD: The layer's output.
            attended_BSD: The layer's state after attention; read by the published adapter, not by this one.
            conditioning: Tasks of the rows.
        """
        inner = self.act(F.linear(film(h_BSD, *self.generated(conditioning)), self.w_down))
        return h_BSD + F.linear(inner, self.w_up)

    def generated(self, conditioning: Conditioning) -> tuple[Tensor, Tensor]:
        """Returns gamma and beta of the rows, ``[B, D]`` each."""
        gamma_BD, beta_BD = self.generator(conditioning.task_ids_B, conditioning.z_Tk).chunk(2, dim=-1)
        return gamma_BD, beta_BD
