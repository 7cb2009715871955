"""Scores from kept states of the frozen layers, against scores through all layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from distmoe.data.config import DataConfig, SamplingConfig
from distmoe.data.pool_loader import PoolLoader
from distmoe.nn.conditional.config import ConditionalConfig
from distmoe.training.frozen_trunk import FrozenTrunk
from distmoe.training.uncertainty import Scorer, UncertaintyLoader
from tests.unit.data import toy
from tests.unit.models.samples import make_model, model_config, moe_config

SIZES = (9, 40, 5)
STEPS = 6  # of 5 candidates each: tasks 0 and 2 are seen three times and more, task 1 less than once
NORM_ABOVE = ConditionalConfig.model_validate({"condition_from": "first_trainable", "attention": {"block_side": 3}})
EVERYTHING = 1 << 30


class _Engine:
    """A model as the engine shows it; counts the passes through each layer."""

    device = torch.device("cpu")

    def __init__(self, dropout: float = 0.5, **changes: Any) -> None:
        values = {"freeze": [0], "conditional": NORM_ABOVE, "dropout": dropout, "attention_dropout": dropout}
        config = model_config(changes.pop("moe", None), num_layers=3, **(values | changes))
        self.model = make_model(config, tasks=toy.tasks(3)).train()
        self.passes = [0, 0, 0]
        for index, layer in enumerate(self.model.encoder.layers):
            layer.register_forward_hook(lambda *_, index=index: self._count(index))

    def _count(self, index: int) -> None:
        self.passes[index] += 1

    def __call__(self, batch: object) -> Any:
        return self.model(batch)

    def eval_mode(self) -> None:
        self.model.eval()

    def train_mode(self) -> None:
        self.model.train()


def loader(engine: _Engine, budget: int | None = EVERYTHING, *, train_from_trunk: bool = False) -> UncertaintyLoader:
    config = DataConfig(batch_size=6, eval_batch_size=4, sampling=SamplingConfig(strategy="uncertainty", candidates=5))
    encoded = toy.encoded(SIZES)
    for split in encoded.train:
        split.input_ids_T[:] = split.input_ids_T % 50
    tasks = toy.tasks(3)
    pools = PoolLoader(encoded, tasks=tasks, config=config, placement=toy.placement([(1, (0, 1, 2))]), rank=0, seed=0)
    trunk = None if budget is None else FrozenTrunk(engine.model, pools, num_steps=STEPS, budget=budget)
    score = Scorer(tasks, regression_score={}, label_variances=[1.0] * 3)
    return UncertaintyLoader(pools, engine=engine, scorer=score, trunk=trunk, train_from_trunk=train_from_trunk)


def scores_of(loader: UncertaintyLoader) -> list[np.ndarray]:
    return [loader.score(loader._pools.draw()) for _ in range(STEPS)]


@pytest.mark.parametrize("budget", [EVERYTHING, 16 * 4 * 30])
def test_scores_from_kept_states_are_those_through_all_layers(budget: int) -> None:
    """Dropout is on in training and off in what is kept; rounding of other batch shapes is all that differs."""
    engine = _Engine()
    for kept, plain in zip(scores_of(loader(engine, budget)), scores_of(loader(engine, None)), strict=True):
        assert np.abs(kept - plain).max() <= 1e-6
        assert len(set(kept.tolist())) > 5
    assert engine.model.training


def test_scores_do_not_depend_on_when_a_run_was_interrupted() -> None:
    engine = _Engine()
    whole = scores_of(loader(engine))
    resumed = loader(engine)
    for _ in range(4):
        resumed._pools.draw()
    again = [resumed.score(resumed._pools.draw()) for _ in range(2)]
    assert all((first == second).all() for first, second in zip(whole[4:], again, strict=True))


def test_frozen_layers_run_once_for_what_is_kept() -> None:
    engine = _Engine()
    trained = loader(engine)
    pool = trained._pools.draw()
    trained.score(pool)
    passes = list(engine.passes)
    trained.score(pool)
    more = [after - before for after, before in zip(engine.passes, passes, strict=True)]
    assert more[1] == more[2] == trained._pools.num_scoring_batches
    assert more[0] <= trained._pools.num_scoring_batches  # task 1 is not kept


def test_what_is_kept_recurs_and_fits() -> None:
    trunk = loader(_Engine())._trunk
    assert len(trunk) == SIZES[0] + SIZES[2]
    store = trunk._pools.store
    assert set(store.task_ids_N[trunk._rows].tolist()) == {0, 2}
    for tokens in (0, 10, 30):
        small = loader(_Engine(), budget=16 * 4 * tokens)._trunk
        assert store.lengths_N[small._rows].sum() <= tokens
        # Task 2 comes round most often.
        assert not len(small) or 2 in store.task_ids_N[small._rows]


def test_training_starts_behind_the_frozen_layers_only_without_dropout() -> None:
    assert all(batch.trunk_BSD is None for batch in loader(_Engine()).next_step())
    engine = _Engine(dropout=0.0)
    (fast,), (slow,) = loader(engine, train_from_trunk=True).next_step(), loader(engine, None).next_step()
    assert torch.equal(fast.example_ids_B, slow.example_ids_B)
    torch.testing.assert_close(engine(fast).logits_BC, engine(slow).logits_BC, atol=1e-6, rtol=0)
    gradients = []
    for batch in (fast, slow):
        engine.model.zero_grad()
        engine(batch).logits_BC[:, 0].sum().backward()
        gradients.append({name: p.grad for name, p in engine.model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-5, rtol=0, msg=name)


def test_a_placeholder_passes_through_all_layers() -> None:
    engine = _Engine()
    trained = loader(engine)
    engine.eval_mode()
    batch = trained._ready(trained._pools._dealer.placeholder())
    assert batch.trunk_BSD.shape == (1, 1, 16)
    assert engine(batch).logits_BC.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "depth"),
    [
        ({}, 1),
        ({"freeze": [0, 1, 2], "conditional": None}, 3),
        ({"freeze": "embeddings"}, 0),
        ({"freeze": "none", "conditional": None}, 0),
        ({"freeze": [1], "conditional": None}, 0),
        ({"freeze": "body", "conditional": ConditionalConfig.model_validate({"alignment": {"enabled": False}})}, 1),
        ({"conditional": ConditionalConfig()}, 0),  # the alignment acts on the embeddings
        ({"moe": moe_config("fixed", layers="all"), "conditional": None}, 0),
        (
            {
                "moe": moe_config(layers=[1], unit="block", experts_per_task_group=1),
                "freeze": [0, 1],
                "conditional": None,
            },
            1,
        ),
    ],
)
def test_the_trunk_is_what_neither_learns_nor_is_conditioned_nor_routed(changes: dict[str, Any], depth: int) -> None:
    assert _Engine(**changes).model.encoder.trunk_depth == depth
