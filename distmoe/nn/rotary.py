"""Rotary position embeddings (RoFormer, arXiv 2104.09864) and the ways to stretch them over longer contexts.

Queries and keys are turned by angles that grow with their position, so that their product depends on the distance
alone. The halves of a head are the two coordinates of each turn, as in the checkpoints of Llama and its relatives.

Shape letters: B sequences, S positions, H heads, d width of a head.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from distmoe.config import Section
from distmoe.errors import ConfigError


class RotaryConfig(Section):
    base: float = Field(10000.0, gt=1, description="Wavelengths run from 2 pi to 2 pi * base positions.")
    scaling: Literal["default", "linear", "llama3", "yarn"] = Field(
        "default",
        description="How a longer context is reached: not at all; all positions divided by factor; only long "
        "wavelengths divided (Llama 3.1); by wavelength, with warmer attention (YaRN).",
    )
    factor: float = Field(1.0, ge=1, description="How many times longer the context becomes.")
    original_max_positions: int | None = Field(
        None, gt=0, description="Context length before it was stretched; null: model.max_positions."
    )
    low_freq_factor: float = Field(1.0, gt=0, description="llama3: wavelengths beyond original / this are divided.")
    high_freq_factor: float = Field(4.0, gt=0, description="llama3: wavelengths below original / this stay.")
    beta_fast: float = Field(32.0, gt=0, description="yarn: with this many turns in the context, or more, they stay.")
    beta_slow: float = Field(1.0, gt=0, description="yarn: with this many turns, or fewer, wavelengths are divided.")
    attention_factor: float | None = Field(
        None, gt=0, description="yarn: factor of queries and keys; null: 0.1 ln(factor) + 1."
    )

    def model_post_init(self, _context: object) -> None:
        """Refuses borders in the wrong order, which would divide the short wavelengths and keep the long ones.

        Raises:
            ConfigError: Naming the keys.
        """
        borders = {"llama3": ("low_freq_factor", "high_freq_factor"), "yarn": ("beta_slow", "beta_fast")}
        for low, high in [borders[self.scaling]] if self.scaling in borders else []:
            if getattr(self, low) >= getattr(self, high):
                raise ConfigError(
                    f"the borders of {self.scaling} rotary positions are in the wrong order",
                    got=f"{low}={getattr(self, low)}, {high}={getattr(self, high)}",
                    expected=f"{low} < {high}",
                    remedy="correct them in model.decoder.rotary, or in the model's config.json",
                )


class Turns(NamedTuple):
    """Cosines and sines ``[B, 1, S, d]`` of every position's angles, float32."""

    cos_B1Sd: Tensor
    sin_B1Sd: Tensor


class Rotary:
    """Angles by position. Not a module: cast to half precision with one, the frequencies would lose positions.

    Args:
        config: Base and scaling.
        head_size: d; even.
        max_positions: Context length of the model.
    """

    def __init__(self, config: RotaryConfig, *, head_size: int, max_positions: int) -> None:
        # On the CPU whatever the default device: a model may be built on torch's meta device to count its parameters.
        with torch.device("cpu"):
            self._frequencies_d2, self._scale = frequencies(config, head_size=head_size, max_positions=max_positions)

    def __call__(self, position_ids_BS: Tensor) -> Turns:
        """Returns the turns of positions, int64."""
        frequencies_d2 = self._frequencies_d2.to(position_ids_BS.device)
        angles_BSd2 = position_ids_BS.unsqueeze(-1).float() * frequencies_d2
        angles_B1Sd = torch.cat((angles_BSd2, angles_BSd2), dim=-1).unsqueeze(1)
        return Turns(angles_B1Sd.cos() * self._scale, angles_B1Sd.sin() * self._scale)


def turn(x_BHSd: Tensor, turns: Turns) -> Tensor:
    """Returns queries or keys turned by their positions, in their own dtype."""
    first, second = x_BHSd.chunk(2, dim=-1)
    turned_BHSd = torch.cat((-second, first), dim=-1)
    cos, sin = turns.cos_B1Sd.to(x_BHSd.dtype), turns.sin_B1Sd.to(x_BHSd.dtype)
    return x_BHSd * cos + turned_BHSd * sin


def frequencies(config: RotaryConfig, *, head_size: int, max_positions: int) -> tuple[Tensor, float]:
    """Returns the angle per position of each pair of coordinates, ``[d / 2]`` float32, and the factor of the turns."""
    original = config.original_max_positions or max_positions
    plain_d2 = 1.0 / config.base ** (torch.arange(0, head_size, 2).float() / head_size)
    match config.scaling:
        case "default":
            return plain_d2, 1.0
        case "linear":
            return plain_d2 / config.factor, 1.0
        case "llama3":
            return _llama3(plain_d2, config, original), 1.0
        case "yarn":
            warmth = 0.1 * math.log(config.factor) + 1.0 if config.factor > 1 else 1.0
            return _yarn(plain_d2, config, original), config.attention_factor or warmth


def _llama3(plain_d2: Tensor, config: RotaryConfig, original: int) -> Tensor:
    """Between the two borders of wavelength the divided and the plain frequency are mixed (Llama 3.1)."""
    turns_d2 = original * plain_d2 / (2 * math.pi)  # full turns within the original context
    share_d2 = (turns_d2 - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor)
    return torch.lerp(plain_d2 / config.factor, plain_d2, share_d2.clamp(0, 1))


def _yarn(plain_d2: Tensor, config: RotaryConfig, original: int) -> Tensor:
    """As llama3, but the mix is linear in the index of the frequency (YaRN, arXiv 2309.00071, section 3.2)."""
    width = 2 * plain_d2.shape[0]

    def index_of(num_turns: float) -> float:
        return width * math.log(original / (num_turns * 2 * math.pi)) / (2 * math.log(config.base))

    low = max(math.floor(index_of(config.beta_fast)), 0)
    high = min(math.ceil(index_of(config.beta_slow)), width - 1)
    ramp_d2 = (torch.arange(width // 2).float() - low) / max(high - low, 0.001)
    return torch.lerp(plain_d2, plain_d2 / config.factor, ramp_d2.clamp(0, 1))
