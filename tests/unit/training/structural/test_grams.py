"""What members of a merge saw: only their own tasks' tokens, at their own experts."""

from __future__ import annotations

import torch

from distmoe.models.shape import resolve_shape
from distmoe.structure.least_squares import input_gram
from distmoe.structure.plan import Merge
from distmoe.tasks import TaskGrouping
from distmoe.training.structural.grams import member_grams
from distmoe.training.structural.probe import ProbeSet
from tests.unit.data.toy import encoded
from tests.unit.models.samples import make_model, model_config, moe_config


def test_every_member_sees_its_own_tasks_tokens_once() -> None:
    config = model_config(moe_config("task", layers="all", experts_per_task_group=1))
    grouping = TaskGrouping.one_per_task(3, 2)
    model = make_model(config, partitions=grouping.layers, shape=resolve_shape(config, 4100, 0))
    probe = ProbeSet(encoded((60, 50, 40)), num_examples=100, seed=0)
    merges = (Merge(0, ((0,), (2,))), Merge(0, ((0,), (2,))), Merge(1, ((0,), (2,))))
    rows: dict[str, list[torch.Tensor]] = {"g0": [], "g1": [], "g2": []}
    for name, pool in model.encoder.layers[1].feed_forward.pools.items():
        pool.register_forward_pre_hook(lambda module, inputs, name=name: rows[name].append(inputs[0]))
    found = member_grams(
        model, grouping, merges, probe=probe, model_layers=(0, 1), rank=0, num_ranks=1, device=torch.device("cpu")
    )
    assert set(found) == {(layer, (task,)) for layer in (0, 1) for task in (0, 2)}
    tokens = [0, 0, 0]
    for index in range(probe.num_batches):
        batch = probe.batch(index)
        for task, length in zip(batch.task_ids_B.tolist(), batch.attention_mask_BS.sum(dim=1).tolist(), strict=True):
            tokens[task] += length
    for (layer, (task,)), (grams,) in found.items():
        assert grams.inputs.shape == (17, 17)
        assert grams.hidden.shape == (33, 33)
        assert grams.inputs[-1, -1] == grams.hidden[-1, -1] == tokens[task]
        if layer == 1:
            torch.testing.assert_close(grams.inputs, input_gram(torch.cat(rows[f"g{task}"]), bias=True))
