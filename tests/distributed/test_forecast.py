"""Forecast bytes and messages equal those that gloo ranks count, as integers."""

from __future__ import annotations

import torch

from distmoe.parallel.placement import place
from distmoe.parallel.process_groups import create
from distmoe.parallel.traffic import Traffic
from distmoe.tasks import TaskGrouping
from tests.distributed.harness import run_ranks

_TOKENS = 16


def count(rank: int, cases: list[tuple[str, int]]) -> list[Traffic]:
    """Forward and backward of a routed layer whose tokens go to all experts of their task group in turn."""
    from distmoe.moe.build import build_routed_feed_forward
    from distmoe.moe.config import GateConfig, MoEConfig
    from tests.unit.moe.layer_samples import task_set

    found = []
    for mode, ep_size in cases:
        grouping = TaskGrouping.uniform(2, 1, [[0], [1]])
        placement = place(grouping, [1.0, 1.0], num_ranks=4, ep_size=ep_size, mode=mode)
        groups = create(placement)
        layer = build_routed_feed_forward(
            MoEConfig(num_experts=8, top_k=1, expert_size=4, gate=GateConfig(kind="token")),
            layer_index=0, routed_index=0, hidden_size=8, intermediate_size=4, activation="gelu", tasks=task_set(2),
            partition=grouping.layers[0], hosting=groups.hosting[0],
        )  # fmt: skip
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter)
        task = placement.hosted_tasks(rank)[rank % len(placement.hosted_tasks(rank))]
        x_TD = torch.randn(_TOKENS, 8, requires_grad=True)
        # An even load, whatever the gate would choose: token i to expert i mod 4 of its task group.
        chosen_TK = (torch.arange(_TOKENS) % 4 + 4 * task)[:, None]
        slots_TK = layer.slot_of_E[chosen_TK]
        weights_TK = torch.ones(_TOKENS, 1, requires_grad=True)
        rows_RD, plan = layer.dispatcher.dispatch(x_TD, slots_TK, weights_TK, host_counts=True)
        layer.dispatcher.combine(rows_RD, plan).sum().backward()
        found.append(layer.traffic.read())
        groups.destroy()
    return found


def test_counted_bytes_and_messages_equal_the_forecast():
    from distmoe.forecast.traffic import step_traffic
    from tests.unit.forecast.samples import workload

    cases = [("partitioned", 2), ("colocated", 4), ("colocated", 2)]
    counted = run_ranks(count, 4, cases)
    run = workload(
        "model.hidden_size=8", "model.num_heads=1", "model.moe.layers=[0]", "tasks.suite.tasks_per_group=1",
        "data.max_length=16",
    )  # fmt: skip
    assert run.length == _TOKENS
    for index, (mode, ep_size) in enumerate(cases):
        placement = place(run.grouping, run.weights, num_ranks=4, ep_size=ep_size, mode=mode)
        forecast = step_traffic(run, placement, per_node=2, micro_batch=1, accumulation=1, element=4)
        total = sum((rank[index] for rank in counted), Traffic())
        assert (total.bytes, total.messages) == (forecast.bytes, forecast.messages), (mode, ep_size)
