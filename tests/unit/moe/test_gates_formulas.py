"""Each gate's logits against its formula in plain loops over tokens, float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from distmoe.moe.gates.sequence import sequence_means
from tests.unit.moe.gate_cases import LEARNED, MIXED, NO_TOKENS, ONE_TASK_GROUP, make_context, make_gate, make_tokens

TOLERANCE = {"rtol": 0, "atol": 1e-12}  # float64 sums of at most 72 terms of size 1
X_TD = make_tokens(len(MIXED.task_ids_T), dtype=torch.float64)


def task_vector(vectors, task):
    """LN(MLP(v_t)) with v_t one-hot or the frozen features."""
    v = torch.eye(4, dtype=torch.float64)[task] if vectors.features_MV is None else vectors.features_MV[task].double()
    hidden = F.gelu(vectors.w_in_HV @ v + vectors.b_in_H)
    tau = vectors.w_out_UH @ hidden + vectors.b_out_U
    centred = tau - tau.mean()
    return centred / (centred.square().mean() + 1e-5).sqrt() * vectors.norm_weight_U + vectors.norm_bias_U


def joint(router, h, tau):
    first = router.weight @ torch.cat([h, tau])
    if router.kind == "linear":
        return first
    return router.w_out_EH @ F.gelu(first + router.bias_H) + router.b_out_E


def oracle(gate, kind, token):
    h, task = X_TD[token], int(MIXED.task_ids_T[token])
    if kind == "token":
        return gate.weight_ED @ h
    if kind == "per_task":
        return gate.weight_MED[task] @ h
    if kind == "task":
        return gate.logits_ME[task]
    tau = task_vector(gate.task_vectors, task)
    if kind == "sequence":
        mean = X_TD[MIXED.sequence_ids_T == MIXED.sequence_ids_T[token]].mean(dim=0)
        return gate.weight_ED @ mean + gate.weight_EU @ tau
    if kind == "hybrid":
        return gate.weight_ED @ ((1 + gate.scale_DU @ tau) * h) + gate.weight_EU @ tau
    return joint(gate.router, h, tau)


@pytest.mark.parametrize("router", ["mlp", "linear"])
@pytest.mark.parametrize("kind", LEARNED)
def test_logits_equal_the_formula(kind, router):
    gate = make_gate(kind, router=router, allowed=ONE_TASK_GROUP, embedding_size=5, hidden_size=7).double()
    for parameter in gate.parameters():  # also those that start at 0 or 1
        torch.nn.init.normal_(parameter, std=0.5)
    expected = torch.stack([oracle(gate, kind, token) for token in range(len(X_TD))])
    torch.testing.assert_close(gate(X_TD, MIXED).logits_TE, expected, **TOLERANCE)


def test_sequence_means_of_rows_with_and_without_tokens():
    """Rows of length 2, 0 and 1: means (1+3)/2 = 2, 0 and 5."""
    x_TD = torch.tensor([[1.0, 10.0], [3.0, 30.0], [5.0, 50.0]])
    means = sequence_means(x_TD, make_context([2, 0, 1], [0, 0, 0]))
    assert means.tolist() == [[2.0, 20.0], [0.0, 0.0], [5.0, 50.0]]
    assert sequence_means(x_TD[:0], NO_TOKENS).tolist() == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize(("kind", "units"), [("task", MIXED.task_ids_T), ("sequence", MIXED.sequence_ids_T)])
def test_all_tokens_of_a_unit_go_to_the_same_experts(kind, units):
    ids = make_gate(kind)(X_TD.float(), MIXED).expert_ids_TK
    for unit in units.unique():
        assert (ids[units == unit] == ids[units == unit][0]).all()
