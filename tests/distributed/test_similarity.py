"""A comparison of task groups gives the same similarities and the same plan on every rank of every world size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from distmoe.models.build import build_model
from distmoe.models.comparison import Comparison, compared_features
from distmoe.models.multitask import MultiTaskEncoder
from distmoe.models.shape import resolve_shape
from distmoe.parallel.placement import PlacementMode, place
from distmoe.parallel.process_groups import create, single_process
from distmoe.structure.cka import cka_matrix
from distmoe.structure.frontier import start
from distmoe.structure.plan import MergePlan
from distmoe.structure.propose import plan_merges, propose
from distmoe.structure.similarity import Similarity
from distmoe.tasks import TaskGrouping
from distmoe.training.structural.probe import ProbeSet
from distmoe.training.structural.similarity import Comparer
from tests.distributed.harness import run_ranks
from tests.unit.data.toy import encoded, tasks
from tests.unit.models.samples import model_config, moe_config

NUM_TASKS, LAYERS = 5, (0, 1)
GROUPING = TaskGrouping.one_per_task(NUM_TASKS, len(LAYERS))
KINDS = ("cka", "transfer", "answers")


def compared(rank: int, world: int, mode: PlacementMode) -> list[tuple[Similarity, MergePlan]]:
    """What each similarity finds between five tasks with parts of their own, and what is proposed."""
    placement = place(GROUPING, [1.0] * NUM_TASKS, num_ranks=world, ep_size=1, mode=mode)
    groups = single_process(GROUPING) if world == 1 else create(placement)
    model, probe = model_of(groups.hosting), probe_set()
    comparer = Comparer(
        model=model, grouping=GROUPING, placement=placement, routed_layers=LAYERS, tasks=tasks(NUM_TASKS), probe=probe,
        rank=rank, device=torch.device("cpu"),
    )  # fmt: skip
    found, [frontier] = [], start(GROUPING)
    for kind in KINDS:
        similarity = comparer.compare(frontier, kind)
        proposal = propose(frontier, similarity, threshold=0.5 if kind == "cka" else None)
        found.append((similarity, plan_merges(GROUPING, [proposal], version=0, loads=[100, 200, 300, 400, 500])))
    return found


def model_of(hosting: tuple) -> MultiTaskEncoder:
    config = model_config(moe_config("task", layers="all", experts_per_task_group=1))
    shape = resolve_shape(config, 1000 * (NUM_TASKS + 1), 0)
    model = build_model(
        config, shape=shape, tasks=tasks(NUM_TASKS), grouping=GROUPING, hosting=hosting, seed=0, alike=False
    )
    assert isinstance(model, MultiTaskEncoder)
    return model.eval()


def probe_set() -> ProbeSet:
    """Three batches; tasks of different sizes, labels 0 and 1."""
    data = encoded((60, 40, 50, 30, 60))
    train = tuple(replace(own, labels_N=(np.arange(len(own)) % 2).astype(np.float32)) for own in data.train)
    return ProbeSet(replace(data, train=train), num_examples=150, seed=0)


def test_ranks_of_any_number_and_placement_find_what_one_process_finds() -> None:
    alone = compared(0, 1, "colocated")
    assert len({plan.sha256 for _, plan in alone}) > 1, "all similarities propose the same"
    for world, mode in ((2, "colocated"), (4, "partitioned")):
        for answer in run_ranks(compared, world, world, mode):
            assert [plan.sha256 for _, plan in answer] == [plan.sha256 for _, plan in alone]
            assert [similarity for similarity, _ in answer] == [similarity for similarity, _ in alone]


@torch.no_grad()
def test_a_comparison_in_batches_is_the_gram_form_of_all_examples_at_once() -> None:
    [(similarity, _), *_] = compared(0, 1, "colocated")
    model, probe = model_of(single_process(GROUPING).hosting), probe_set()
    assert probe.num_batches == 3
    features = compared_features(model.encoder, Comparison(probe.window(0, len(probe)), 0, tuple(range(NUM_TASKS))))
    expected = cka_matrix(features.double()).numpy()
    np.testing.assert_allclose(similarity.values(), expected, atol=1.1e-6)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(similarity.values(), np.eye(NUM_TASKS), atol=0.01)
