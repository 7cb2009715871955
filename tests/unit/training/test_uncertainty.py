"""Scores from logits (ca_mtl.md section 10, numbers 9 and 10)."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from distmoe.data.config import DataConfig, SamplingConfig
from distmoe.data.pool_loader import PoolLoader
from distmoe.tasks import TaskSet, TaskSpec
from distmoe.training.uncertainty import Scorer, UncertaintyLoader
from tests.unit.data import toy
from tests.unit.models.samples import make_model, model_config, moe_config

INF = -math.inf


def tasks(*classes: int) -> TaskSet:
    return TaskSet(
        tuple(
            TaskSpec(name=f"t{i}", kind="classification", metric="accuracy", labels=tuple(map(str, range(count))))
            if count > 1
            else TaskSpec(name=f"t{i}", kind="regression", metric="pearson")
            for i, count in enumerate(classes)
        )
    )


def scorer(*classes: int, **declared: object) -> Scorer:
    return Scorer(tasks(*classes), regression_score=declared, label_variances=[4.0] * len(classes))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_uniform_answer_scores_1_and_a_certain_one_0(dtype: torch.dtype) -> None:
    score = scorer(*range(2, 12))
    for task, count in enumerate(range(2, 12)):
        padding = [INF] * (11 - count)
        uniform, certain = [0.25] * count + padding, [1000.0] + [0.0] * (count - 1) + padding
        found = score(torch.tensor([uniform, certain], dtype=dtype), torch.tensor([task, task]), torch.zeros(2))
        assert found[0].item() == pytest.approx(1, abs=1e-6)
        assert found[1].item() == 0


def test_a_regression_scores_as_declared() -> None:
    """Error 2, label variance 4: 1 - exp(-1)."""
    logits, labels = torch.tensor([[3.0, INF], [3.0, INF]]), torch.tensor([1.0, 3.0])
    by_error = scorer(1, 2, t0="error")(logits, torch.tensor([0, 0]), labels)
    assert by_error.tolist() == pytest.approx([1 - math.exp(-1), 0.0])
    assert scorer(1, 2, t0=0.25)(logits, torch.tensor([0, 0]), labels).tolist() == [0.25, 0.25]


def test_scoring_reads_nothing_on_the_host() -> None:
    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
            return func(*args, **(kwargs or {}))

    score = scorer(2, 3, 1, t2="error")
    with Watch():
        score(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0]), torch.zeros(4))


class _Engine:
    """A model as the engine shows it."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        config = model_config(moe_config("token", layers="all"), dropout=0.5, attention_dropout=0.5)
        self.model = make_model(config, tasks=toy.tasks(3)).train()

    def __call__(self, batch: object) -> object:
        return self.model(batch)

    def eval_mode(self) -> None:
        self.model.eval()

    def train_mode(self) -> None:
        self.model.train()


def _loader(engine: _Engine) -> UncertaintyLoader:
    config = DataConfig(batch_size=6, eval_batch_size=4, sampling=SamplingConfig(strategy="uncertainty", candidates=5))
    encoded = toy.encoded((9, 7, 5))
    for split in encoded.train:
        split.input_ids_T[:] = split.input_ids_T % 50
    pools = PoolLoader(
        encoded, tasks=toy.tasks(3), config=config, placement=toy.placement([(1, (0, 1, 2))]), rank=0, seed=0
    )
    score = Scorer(toy.tasks(3), regression_score={}, label_variances=[1.0] * 3)
    return UncertaintyLoader(pools, engine=engine, scorer=score)


def test_scoring_twice_is_bit_identical_and_changes_no_state() -> None:
    engine = _Engine()
    loader = _loader(engine)
    pool = loader._pools.draw()
    before = {name: value.clone() for name, value in engine.model.state_dict().items()}
    random_state = torch.get_rng_state()
    first, second = loader.score(pool), loader.score(pool)
    assert (first == second).all()
    assert len(set(first.tolist())) > 5
    assert torch.equal(torch.get_rng_state(), random_state)
    assert engine.model.training
    for name, value in engine.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in engine.model.parameters())


def test_a_score_does_not_depend_on_the_rest_of_the_batch() -> None:
    engine = _Engine()
    loader = _loader(engine)
    pool = loader._pools.draw()
    scores = loader.score(pool)
    own, _ = loader._pools.own_candidates(pool)
    engine.eval_mode()
    dealer = loader._pools._dealer
    for place in own[:4]:
        row = dealer.rows(pool.task_ids_N[[place]], pool.example_ids_N[[place]])
        alone = loader._score(dealer.batch(row, pool.class_N[[place]].astype("float32")))
        assert alone.item() == pytest.approx(scores[place], abs=1e-6)
