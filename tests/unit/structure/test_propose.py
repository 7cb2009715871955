"""Frontiers, proposals and plans: every change of the grouping joins task groups and keeps the tree."""

from __future__ import annotations

import json
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distmoe.errors import ConfigError
from distmoe.structure.frontier import Frontier, advance, is_finished, start
from distmoe.structure.plan import Ban, Merge, MergePlan, apply_merges
from distmoe.structure.propose import Proposal, plan_merges, plan_trials, propose
from distmoe.structure.similarity import Similarity
from distmoe.tasks import TaskGrouping


def clustered(members: int, same: set[tuple[int, int]], high: float = 0.9, low: float = 0.1) -> Similarity:
    return Similarity.from_values(
        [
            [1.0 if i == j else (high if (min(i, j), max(i, j)) in same else low) for j in range(members)]
            for i in range(members)
        ]
    )


def test_learning_starts_at_the_first_routed_layer_with_all_tasks():
    assert start(TaskGrouping.one_per_task(3, 4)) == (Frontier(0, ((0,), (1,), (2,))),)


def test_learning_starts_where_a_given_grouping_first_splits():
    grouping = TaskGrouping.from_partitions(4, [[[0, 1, 2, 3]], [[0, 1], [2, 3]], [[0], [1], [2], [3]]])
    assert start(grouping) == (Frontier(1, ((0, 1), (2, 3))),)


def test_a_run_where_all_tasks_share_everything_has_nothing_to_learn():
    assert start(TaskGrouping.one_group(3, 2)) == ()
    assert is_finished(())


def test_two_phases_by_hand():
    """Four tasks, two routed layers::

    before   0|1|2|3   0|1|2|3
    phase 1  01|2|3    0|1|2|3    01 are similar at layer 0; they move on, 2 and 3 stay
    phase 2  01|23     01|2|3     both frontiers merge
    """
    grouping = TaskGrouping.one_per_task(4, 2)
    frontiers = start(grouping)
    first = plan_merges(
        grouping, [propose(frontiers[0], clustered(4, {(0, 1)}), threshold=0.8)], version=0, loads=[1] * 4
    )
    assert first.merges == (Merge(0, ((0,), (1,))),)
    assert first.after.layers == (((0, 1), (2,), (3,)), ((0,), (1,), (2,), (3,)))
    frontiers = advance(first.after, frontiers, first.merges)
    assert frontiers == (Frontier(0, ((2,), (3,))), Frontier(1, ((0,), (1,))))

    proposals = [propose(frontier, clustered(2, {(0, 1)}), threshold=0.8) for frontier in frontiers]
    second = plan_merges(first.after, proposals, version=1, loads=[1] * 4)
    assert second.after.layers == (((0, 1), (2, 3)), ((0, 1), (2,), (3,)))
    frontiers = advance(second.after, frontiers, second.merges)
    assert frontiers == (Frontier(1, ((2,), (3,))),)


def test_a_member_left_alone_never_merges_at_that_layer_again():
    grouping = TaskGrouping.one_per_task(3, 1)
    frontiers = start(grouping)
    merge = Merge(0, ((0,), (2,)))
    assert advance(apply_merges(grouping, [merge]), frontiers, [merge]) == ()


def test_a_task_group_left_alone_moves_on_to_where_its_tasks_split():
    grouping = TaskGrouping.from_partitions(4, [[[0], [1], [2, 3]], [[0], [1], [2], [3]]])
    merge = Merge(0, ((0,), (1,)))
    following = advance(apply_merges(grouping, [merge]), start(grouping), [merge])
    assert following == (Frontier(1, ((0,), (1,))), Frontier(1, ((2,), (3,))))


def test_a_phase_that_accepts_nothing_leaves_the_frontier():
    grouping = TaskGrouping.one_per_task(3, 2)
    assert advance(grouping, start(grouping), []) == start(grouping)


def test_rejected_tasks_are_not_proposed_again_at_that_layer_not_even_inside_a_larger_task_group():
    frontier = Frontier(0, ((0,), (1,), (2,)))
    alike = clustered(3, {(0, 1), (0, 2), (1, 2)})
    proposal = propose(frontier, alike, threshold=0.8, bans=[Ban(0, (0, 1))])
    assert proposal.merges == (Merge(0, ((0,), (2,))),)
    elsewhere = propose(frontier, alike, threshold=0.8, bans=[Ban(1, (0, 1))])
    assert elsewhere.merges == (Merge(0, ((0,), (1,), (2,))),)


def test_learning_is_finished_when_every_pair_is_banned():
    frontier = Frontier(0, ((0,), (1,), (2,)))
    assert not is_finished([frontier], [Ban(0, (0, 1)), Ban(0, (0, 2))])
    assert not is_finished([frontier], [Ban(0, (0, 1, 2))])
    assert is_finished([frontier], [Ban(0, (0, 1)), Ban(0, (0, 2)), Ban(0, (1, 2))])


def test_three_members_that_a_relative_similarity_cannot_tell_apart_are_joined_at_once_or_never():
    three, four = (Frontier(0, tuple((task,) for task in range(size))) for size in (3, 4))
    assert not is_finished([three], relative=True)
    assert is_finished([three], [Ban(0, (0, 1, 2))], relative=True)
    assert is_finished([three], relative=True, with_whole=False)
    assert not is_finished([four], [Ban(0, (0, 1, 2, 3))], relative=True, with_whole=False)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 7), st.integers(1, 3), st.randoms(use_true_random=False))
def test_any_history_keeps_a_tree_that_only_grows_together_and_comes_to_an_end(num_tasks, num_layers, rng):
    """Random similarities, random rejections: until nothing is left to try."""
    grouping = TaskGrouping.one_per_task(num_tasks, num_layers)
    frontiers, bans = start(grouping), set()
    for version in range(200):
        if is_finished(frontiers, bans):
            break
        proposals = []
        for frontier in frontiers:
            size = len(frontier.members)
            same = {pair for pair in combinations(range(size), 2) if rng.random() < 0.6}
            if frontier.is_exhausted(bans):
                continue
            proposals.append(propose(frontier, clustered(size, same), threshold=0.4, bans=bans))
        plan = plan_merges(grouping, proposals, version=version, loads=[1] * num_tasks)
        for merge in plan.merges:
            assert not any(ban.forbids(merge.layer, merge.result) for ban in bans)
        accepted = [merge for merge in plan.merges if rng.random() < 0.6]
        bans |= {Ban(merge.layer, merge.result) for merge in plan.merges if merge not in accepted}
        after = plan.keep(accepted).after
        for layer in range(num_layers):
            assert sorted(task for task_group in after.layers[layer] for task in task_group) == list(range(num_tasks))
            for old in grouping.layers[layer]:
                assert any(set(old) <= set(new) for new in after.layers[layer])
            for deep in after.layers[layer] if layer else ():
                assert any(set(deep) <= set(shallow) for shallow in after.layers[layer - 1])
        frontiers = advance(after, frontiers, accepted)
        for frontier in frontiers:
            assert set(frontier.members) <= set(after.layers[frontier.layer])
        grouping = after
    else:
        pytest.fail("structural learning did not end")


def test_joining_tasks_that_a_shallower_layer_keeps_apart_is_refused():
    with pytest.raises(ConfigError, match="routed layer 1 joins tasks that layer 0 has split"):
        apply_merges(TaskGrouping.one_per_task(2, 2), [Merge(1, ((0,), (1,)))])


def test_equal_plans_have_equal_hashes_and_survive_json():
    grouping = TaskGrouping.one_per_task(3, 2)
    plan = MergePlan(2, grouping, (Merge(0, ((0,), (2,))),), (10, 20, 30))
    copy = MergePlan.from_json(json.loads(json.dumps(plan.to_json())))
    assert copy == plan
    assert copy.sha256 == plan.sha256
    assert plan.member_loads(plan.merges[0]) == (10, 30)
    others = [
        MergePlan(3, grouping, plan.merges, plan.loads),
        plan.keep([]),
        MergePlan(2, grouping, plan.merges, (10, 20, 31)),
    ]
    assert len({other.sha256 for other in [plan, *others]}) == 4


def test_the_plan_does_not_depend_on_digits_that_differ_between_world_sizes():
    grouping = TaskGrouping.one_per_task(3, 1)
    plans = [
        plan_merges(
            grouping,
            [propose(start(grouping)[0], clustered(3, {(0, 1)}, high), threshold=0.8)],
            version=0,
            loads=[1] * 3,
        )
        for high in (0.900001, 0.900002)
    ]
    assert plans[0].sha256 == plans[1].sha256


def test_bans_frontiers_and_merges_survive_json():
    for value in (Ban(1, (0, 2)), Frontier(1, ((0, 1), (2,))), Merge(1, ((0, 1), (2,)))):
        assert type(value).from_json(json.loads(json.dumps(value.to_json()))) == value


def test_a_proposal_reports_its_numbers():
    proposal = propose(Frontier(0, ((0,), (3,), (4,))), clustered(3, {(0, 2)}), threshold=0.8)
    record = json.loads(json.dumps(proposal.to_json()))
    assert record["merges"] == [{"layer": 0, "members": [[0], [4]]}]
    assert record["mean_similarities"] == [0.9]
    assert record["partition"] == [[0, 4], [3]]
    assert record["value"] == pytest.approx(0.6)


RELATIVE = Similarity.from_values([[0, 0.2, -0.1, -0.1], [0.2, 0, -0.2, 0.0], [-0.1, -0.2, 0, -0.3],
                                   [-0.1, 0.0, -0.3, 0]])  # fmt: skip
APART = Frontier(0, ((0,), (1,), (2,), (3,)))


def test_a_relative_similarity_joins_what_it_tells_apart_best_and_has_the_whole_tried_beside_it():
    """0 and 1 alone: 0.2 inside, -0.14 outside, one pair of six. With 3: 0.03 inside, -0.2 outside, three of six."""
    proposal = propose(APART, RELATIVE, threshold=None)
    assert proposal.merges == (Merge(0, ((0,), (1,))),)
    assert proposal.partition == ((0, 1), (2,), (3,))
    assert proposal.whole == Merge(0, APART.members)
    assert propose(APART, RELATIVE, threshold=None, bans=[Ban(0, (0, 1, 2, 3))]).whole is None
    assert propose(APART, RELATIVE, threshold=0.1).whole is None


def test_whole_frontiers_are_tried_before_their_task_groups():
    """The frontier at layer 0 has task groups, the one at layer 1 only the whole."""
    grouping = TaskGrouping.from_partitions(6, [[[0], [1], [2], [3], [4, 5]], [[0], [1], [2], [3], [4], [5]]])
    deep = Frontier(1, ((4,), (5,)))
    proposals = [propose(APART, RELATIVE, threshold=None), propose(deep, clustered(2, set(), low=-0.1), threshold=None)]
    coarse, fine = plan_trials(grouping, proposals, version=0, loads=[1] * 6)
    assert coarse.merges == (Merge(0, APART.members), Merge(1, deep.members))
    assert fine.merges == (Merge(0, ((0,), (1,))),)
    (only,) = plan_trials(grouping, proposals[1:], version=0, loads=[1] * 6)
    assert only.merges == (Merge(1, deep.members),)
    (nothing,) = plan_trials(grouping, [], version=0, loads=[1] * 6)
    assert nothing.merges == ()


def test_without_a_trial_whole_frontiers_are_not_planned():
    """Nothing suggests them: two members have no relative similarity at all."""
    grouping = TaskGrouping.one_per_task(4, 1)
    (plan,) = plan_trials(
        grouping, [propose(APART, RELATIVE, threshold=None)], version=0, loads=[1] * 4, with_wholes=False
    )
    assert plan.merges == (Merge(0, ((0,), (1,))),)
    pair = propose(Frontier(0, ((0,), (1,))), clustered(2, set(), low=0), threshold=None)
    (nothing,) = plan_trials(TaskGrouping.one_per_task(2, 1), [pair], version=0, loads=[1] * 2, with_wholes=False)
    assert nothing.merges == ()


def test_plans_to_the_end_join_tasks_at_all_deeper_layers():
    grouping = TaskGrouping.one_per_task(4, 3)
    coarse, fine = plan_trials(
        grouping, [propose(APART, RELATIVE, threshold=None)], version=0, loads=[1] * 4, to_the_end=True
    )
    assert fine.merges == tuple(Merge(layer, ((0,), (1,))) for layer in range(3))
    assert coarse.after == TaskGrouping.one_group(4, 3)


def test_a_proposal_survives_json():
    for threshold in (None, 0.1):
        proposal = propose(APART, RELATIVE, threshold=threshold)
        assert Proposal.from_json(json.loads(json.dumps(proposal.to_json()))) == proposal


def test_similarities_of_another_frontier_are_refused():
    with pytest.raises(ConfigError, match=r"got: +similarities of 3 members\n +expected: 2"):
        propose(Frontier(0, ((0,), (1,))), clustered(3, set()), threshold=0.8)


def test_missing_or_empty_loads_are_refused():
    for loads in ((1, 1), (1, 0, 1)):
        with pytest.raises(ConfigError, match="3 positive numbers"):
            MergePlan(0, TaskGrouping.one_per_task(3, 1), (), loads)
