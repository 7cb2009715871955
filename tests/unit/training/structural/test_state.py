"""How the remembered structure changes, by hand: three tasks, two routed layers."""

from __future__ import annotations

import json

from distmoe.structure.config import LearnConfig
from distmoe.structure.frontier import Frontier
from distmoe.structure.plan import Ban, Merge, MergePlan
from distmoe.structure.propose import propose
from distmoe.structure.similarity import Similarity
from distmoe.tasks import TaskGrouping
from distmoe.training.structural.state import Pending, StructureState

LEARN = LearnConfig(task_steps=10, trial_steps=5, similarity="cka")
APART = TaskGrouping.one_per_task(3, 2)


def begin(num_steps: int = 100) -> StructureState:
    return StructureState.begin(APART, LEARN, num_steps=num_steps, probe="abc")


ALIKE = Similarity.from_values([[1, 0.5, 0.5], [0.5, 1, 0.5], [0.5, 0.5, 1]])


def proposed(*merges: Merge) -> tuple[StructureState, MergePlan]:
    plan = MergePlan(0, APART, merges, (1, 1, 1))
    proposal = propose(begin().frontiers[0], ALIKE, threshold=None)
    return begin().propose(Pending((plan,), (proposal,))), plan


def test_learning_begins_with_all_tasks_at_the_first_layer_and_ends_where_no_trial_fits() -> None:
    assert begin().frontiers == (Frontier(0, ((0,), (1,), (2,))),)
    assert begin().border == 10
    assert begin(num_steps=16).border == 10
    assert begin(num_steps=15).border is None
    shared = TaskGrouping.one_group(3, 2)
    assert StructureState.begin(shared, LEARN, num_steps=100, probe="abc").border is None


def test_no_phase_begins_behind_the_step_that_was_named() -> None:
    limited = LEARN.model_copy(update={"until": 25})
    state, plan = proposed(Merge(0, ((0,), (2,))))
    assert state.decide(plan, limited, step=15, num_steps=100).border == 25
    assert state.decide(plan, limited, step=16, num_steps=100).border is None


def test_a_kept_merge_moves_its_tasks_on_and_the_rest_waits() -> None:
    """{0, 2} goes on to layer 1, where its tasks are apart; task 1 is alone and never merges at layer 0 again."""
    merge = Merge(0, ((0,), (2,)))
    state, plan = proposed(merge)
    after = state.decide(plan, LEARN, step=15, num_steps=100)
    assert after.frontiers == (Frontier(1, ((0,), (2,))),)
    assert after.grouping.layers[0] == ((0, 2), (1,))
    assert (after.version, after.phase, after.border, after.bans, after.pending) == (1, 1, 25, (), None)


def test_a_rejected_merge_is_banned_and_changes_nothing_else() -> None:
    state, plan = proposed(Merge(0, ((0,), (2,))))
    after = state.decide(plan.keep(()), LEARN, step=10, num_steps=100)
    assert (after.grouping, after.frontiers) == (APART, begin().frontiers)
    assert (after.bans, after.version, after.phase, after.border) == ((Ban(0, (0, 2)),), 0, 1, 20)


def test_what_a_kept_merge_holds_is_not_banned_and_a_rejected_whole_is() -> None:
    pair, whole = Merge(0, ((0,), (2,))), Merge(0, ((0,), (1,), (2,)))
    _, fine = proposed(pair)
    coarse = MergePlan(0, APART, (whole,), (1, 1, 1))
    state = begin().propose(Pending((coarse, fine), ()))
    assert state.decide(coarse, LEARN, step=10, num_steps=100).bans == ()
    assert state.decide(fine, LEARN, step=10, num_steps=100).bans == (Ban(0, (0, 1, 2)),)


def test_learning_ends_when_nothing_may_be_merged_any_more() -> None:
    state, plan = proposed(Merge(0, ((0,), (1,), (2,))))
    state = state.decide(plan, LEARN, step=10, num_steps=100)
    deep = MergePlan(1, state.grouping, (Merge(1, ((0,), (1,), (2,))),), (1, 1, 1))
    done = state.propose(Pending((deep,), ())).decide(deep, LEARN, step=20, num_steps=100)
    assert (done.border, done.is_learning, done.grouping) == (None, False, TaskGrouping.one_group(3, 2))


def test_with_a_restart_there_is_one_phase_whose_trial_ends_at_its_border() -> None:
    restart = LEARN.model_copy(update={"restart": True, "trial_steps": 10})
    start = StructureState.begin(APART, restart, num_steps=11, probe="abc")
    assert start.border == 10
    assert StructureState.begin(APART, restart, num_steps=10, probe="abc").border is None
    state, plan = proposed(Merge(0, ((0,), (2,))))
    assert state.decide(plan.keep(()), restart, step=10, num_steps=100).border is None


def test_keeping_a_merge_keeps_what_its_plan_joins_below_it() -> None:
    pair, whole = ((0,), (2,)), ((0,), (1,), (2,))
    fine, coarse = (
        MergePlan(0, APART, tuple(Merge(layer, members) for layer in range(2)), (1, 1, 1)) for members in (pair, whole)
    )
    pending = Pending((coarse, fine), ())
    assert pending.keep([Merge(0, pair)]) == fine
    assert pending.keep([Merge(1, whole)]).merges == (Merge(1, whole),)
    assert pending.keep(()).merges == ()


def test_the_state_survives_a_checkpoint() -> None:
    state, _ = proposed(Merge(0, ((0,), (2,))))
    assert StructureState.from_json(json.loads(json.dumps(state.to_json()))) == state
