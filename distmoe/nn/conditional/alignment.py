"""Conditional alignment: task-specific scale and shift of the embedding output.

Shape letters: B sequences, S positions, D model width.
"""

from __future__ import annotations

from torch import Tensor

from distmoe.nn.conditional.conditioning import Conditioning
from distmoe.nn.conditional.film import film
from distmoe.nn.conditional.generator import Generator, GeneratorFactory
from distmoe.nn.conditional.module import ConditionalModule


class ConditionalAlignment(ConditionalModule):
    """``(1 + gamma(z)) e + beta(z)`` between the embeddings and the first layer.

    This is the vector form that the published code runs; the paper reports a matrix whose shape is not known.

    Args:
        hidden_size: D.
        generators: Makes the generator of gamma and beta.
    """

    def __init__(self, hidden_size: int, generators: GeneratorFactory) -> None:
        super().__init__()
        self.generator: Generator = generators(2 * hidden_size)

    def forward(self, x_BSD: Tensor, conditioning: Conditioning) -> Tensor:
        """Maps ``[B, S, D]`` to ``[B, S, D]``."""
        return film(x_BSD, *self.generated(conditioning))

    def generated(self, conditioning: Conditioning) -> tuple[Tensor, Tensor]:
        """Returns gamma and beta of the rows, ``[B, D]`` each."""
        gamma_BD, beta_BD = self.generator(conditioning.task_ids_B, conditioning.input_z_Tk).chunk(2, dim=-1)
        return gamma_BD, beta_BD
