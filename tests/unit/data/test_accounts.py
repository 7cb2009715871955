"""The accounts by hand: 2 tasks of 4 examples, 2 examples per step (ca_mtl.md section 10, number 11)."""

import json

import numpy as np

from distmoe.data.accounts import SampleAccounts


def accounts():
    """Two steps, each after scoring 4 candidates: (task 0: 1, task 0: 2), then (task 0: 2, task 1: 3)."""
    found = SampleAccounts([4, 4])
    for tasks, examples in (([0, 0], [1, 2]), ([0, 1], [2, 3])):
        found.scored(4)
        found.trained(np.array(tasks), np.array(examples))
    return found


def test_three_numbers_are_kept_apart():
    assert accounts().to_json(["a", "b"]) == {
        "distinct": 3,
        "distinct_share": 3 / 8,
        "scored": 8,
        "updates": 4,
        "forward_equivalents": 8 + 3 * 4,
        "tasks": {
            "a": {"distinct": 2, "distinct_share": 0.5, "updates": 3},
            "b": {"distinct": 1, "distinct_share": 0.25, "updates": 1},
        },
    }


def test_they_go_on_after_a_resume():
    state = json.loads(json.dumps(accounts().state_dict()))
    resumed = SampleAccounts([4, 4])
    resumed.load_state_dict(state)
    assert resumed.to_json(["a", "b"]) == accounts().to_json(["a", "b"])
    resumed.trained(np.array([1]), np.array([3]))
    assert resumed.to_json(["a", "b"])["distinct"] == 3
