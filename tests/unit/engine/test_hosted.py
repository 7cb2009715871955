from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distmoe.engine.hosted import HostedModel, tensors_in


@dataclass(frozen=True)
class Output:
    logits: Tensor
    parts: tuple[dict[str, Tensor], ...]
    count: int


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Output:
        return Output(x * self.weight, ({"square": self.weight**2},), 3)


def test_tensors_are_found_in_nested_values() -> None:
    a, b, c = torch.zeros(1), torch.zeros(2), torch.zeros(3)
    assert [t.numel() for t in tensors_in(Output(a, ({"x": b}, {"y": c}), 1))] == [1, 2, 3]
    assert tensors_in("text") == tensors_in(None) == tensors_in(Output) == []


def test_the_value_is_returned_untouched_with_its_tensors_beside_it() -> None:
    output, tensors = HostedModel(Model(), marker=None)(torch.ones(2))
    assert isinstance(output, Output)
    assert output.count == 3
    assert tensors[0] is output.logits
    assert tensors[1] is output.parts[0]["square"]


def test_the_marker_adds_nothing_to_the_state() -> None:
    assert list(HostedModel(Model(), marker=nn.Module()).state_dict()) == ["model.weight"]
