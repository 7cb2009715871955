"""Random streams keyed by purpose."""

from __future__ import annotations

import random

import numpy as np
import torch

from distmoe import seed


def test_a_stream_depends_on_every_key_and_on_their_borders():
    values = [
        seed.derive(0, "a", "b"),
        seed.derive(1, "a", "b"),
        seed.derive(0, "ab"),
        seed.derive(0, "b", "a"),
        seed.derive(0),
    ]
    assert len(set(values)) == len(values)
    assert all(0 <= value < 2**63 for value in values)


def test_a_stream_is_the_same_on_every_machine():
    # sha256("0\x1finit\x1fw")[:8], little endian, without the lowest bit: `hashlib` alone gives the number
    import hashlib

    digest = hashlib.sha256(b"0\x1finit\x1fw").digest()
    assert seed.derive(0, "init", "w") == int.from_bytes(digest[:8], "little") // 2


def test_consumers_do_not_shift_each_other():
    alone = torch.rand(3, generator=seed.generator(0, "b"))
    torch.rand(5, generator=seed.generator(0, "a"))
    assert torch.equal(alone, torch.rand(3, generator=seed.generator(0, "b")))
    assert np.array_equal(seed.numpy_generator(0, "b").random(3), seed.numpy_generator(0, "b").random(3))


def test_seed_all_repeats_the_global_generators():
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), float(torch.rand(()))

    seed.seed_all(7, "dropout", 0)
    first = draw()
    assert draw() != first
    seed.seed_all(7, "dropout", 0)
    assert draw() == first
