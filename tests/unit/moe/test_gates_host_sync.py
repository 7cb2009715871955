"""No gate, loss or statistic asks the device for a number: on a GPU each such question would stall the step."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from distmoe.moe.config import AuxiliaryLossConfig
from distmoe.moe.losses import router_losses
from distmoe.moe.statistics import RoutingStatistics
from tests.unit.moe.gate_cases import EXPERTS, KINDS, MIXED, make_gate, make_tokens

_SYNCHRONISING = ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "unique", "equal", "is_nonzero")


class HostQuestions(TorchDispatchMode):
    """Records operators whose result the host must wait for."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = "index" in name and any(
            isinstance(item, torch.Tensor) and item.dtype == torch.bool
            for part in args[1:2] if isinstance(part, (list, tuple)) for item in part
        )  # fmt: skip
        if name in _SYNCHRONISING or by_mask:
            self.asked.append(name)
        return func(*args, **(kwargs or {}))


def test_the_detector_sees_boolean_indexing_and_items():
    x = torch.arange(3)
    with HostQuestions() as host:
        x[x > 1]
        x.sum().item()
    assert len(host.asked) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_forward_losses_statistics_and_backward_never_wait(kind):
    gate = make_gate(kind, noise="none" if kind == "fixed" else "normal")
    statistics = RoutingStatistics(num_tasks=4, pool_sizes=[(EXPERTS // 2,) * 2], top_k=2, device="cpu")
    weights = AuxiliaryLossConfig(balance=1.0, z=1.0, importance=1.0, mutual_information=1.0)
    x_TD = make_tokens(len(MIXED.task_ids_T)).requires_grad_()
    with HostQuestions() as host:
        routing = gate(x_TD, MIXED)
        losses = router_losses(
            [routing], MIXED, weights=weights, num_tasks=4, pool_sizes=[(EXPERTS // 2,) * 2], world_size=2,
            all_reduce=lambda flat: flat,
        )  # fmt: skip
        statistics.update([routing], MIXED, dropped=[torch.tensor(0)])
        if losses.total.requires_grad:
            (losses.total + routing.weights_TK.sum()).backward()
    assert host.asked == []
