"""Generation with experts or slices on two ranks: ranks that have finished, or have nothing to do, run along."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from distmoe.models.generation import Prompt, generate
from distmoe.models.tensor_parallel import cut_over_tensor_ranks
from distmoe.parallel.process_groups import create, single_process
from tests.distributed.harness import run_ranks
from tests.distributed.parity import TWO, Case, build, grouping_of, placement_of

CASE = Case(name="generation", head="per_task", ep_size=2, partitions=TWO)
SLICED = Case(name="generation, slices", head="shared", tensor=2)
# Rank 1 has a prompt whose answer ends at once, rank 0 three that go on, of tasks of both task groups.
PROMPTS = [[Prompt([3, 1, 4], 0), Prompt([1], 2), Prompt([5, 9], 3)], [Prompt([2, 6], 1)]]
NEW_TOKENS = 5


def answers_of(rank: int, prompts: list[Prompt], end: int) -> list[list[int]]:
    model = build(CASE, create(placement_of(CASE)).hosting).eval()

    def all_finished(finished: bool) -> bool:
        flag = torch.tensor([float(finished)])
        dist.all_reduce(flag, op=dist.ReduceOp.MIN)
        return bool(flag.item())

    return generate(
        model,
        prompts,
        max_new_tokens=NEW_TOKENS,
        end_token_ids=[end],
        all_finished=all_finished,  # type: ignore[arg-type]
    )


def work(rank: int, end: int) -> list[list[list[int]]]:
    return [answers_of(rank, PROMPTS[rank], end), answers_of(rank, PROMPTS[0] if rank else [], end)]


@pytest.mark.slow
def test_two_ranks_answer_like_one_process() -> None:
    alone = build(CASE, single_process(grouping_of(CASE)).hosting).eval()
    first_of_rank_1 = generate(alone, PROMPTS[1], max_new_tokens=1)[0][0]  # type: ignore[arg-type]
    expected = [
        generate(alone, prompts, max_new_tokens=NEW_TOKENS, end_token_ids=[first_of_rank_1])  # type: ignore[arg-type]
        for prompts in PROMPTS
    ]
    assert expected[1] == [[]]
    assert max(map(len, expected[0])) > 1
    by_rank = run_ranks(work, 2, first_of_rank_1)
    assert [answers[0] for answers in by_rank] == expected
    assert [answers[1] for answers in by_rank] == [[], expected[0]]


def sliced_answers(rank: int) -> list[list[list[int]]]:
    groups = create(placement_of(SLICED), tensor=2)
    found = []
    for sequence in (False, True):
        model = build(SLICED, groups.hosting).eval()
        cut_over_tensor_ranks(model, groups.tensor, sequence=sequence)  # type: ignore[arg-type]
        found.append(generate(model, PROMPTS[0], max_new_tokens=NEW_TOKENS))  # type: ignore[arg-type]
    return found


@pytest.mark.slow
def test_two_tensor_ranks_answer_like_one_process() -> None:
    """Each has the keys and values of half the heads in its cache; three rows of one token are dealt to two ranks."""
    alone = build(SLICED, single_process(grouping_of(SLICED)).hosting).eval()
    expected = generate(alone, PROMPTS[0], max_new_tokens=NEW_TOKENS)  # type: ignore[arg-type]
    assert run_ranks(sliced_answers, 2) == [[expected, expected]] * 2
