"""Random streams keyed by purpose, never by rank or by order of calls.

A stream is named by the run's seed and any number of keys: ``generator(seed, "init", name)``.
Adding a consumer therefore never shifts another one, and any world size draws the same numbers.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def derive(seed: int, *keys: object) -> int:
    """Returns a 63-bit seed that depends on every key; equal inputs give equal seeds on every machine."""
    text = "\x1f".join([str(seed), *map(str, keys)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, *keys: object, device: str = "cpu") -> torch.Generator:
    """Returns a torch generator for the stream named by ``keys``."""
    return torch.Generator(device=device).manual_seed(derive(seed, *keys))


def numpy_generator(seed: int, *keys: object) -> np.random.Generator:
    """Returns a numpy generator for the stream named by ``keys``."""
    return np.random.default_rng(derive(seed, *keys))


def seed_all(seed: int, *keys: object) -> None:
    """Seeds the global generators (dropout uses torch's); call once per rank at start."""
    value = derive(seed, *keys)
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)
