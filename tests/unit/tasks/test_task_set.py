"""An ordered set of tasks; positions are ids."""

from __future__ import annotations

import json

import pytest

from distmoe.errors import DataError
from distmoe.tasks import TaskSet, TaskSpec

SST2 = TaskSpec(
    name="sst2", kind="classification", metric="accuracy", labels=("negative", "positive"), family="sentiment"
)
TREC = TaskSpec(name="trec", kind="classification", metric="macro_f1", labels=("a", "b", "c", "d", "e", "f"))
STSB = TaskSpec(name="stsb", kind="regression", metric="pearson", pair=True, description="How similar?")
TASKS = TaskSet((SST2, TREC, STSB))


def test_positions_are_ids():
    assert TASKS.names == ("sst2", "trec", "stsb")
    assert [TASKS.id_of(spec.name) for spec in TASKS] == [0, 1, 2]
    assert (len(TASKS), TASKS[2], TASKS.max_outputs) == (3, STSB, 6)


def test_it_survives_json():
    assert TaskSet.from_json(json.loads(json.dumps(TASKS.to_json()))) == TASKS


def test_the_fingerprint_sees_order_and_every_field():
    others = [
        TaskSet((TREC, SST2, STSB)),
        TaskSet((SST2, TREC)),
        TaskSet((SST2, TREC, TaskSpec(name="stsb", kind="regression", metric="spearman", pair=True))),
    ]
    assert len({TASKS.fingerprint, *(other.fingerprint for other in others)}) == 4
    assert TaskSet((SST2, TREC, STSB)).fingerprint == TASKS.fingerprint


def test_an_unknown_task_is_refused_with_the_known_ones():
    with pytest.raises(DataError, match=r"no such task[\s\S]*got: +mnli[\s\S]*sst2 \| trec \| stsb"):
        TASKS.id_of("mnli")


def test_an_empty_set_and_equal_names_are_refused():
    with pytest.raises(DataError, match="at least one task"):
        TaskSet(())
    with pytest.raises(DataError, match=r"names must be different[\s\S]*sst2"):
        TaskSet((SST2, TREC, SST2))
