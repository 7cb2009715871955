"""The three ratios of frozen, trained and added parameters, of a whole model over all ranks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict

from distmoe.checkpoint.manifest import TensorRecord
from distmoe.nn.conditional.counts import ParameterShares


def parameter_shares_of(tensors: Mapping[str, TensorRecord]) -> ParameterShares:
    """Counts the global tensors of a checkpoint, or of a running engine; buffers are no parameters."""
    sums: Counter[tuple[bool, bool]] = Counter()
    for record in tensors.values():
        if record.kind != "buffer":
            sums[record.added, record.kind == "frozen"] += math.prod(record.shape)
    return ParameterShares(
        backbone=sums[False, True] + sums[False, False],
        added=sums[True, True] + sums[True, False],
        frozen_backbone=sums[False, True],
        frozen_added=sums[True, True],
    )


def shares_text(shares: ParameterShares) -> str:
    """One line with all three; each alone is easily taken for another."""
    return (
        f"backbone {shares.backbone:,}, added {shares.added:,}, frozen {shares.frozen:,}: "
        f"frozen / total {shares.frozen_of_total:.3f}, frozen / backbone {shares.frozen_of_backbone:.3f}, "
        f"trainable / backbone {shares.trainable_to_backbone:.3f}"
    )


def shares_json(shares: ParameterShares) -> dict[str, float]:
    """Counts and ratios as plain values."""
    return asdict(shares) | {
        "total": shares.total,
        "frozen_of_total": shares.frozen_of_total,
        "frozen_of_backbone": shares.frozen_of_backbone,
        "trainable_to_backbone": shares.trainable_to_backbone,
    }
