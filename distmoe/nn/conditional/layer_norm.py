"""Conditional layer normalisation: task-specific weight and bias on a pre-trained LayerNorm.

Shape letters: B sequences, S positions, D model width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from distmoe.nn.conditional.conditioning import Conditioning
from distmoe.nn.conditional.generator import Generator, GeneratorFactory
from distmoe.nn.conditional.modulated_norm import modulated_layer_norm

LayerNormForm = Literal["scale_and_bias", "scale_only", "published"]


class ConditionalLayerNorm(nn.LayerNorm):
    """``LN(x) * w (1 + gamma(z)) + (b + beta(z))``.

    It is a LayerNorm: ``weight`` and ``bias`` are the checkpoint's, under the same names.

    Args:
        hidden_size: D.
        eps: Epsilon of the normalisation.
        form: ``scale_and_bias`` (the paper's), ``scale_only`` (no beta), or ``published``:
            ``LN(x) * ((1 + gamma) w + beta) + b``, where beta too belongs to the scale.
        generators: Makes the generator of gamma and beta.
    """

    def __init__(self, hidden_size: int, *, eps: float, form: LayerNormForm, generators: GeneratorFactory) -> None:
        super().__init__(hidden_size, eps=eps)
        self.form = form
        self.generator: Generator = generators(hidden_size if form == "scale_only" else 2 * hidden_size)

    def forward(self, x_BSD: Tensor, conditioning: Conditioning) -> Tensor:  # type: ignore[override]
        """Maps ``[B, S, D]`` to ``[B, S, D]``, in the dtype of ``x``."""
        gamma_BD, beta_BD = self._generated(conditioning)
        weight_D, bias_D = self.weight.float(), self.bias.float()
        # float32 until the end: a half-precision product would round away gammas below 2^-9.
        if self.form == "published":
            scale_BD, shift_BD = (1 + gamma_BD) * weight_D + beta_BD, bias_D.expand_as(gamma_BD)
            weight_D, bias_D = torch.ones_like(weight_D), torch.zeros_like(bias_D)
        else:
            # (n w + b)(1 + gamma) + (beta - b gamma): the plain LayerNorm's own kernel and bits where gamma and beta
            # are zero, which n (w (1 + gamma)) + (b + beta) would not give.
            scale_BD, shift_BD = 1 + gamma_BD, torch.addcmul(beta_BD, bias_D, gamma_BD, value=-1)
        y_BSD = modulated_layer_norm(x_BSD.float(), weight_D, bias_D, scale_BD, shift_BD, eps=self.eps)
        return y_BSD.to(x_BSD.dtype)

    @torch.no_grad()
    def constants(self, conditioning: Conditioning) -> tuple[Tensor, Tensor]:
        """Returns weight and bias of the plain LayerNorm of each row, ``[B, D]`` float32."""
        gamma_BD, beta_BD = self._generated(conditioning)
        weight_BD, bias_BD = self.weight.float() * (1 + gamma_BD), self.bias.float().expand_as(gamma_BD)
        if self.form == "published":
            return weight_BD + beta_BD, bias_BD
        return weight_BD, bias_BD + beta_BD

    def _generated(self, conditioning: Conditioning) -> tuple[Tensor, Tensor]:
        generated_Bm = self.generator(conditioning.task_ids_B, conditioning.z_Tk)
        if self.form == "scale_only":
            return generated_Bm, torch.zeros_like(generated_Bm)
        gamma_BD, beta_BD = generated_Bm.chunk(2, dim=-1)
        return gamma_BD, beta_BD
