"""Losses of tasks whose answers are tokens: on targets only, counted by target token."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from distmoe.data.batch import NO_LOSS, TaskBatch
from distmoe.models.decoder_config import DecoderConfig
from distmoe.models.output import TokenOutput
from distmoe.models.routed_positions import token_context
from distmoe.moe.config import MoEConfig
from distmoe.tasks import TaskGrouping, TaskSet, TaskSpec
from distmoe.training.evaluate import evaluate
from distmoe.training.metrics import score_tokens
from distmoe.training.objective import Objective
from tests.unit.models.decoder_samples import TASKS, decoder_config, make_decoder, token_batch

DENSE = TaskGrouping(len(TASKS), ())
# Probabilities of four tokens at every position; token 1 is the most probable.
PROBS = torch.tensor([0.25, 0.5, 0.125, 0.125])


def answer(batch: TaskBatch) -> TokenOutput:
    logits_TV = PROBS.log().expand(len(batch.token_index_T), -1).clone().requires_grad_()
    context = token_context(batch)
    return TokenOutput(logits_TV, batch.token_index_T, context.sequence_ids_T, (), context)


def rows(labels: list[list[int]], task_ids: list[int]) -> TaskBatch:
    """Rows of three tokens with these labels."""
    batch = token_batch([3] * len(labels), task_ids)
    return replace(batch, labels_BS=torch.tensor(labels))


LABELS = [[NO_LOSS, 1, 0], [2, NO_LOSS, NO_LOSS], [NO_LOSS] * 3]


def test_a_row_weighs_its_mean_over_targets_and_tasks_are_counted_by_target() -> None:
    """In bits: row 0 has 1 and 2, row 1 has 3, row 2 no target. Weights 0.5, 0.25, 0.25."""
    batch = replace(rows(LABELS, [0, 1, 1]), loss_weights_B=torch.tensor([0.5, 0.25, 0.25]))
    output = answer(batch)
    losses = Objective(TASKS, DENSE, weights=None)(output, batch)
    bits = losses.total.item() / math.log(2)
    assert bits == pytest.approx(0.5 * 1.5 + 0.25 * 3, abs=1e-6)
    assert (losses.sum_by_task_N / math.log(2)).tolist() == pytest.approx([3, 3, 0], abs=1e-6)
    assert losses.count_by_task_N.tolist() == [2, 1, 0]
    assert losses.finite.item() == 1
    losses.total.backward()
    without_target = torch.tensor(LABELS).flatten() == NO_LOSS
    assert torch.equal(output.logits_LV.grad.abs().sum(1) == 0, without_target)


def test_padding_is_no_target_whatever_its_label() -> None:
    batch = token_batch((3, 1), (0, 1))
    labelled = replace(batch, labels_BS=torch.ones(2, 3, dtype=torch.int64))
    assert Objective(TASKS, DENSE, weights=None)(answer(labelled), labelled).count_by_task_N.tolist() == [3, 1, 0]


@pytest.mark.parametrize("head", ["tied", "shared", "per_task"])
def test_answering_at_targets_only_changes_neither_losses_nor_gradients(head: str) -> None:
    """The oracle computes the logits of every real token; the last row has no target at all."""
    moe = MoEConfig(num_experts=2, top_k=1, layers=[1])
    config = decoder_config(moe, decoder=DecoderConfig(num_kv_heads=2, head=head))
    batch = token_batch((7, 3, 5, 1), (0, 1, 2, 1), prompts=(4, 2, 5, 1))
    assert batch.labels_BS is not None
    index_L = (batch.labels_BS.flatten() != NO_LOSS).nonzero().squeeze(1)
    found = []
    for chosen in (batch, replace(batch, target_index_L=index_L)):
        model = make_decoder(config)
        output = model(chosen)
        losses = Objective(TASKS, TaskGrouping.from_partitions(3, [[range(3)]]), weights=None)(output, chosen)
        losses.total.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        found.append((output, losses, gradients))
    (all_output, all_losses, all_gradients), (output, losses, gradients) = found
    assert len(output.logits_LV) == len(index_L) < len(all_output.logits_LV)
    kept = torch.isin(all_output.index_L, index_L)
    torch.testing.assert_close(output.logits_LV, all_output.logits_LV[kept], atol=1e-6, rtol=0)
    torch.testing.assert_close(losses.total, all_losses.total, atol=1e-6, rtol=0)
    assert losses.count_by_task_N.tolist() == all_losses.count_by_task_N.tolist()
    for name, gradient in all_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-6, rtol=0, msg=name)


class Fixed:
    """Answers every batch with the same probabilities."""

    device = torch.device("cpu")

    def __call__(self, batch: TaskBatch) -> Any:
        return answer(batch)

    def eval_mode(self) -> None: ...

    def train_mode(self) -> None: ...


def test_evaluation_is_over_target_tokens_not_over_examples() -> None:
    """Task 0: targets 1, 0 and 1: two of three right, perplexity 2^(4/3). Task 1: target 2, perplexity 8."""
    batches = [
        replace(rows(LABELS[:2], [0, 1]), example_ids_B=torch.tensor([0, 0])),
        replace(rows([[1, NO_LOSS, NO_LOSS]], [0]), example_ids_B=torch.tensor([1])),
    ]
    found = evaluate(Fixed(), batches, split="validation", tasks=TASKS, sizes=(2, 1, 0)).tasks
    assert [row.num_examples for row in found] == [2, 1]
    assert found[0].score == pytest.approx(2 / 3)
    assert math.exp(found[0].loss) == pytest.approx(2 ** (4 / 3), abs=1e-5)
    assert (found[1].score, math.exp(found[1].loss)) == (pytest.approx(1 / 8, abs=1e-6), pytest.approx(8, abs=1e-4))


def test_a_score_without_target_or_with_an_infinite_loss_is_zero() -> None:
    spec = TaskSpec(name="t", kind="language_modeling", metric="inverse_perplexity")
    assert score_tokens(spec, 0, 0, math.nan) == 0
    assert score_tokens(spec, 0, 3, math.inf) == 0
    assert score_tokens(spec, 1, 2, math.log(4)) == pytest.approx(0.25)
    assert TaskSet((spec,)).max_outputs == 0
