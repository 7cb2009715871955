"""Frozen encodings of task descriptions."""

from __future__ import annotations

import copy

import torch

from distmoe.moe.config import GateConfig
from distmoe.moe.gates import build_gate, encode_descriptions
from distmoe.moe.gates.task_description import describe
from tests.unit.moe.gate_cases import ONE_TASK_GROUP, TASKS, make_gate


def test_encodings_have_unit_length_and_follow_shared_words():
    """films and shops share "sentiment" and "reviews"; films and entail share only "the"/"of"-like words."""
    vectors = encode_descriptions(TASKS)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(4))
    likeness = vectors @ vectors.t()
    assert likeness[0, 2] > 0.3
    assert abs(likeness[0, 1]) < 0.1


def test_encodings_are_repeatable():
    assert torch.equal(encode_descriptions(TASKS), encode_descriptions(TASKS))


def test_task_without_description_is_described_by_name_type_and_labels():
    assert describe(TASKS[0]) == "sentiment of movie reviews"
    assert describe(TASKS[3]) == "contradict classification no yes"


def test_vectors_can_be_handed_in():
    vectors_MV = torch.eye(4)
    gate = build_gate(
        GateConfig(kind="task_description"), hidden_size=8, num_experts=6, top_k=1, combine="raw", tasks=TASKS,
        allowed=ONE_TASK_GROUP, routed_index=0, description_vectors_MV=vectors_MV,
    )  # fmt: skip
    assert torch.equal(gate.task_vectors.features_MV, vectors_MV)


def test_features_are_saved_not_trained_and_survive_a_cast_to_bfloat16():
    gate = make_gate("task_description")
    features = gate.task_vectors.features_MV
    assert "task_vectors.features_MV" in gate.state_dict()
    assert "task_vectors.features_MV" not in dict(gate.named_parameters())
    assert torch.equal(copy.deepcopy(gate).bfloat16().task_vectors.features_MV.float(), features)
