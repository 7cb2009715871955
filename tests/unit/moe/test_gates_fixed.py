"""Gate `fixed`: tables, and the routes that task-level gates give to an export.

Task group {films, shops} owns experts 0..2, task group {entail, contradict} experts 3..5 (gate_cases.py).
"""

from __future__ import annotations

import pytest
import torch

from distmoe.errors import ConfigError
from distmoe.moe.gates import routes_by_task
from tests.unit.moe.gate_cases import MIXED, make_gate, make_tokens

TABLE = {"films": [2], "entail": [0], "shops": [1], "contradict": [2]}


def rows(gate):
    return gate.table_MK.tolist()


def test_default_deals_the_experts_of_a_task_group_in_turn():
    """k=2 over 3 experts: films takes 0 1, shops goes on with 2 and wraps to 0; likewise from 3 in the other group."""
    assert rows(make_gate("fixed", top_k=1)) == [[0], [3], [1], [4]]
    assert rows(make_gate("fixed", top_k=2)) == [[0, 1], [3, 4], [2, 0], [5, 3]]


def test_user_table_counts_inside_the_task_group():
    assert rows(make_gate("fixed", top_k=1, table=TABLE)) == [[2], [3], [1], [5]]


@pytest.mark.parametrize("combine", ["raw", "renorm", "straight_through"])
def test_probability_is_one_over_k_on_the_table_and_zero_elsewhere(combine):
    gate = make_gate("fixed", combine=combine)
    routing = gate(make_tokens(len(MIXED.task_ids_T)), MIXED)
    expected = torch.zeros(4, 6).scatter(1, gate.table_MK, 0.5)[MIXED.task_ids_T]
    assert torch.equal(routing.probs_TE, expected)
    assert (routing.weights_TK == 0.5).all()
    assert torch.equal(routing.expert_ids_TK.sort(dim=1).values, gate.table_MK[MIXED.task_ids_T].sort(dim=1).values)
    assert not list(gate.parameters())


def test_random_table_is_seeded_and_stays_in_the_task_group():
    tables = {tuple(map(tuple, rows(make_gate("fixed", table="random", seed=seed)))) for seed in range(20)}
    assert rows(make_gate("fixed", table="random", seed=3)) == rows(make_gate("fixed", table="random", seed=3))
    assert len(tables) > 10
    for table in tables:
        assert all(len(set(row)) == 2 for row in table)
        assert all(set(row) <= ({0, 1, 2} if task % 2 == 0 else {3, 4, 5}) for task, row in enumerate(table))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"films": [0]}, r"(?s)other tasks than the run.*missing \['contradict', 'entail', 'shops'\]"),
        (TABLE | {"music": [0]}, r"unknown \['music'\]"),
        (TABLE | {"shops": [3]}, r"(?s)wrong row for task 'shops'.*\[3\].*1 \(top_k\) different numbers in 0\.\.2"),
        (TABLE | {"shops": [-1]}, "wrong row for task 'shops'"),
        (TABLE | {"shops": [0, 1]}, "wrong row for task 'shops'"),
        (TABLE | {"shops": []}, "wrong row for task 'shops'"),
    ],
)
def test_wrong_tables_are_refused(table, message):
    with pytest.raises(ConfigError, match=message):
        make_gate("fixed", top_k=1, table=table)


def test_same_expert_twice_is_refused():
    with pytest.raises(ConfigError, match="wrong row for task 'films'"):
        make_gate("fixed", top_k=2, table={name: [1, 1] for name in TABLE})


@pytest.mark.parametrize("kind", ["task", "fixed"])
def test_routes_by_task_are_the_routes_of_tokens(kind):
    gate = make_gate(kind, noise="normal") if kind == "task" else make_gate(kind)
    routes = routes_by_task(gate)
    assert gate.training, "the mode is given back"
    routing = gate.eval()(make_tokens(len(MIXED.task_ids_T)), MIXED)
    assert torch.equal(routing.expert_ids_TK, routes.expert_ids_TK[MIXED.task_ids_T])
    assert torch.equal(routing.probs_TE, routes.probs_TE[MIXED.task_ids_T])


def test_routes_of_a_token_gate_are_refused():
    with pytest.raises(ConfigError, match="depend on the tokens"):
        routes_by_task(make_gate("hybrid"))
