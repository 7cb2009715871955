"""Forecast bytes, messages and collectives equal those that gloo ranks count, as integers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from distmoe.parallel.placement import place
from distmoe.parallel.process_groups import create
from distmoe.parallel.traffic import Traffic
from distmoe.tasks import TaskGrouping
from tests.distributed.harness import run_ranks
from tests.unit.forecast.samples import DECODER

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


SHORT = ("data.max_length=15",)  # 3 x 15 positions: slices of two ranks are filled up
SLICED = (
    ("model.moe=null", "structure.grouping=one", "model.norm=pre"),
    ("model.moe.layers=[1]", "model.moe.shared_expert=true"),
    (*DECODER, "model.moe.layers=[0]", "model.decoder.qk_norm=true", "model.decoder.head=shared"),
)


def beside(rank: int) -> list[tuple[int, tuple[int, int, int, int], float]]:
    """Parameters, collectives with their numbers, and bytes kept, of a really cut model in one training pass."""
    from distmoe.forecast.workload import make_workload
    from distmoe.models.build import build_model
    from distmoe.models.tensor_parallel import cut_over_tensor_ranks
    from distmoe.parallel.process_groups import single_process
    from distmoe.training.run_data import open_sources
    from tests.distributed.test_sequence import keeping
    from tests.unit.forecast.samples import config
    from tests.unit.models.samples import make_batch

    found = []
    for more in SLICED:
        for sequence in (False, True):
            run = config(*SHORT, *more)
            plain = make_workload(run, open_sources(run))
            model = build_model(
                run.model, shape=plain.shape, tasks=plain.tasks, grouping=plain.grouping,
                hosting=single_process(plain.grouping).hosting, seed=0,
            )  # fmt: skip
            cut_over_tensor_ranks(model, dist.group.WORLD, sequence=sequence)  # type: ignore[arg-type]
            batch = make_batch([plain.length] * 3, [0, 1, 2])
            with counting() as counts, keeping(model) as kept:
                output = model(batch)
                logits = output.logits_LV if hasattr(output, "logits_LV") else output.logits_BC.clamp(min=-1e4)
                loss = logits.sum()
            with counting(counts):
                loss.backward()
            found.append((sum(parameter.numel() for parameter in model.parameters()), tuple(counts), kept()))
    return found  # type: ignore[return-value]


@contextmanager
def counting(counts: list[int] | None = None) -> Iterator[list[int]]:
    """All-reduces, all-gathers, reduce-scatters, and numbers of the whole tensors, those of an all-reduce twice."""
    counts = [0, 0, 0, 0] if counts is None else counts

    def counted(index: int, name: str, whole: int, factor: int) -> Callable[..., Any]:
        call = getattr(dist, name)

        def count_and_call(*tensors: Tensor, **options: Any) -> Any:
            counts[index] += 1
            counts[3] += factor * tensors[whole].numel()
            return call(*tensors, **options)

        return count_and_call

    with pytest.MonkeyPatch.context() as patch:
        for index, name, whole, factor in (
            (0, "all_reduce", 0, 2), (1, "all_gather_into_tensor", 0, 1), (2, "reduce_scatter_tensor", 1, 1)
        ):  # fmt: skip
            patch.setattr(dist, name, counted(index, name, whole, factor))
        yield counts


@pytest.mark.slow
def test_tensor_ranks_have_the_parameters_and_collectives_of_the_forecast() -> None:
    from distmoe.forecast.activations import activation_bytes
    from distmoe.forecast.tensor import tensor_traffic
    from tests.unit.forecast.samples import workload

    measured, wrong = iter(run_ranks(beside, 2)[0]), []
    for more in SLICED:
        for sequence in (False, True):
            run = workload(*SHORT, *more, "parallel.tensor=2", f"parallel.sequence={sequence}")
            parameters, (*calls, numbers), kept = next(measured)
            experts = sum(map(sum, run.pool_sizes)) * run.expert
            assert run.own_replicated + experts == parameters
            traffic = tensor_traffic(run, micro_batch=3, accumulation=1, element=4)
            assert [traffic.all_reduces, traffic.all_gathers, traffic.reduce_scatters] == calls
            assert (traffic.numbers, traffic.bytes) == (numbers, numbers * 4 / 2)
            predicted = activation_bytes(run, micro_batch=3, element=4, device_type="cpu")
            print(f"{more}, {sequence=}: {predicted:.0f} bytes predicted, {kept} kept, {predicted / kept - 1:+.1%}")
            wrong.append(abs(predicted / kept - 1))
    assert max(wrong) < 0.05
