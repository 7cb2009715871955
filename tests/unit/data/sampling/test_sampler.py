import json
from itertools import pairwise

import numpy as np
import pytest

from distmoe.data.config import SamplingConfig
from distmoe.data.sampling import DrawClass, MixtureSampler, mixture_weights
from distmoe.errors import CheckpointError

SIZES = (12, 40, 5)
LENGTHS = [np.random.default_rng(size).integers(1, 30, size).astype(np.int32) for size in SIZES]
ALL = (DrawClass((0, 1, 2), 8),)
STRATEGIES = ("size_proportional", "temperature", "uniform", "round_robin")


def sampler(classes=ALL, *, seed=0, **sampling):
    config = SamplingConfig(**{"bucket_window": 4, **sampling})
    weights = mixture_weights(SIZES, config, names="abc")
    return MixtureSampler(SIZES, LENGTHS, classes=classes, weights=weights, config=config, seed=seed)


def steps(source, count):
    """[step][class] -> list of (task, example)."""
    return [
        [list(zip(tasks.tolist(), examples.tolist(), strict=True)) for tasks, examples in source.next_step()]
        for _ in range(count)
    ]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("before", [0, 1, 4, 6, 11])
def test_a_resumed_sampler_goes_on_exactly_also_inside_a_window(strategy, before):
    original = sampler(strategy=strategy)
    steps(original, before)
    state = json.loads(json.dumps(original.state_dict()))
    resumed = sampler(strategy=strategy)
    steps(resumed, 2)  # whatever it did before is forgotten
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert steps(resumed, 10) == steps(original, 10)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_only_trained_tasks_are_drawn(strategy):
    drawn = steps(sampler(strategy=strategy, tasks=["a", "c"]), 8)
    assert {task for (examples,) in drawn for task, _ in examples} == {0, 2}
    assert all(len(examples) == 8 for (examples,) in drawn)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_task_repeats_no_example_before_it_has_given_all(strategy):
    """A window is a set of draws; so the first k windows hold each example q or q + 1 times."""
    drawn = [pair for step in steps(sampler(strategy=strategy), 40) for pair in step[0]]
    for task, size in enumerate(SIZES):
        counts = np.bincount([example for t, example in drawn if t == task], minlength=size)
        assert counts.max() - counts.min() <= 1


def test_a_window_holds_the_mixtures_share_of_each_task():
    drawn = [task for step in steps(sampler(), 4) for task, _ in step[0]]
    np.testing.assert_allclose(np.bincount(drawn), 32 * np.array(SIZES) / sum(SIZES), atol=1)


def test_round_robin_deals_equally_across_windows():
    drawn = [task for step in steps(sampler(strategy="round_robin"), 12) for task, _ in step[0]]
    assert np.bincount(drawn).tolist() == [32, 32, 32]


def _lengths(step):
    return [int(LENGTHS[task][example]) for task, example in step]


def test_steps_of_a_window_have_neighbouring_lengths_in_shuffled_order():
    window = [_lengths(step[0]) for step in steps(sampler(), 4)]
    assert all(step == sorted(step) for step in window)
    by_length = sorted(window)
    assert all(a[-1] <= b[0] for a, b in pairwise(by_length))
    orders = set()
    source = sampler()
    for _ in range(6):
        window = [_lengths(step[0])[0] for step in steps(source, 4)]
        orders.add(tuple(np.argsort(window, kind="stable").tolist()))
    assert len(orders) > 1


def test_a_window_of_one_step_is_not_sorted():
    assert any(_lengths(step[0]) != sorted(_lengths(step[0])) for step in steps(sampler(bucket_window=1), 4))


def test_all_classes_meet_short_and_long_steps_together():
    window = steps(sampler((DrawClass((0, 2), 4), DrawClass((1,), 4))), 4)
    first = np.argsort([sum(_lengths(step[0])) for step in window])
    second = np.argsort([sum(_lengths(step[1])) for step in window])
    assert first.tolist() == second.tolist()


def test_a_class_draws_its_own_tasks_only():
    window = steps(sampler((DrawClass((0, 2), 4), DrawClass((1,), 4))), 8)
    assert {task for step in window for task, _ in step[0]} == {0, 2}
    assert {task for step in window for task, _ in step[1]} == {1}


def test_corrections_by_hand():
    """Sizes 12, 40, 5 of 57; class {0, 2} holds 17/57 of the mixture and draws 2 of 8: 17/57 * 8/2 = 68/57."""
    source = sampler((DrawClass((0, 2), 2), DrawClass((1,), 6)))
    assert source.correction(0) == pytest.approx(68 / 57)
    assert source.correction(1) == pytest.approx(40 / 57 * 8 / 6)
    assert sampler().correction(0) == pytest.approx(1)


def test_seeds_draw_differently():
    assert steps(sampler(seed=0), 4) != steps(sampler(seed=1), 4)


def test_the_state_of_another_run_is_refused():
    state = sampler().state_dict()
    with pytest.raises(CheckpointError, match=r"belongs to another run[\s\S]*'seed': 0[\s\S]*'seed': 1"):
        sampler(seed=1).load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"'strategy': 'size_proportional'[\s\S]*'strategy': 'uniform'"):
        sampler(strategy="uniform").load_state_dict(state)


def test_other_host_classes_leave_the_open_window_and_say_so(caplog):
    original = sampler()
    steps(original, 6)
    halves = sampler((DrawClass((0, 2), 4), DrawClass((1,), 4)))
    with caplog.at_level("WARNING", logger="distmoe"):
        halves.load_state_dict(original.state_dict())
    assert "leaves window 1 after 2 of 4 steps" in caplog.text
    assert halves.state_dict()["drawn"] == original.state_dict()["drawn"]
    assert halves.state_dict()["window"] == 2
