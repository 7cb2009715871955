"""What a plan refuses before any data is read."""

from __future__ import annotations

import pytest

from distmoe.errors import ConfigError
from distmoe.parallel.env import RankEnv
from distmoe.recipes.loader import resolve
from distmoe.training.plan import make_plan

ALONE = RankEnv(0, 1, 0, 1)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["model.moe.gate.noise=multiplicative"], "reads nothing that this noise changes"),
        (["model.moe.gate.kind=fixed", "model.moe.gate.table={nosuch: [0]}"], "names other tasks than the run"),
        (
            ["model.moe.gate.kind=fixed", "model.moe.gate.table=random", "model.moe.gate.noise=normal"],
            "FixedGate reads",
        ),
    ],
)
def test_what_building_the_model_refuses_is_refused_before_data_is_read(overrides: list[str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        make_plan(resolve("demo", overrides), ALONE)


def test_a_plan_for_partitioned_ranks_builds_nothing() -> None:
    plan = make_plan(resolve("partitioned"), RankEnv(0, 4, 0, 4))
    assert plan.num_ranks == 4
    assert len(plan.pool_sizes) == len(plan.routed_layers)
