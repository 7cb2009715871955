"""Tensors of a gate after a merge, by hand: task groups {0}, {1}, {2} with two experts each; 0 and 2 are merged.

Old experts: 0 1 | 2 3 | 4 5. New task groups {0, 2}, {1}: experts made of (0 4) (1 5) | (2) (3).
"""

from __future__ import annotations

import torch

from distmoe.structure.gate_rows import Reach, has_experts, regroup, regroup_moments
from distmoe.structure.moment_merging import AdamMoments

TABLE = ((0, 4), (1, 5), (2,), (3,))
REACH = (Reach(range(0, 2), range(0, 2)), Reach(range(2, 4), range(2, 4)), Reach(range(4, 6), range(0, 2)))


def test_a_name_tells_whether_a_tensor_has_a_row_per_expert() -> None:
    names = ("gate.logits_ME", "gate.weight_MED", "gate.router.b_out_E", "gate.scale_DU", "gate.weight", "gate.bias_H")
    assert [has_experts(name) for name in names] == [True, True, True, False, False, False]


def test_rows_without_task_are_averaged() -> None:
    weight_ED = torch.arange(6.0).unsqueeze(1).expand(6, 2)
    found = regroup("gate.weight_ED", weight_ED, TABLE, REACH)
    assert found[:, 0].tolist() == [2.0, 3.0, 2.0, 3.0]


def test_a_task_keeps_the_scores_of_its_own_task_group() -> None:
    """Row t holds 10 t + expert."""
    logits_ME = 10 * torch.arange(3.0).unsqueeze(1) + torch.arange(6.0)
    found = regroup("gate.logits_ME", logits_ME, TABLE, REACH)
    assert found[0, :2].tolist() == [0.0, 1.0]
    assert found[1, 2:].tolist() == [12.0, 13.0]
    assert found[2, :2].tolist() == [24.0, 25.0]
    with_width = regroup("gate.weight_MED", logits_ME.unsqueeze(2), TABLE, REACH)
    assert torch.equal(with_width.squeeze(2), found)


def test_moments_of_averaged_rows_are_added_and_those_of_a_task_are_carried() -> None:
    """Constant gradients 1 and 2 at step 1, beta 0.5: the sum is 3, its square 9."""
    gradient_E = torch.tensor([1.0, 0.0, 0.0, 0.0, 2.0, 0.0])
    moments = AdamMoments(0.5 * gradient_E, 0.5 * gradient_E.square())
    found = regroup_moments("gate.b_E", moments, TABLE, REACH, step=1, betas=(0.5, 0.5))
    assert found.mean.tolist() == [1.5, 0.0, 0.0, 0.0]
    assert found.square.tolist() == [4.5, 0.0, 0.0, 0.0]
    rows_ME = AdamMoments(moments.mean.expand(3, 6), moments.square.expand(3, 6))
    carried = regroup_moments("gate.logits_ME", rows_ME, TABLE, REACH, step=1, betas=(0.5, 0.5))
    assert (carried.mean[0, 0], carried.mean[2, 0]) == (0.5, 1.0)


def test_a_task_scores_the_experts_that_its_pool_has_gained_below_its_own() -> None:
    """Tasks 0 and 2 pool their experts: 0 1 4 5 | 2 3. A task's best two stay its own; nobody else's scores change."""
    table = ((0,), (1,), (4,), (5,), (2,), (3,))
    reach = (Reach(range(0, 2), range(0, 4)), Reach(range(2, 4), range(4, 6)), Reach(range(4, 6), range(0, 4)))
    logits_ME = torch.tensor([[0.5, -2.0, 9.0, 9.0, 9.0, 9.0], [9.0, 9.0, 0.1, 0.2, 9.0, 9.0], [9.0] * 4 + [3.0, 4.0]])
    found = regroup("gate.logits_ME", logits_ME, table, reach)
    assert found[0, :4].tolist() == [0.5, -2.0, -3.0, -3.0]
    assert found[2, :4].tolist() == [2.0, 2.0, 3.0, 4.0]
    assert torch.equal(found[1, 4:], logits_ME[1, 2:4])


def test_experts_of_one_pool_that_become_one_keep_their_total_probability() -> None:
    logits_ME = torch.tensor([[1.0, 2.0, 0.5]])
    found = regroup("gate.logits_ME", logits_ME, ((0, 2), (1,)), (Reach(range(0, 3), range(0, 2)),))
    before, after = logits_ME.softmax(dim=1), found.softmax(dim=1)
    torch.testing.assert_close(after, torch.stack([before[:, 0] + before[:, 2], before[:, 1]], dim=1))


def test_a_router_with_a_bias_keeps_the_total_probability_of_equal_experts_of_one_pool() -> None:
    """Experts 0 and 1 of one pool become one; of two pools they would not have competed, and the bias is their mean."""
    weight_ED, bias_E = torch.tensor([[1.0, -2.0], [1.0, -2.0], [0.5, 0.5]]), torch.tensor([0.3, 0.3, 0.0])
    table, x_D = ((0, 1), (2,)), torch.tensor([0.7, 0.1])
    one_pool = (Reach(range(0, 3), range(0, 2)),)
    row_ED, merged_E = (regroup(f"gate.{name}", tensor, table, one_pool) for name, tensor in
                        (("w_out_ED", weight_ED), ("b_out_E", bias_E)))  # fmt: skip
    before, after = (weight_ED @ x_D + bias_E).softmax(dim=0), (row_ED @ x_D + merged_E).softmax(dim=0)
    torch.testing.assert_close(after[1], before[2])
    apart = (Reach(range(0, 1), range(0, 1)), Reach(range(1, 2), range(0, 1)), Reach(range(2, 3), range(1, 2)))
    assert regroup("gate.b_out_E", bias_E, table, apart).tolist() == bias_E[[0, 2]].tolist()
