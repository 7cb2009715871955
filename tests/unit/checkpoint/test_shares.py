"""The three ratios, from the tensors of a checkpoint."""

from __future__ import annotations

from distmoe.checkpoint.manifest import TensorRecord
from distmoe.checkpoint.shares import parameter_shares_of, shares_json, shares_text

# Backbone 6 + 4 = 10, of which 6 are frozen; additions 2 + 3 = 5.
TENSORS = {
    "encoder.embeddings.word.weight": TensorRecord("frozen", (2, 3), "float32"),
    "pooler.dense.weight": TensorRecord("trainable", (2, 2), "float32"),
    "heads.weight": TensorRecord("trainable", (1, 1, 2), "float32", added=True),
    "encoder.conditioner.table.z_Tk": TensorRecord("trainable", (3, 1), "float32", added=True),
    "gate.counts": TensorRecord("buffer", (100,), "int64"),
}


def test_shares_count_global_tensors_by_hand() -> None:
    shares = parameter_shares_of(TENSORS)
    assert (shares.backbone, shares.added, shares.frozen, shares.total) == (10, 5, 6, 15)
    assert (shares.frozen_of_total, shares.frozen_of_backbone, shares.trainable_to_backbone) == (6 / 15, 0.6, 0.9)


def test_the_line_names_all_three_ratios() -> None:
    text = shares_text(parameter_shares_of(TENSORS))
    assert "frozen / total 0.400, frozen / backbone 0.600, trainable / backbone 0.900" in text


def test_plain_values_hold_counts_and_ratios() -> None:
    values = shares_json(parameter_shares_of(TENSORS))
    assert (values["total"], values["frozen_of_backbone"], values["trainable_to_backbone"]) == (15, 0.6, 0.9)
