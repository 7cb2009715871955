"""Pools and choices over ranks, all of them in one process."""

import json

import numpy as np
import pytest

from distmoe.data.config import DataConfig, SamplingConfig
from distmoe.data.pool_loader import PoolLoader, check_uncertainty
from distmoe.errors import CheckpointError, ConfigError
from distmoe.tasks import TaskSet, TaskSpec
from tests.unit.data import toy

SIZES = (30, 90, 12)


def loaders(classes, *, sizes=SIZES, seed=0, batch_size=12, micro=None, **sampling):
    where = toy.placement(classes)
    config = DataConfig(
        batch_size=batch_size, micro_batch_size=micro, eval_batch_size=5,
        sampling=SamplingConfig(strategy="uncertainty", **sampling),
    )  # fmt: skip
    encoded = toy.encoded(sizes)
    return [
        PoolLoader(encoded, tasks=toy.tasks(len(sizes)), config=config, placement=where, rank=rank, seed=seed)
        for rank in range(where.num_ranks)
    ]


def made_up(pool):
    """A score for every candidate that depends on the example only."""
    return np.sin(pool.task_ids_N * 100.0 + pool.example_ids_N) ** 2


def step(ranks):
    """(task, example) of the next step, per rank and micro-batch."""
    found = []
    for rank in ranks:
        pool = rank.draw()
        batches = rank.chosen(pool, made_up(pool))
        found.append([list(zip(b.task_ids_B.tolist(), b.example_ids_B.tolist(), strict=True)) for b in batches])
    return found


def flat(found):
    return sorted(row for rank in found for batch in rank for row in batch)


@pytest.mark.parametrize(("num_ranks", "micro"), [(2, None), (4, None), (2, 3), (3, 1)])
def test_the_global_choice_does_not_depend_on_ranks_or_micro_batches(num_ranks, micro):
    single, many = loaders([(1, (0, 1, 2))]), loaders([(num_ranks, (0, 1, 2))], micro=micro)
    for _ in range(8):
        expected = flat(step(single))
        assert flat(step(many)) == expected
        assert len(set(expected)) == 12
    assert single[0].accounts.to_json("abc") == many[0].accounts.to_json("abc") == many[-1].accounts.to_json("abc")
    assert single[0].accounts.to_json("abc")["scored"] == 8 * (12 + 12 + 12)


def test_every_candidate_is_scored_once_and_all_ranks_make_equally_many_passes():
    ranks = loaders([(1, (0,)), (2, (1, 2))], batch_size=12, candidates=20)
    pools = [rank.draw() for rank in ranks]
    owned = []
    for rank, pool in zip(ranks, pools, strict=True):
        own, batches = rank.own_candidates(pool)
        owned += own.tolist()
        assert len(batches) == rank.num_scoring_batches == 4  # class 0: 20 on one rank, 5 at a time
        rows = [row for b in batches for row in zip(b.task_ids_B.tolist(), b.example_ids_B.tolist(), strict=True)]
        expected = list(zip(pool.task_ids_N[own].tolist(), pool.example_ids_N[own].tolist(), strict=True))
        assert rows[: len(own)] == expected
        assert all(example == -1 for _, example in rows[len(own) :])
    assert sorted(owned) == list(range(20 + 20 + 12))  # task 2 has 12 examples


def test_a_host_class_trains_its_own_tasks_only():
    found = step(loaders([(1, (0,)), (2, (1, 2))]))
    assert {task for batch in found[0] for task, _ in batch} == {0}
    assert 0 not in {task for rank in found[1:] for batch in rank for task, _ in batch}
    assert [len(flat([rank])) for rank in found] == [4, 4, 4]


@pytest.mark.parametrize("micro", [None, 2])
def test_scope_rank_chooses_from_the_ranks_own_candidates(micro):
    ranks = loaders([(3, (0, 1, 2))], scope="rank", micro=micro)
    pool = loaders([(3, (0, 1, 2))], scope="rank")[0].draw()
    scores, found = made_up(pool), step(ranks)
    for number, batches in enumerate(found):
        own = np.flatnonzero(pool.rank_in_class_N == number)
        best = own[np.lexsort((pool.example_ids_N[own], pool.task_ids_N[own], -scores[own]))][:4]
        expected = list(zip(pool.task_ids_N[best].tolist(), pool.example_ids_N[best].tolist(), strict=True))
        assert flat([batches]) == sorted(expected)


def test_a_quota_reaches_every_task():
    tasks = [task for task, _ in flat(step(loaders([(2, (0, 1, 2))], quota=4)))]
    assert np.bincount(tasks).tolist() == [4, 4, 4]


@pytest.mark.parametrize(("scope", "available"), [("global", 6), ("rank", 3)])
def test_a_quota_above_the_candidates_of_a_task_is_refused(scope, available):
    sampling = SamplingConfig(strategy="uncertainty", quota=available + 1, scope=scope)
    config = DataConfig(batch_size=24, sampling=sampling)
    message = rf"larger than what it is taken from: task t2\n.*{available} candidates of t2"
    data, placement = toy.encoded((30, 90, 6)), toy.placement([(2, (0, 1, 2))])
    with pytest.raises(ConfigError, match=message):
        PoolLoader(data, tasks=toy.tasks(3), config=config, placement=placement, rank=0, seed=0)


def test_resume_repeats_the_next_twenty_choices():
    original = loaders([(2, (0, 1, 2))])
    for _ in range(7):
        step(original)
    state = json.loads(json.dumps(original[0].state_dict()))
    resumed = loaders([(2, (0, 1, 2))])
    for rank in resumed:
        rank.load_state_dict(state)
    assert [step(resumed) for _ in range(20)] == [step(original) for _ in range(20)]
    assert resumed[0].accounts.to_json("abc") == original[0].accounts.to_json("abc")


def test_a_state_of_another_run_is_refused():
    state = loaders([(1, (0, 1, 2))])[0].state_dict()
    with pytest.raises(CheckpointError, match=r"another run\n.*got: +\{'quota': 0\}\n.*\{'quota': 1\}"):
        loaders([(1, (0, 1, 2))], quota=1)[0].load_state_dict(state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quota": 5}, r"quotas .* do not fit into a batch\n.*quota=5 for 3 tasks .*12 examples.*\n.*quota <= 4"),
        ({"candidates": 3}, r"more examples than it has candidates\n.*9 candidates of t0, t1, t2 for 12 examples"),
    ],
)
def test_choices_that_cannot_be_made_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        loaders([(1, (0, 1, 2))], **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"quota": 5}, r"quotas .* do not fit"), ({"candidates": 3}, r"more examples than it has candidates")],
)
def test_choices_that_no_placement_could_make_are_refused_without_data(changes, message):
    config = DataConfig(batch_size=12, sampling=SamplingConfig(strategy="uncertainty", **changes))
    with pytest.raises(ConfigError, match=message):
        check_uncertainty(config, toy.tasks(3))


def _check(declared):
    tasks = TaskSet((
        TaskSpec(name="c", kind="classification", metric="accuracy", labels=("no", "yes")),
        TaskSpec(name="r", kind="regression", metric="pearson"),
    ))  # fmt: skip
    check_uncertainty(DataConfig(sampling=SamplingConfig(strategy="uncertainty", regression_score=declared)), tasks)


def test_a_regression_task_without_a_declared_score_is_refused():
    with pytest.raises(ConfigError, match=r"which have no entropy\n.*for r\n.*error, or a number.*\n.*\{r: error\}"):
        _check({})


@pytest.mark.parametrize("declared", [{"r": 1.5}, {"r": 0.5, "c": "error"}])
def test_a_declared_score_that_fits_no_regression_is_refused(declared):
    with pytest.raises(ConfigError, match=r"does not fit the tasks"):
        _check(declared)


@pytest.mark.parametrize("score", ["error", 0, 1.0])
def test_declared_scores_are_accepted(score):
    _check({"r": score})
